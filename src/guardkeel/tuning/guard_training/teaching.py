"""What a training is made of once the weights are there: learner, lessons, probes, monitor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardkeel.activations.blocks import blocks, monitored
from guardkeel.guards.base import Family
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.load import AnyGuard
from guardkeel.tuning.data import read_data
from guardkeel.tuning.gather import balanced, first
from guardkeel.tuning.guard_training.config import TrainConfig
from guardkeel.tuning.guard_training.planning import Plan, made_plan
from guardkeel.tuning.guard_training.preparing import Prepared
from guardkeel.tuning.guard_training.rows import GuardRow, Watch
from guardkeel.tuning.guard_training.syllabus import PolicyLearner, Syllabus, beginning, measured_lengths
from guardkeel.tuning.learner import CausalLearner, ClassifierLearner, Learner
from guardkeel.tuning.lessons import classifier_lessons, guard_lessons
from guardkeel.tuning.monitor import SafetyMonitor
from guardkeel.tuning.points import MonitorPoint
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.targets import Target

OnPoint = Callable[[MonitorPoint, MonitorPoint], None]

_SAMPLE = 64


def taught(
    ready: Prepared, guard: AnyGuard, config: TrainConfig, watch: Watch
) -> tuple[Learner, Any, Plan, dict[str, int]]:
    """The learner, its lessons, the plan, and what is left out or shortened, by why.

    Raises:
        ConfigError: an item does not fit beside its policy at all, or the family cannot be taught its side.
    """
    left, cases = Counter(ready.left_out), ready.cases
    watch("encode the items", 0, len(cases))
    if not isinstance(guard, CausalGuard):
        targets = [Target(c.row.judgement, c.row.label, c.named, c.weight) for c in cases]
        lessons = [x for x in classifier_lessons(targets, guard) if _fits(x.dropped, config, left)]
        watch("encode the items", len(cases), len(cases))
        return ClassifierLearner(guard), lessons, Plan(epoch=len(lessons)), dict(left)
    learner = PolicyLearner(
        guard,
        max_tokens=config.max_tokens,
        answer_weight=config.answer_weight,
        share=not config.checkpointing,
    )
    if learner.sharing:
        learner.encoder.share([c.row.judgement for c in cases if c.topic is None][:_SAMPLE])
    strict = config.too_long == "shorten"
    lengths, dropped = measured_lengths(cases, guard.grammar, learner, strict=strict)
    kept = [i for i, n in enumerate(dropped) if _fits(n, config, left)]
    cases = [cases[i] for i in kept]
    plan = made_plan(
        cases,
        [lengths[i] for i in kept],
        config,
        shipped=ready.shipped,
        taught=ready.taught,
        varied=ready.place.reads_policies,
        grouped=(lambda side: beginning(guard.grammar, side, guard.tokenizer)) if learner.sharing else None,
    )
    watch("encode the items", len(ready.cases), len(ready.cases))

    def under(policy: GuardPolicy) -> Family:
        return guard.grammar.under(policy) if ready.place.reads_policies else guard.grammar

    return learner, Syllabus(plan, cases, learner, under), plan, dict(left)


def _fits(dropped: int, config: TrainConfig, left: Counter[str]) -> bool:
    """Whether an item is learned; one that is over the length is counted either way."""
    if dropped:
        shortened = ", which were shortened" if config.too_long == "shorten" else ""
        left[f"items over {config.max_tokens} tokens{shortened}"] += 1
    return not dropped or config.too_long == "shorten"


def probes_of(ready: Prepared, guard: AnyGuard, config: TrainConfig, watch: Watch) -> GuardProbes:
    """Guard data under the base's own policy, without texts that are learned, calibrated or tested on."""
    seen = {text for row in ready.data.rows for text in row.texts}
    found: list[Target] = []
    for name in config.guard_data:
        read = read_data(name, kind="guard", data=config.data_folder, offline=config.offline, progress=watch)
        found += [t for t in read.targets if seen.isdisjoint(GuardRow(t.judgement, t.label, "fit").texts)]
    chosen = balanced(found, config.guard_items)
    learner: Learner
    if isinstance(guard, CausalGuard):
        assert ready.place.family is not None
        own = CausalGuard(
            guard.model, guard.tokenizer, ready.place.family, name=guard.name, max_tokens=guard.max_tokens
        )
        causal = CausalLearner(own, max_tokens=config.max_tokens, share=not config.checkpointing)
        if causal.sharing:
            causal.encoder.share([t.judgement for t in chosen])
        learner, lessons = causal, guard_lessons(chosen, causal.encoder, guard.tokenizer, strict=False)
    else:
        learner, lessons = ClassifierLearner(guard), classifier_lessons(chosen, guard)
    return GuardProbes(guard.model, learner, lessons, batch=config.guard_batch, seed=config.seed)


def monitor_of(
    config: TrainConfig, folder: Path, guard: AnyGuard, ready: Prepared, on_point: OnPoint
) -> SafetyMonitor | None:
    """Looks at calibrate items; geometry only where the base is a guard, and so a reference to compare with."""
    items = first([row.item() for row in ready.rows("calibrate")], config.monitor_items)
    if len({item.label for item in items}) < 2:
        return None
    monitor: SafetyMonitor

    def tell(point: MonitorPoint) -> None:
        on_point(point, monitor.points[0])

    monitor = SafetyMonitor(
        guard,
        items,
        folder,
        every=config.every,
        layers=monitored(len(blocks(guard.model)), 4) if ready.place.guard else (),
        margin=None,
        recalibrate=False,
        seed=config.seed,
        on_point=tell,
    )
    return monitor
