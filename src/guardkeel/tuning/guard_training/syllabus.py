"""The plan as lessons: encoded when their batch comes, learned under the policy that they begin with.

`PolicyLearner` and `PolicyTrainer` are those of `guardkeel tune` for a run in which the policy changes from batch to
batch. Probes of a regulariser are asked under the guard's own policy, whatever the batch has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family
from guardkeel.guards.encoding import Encoder, NotSharedError
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.prefix import KeyValues
from guardkeel.tuning.guard_training.cases import Case
from guardkeel.tuning.guard_training.planning import Plan
from guardkeel.tuning.learner import Batch, CausalLearner
from guardkeel.tuning.lessons import Lesson, guard_lessons
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.targets import Target
from guardkeel.tuning.trainer import GuardTrainer

_SAMPLE = 32

Key = tuple[int, str]
"""A policy by its number, and what items of a side begin with beside it; empty where nothing is shared."""


@dataclass(frozen=True, slots=True)
class PolicyLesson(Lesson):
    """A lesson that begins with a policy."""

    key: Key = (0, "")


class PolicyLearner(CausalLearner):
    """Teaches a causal guard under many policies: `under` says which one is in force."""

    def __init__(self, guard: Any, **options: Any) -> None:
        super().__init__(guard, **options)
        self._own, self._encoders = self.encoder, dict[Key, Encoder]()

    def know(self, key: Key, family: Family, sample: Sequence[Target]) -> Encoder:
        """The encoder of a policy; one that is new shares what the sample begins with."""
        if key not in self._encoders:
            encoder = self._own.under(family)
            if key[1]:
                encoder.share([t.judgement for t in sample])
            self._encoders[key] = encoder
        return self._encoders[key]

    @contextlib.contextmanager
    def under(self, key: Key) -> Iterator[None]:
        """Within the block the prefix is this policy's."""
        self.encoder = self._encoders.get(key, self._own)
        try:
            yield
        finally:
            self.encoder = self._own

    def collate(self, lessons: Sequence[Lesson]) -> Batch:
        """See CausalLearner; `key` is what a batch that shares its policy begins with."""
        keys = [lesson.key for lesson in lessons if isinstance(lesson, PolicyLesson)]
        return super().collate(lessons) | {"key": keys[0] if keys else (0, "")}


class Syllabus(Sequence[PolicyLesson]):
    """All lessons of a run."""

    def __init__(
        self,
        plan: Plan,
        cases: Sequence[Case],
        learner: PolicyLearner,
        under: Callable[[GuardPolicy], Family],
    ) -> None:
        self.plan, self.cases, self.learner, self._under = plan, cases, learner, under
        self._keys = self._keyed()
        self._samples: dict[Key, list[Target]] = {}
        for n, key in self._keys.items():
            sample = self._samples.setdefault(key, [])
            if len(sample) < _SAMPLE:
                sample.append(self._target(n))

    def __len__(self) -> int:
        return len(self.plan.lessons)

    def __getitem__(self, n: Any) -> Any:
        key, target = self._keys[n], self._target(n)
        family = self._under(self.plan.policies[key[0]])
        encoder = self.learner.know(key, family, self._samples[key])
        [lesson] = guard_lessons([target], encoder, self.learner.tokenizer)
        return PolicyLesson(**{f.name: getattr(lesson, f.name) for f in fields(Lesson)}, key=key)

    def _target(self, n: int) -> Target:
        shown = self.plan.lessons[n]
        case = self.cases[shown.case]
        return Target(case.row.judgement, shown.label, shown.categories, case.weight)

    def _keyed(self) -> dict[int, Key]:
        """What each lesson that is in a batch begins with."""
        found: dict[int, Key] = {}
        starts: dict[Side, str] = {}
        for batch, shared in zip(self.plan.batches, self.plan.shared, strict=True):
            for n in batch:
                shown = self.plan.lessons[n]
                side = self.cases[shown.case].row.side
                if side not in starts:
                    starts[side] = beginning(self.learner.family, side, self.learner.tokenizer)
                found[n] = (shown.policy, starts[side] if shared else "")
        return found


class PolicyTrainer(GuardTrainer):
    """Trains on a syllabus, batch by batch as it is planned."""

    learner: PolicyLearner

    def __init__(self, model: Any, learner: PolicyLearner, syllabus: Syllabus, **options: Any) -> None:
        super().__init__(model, learner, [], **options)
        self.train_dataset: Any = syllabus

    def get_train_dataloader(self) -> Any:
        """See GuardTrainer."""
        order = self.train_dataset.plan.batches
        loader: Any = DataLoader(self.train_dataset, batch_sampler=order, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See GuardTrainer; under the policy that the batch begins with."""
        with self.learner.under(inputs["key"]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _add_term(self, probes: GuardProbes, prefix: KeyValues | None) -> Tensor | None:
        """See GuardTrainer; probes are asked under the guard's own policy, which they compute themselves."""
        return super()._add_term(probes, None)


def beginning(family: Family, side: Side, tokenizer: Any) -> str:
    """What items of a side begin with under a family's policy; equal for sides that can share it."""
    asked = Conversation.of("a", None if side == "prompt" else "b")
    return family.render(asked, side, tokenizer).prefix or " "


def measured_lengths(
    cases: Sequence[Case], family: Family, learner: CausalLearner, *, strict: bool = True
) -> tuple[list[int], list[int]]:
    """Tokens of each case beside the policy, and how many had to be left out of its messages to fit.

    They are those under the family's own policy, or under a topic's. Unless it is `strict`, an item that does not fit
    at all counts as one without any of its tokens.

    Raises:
        ConfigError: an item does not fit at all, or the family does not judge its side.
    """
    lengths, dropped = [], []
    topics: dict[str, Encoder] = {}
    for case in cases:
        encoder = learner.encoder
        if case.topic is not None:
            name = case.topic.model_dump_json()
            encoder = topics.setdefault(name, encoder.under(family.under(case.topic)))
        target = Target(case.row.judgement, case.row.label)
        try:
            [lesson] = guard_lessons([target], encoder, learner.tokenizer)
        except NotSharedError:
            [lesson] = guard_lessons([target], encoder.under(encoder.family), learner.tokenizer)
        except ConfigError:
            if strict:
                raise
            lengths.append(encoder.max_tokens)
            dropped.append(encoder.max_tokens)
            continue
        lengths.append(len(lesson.prompt_ids))
        dropped.append(lesson.dropped)
    return lengths, dropped
