"""The rows that a mask is learned on: read before any model is loaded, then put into the guard's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guardkeel.errors import ConfigError, DataError
from guardkeel.fusion.somf.config import MaskConfig
from guardkeel.fusion.somf.learn import Term
from guardkeel.fusion.somf.objectives import Objective, Preferences, Verdicts, verdict_objective
from guardkeel.fusion.somf.pairs import Pair, pair_lessons, pairs_digest, read_pairs
from guardkeel.guards.load import AnyGuard
from guardkeel.tuning.data import TuningData, data_file, read_data
from guardkeel.tuning.gather import balanced
from guardkeel.tuning.learner import CausalLearner
from guardkeel.tuning.learner import learner as learner_of
from guardkeel.tuning.lessons import instruction_lessons
from guardkeel.tuning.targets import Instruction, Target

Watch = Callable[[str, int, int | None], None]


class Rows:
    """What the configuration names, read; `digests` say what it was.

    Raises:
        DataError, ConfigError, ResourceError: naming what cannot be read.
    """

    def __init__(self, config: MaskConfig, watch: Watch = lambda what, done, total: None) -> None:
        self.config = config
        self.digests: dict[str, str] = {}
        self.pairs: list[Pair] = []
        self.guard: list[TuningData] = []
        if config.objective == "dpo":
            for name in config.pairs:
                found = self._pairs(name, watch)
                self.digests[f"pairs {name}"] = pairs_digest(found)
                self.pairs += found
        else:
            self.guard = self._read("guard data", config.guard_data, watch)
            if any(data.kind != "guard" for data in self.guard):
                raise DataError(
                    f"{', '.join(config.guard_data)}: guard data need labels, these are instructions",
                    remedy="label them, or give them as task_data",
                )
        self.task = self._read("task data", config.task_data, watch) if config.task_weight else []

    def terms(self, guard: AnyGuard) -> list[Term]:
        """What is minimised, for this guard: the objective, and the task where it has a weight.

        Raises:
            ConfigError: the guard cannot learn such rows.
        """
        config = self.config
        main: Objective
        if config.objective == "dpo":
            chosen, rejected = pair_lessons(self.pairs, guard.tokenizer, config.max_tokens)
            teacher = self._causal(guard, "preference pairs")
            main = Preferences(teacher, chosen, rejected, beta=config.beta, device=guard.model.device)
        else:
            main = self._verdicts(guard, balanced(_targets(self.guard), config.guard_items), config.kl_weight)
        terms = [Term(config.objective, main)]
        instructions = [i for data in self.task for i in data.instructions]
        if labelled := _targets(self.task):
            terms.append(Term("task verdicts", self._verdicts(guard, labelled), config.task_weight))
        if instructions:
            terms.append(Term("task answers", self._answers(guard, instructions), config.task_weight))
        return terms

    def _verdicts(self, guard: AnyGuard, targets: Sequence[Target], kl_weight: float = 0.0) -> Verdicts:
        config = self.config
        return verdict_objective(
            guard,
            targets,
            kl_weight=kl_weight,
            answer_weight=config.answer_weight,
            max_tokens=config.max_tokens,
        )

    def _answers(self, guard: AnyGuard, instructions: Sequence[Instruction]) -> Verdicts:
        teacher = self._causal(guard, "instructions")
        lessons = instruction_lessons(instructions, guard.tokenizer, self.config.max_tokens)
        return Verdicts(teacher, lessons, device=guard.model.device)

    def _causal(self, guard: AnyGuard, what: str) -> CausalLearner:
        teacher: Any = learner_of(guard)
        if not isinstance(teacher, CausalLearner):
            raise ConfigError(
                f"{guard.name}: a classifier gives no answers, so that it cannot learn from {what}",
                remedy="learn from labelled guard conversations: objective = verdict",
            )
        return teacher

    def _read(self, what: str, names: Sequence[str], watch: Watch) -> list[TuningData]:
        config, found = self.config, []
        for name in names:
            data = read_data(name, data=config.data_folder, offline=config.offline, progress=watch)
            self.digests[f"{what} {name}"] = data.digest
            found.append(data)
        return found

    def _pairs(self, name: str, watch: Watch) -> list[Pair]:
        path = data_file(name, offline=self.config.offline, progress=watch)
        if path is None:
            raise DataError(f"{name}: no such file of preference pairs", remedy="give a path or a reference")
        return read_pairs(path)


def _targets(read: Sequence[TuningData]) -> list[Target]:
    return [t for data in read for t in data.targets]
