"""What the cells of a scenario share: rows to learn, guard data, and items to judge, of which no two share a text.

All suites and files of the scenario are split together. A judged suite keeps its `test` items and, of its `calibrate`
items, the safe ones, which move the threshold; a suite whose card has everything for testing gives up a share for
that. Where a judged text resembles a row of a file, one of the two is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from guardkeel.conversation import Example, Label, Side
from guardkeel.errors import DataError
from guardkeel.evaluation.suites import Suite, SuiteCard, load_suite, split_many
from guardkeel.evaluation.suites.card import SplitRule
from guardkeel.tuning.collapse.grid import Plan, Settings
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.data import TuningData
from guardkeel.tuning.gather import Gathered, Watch, choose, first, read


@dataclass(frozen=True)
class Material:
    """`gathered` is what a fine-tune reads; `judged` are suites cut down to what is judged, with declared splits."""

    gathered: Gathered
    judged: tuple[Suite, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows and items there are."""
        items = [i for suite in self.judged for i in suite.items()]
        gathered = {k: n for k, n in self.gathered.counts.items() if k != "monitor items"}
        return gathered | {
            "unsafe test items": sum(i.split == "test" and i.label == "unsafe" for i in items),
            "safe test items": sum(i.split == "test" and i.label == "safe" for i in items),
            "safe calibrate items": sum(i.split == "calibrate" and i.label == "safe" for i in items),
        }


def material(plan: Plan, config: TuneConfig, watch: Watch) -> Material:
    """Read, split and choose what a cell needs. It does not depend on the arm or the seed.

    Raises:
        DataError, ConfigError, ResourceError: naming what cannot be read, or has nothing to judge.
    """
    settings = plan.grid.settings
    sources = read(config, watch)
    suites = dict(sources.suites)
    judged = [plan.grid.located(name) for name in plan.judged_on]
    for name in judged:
        if name not in suites:
            suite = load_suite(name, data=config.data_folder, offline=config.offline, progress=watch)
            suites[name] = _shared_out(suite, settings.share)
    files = {name: _as_suite(f"rows of {name}", data) for name, data in sources.files.items()}
    watch("split the data", 0, 1)
    together = iter(split_many([*suites.values(), *files.values()]))
    suites = {name: next(together) for name in suites}
    kept = {name: _learned(data, next(together)) for name, data in sources.files.items()}
    watch("split the data", 1, 1)
    return Material(
        gathered=choose(
            config, replace(sources, files=kept, suites={name: suites[name] for name in sources.suites})
        ),
        judged=tuple(_cut(suites[name], settings) for name in judged),
    )


def _shared_out(suite: Suite, share: float) -> Suite:
    """A suite that its card has for testing only gives a share of it to the threshold."""
    if suite.card.splits.fixed != "test":
        return suite
    rule = SplitRule(proportions=(0.0, share, 1 - share))
    return replace(suite, card=suite.card.model_copy(update={"splits": rule}))


def _as_suite(name: str, data: TuningData) -> Suite:
    """Rows of a file as a suite, all of it for fitting, so that they can be split together with others."""
    rows = [
        Example(t.judgement.id, t.judgement.conversation, {t.judgement.side: t.label}) for t in data.targets
    ]
    rows += [Example(i.id, i.conversation, {"prompt": "safe"}) for i in data.instructions]
    card = SuiteCard(name="rows", reference=name, splits=SplitRule(fixed="fit"))
    return Suite(name, "1", card, tuple(rows))


def _learned(data: TuningData, rows: Suite) -> TuningData:
    """The rows that are left to learn."""
    fit = {identity for identity, split in rows.splits.items() if split == "fit"}
    return replace(
        data,
        targets=tuple(t for t in data.targets if t.judgement.id in fit),
        instructions=tuple(i for i in data.instructions if i.id in fit),
    )


def _cut(suite: Suite, settings: Settings) -> Suite:
    most = settings.limits.get(suite.name, settings.limit)
    items = suite.items()
    test = [i for i in items if i.split == "test"]
    safe = [i for i in items if i.split == "calibrate" and i.label == "safe"]
    if not test:
        raise DataError(
            f"suite {suite.name!r}: no item is left to judge",
            remedy="judge on another, or change [splits] in its card",
        )
    chosen = [*first(test, most), *first(safe, min(most, settings.calibrate))]
    sides: dict[str, dict[Side, Label]] = {}
    for item in chosen:
        sides.setdefault(item.example.id, {})[item.side] = item.label
    return replace(
        suite,
        card=suite.card.model_copy(update={"splits": SplitRule()}),
        examples=tuple(replace(e, labels=sides[e.id]) for e in suite.examples if e.id in sides),
        declared=MappingProxyType({i.example.id: i.split for i in chosen}),
        joint=None,
    )
