"""What a leaderboard will need, said before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel

from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.estimate import estimate
from guardkeel.evaluation.leaderboard.config import GuardEntry, LeaderboardConfig
from guardkeel.evaluation.selection import select
from guardkeel.evaluation.suites import SuiteItem, load_suite
from guardkeel.guards.kinds import kind_of, other_digest
from guardkeel.guards.load import describe, guard_path

Watch = Callable[[str, int, int | None], None]
KINDS = {
    "server": "a server answers at its own speed",
    "bridge": "run by any-guardrail",
    "linear": "a linear guard: thousands of items a second",
    "rules": "a rule list: thousands of items a second",
}


class ColumnPlan(BaseModel):
    """Items of one side of one suite."""

    suite: str
    side: str
    test: int
    test_unsafe: int
    calibrate: int


class GuardPlan(BaseModel):
    """One guard in numbers: memory in bytes, time in seconds; None, and a note, where they cannot be foretold."""

    name: str
    reference: str
    parameters: int | None = None
    dtype: str = ""
    device: str = ""
    tokens: int | None = None
    memory: int | None = None
    seconds: float | None = None
    note: str = ""


class LeaderboardPlan(BaseModel):
    """A leaderboard in numbers. `seconds` is the sum over the guards whose time is known."""

    columns: list[ColumnPlan]
    guards: list[GuardPlan]
    imported: list[str]
    items: int
    seconds: float
    unknown: int


def plan(config: LeaderboardConfig, watch: Watch = lambda what, done, total: None) -> LeaderboardPlan:
    """Load the suites and look at the guards without loading one; what would stop the run at once stops here too."""
    suites = [load_suite(s, data=config.data, offline=config.offline, progress=watch) for s in config.suites]
    items = select(suites, limit=config.limit)
    guards = [_guard(entry, config, items, watch) for entry in config.entries()]
    return LeaderboardPlan(
        columns=_columns(items),
        guards=guards,
        imported=[i.name or i.file for i in config.imported],
        items=len(items),
        seconds=sum(g.seconds or 0.0 for g in guards),
        unknown=sum(g.seconds is None for g in guards),
    )


def _columns(items: Sequence[SuiteItem]) -> list[ColumnPlan]:
    found: dict[tuple[str, str], ColumnPlan] = {}
    for item in items:
        key = item.suite, item.side
        one = found.setdefault(
            key, ColumnPlan(suite=item.suite, side=item.side, test=0, test_unsafe=0, calibrate=0)
        )
        if item.split == "test":
            one.test += 1
            one.test_unsafe += item.label == "unsafe"
        else:
            one.calibrate += 1
    return list(found.values())


def _guard(
    entry: GuardEntry, config: LeaderboardConfig, items: Sequence[SuiteItem], watch: Watch
) -> GuardPlan:
    try:
        kind = kind_of(entry.reference, progress=watch, offline=config.offline)
        if kind != "checkpoint":
            other_digest(
                kind, entry.reference, progress=watch, offline=config.offline
            )  # what is wrong shows here
            return GuardPlan(name=entry.label, reference=entry.reference, note=KINDS[kind])
        path = guard_path(entry.reference, progress=watch, offline=config.offline)
        encoder, folder = describe(path, entry.reference, family=entry.family, max_tokens=entry.max_tokens)
        found = estimate(
            folder,
            items,
            guards=1,
            loaded=1,
            encoder=encoder,
            dtype=entry.dtype or "auto",
            device=entry.device or "auto",
            token_budget=entry.token_budget or 2048,
        )
    except GuardkeelError as e:
        return GuardPlan(name=entry.label, reference=entry.reference, note=e.problem)
    return GuardPlan(
        name=entry.label,
        reference=entry.reference,
        **found.model_dump(include={"parameters", "dtype", "device", "tokens", "memory", "seconds"}),
    )
