"""The arms: what is trained, on which set, with which settings. On one slow core each takes 8 to 36 minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "base": "smollm2-135m",
    "rank": 16,
    "alpha": 32.0,
    "learning_rate": 4e-4,
    "batch": 16,
    "first_layer": 10,
    "max_tokens": 384,
    "every": 40,
    "monitor_items": 0,
    "calibrate_items": 200,
    "test_items": 60,
    "seed": 20,
}
FOLDS = (
    ("Malware", "Suicide and Self Harm"),
    ("Controlled/Regulated Substances", "Harassment"),
    ("Fraud/Deception", "Sexual"),
)
"""Categories that are held out together: each has sixty items or more, and they have little in common."""

BLEND = 0.15


@dataclass(frozen=True)
class Arm:
    """One training. `against` is the arm of the same part that it is compared with."""

    part: str
    name: str
    set: str
    against: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where it is kept."""
        return f"{self.part}-{self.name}"

    def config(self, sets: Mapping[str, Path]) -> dict[str, Any]:
        """For `guardkeel train-guard`."""
        return {**COMMON, **self.options, "data": [str(sets[self.set])]}


def arms(steps: int, accept_terms: bool = False) -> Iterator[Arm]:
    """All of them; `steps` is the length of one training, `accept_terms` says that a base's terms have been read."""
    for n, held in enumerate(FOLDS):
        shared = {"hold_out": list(held), "steps": steps}
        fixed = {"varied": 0.0, "topic_share": 0.0}
        yield Arm("a", f"fold{n}-fixed", "mixture", options=shared | fixed)
        yield Arm("a", f"fold{n}-varied", "mixture", f"fold{n}-fixed", shared | {"topic_share": 0.0})
        yield Arm("a", f"fold{n}-topics", "mixture", f"fold{n}-varied", shared | {"topic_share": BLEND})
    brief = {"steps": round(0.7 * steps), "varied": 0.0, "strictness": "strict"}
    yield Arm("b", "toxic-human", "toxic-human", "", brief)
    yield Arm("b", "toxic-single", "toxic-single", "toxic-human", brief)
    yield Arm("b", "toxic-jury", "toxic-jury", "toxic-single", brief)
    short = {"steps": round(0.4 * steps), "varied": 0.0, "class_weights": "balanced", "max_tokens": 512}
    yield Arm("b", "dices-human", "dices-human", "", short)
    yield Arm("b", "dices-single", "dices-single", "dices-human", short)
    yield Arm("b", "dices-jury", "dices-jury", "dices-single", short)
    yield Arm("c", "plain", "toxic-mixed", "", brief)
    weights = {"human": 1.0, "jury": 0.3}
    yield Arm("c", "weighted", "toxic-mixed", "plain", brief | {"source_weights": weights})
    yield Arm("c", "human-only", "toxic-third", "plain", brief)
    on = {"base": "keel-135m", "steps": round(1.5 * steps), "learning_rate": 2e-4, "topic_share": 0.0}
    yield Arm("d", "longer", "mixture", "keel-135m", on)
    yield Arm("d", "longer-balanced", "mixture", "keel-135m", on | {"class_weights": "balanced"})
    anew = {"steps": round(1.5 * steps), "topic_share": BLEND}
    yield Arm("d", "policy-topics", "mixture", "keel-135m", anew)
    small = {"family": "keel", "steps": round(0.7 * steps), "batch": 8, "topic_share": 0.0, "first_layer": 0}
    yield Arm("e", "smollm2", "mixture", "", small)
    gemma = {"base": "gemma-3-270m", "accept_terms": accept_terms}
    yield Arm("e", "gemma", "mixture", "smollm2", small | gemma)


OTHER_ORIGIN = (
    "advbench@local", "harmbench@local", "simple-safety-tests@local", "malicious-instruct@local",
    "do-not-answer@local", "jailbreakbench@local", "alpaca@local", "banking77@local", "notinject@local",
    "toxicchat@local", "wildguardtest@local", "aegis@local", "pyrit-objective@local", "pyrit-refusal@local",
)  # fmt: skip
"""Suites that no row of the mixture comes from: what a better keel-135m has to win on."""
