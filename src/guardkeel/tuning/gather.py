"""What a fine-tune reads: the task's rows, guard data for the method, and items for the monitor, none in two of them.

Suites are split jointly, so that neither a text nor a near-duplicate of one is both learned and looked at. Files are
used whole: their rows whose very text the monitor looks at, and guard data that the task holds, are left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from guardkeel.conversation import Example
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites import Suite, SuiteItem, load_suite, split_many
from guardkeel.evaluation.suites.near_duplicates import UnionFind
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.evaluation.suites.suite import judged_texts
from guardkeel.records import value_digest
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.data import TuningData, data_file, read_file, suite_data
from guardkeel.tuning.learner import CausalLearner, ClassifierLearner, Learner
from guardkeel.tuning.lessons import Lesson, classifier_lessons, guard_lessons, instruction_lessons
from guardkeel.tuning.targets import Instruction, Target

AUTO = "auto"
GUARD_DATA = ("keel-anchor",)
MONITOR = ("keel-anchor", "advbench", "do-not-answer", "keel-domain", "keel-contrast")
AGENTS = ("keel-anchor-agents",)
"""Of trajectories, in both lists where such are learned: their scores slide on their own."""

Watch = Callable[[str, int, int | None], None]
Task = Target | Instruction
Row = TypeVar("Row", bound=Task | SuiteItem)


@dataclass(frozen=True)
class Gathered:
    """`task` is learned, `aside` is kept to measure that, `guard` is what a method looks at, `monitor` the monitor."""

    task: Sequence[Task]
    aside: Sequence[Task]
    guard: Sequence[Target] = ()
    monitor: Sequence[SuiteItem] = ()
    digests: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    """Rows of the task and guard data whose text is in another of these."""

    @property
    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {
            "task rows": len(self.task),
            "rows kept aside": len(self.aside),
            "guard data": len(self.guard),
            "monitor items": len(self.monitor),
            "left out as repeated": self.left_out,
        }


@dataclass(frozen=True)
class Sources:
    """What was read of a configuration's data, by the names it has there. Suites are yet to be split jointly.

    `guard_data` and `monitor` are the configuration's, with "auto" written out.
    """

    files: dict[str, TuningData]
    suites: dict[str, Suite]
    guard_data: tuple[str, ...]
    monitor: tuple[str, ...]


def gather(config: TuneConfig, watch: Watch) -> Gathered:
    """Read, split and choose. Which rows are chosen follows from their ids.

    Raises:
        DataError, ConfigError, ResourceError: naming what cannot be read.
    """
    sources = read(config, watch)
    together = split_many(list(sources.suites.values()))
    return choose(config, replace(sources, suites=dict(zip(sources.suites, together, strict=True))))


def gather_beside(config: TuneConfig, audited: Sequence[str], watch: Watch) -> Gathered:
    """What a fine-tune reads when these suites are audited then: no item of theirs is both learned and judged.

    They are split as the audit will split them, and whatever else resembles one of their items goes where it goes.
    """
    sources = read(config, watch)
    loaded = [
        load_suite(name, data=config.data_folder, offline=config.offline, progress=watch) for name in audited
    ]
    pinned = {s.name: replace(s, declared=s.splits, joint=None) for s in split_many(loaded)}
    others = [s for s in sources.suites.values() if s.name not in pinned]
    together = {s.name: s for s in split_many([*pinned.values(), *others])}
    suites = {name: together[s.name] for name, s in sources.suites.items()}
    return choose(config, replace(sources, suites=suites))


def read(config: TuneConfig, watch: Watch) -> Sources:
    """Read what the configuration names."""
    kind = None if config.kind == "auto" else config.kind
    files: dict[str, TuningData] = {}
    suites: dict[str, Suite] = {}

    def take(name: str) -> None:
        path = data_file(name, offline=config.offline, progress=watch)
        if path is not None and name not in config.monitor:
            mine = kind if name in config.data else "guard"
            files[name] = read_file(path, kind=mine, source=config.source if name in config.data else None)
        else:
            suites[name] = load_suite(name, data=config.data_folder, offline=config.offline, progress=watch)

    for name in dict.fromkeys(config.data):
        take(name)
    agents = AGENTS if _has_trajectories(files, suites) else ()
    guard_data = _written_out(config.guard_data, (*GUARD_DATA, *agents))
    monitor = _written_out(config.monitor, (*MONITOR, *agents))
    for name in dict.fromkeys([*guard_data, *monitor]):
        if name not in files and name not in suites:
            take(name)
    return Sources(files, suites, guard_data, monitor)


def _written_out(names: Sequence[str], auto: tuple[str, ...]) -> tuple[str, ...]:
    found = (mine for name in names for mine in (auto if name == AUTO else (name,)))
    return tuple(dict.fromkeys(found))


def _has_trajectories(files: dict[str, TuningData], suites: dict[str, Suite]) -> bool:
    learned = (t.judgement.side for data in files.values() for t in data.targets)
    return "trajectory" in {
        *learned,
        *(side for s in suites.values() for e in s.examples for side in e.labels),
    }


def choose(config: TuneConfig, sources: Sources) -> Gathered:
    """Choose among what was read, whose suites share no text by now."""
    suites = sources.suites

    def rows_of(name: str, source: str | None = None) -> TuningData:
        return sources.files[name] if name in sources.files else suite_data(suites[name], source=source)

    domain = [rows_of(name, config.source) for name in config.data]
    if len({d.kind for d in domain}) > 1:
        raise DataError(
            f"{', '.join(config.data)}: guard conversations and instructions in one run",
            remedy="tune on one, then on the other",
        )
    listed: list[Task] = []
    for d in domain:
        listed += [*d.targets, *d.instructions]
    rows = first(listed, config.most)
    guard = [rows_of(name) for name in sources.guard_data]
    for name, found in zip(sources.guard_data, guard, strict=True):
        if found.kind != "guard":
            raise DataError(f"{name}: guard data need labels, these are instructions", remedy="label them")
    items = [
        item
        for name in sources.monitor
        for item in first(suites[name].items("calibrate"), config.monitor_items)
    ]
    seen = {text for item in items for text in _texts(item)}
    new = [row for row in rows if seen.isdisjoint(_texts(row))]
    task, aside = _parted(new, config.held_out)
    if not task:
        raise DataError(
            f"{', '.join(config.data)}: of {len(rows)} rows {len(rows) - len(new)} are the monitor's and {len(aside)} "
            "kept aside, none is left to learn",
            remedy="give more rows, lower held_out, or choose other monitor suites",
        )
    seen |= {text for row in new for text in _texts(row)}
    anchors = [t for d in guard for t in d.targets]
    own = [t for t in anchors if seen.isdisjoint(_texts(t))]
    if anchors and not own:
        raise DataError(
            f"{', '.join(sources.guard_data)}: every row is in the task's data or looked at by the monitor",
            remedy="give guard data of their own, or other monitor suites",
        )
    digests = {f"data {name}": d.digest for name, d in zip(config.data, domain, strict=True)}
    digests |= {f"guard data {name}": d.digest for name, d in zip(sources.guard_data, guard, strict=True)}
    digests |= {f"monitor {name}": suites[name].digest for name in sources.monitor}
    return Gathered(
        task=task,
        aside=aside,
        guard=balanced(own, config.guard_items),
        monitor=items,
        digests=digests | {"rows": value_digest([_id(row) for row in rows])},
        left_out=len(rows) - len(new) + len(anchors) - len(own),
    )


def balanced(targets: Sequence[Target], most: int) -> list[Target]:
    """At most `most` targets, as many safe as unsafe where there are enough of both."""
    sides = [[t for t in targets if t.label == label] for label in ("unsafe", "safe")]
    few = min(map(len, sides))
    room = [min(len(side), max(most // 2, most - few)) for side in sides]
    return [t for side, n in zip(sides, room, strict=True) for t in first(side, n)]


def encoded(gathered: Gathered, learner: Learner, max_tokens: int) -> list[list[Lesson]]:
    """Lessons of the task, of the rows kept aside and of the guard data, for this guard.

    Guard data that this guard cannot be asked, or not within its longest input, are left out; a row of the task like
    that is an error.
    """
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

    def made(rows: Sequence[Task], strict: bool = True) -> list[Lesson]:
        judged = [row for row in rows if isinstance(row, Target)]
        answered = [row for row in rows if isinstance(row, Instruction)]
        lessons = guard_lessons(judged, learner.encoder, learner.tokenizer, strict) if judged else []
        return lessons + (instruction_lessons(answered, learner.tokenizer, max_tokens) if answered else [])

    anchors = made(gathered.guard, strict=False)
    if gathered.guard and not anchors:
        raise ConfigError(
            f"none of {len(gathered.guard)} guard conversations fits: {_why(gathered.guard[0], learner)}",
            remedy="raise max_tokens, or give other guard data",
        )
    return [made(gathered.task), made(gathered.aside), anchors]


def _why(row: Target, learner: CausalLearner) -> str:
    try:
        learner.encoder.encode(row.judgement)
    except ConfigError as e:
        return f"{row.judgement.id}: {e.problem}"
    return ""


def _id(row: Task | SuiteItem) -> str:
    return row.id if isinstance(row, Instruction) else row.judgement.id


def first(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most `most` rows, chosen by their ids and kept in their order."""
    if most is None or len(rows) <= most:
        return list(rows)
    chosen = set(_shuffled(rows)[:most])
    return [row for i, row in enumerate(rows) if i in chosen]


def _shuffled(rows: Sequence[Task | SuiteItem]) -> list[int]:
    """Indices in an order that follows from the ids."""
    return sorted(
        range(len(rows)), key=lambda i: hashlib.sha256(_id(rows[i]).encode("utf-8", "replace")).digest()
    )


def _parted(rows: Sequence[Task], share: float) -> tuple[list[Task], list[Task]]:
    """(the others, at most this share of the rows), which have no text in common."""
    sets, holder = UnionFind(len(rows)), dict[str, int]()
    for i, row in enumerate(rows):
        for text in _texts(row):
            sets.union(holder.setdefault(text, i), i)
    roots = sets.roots()
    sizes, aside, room = Counter(roots), set[int](), round(share * len(rows))
    for i in _shuffled(rows):
        if roots[i] not in aside and sizes[roots[i]] <= room:
            aside.add(roots[i])
            room -= sizes[roots[i]]
    parts: tuple[list[Task], list[Task]] = [], []
    for root, row in zip(roots, rows, strict=True):
        parts[root in aside].append(row)
    return parts


def _texts(row: Task | SuiteItem) -> list[str]:
    """What is judged or learned, normalised; an instruction is its whole conversation."""
    if isinstance(row, Instruction):
        texts: tuple[str, ...] = (row.conversation.text,)
    else:
        asked = row.judgement
        texts = judged_texts(Example(asked.id, asked.conversation, {asked.side: row.label}))
    return [text for text in map(comparable, texts) if text]
