"""What a fine-tune reads: the task's rows, guard data for the method, and items for the monitor, none in two of them.

Suites are split jointly, so that neither a text nor a near-duplicate of one is both learned and looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from guardkeel.errors import DataError
from guardkeel.evaluation.suites import Suite, SuiteItem, load_suite, split_many
from guardkeel.records import value_digest
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.data import TuningData, data_file, read_file, suite_data
from guardkeel.tuning.learner import ClassifierLearner, Learner
from guardkeel.tuning.lessons import Lesson, classifier_lessons, guard_lessons, instruction_lessons
from guardkeel.tuning.targets import Instruction, Target

Watch = Callable[[str, int, int | None], None]
Row = TypeVar("Row", bound=Target | Instruction | SuiteItem)


@dataclass(frozen=True)
class Gathered:
    """`task` is learned, `aside` is kept to measure that, `guard` is what a method looks at, `monitor` the monitor."""

    task: Sequence[Target | Instruction]
    aside: Sequence[Target | Instruction]
    guard: Sequence[Target] = ()
    monitor: Sequence[SuiteItem] = ()
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "task rows": len(self.task),
            "rows kept aside": len(self.aside),
            "guard data": len(self.guard),
            "monitor items": len(self.monitor),
        }


def gather(config: TuneConfig, watch: Watch) -> Gathered:
    """Read, split and choose. Which rows are chosen follows from their ids.

    Raises:
        DataError, ConfigError, ResourceError: naming what cannot be read.
    """
    kind = None if config.kind == "auto" else config.kind
    files: dict[str, TuningData] = {}
    suites: dict[str, Suite] = {}
    for name in dict.fromkeys([*config.data, *config.guard_data, *config.monitor]):
        path = data_file(name, offline=config.offline, progress=watch)
        if path is not None and name not in config.monitor:
            mine = kind if name in config.data else "guard"
            files[name] = read_file(path, kind=mine, source=config.source if name in config.data else None)
        else:
            suites[name] = load_suite(name, data=config.data_folder, offline=config.offline, progress=watch)
    suites = dict(zip(suites, split_many(list(suites.values())), strict=True))

    def read(name: str, source: str | None = None) -> TuningData:
        return files[name] if name in files else suite_data(suites[name], source=source)

    domain = [read(name, config.source) for name in config.data]
    if len({d.kind for d in domain}) > 1:
        raise DataError(
            f"{', '.join(config.data)}: guard conversations and instructions in one run",
            remedy="tune on one, then on the other",
        )
    rows = _first([row for d in domain for row in (*d.targets, *d.instructions)], config.most)
    guard = [read(name) for name in config.guard_data]
    for name, found in zip(config.guard_data, guard, strict=True):
        if found.kind != "guard":
            raise DataError(f"{name}: guard data need labels, these are instructions", remedy="label them")
    items = [
        item
        for name in config.monitor
        for item in _first(suites[name].items("calibrate"), config.monitor_items)
    ]
    aside = set(map(_id, _first(rows, round(config.held_out * len(rows)))))
    digests = {f"data {name}": d.digest for name, d in zip(config.data, domain, strict=True)}
    digests |= {f"guard data {name}": d.digest for name, d in zip(config.guard_data, guard, strict=True)}
    digests |= {f"monitor {name}": suites[name].digest for name in config.monitor}
    return Gathered(
        task=[row for row in rows if _id(row) not in aside],
        aside=[row for row in rows if _id(row) in aside],
        guard=balanced([t for d in guard for t in d.targets], config.guard_items),
        monitor=items,
        digests=digests | {"rows": value_digest([_id(row) for row in rows])},
    )


def balanced(targets: Sequence[Target], most: int) -> list[Target]:
    """At most `most` targets, as many safe as unsafe where there are enough of both."""
    sides = [[t for t in targets if t.label == label] for label in ("unsafe", "safe")]
    few = min(map(len, sides))
    room = [min(len(side), max(most // 2, most - few)) for side in sides]
    return [t for side, n in zip(sides, room, strict=True) for t in _first(side, n)]


def encoded(gathered: Gathered, learner: Learner, max_tokens: int) -> list[list[Lesson]]:
    """Lessons of the task, of the rows kept aside and of the guard data, for this guard."""
    guard_rows = [t for t in (*gathered.guard, *gathered.task, *gathered.aside) if isinstance(t, Target)]
    if isinstance(learner, ClassifierLearner):
        for row in (*gathered.task, *gathered.aside):
            if isinstance(row, Instruction):
                raise DataError(
                    f"instruction {row.id!r}: a classifier cannot learn answers",
                    remedy="give labelled guard conversations",
                )
        return [
            classifier_lessons([t for t in rows if isinstance(t, Target)], learner.guard)
            for rows in (gathered.task, gathered.aside, gathered.guard)
        ]
    if learner.sharing and guard_rows:
        learner.encoder.share([t.judgement for t in guard_rows])
    made = []
    for rows in (gathered.task, gathered.aside, gathered.guard):
        made.append(
            guard_lessons([t for t in rows if isinstance(t, Target)], learner.encoder, learner.tokenizer)
            + instruction_lessons(
                [i for i in rows if isinstance(i, Instruction)], learner.tokenizer, max_tokens
            )
            if rows
            else []
        )
    return made


def _id(row: Target | Instruction | SuiteItem) -> str:
    return row.id if isinstance(row, Instruction) else row.judgement.id


def _first(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most `most` rows, chosen by their ids and kept in their order."""
    if most is None or len(rows) <= most:
        return list(rows)
    chosen = set(
        sorted(
            range(len(rows)), key=lambda i: hashlib.sha256(_id(rows[i]).encode("utf-8", "replace")).digest()
        )[:most]
    )
    return [row for i, row in enumerate(rows) if i in chosen]
