"""A juror: who it is, and how its verdicts become votes. Opened without loading weights or asking a server.

An ordinary chat model is a juror by its server's file (guards/remote/config.py) with api = "chat" and a family whose
prompt is plain text, such as family = "nemoguard": task, categories, conversation, and JSON in answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from guardkeel.conversation import SIDES, Label, Side
from guardkeel.curation.config import JurorConfig, Price
from guardkeel.curation.mapping import home_names
from guardkeel.curation.rows import Vote
from guardkeel.engines.opening import open_guard
from guardkeel.engines.settings import EngineSettings
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.leaderboard.asking import identity
from guardkeel.evaluation.leaderboard.config import GuardEntry
from guardkeel.evaluation.suites.readers import read_rows
from guardkeel.guards.base import Guard, Verdict
from guardkeel.guards.kinds import kind_of
from guardkeel.guards.load import load_guard
from guardkeel.records import file_digest, value_digest

Kind = Literal["server", "local", "recorded"]
Watch = Callable[[str, int, int | None], None]

ABSENT = "not in the recorded file"


@dataclass(slots=True)
class Juror:
    """One judge. `identity` is a digest of all that its verdicts follow from; `recorded` holds votes by item id."""

    name: str
    kind: Kind
    identity: str
    threshold: float
    unsure: tuple[float, float] | None = None
    price: Price = field(default_factory=Price)
    recorded: Mapping[tuple[str, Side], Verdict] = field(default_factory=dict)
    entry: GuardEntry | None = None
    offline: bool | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    _guard: Any = None

    def guard(self, watch: Watch | None = None) -> Guard:
        """The guard itself, loaded when first asked for."""
        if self._guard is None:
            assert self.entry is not None
            options = self.entry.options()
            self._guard = open_guard(
                self.engine, self.entry.reference, **options, offline=self.offline, progress=watch
            )
            self.threshold = self._guard.threshold
        guard: Guard = self._guard
        return guard

    def close(self) -> None:
        """Let go of the guard's memory."""
        self._guard = None

    def vote(self, verdict: Verdict) -> Vote:
        """The vote of a verdict: an abstention where it is unscored, or where the juror is unsure."""
        chance = verdict.unsafe
        if chance is None:
            return Vote(self.name, None, reason=verdict.unscored, dropped=verdict.dropped)
        if self.unsure and self.unsure[0] < chance < self.unsure[1]:
            return Vote(self.name, None, chance, reason="unsure", dropped=verdict.dropped)
        label: Label = "unsafe" if chance >= self.threshold else "safe"
        named = home_names(verdict.categories) if label == "unsafe" else ()
        return Vote(self.name, label, chance, named, dropped=verdict.dropped)


def open_jurors(
    configs: Sequence[JurorConfig],
    *,
    offline: bool | None = None,
    watch: Watch | None = None,
    engine: EngineSettings | None = None,
) -> list[Juror]:
    """The jurors, in order; no weights are loaded and nobody is asked. `engine` runs the guards whose weights are here.

    Raises:
        ConfigError: a juror cannot be opened, or two have one name. ResourceError, DataError: a file cannot be had.
    """
    found = [
        _recorded(c) if c.recorded else _guard(c, offline, watch, engine or EngineSettings()) for c in configs
    ]
    names = [j.name for j in found]
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"two jurors are named {twice!r}", remedy="give one of them a name of its own")
    return found


def _guard(config: JurorConfig, offline: bool | None, watch: Watch | None, engine: EngineSettings) -> Juror:
    entry = GuardEntry(
        reference=config.guard,
        name=config.name,
        family=config.family,
        threshold=config.threshold,
        policy=config.policy,
    )
    if kind_of(config.guard, progress=watch, offline=offline) == "server":
        guard = load_guard(config.guard, **entry.options(), offline=offline, progress=watch)
        who = value_digest(["server", guard.family, guard.facts])
        return Juror(
            config.name or guard.name, "server", who, guard.threshold, config.unsure, config.price,
            entry=entry, offline=offline, _guard=guard,
        )  # fmt: skip
    mark = engine.engine_mark()
    who = value_digest(["local", identity(entry, offline, watch)[1], *([mark] if mark else [])])
    threshold = config.threshold if config.threshold is not None else 0.5
    return Juror(
        config.name or _short(config.guard), "local", who, threshold, config.unsure,
        config.price, entry=entry, offline=offline, engine=engine,
    )  # fmt: skip


def _short(reference: str) -> str:
    name = Path(reference).name or reference
    return name.removesuffix(".toml")


def _recorded(config: JurorConfig) -> Juror:
    path = Path(config.recorded)
    votes: dict[tuple[str, Side], Verdict] = {}
    for raw in read_rows(path):
        try:
            key, verdict = _said(raw.fields)
        except DataError as e:
            raise DataError(f"{raw.where}: {e.problem}", remedy=e.remedy) from e
        if votes.setdefault(key, verdict) != verdict:
            raise DataError(
                f"{raw.where}: {key[0]!r}, side {key[1]}, is there twice with different votes",
                remedy="one juror gives one vote: part the file by judge",
            )
    return Juror(
        config.name or path.name.split(".")[0],
        "recorded",
        file_digest(path),
        0.5 if config.threshold is None else config.threshold,
        config.unsure,
        recorded=votes,
    )


def _said(fields: Mapping[str, Any]) -> tuple[tuple[str, Side], Verdict]:
    """One recorded vote: {"id", "side", "label" or "unsafe", "categories", "reason"}; "id" may end in #side."""
    whole = str(fields.get("id", ""))
    bare, _, ending = whole.rpartition("#")
    side: Any = fields.get("side") or (ending if ending in SIDES else "prompt")
    identity = bare if ending in SIDES else whole
    if not identity or side not in SIDES:
        raise DataError(
            f"no id and side in a recorded vote: {whole!r:.80}, {side!r:.20}", remedy="give id and side"
        )
    chance, label = fields.get("unsafe"), fields.get("label")
    if chance in (None, "") and label in ("safe", "unsafe"):
        chance = 1.0 if label == "unsafe" else 0.0
    elif label not in (None, "", "safe", "unsafe"):
        raise DataError(f"unknown label {label!r:.80}", remedy="labels are safe, unsafe and null")
    named = fields.get("categories") or ()
    names = tuple(named.split(",")) if isinstance(named, str) else tuple(named)
    if chance in (None, ""):
        return (identity, side), Verdict(None, str(fields.get("reason") or "abstained"))
    try:
        value = float(str(chance))
        return (identity, side), Verdict(value, categories=names if value > 0 else ())
    except ValueError as e:
        raise DataError(
            f"unsafe must be a number in [0, 1], not {chance!r:.40}", remedy="repair the file"
        ) from e
