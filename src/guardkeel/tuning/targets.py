"""What a guard is taught: a judgement and the answer it should give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from guardkeel.conversation import Example, Label
from guardkeel.guards.base import Judgement


@dataclass(frozen=True, slots=True)
class Target:
    """One supervised answer. `weight` scales its loss."""

    judgement: Judgement
    label: Label
    categories: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def answer(self) -> str:
        """The text after the verdict position, in the `keel` grammar."""
        return "safe" if self.label == "safe" else "unsafe\n" + ", ".join(self.categories)


def targets(examples: Iterable[Example]) -> list[Target]:
    """One target for each labelled side."""
    return [
        Target(
            Judgement(f"{e.id}#{side}", e.conversation, side),
            label,
            e.categories if label == "unsafe" else (),
        )
        for e in examples
        for side, label in e.labels.items()
    ]
