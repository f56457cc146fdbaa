"""What every guard is: conversations in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from guardkeel.conversation import Conversation, Label, Side
from guardkeel.guards.guard_policy import GuardPolicy


@dataclass(frozen=True, slots=True)
class Verdict:
    """A guard's answer about one side of one conversation.

    `unsafe` is P(unsafe) in [0, 1], or None when the item is *unscored*; `unscored` then says why.
    Unscored is a value of its own and is never counted as safe. `dropped` counts the tokens that were
    left out of an over-long message; `categories` are taxonomy names.
    """

    unsafe: float | None
    unscored: str = ""
    categories: tuple[str, ...] = ()
    dropped: int = 0

    def __post_init__(self) -> None:
        if self.unsafe is None:
            if not self.unscored:
                raise ValueError("an unscored verdict needs its reason")
        elif self.unscored or not 0.0 <= self.unsafe <= 1.0:  # also refuses NaN
            raise ValueError(
                f"P(unsafe) must be in [0, 1] and without a reason, got {self.unsafe}, {self.unscored!r}"
            )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thing to judge: a side of a conversation, under the id that names it in files."""

    id: str
    conversation: Conversation
    side: Side


@dataclass(frozen=True, slots=True)
class Rendered:
    """A family's input text in three parts: what all items share, the conversation, the rest.

    The model reads `prefix + body + suffix`. Only messages inside `body` may be shortened.
    """

    prefix: str
    body: str
    suffix: str

    @property
    def text(self) -> str:
        """The whole input."""
        return self.prefix + self.body + self.suffix


Tokenise = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Step:
    """A blank in token ids: what is written before its place, and the tokens with which its answers begin.

    `answers` maps such a token to the answer's text; `unsafe` and `safe` are those that are verdicts.
    """

    ids: tuple[int, ...]
    unsafe: tuple[int, ...]
    safe: tuple[int, ...]
    answers: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Blank:
    """One blank of the form that a guard fills in: the text before it, and the answers that may stand there.

    "Harmful request:" with (" no",) and (" yes",) is the first of three lines that WildGuard writes. `other` are
    answers that are no verdict, such as " N/A".
    """

    opening: str = ""
    safe: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All of them, those that mean unsafe first."""
        return self.unsafe + self.safe + self.other

    def step(self, tokenise: Tokenise, written: str) -> Step:
        """This blank in ids, after all that was written before its answer."""
        rows = {a: tokenise(written + a) for a in self.answers}
        shared = min(
            common(rows.values()), min(map(len, rows.values())) - 1
        )  # the answers themselves are told apart
        first = {a: ids[shared] for a, ids in rows.items()}

        def begin(answers: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(dict.fromkeys(first[a] for a in answers))

        return Step(
            ids=tuple(next(iter(rows.values()))[:shared]),
            unsafe=begin(self.unsafe),
            safe=begin(self.safe),
            answers={token: a for a, token in reversed(first.items())},
        )


class Family(Protocol):
    r"""The template and verdict grammar that a line of causal-LM guards shares. One file each."""

    name: str
    categories: tuple[str, ...]
    sides: tuple[Side, ...]
    """What it can judge; items of other sides are unscored."""

    def under(self, policy: GuardPolicy) -> Family:
        """This family with another policy's categories and strictness; `self` stays as it is.

        Raises:
            ConfigError: the family was trained on fixed categories, or the policy has more than it can take.
        """
        ...

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """The input for one judgement. Message texts arrive already free of special-token strings."""
        ...

    def blanks(self, side: Side) -> tuple[Blank, ...]:
        """What the guard writes, up to its verdict, which is the last of them. Most have one."""
        ...

    def answer(self, label: Label, categories: Sequence[str] = (), side: Side = "prompt") -> str:
        """What follows the last blank's opening when that gives this label, e.g. "unsafe\nThreat".

        Names that the family does not know are left out.
        """
        ...

    def parse(self, output: str, side: Side = "prompt") -> Verdict:
        """A verdict from generated text; anything outside the grammar is unscored, with the reason.

        Openings are part of the text: `parse(opening + answer(label))` gives the label back.
        """
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Verdicts of some items.

    `hidden` is (layers, rows, width) at the verdict position, rows as in `indices`; NaN where an item
    could not be run. None where no layers were asked for, or the guard shows none.
    """

    number: int
    indices: list[int]
    verdicts: list[Verdict]
    hidden: np.ndarray[Any, np.dtype[np.float32]] | None = None


class Guard(Protocol):
    """A guard that can be asked: a loaded model, a server, a rule list. Guards inherit `score`."""

    name: str
    family: str
    threshold: float

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values that its verdicts depend on besides its weights; the same in a run that is resumed.

        `parameters`, `dtype` and `device` are among them: 0 and "" where there are none or they are not known.
        """
        ...

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """Score in deterministic batches; those numbered in `skip` are already known and are not run.

        A failure of one item is an unscored verdict.
        """
        ...

    def keep(self) -> None:
        """Keep what calls share from one to the next, such as the policy's keys and values.

        For whoever owns the guard, asks it again and again from one thread and does not change it. Most guards have
        nothing to keep.
        """
        return

    def score(self, items: Sequence[Judgement], **options: Any) -> list[Verdict]:
        """One verdict for each item, in order; `options` are those of `batches`."""
        verdicts: dict[int, Verdict] = {}
        for batch in self.batches(items, **options):
            verdicts.update(zip(batch.indices, batch.verdicts, strict=True))
        return [verdicts[i] for i in range(len(items))]


def common(rows: Iterable[list[int]]) -> int:
    """Length of the longest common prefix."""
    several = list(rows)
    first, last = min(several), max(several)
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))
