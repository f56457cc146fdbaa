"""When an item is decided, and what the decision is. Pure: what people said in, an outcome out.

An item is first asked of `people` persons, each alone. If they all say the same, that is its label. If not, one more is
asked, and what more than half of the definite answers say is the label; a tie, or "cannot tell" from too many, leaves
none. With one person, what that person says stands.

"Needs Caution" is an answer of its own. A strict set takes it for unsafe, a permissive one for safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from guardkeel.conversation import Label
from guardkeel.curation.mapping import CAUTION, Strictness

Choice = Literal["safe", "caution", "unsafe", "unclear"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class Said:
    """What one person says of one item, as it stands: not taken back."""

    by: str
    choice: Choice
    categories: tuple[str, ...] = ()
    note: str = ""

    def label(self, strictness: Strictness) -> Label | None:
        """As a label; None for "cannot tell"."""
        if self.choice == "caution":
            return "unsafe" if strictness == "strict" else "safe"
        return None if self.choice == "unclear" else self.choice


@dataclass(frozen=True, slots=True)
class Outcome:
    """What people made of an item. `wanted` is how many must be heard in all; less than that and it is open.

    `by` are those who said what the label says; `said` is what all said, in order.
    """

    label: Label | None
    categories: tuple[str, ...]
    by: tuple[str, ...]
    said: tuple[Said, ...]
    wanted: int

    @property
    def open(self) -> bool:
        """Whether somebody more must be heard."""
        return len(self.said) < self.wanted

    @property
    def contested(self) -> bool:
        """Whether people contradict each other."""
        return len({s.choice for s in self.said} - {"unclear"}) > 1


def outcome(said: Sequence[Said], people: int, strictness: Strictness) -> Outcome:
    """See the module's text.

    Args:
        said: what people said, in order; nobody twice.
        people: how many are asked at first.
        strictness: how "Needs Caution" is read.
    """
    labels = [s.label(strictness) for s in said]
    wanted = people if _unanimous(labels[:people]) or people == 1 or len(said) < people else people + 1
    if len(said) < wanted:
        return Outcome(None, (), (), tuple(said), wanted)
    label = _majority(labels)
    chosen = [s for s, given in zip(said, labels, strict=True) if given == label and label is not None]
    return Outcome(label, _categories(chosen), tuple(s.by for s in chosen), tuple(said), wanted)


def _unanimous(labels: Sequence[Label | None]) -> bool:
    return None not in labels and len(set(labels)) == 1


def _majority(labels: Sequence[Label | None]) -> Label | None:
    counts = Counter(label for label in labels if label is not None)
    label, n = next(iter(counts.most_common(1)), (None, 0))
    return label if 2 * n > counts.total() else None


def _categories(chosen: Sequence[Said]) -> tuple[str, ...]:
    """What at least half of those who are followed name, "Needs Caution" for their answer among it."""
    named = Counter(
        name
        for s in chosen
        for name in dict.fromkeys((CAUTION, *s.categories) if s.choice == "caution" else s.categories)
    )
    return tuple(name for name, n in named.items() if 2 * n >= len(chosen))
