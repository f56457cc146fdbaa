"""A leaderboard from its configuration: guard after guard into a run directory, then one table.

    out/verdicts/01-name.jsonl   one verdict a line, in the order of items.jsonl
    out/items.jsonl              what was judged, by id and digest; no texts
    out/table.csv, speed.csv     the table for other programs
    out/run.json                 the record, written last
    out/progress/, plan.json     while there is something left to do

A guard that fails is in the table with its reason; `progress/` then stays, and repeating the command asks the failed
guards again and no other.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.engines.opening import open_guard
from guardkeel.engines.settings import ENGINE_FIELDS
from guardkeel.errors import ConfigError
from guardkeel.evaluation.leaderboard.asking import Load, Watch, ask, discard, role_of
from guardkeel.evaluation.leaderboard.config import GuardEntry, LeaderboardConfig, read_config
from guardkeel.evaluation.leaderboard.files import write_items, write_table
from guardkeel.evaluation.leaderboard.joining import join
from guardkeel.evaluation.leaderboard.judged import Failed, Info, Items, Judged
from guardkeel.evaluation.leaderboard.results import LeaderboardResults
from guardkeel.evaluation.leaderboard.table import tabulate
from guardkeel.evaluation.selection import meta, select, suite_infos
from guardkeel.evaluation.suites import Suite, SuiteItem, load_suite
from guardkeel.guards.base import Guard
from guardkeel.records import (
    RunRecord,
    claim,
    file_digest,
    toml_text,
    value_digest,
    write_record,
    write_text,
)
from guardkeel.resources import digest as folder_digest


def leaderboard(guards: Sequence[str], *, out: str | Path, **config: Any) -> LeaderboardResults:
    """Judge the same labelled conversations with several guards, and put them into one table.

    Args:
        guards: names, folders or references, as guardkeel audit takes them.
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of LeaderboardConfig: suites, limit, fixed_fpr, against, …

    Returns:
        The results, which are also in out/run.json. Guards that failed are among them, with the reason.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    return run(read_config(None, guards, config), Path(out))


def run(
    config: LeaderboardConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    load: Load | None = None,
    watch: Watch = lambda what, done, total: None,
) -> LeaderboardResults:
    """Run, or resume, the leaderboard of a configuration in a folder; `load` makes a guard of its entry."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    suites = [load_suite(s, data=config.data, offline=config.offline, progress=watch) for s in config.suites]
    items = select(suites, limit=config.limit)
    imported = _imported(config, items)
    against = _against(config, [_name(g) for g in imported])
    inputs = _inputs(config, suites)
    claim(
        folder,
        value_digest([inputs, config.record(), [i.judgement.id for i in items]]),
        begun="progress/*",
    )
    write_text(folder / "config.toml", toml_text(config.record()))
    write_items(folder / "items.jsonl", items)
    (folder / "progress").mkdir(exist_ok=True)

    found: list[Judged | Failed] = []
    names: set[str] = {_name(g) for g in imported}
    for number, entry in enumerate(config.entries(), 1):
        one = ask(
            number,
            entry,
            items,
            folder,
            load or _loader(config, watch),
            watch,
            probe=config.probe,
            seed=config.seed,
            offline=config.offline,
            mark=config.engine_mark(),
        )
        found.append(_named(one, entry, names))
    found += imported
    own_name = {k: _name(g) for k, g in enumerate(found)}
    results = tabulate(
        found,
        Items([meta(i) for i in items], np.array([i.split == "test" for i in items], dtype=np.bool_)),
        suite_infos(suites, items),
        against=None if against is None else own_name[against],
        rank_by=config.rank_by,
        fixed_fpr=config.fixed_fpr,
        min_items=config.min_items,
        draws=config.draws,
        seed=config.seed,
        watch=watch,
    )
    write_table(folder, results)
    ran = config.model_dump(mode="json", include=ENGINE_FIELDS) if config.engine != "local" else {}
    inputs |= {f"guard {g.name}": g.digest for g in results.guards if g.digest and g.origin == "guardkeel"}
    record = RunRecord.finished(
        verb="leaderboard",
        started_at=started_at,
        command=list(command),
        inputs=inputs,
        config=config.record() | ran,
        seeds={"seed": config.seed},
        timings={"total": time.perf_counter() - started}
        | {f"score {g.name}": g.speed.seconds for g in results.guards if g.speed},
        counts={"items": len(items), "guards": len(found), "failed": len(failed(results))},
        results=results.model_dump(mode="json"),
        not_measured=_not_measured(results),
    )
    write_record(folder, record)
    _clear(folder, [k for k, _ in enumerate(config.guard) if own_name[k] in failed(results)])
    return results


def failed(results: LeaderboardResults) -> list[str]:
    """The names of the guards that gave no verdicts."""
    return [g.name for g in results.guards if g.status == "failed"]


def _loader(config: LeaderboardConfig, watch: Watch) -> Load:
    engine = config.engine_settings()

    def load(entry: GuardEntry) -> Guard:
        return open_guard(engine, entry.reference, offline=config.offline, progress=watch, **entry.options())

    return load


def _clear(folder: Path, dead: Iterable[int]) -> None:
    """Nothing of an unfinished run stays but for guards that failed, which the next run asks anew."""
    again = list(dead)
    for index in again:
        discard(folder, role_of(index + 1))
    if not again:
        shutil.rmtree(folder / "progress", ignore_errors=True)
        (folder / "plan.json").unlink(missing_ok=True)


def _named(one: Judged | Failed, entry: GuardEntry, names: set[str]) -> Judged | Failed:
    """The same under a name that no other guard of the table has."""
    wanted = one.info.name if isinstance(one, Judged) else one.name
    name = next(n for n in (wanted, *(f"{wanted} ({k})" for k in range(2, 10_000))) if n not in names)
    names.add(name)
    if isinstance(one, Failed):
        return Failed(name, entry.reference, one.reason)
    return Judged(Info(**(asdict(one.info) | {"name": name})), one.verdicts, one.timing, one.own, one.notes)


def _imported(config: LeaderboardConfig, items: Sequence[SuiteItem]) -> list[Judged | Failed]:
    """The guards of other tools' results; one guard's results on several suites become one row."""
    if not config.imported:
        return []
    from guardkeel.evaluation.imports import read_all

    found: list[Judged | Failed] = []
    for entry in config.imported:
        parts = read_all(entry.file, entry.reading)
        named = list(dict.fromkeys(p.name for p in parts))
        if entry.name and len(named) > 1:
            raise ConfigError(
                f"{entry.file}: holds results of {len(named)} guards: {', '.join(named[:8])}",
                remedy="leave its name out, and each is called as the file calls it",
            )
        for name in named:
            mine = [p for p in parts if p.name == name]
            found.append(
                join(mine, items, name=entry.name or name, file=entry.file, threshold=entry.threshold)
            )
    names = [_name(g) for g in found]
    twice = next((n for k, n in enumerate(names) if n in names[:k]), None)
    if twice is not None:
        raise ConfigError(
            f"two imported results are called {twice!r}", remedy="give each [[imported]] its own name"
        )
    return found


def _name(guard: Judged | Failed) -> str:
    return guard.info.name if isinstance(guard, Judged) else guard.name


def _against(config: LeaderboardConfig, imported: Sequence[str]) -> int | None:
    """Which of the guards the others are compared with; None: the first in rank."""
    if config.against is None:
        return None
    for k, entry in enumerate(config.guard):
        if config.against in (entry.label, entry.reference):
            return k
    if config.against in imported:
        return len(config.guard) + list(imported).index(config.against)
    known = [*(e.label for e in config.guard), *imported]
    raise ConfigError(
        f"against = {config.against!r}: no guard of this leaderboard is called so",
        remedy=f"guards are {', '.join(known)}",
    )


def _inputs(config: LeaderboardConfig, suites: Sequence[Suite]) -> dict[str, str]:
    found = {f"suite {s.name}": s.digest for s in suites}
    files = {f"policy {e.policy}": e.policy for e in config.guard if e.policy}
    found |= {k: file_digest(path) for k, path in files.items() if Path(path).is_file()}
    for entry in config.imported:
        path = Path(entry.file)
        found[f"imported {path}"] = file_digest(path) if path.is_file() else folder_digest(path)
    return found


def _not_measured(results: LeaderboardResults) -> list[str]:
    """In words, what a reader could expect and will not find."""
    notes = [f"{g.name}: {g.reason}" for g in results.guards if g.status == "failed"]
    for metric, columns in results.not_averaged.items():
        notes += [
            f"{metric} of {column} is not averaged: {name} has none" for column, name in columns.items()
        ]
    for side in ("prompt", "response", "trajectory"):
        if not any(c.side == side for c in results.columns):
            notes.append(f"{side} side: no suite has labels for it")
    if results.guards and all(g.categories is None for g in results.guards):
        notes.append("categories: no guard named any")
    if all(g.speed is None or g.speed.alone is None for g in results.guards):
        notes.append("latency of single items: not asked for (probe = 0)")
    return notes
