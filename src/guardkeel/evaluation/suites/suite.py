"""A suite: a named, versioned, hashed set of labelled conversations with splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from guardkeel.conversation import SIDES, Conversation, Example, Label, Side, Turn
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.card import SuiteCard
from guardkeel.evaluation.suites.splits import SPLITS, Member, Split, assign
from guardkeel.guards.base import Judgement
from guardkeel.images import Image
from guardkeel.records import value_digest
from guardkeel.resources import digest

PROMPT_WORDS = 5
"""A reply's prompt counts as a shared text only from this many words on ("hi" is nobody's text)."""


@dataclass(frozen=True, slots=True)
class SuiteItem:
    """One thing to judge in a suite: a labelled side of an example, with the split it is in."""

    judgement: Judgement
    suite: str
    side: Side
    label: Label
    split: Split
    example: Example


@dataclass(frozen=True)
class Suite:
    """Examples under a card.

    `declared` holds the splits that the data itself names, by example id; `joint` those of `split_many`,
    which then hold instead of the suite's own. `left_out` counts records without a label or filtered out.
    """

    name: str
    version: str
    card: SuiteCard
    examples: tuple[Example, ...]
    declared: Mapping[str, Split] = field(default_factory=dict)
    joint: Mapping[str, Split] | None = None
    left_out: int = 0

    @cached_property
    def digest(self) -> str:
        """sha256 over the examples as canonical JSON, images in files by their bytes; their order does not matter."""
        fixed = (replace(e, conversation=e.conversation.with_images(_by_bytes)) for e in self.examples)
        return value_digest(sorted(value_digest(e.to_row()) for e in fixed))

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """The split of each example, by id."""
        if self.joint is not None:
            return self.joint
        chosen = assign(self.members())
        return MappingProxyType({e.id: s for e, s in zip(self.examples, chosen, strict=True)})

    def members(self) -> list[Member]:
        """What splitting needs to know of the examples, in order."""
        rule = self.card.splits
        return [
            Member(
                texts=judged_texts(e),
                group=f"{self.name}/{e.group}" if e.group else "",
                proportions=rule.by_source.get(e.source, rule.proportions),
                declared=self.declared.get(e.id, rule.fixed),
            )
            for e in self.examples
        ]

    def items(self, split: Split | None = None, *, sides: Sequence[Side] = SIDES) -> list[SuiteItem]:
        """The labelled sides of the examples of a split (None: of all), in suite order.

        Raises:
            DataError: there is none, or the split is unknown.
        """
        if split is not None and split not in SPLITS:
            raise DataError(f"unknown split {split!r}", remedy=f"splits are {', '.join(SPLITS)}")
        splits = self.splits
        found = [
            SuiteItem(
                judgement=Judgement(f"{self.name}/{e.id}#{side}", e.conversation, side),
                suite=self.name,
                side=side,
                label=e.labels[side],
                split=splits[e.id],
                example=e,
            )
            for e in self.examples
            if split is None or splits[e.id] == split
            for side in SIDES
            if side in e.labels and side in sides
        ]
        if not found:
            raise DataError(
                f"suite {self.name!r}: the {split or 'whole'} split has no items on side {', '.join(sides)}",
                remedy="use another split or side, or change [splits] in the suite's card: "
                f"it has {self._sizes() or 'nothing'}",
            )
        return found

    def _sizes(self) -> str:
        held = list(self.splits.values())
        return ", ".join(f"{s} {held.count(s)}" for s in SPLITS if s in held)

    def count(self, label: Label) -> int:
        """The number of items with a label, over all sides and splits."""
        return sum(list(e.labels.values()).count(label) for e in self.examples)


def judged_texts(example: Example) -> tuple[str, ...]:
    """The texts that must not be shared between splits.

    The last user turn for the prompt side; the last user turn with the last reply for the response side,
    and that user turn alone when it has five words or more (many replies to one objective); everything
    for a trajectory or an example without labels.
    """
    conversation = example.conversation
    user, reply = last_turn(conversation, "user"), last_turn(conversation, "assistant")
    prompt = user.content if user else ""
    texts: dict[str, None] = {}
    if "prompt" in example.labels:
        texts[prompt] = None
    if "response" in example.labels:
        texts[f"{prompt}\n{_whole(reply)}"] = None
        if len(prompt.split()) >= PROMPT_WORDS:
            texts[prompt] = None
    if "trajectory" in example.labels or not texts:
        texts[conversation.text] = None
    return tuple(texts)


def _whole(turn: Turn | None) -> str:
    if turn is None:
        return ""
    return "\n".join([turn.content, *(f"{c.name}({c.arguments})" for c in turn.tool_calls)])


def split_many(suites: Sequence[Suite]) -> list[Suite]:
    """The suites with splits that share no group, text or near-duplicate text even across suites.

    Raises:
        DataError: two suites have the same name.
    """
    names = [s.name for s in suites]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise DataError(
            f"suite {repeated[0]!r} is given twice", remedy="give each suite once, under its own name"
        )
    chosen = iter(assign([m for s in suites for m in s.members()]))
    return [replace(s, joint=MappingProxyType({e.id: next(chosen) for e in s.examples})) for s in suites]


def build(
    card: SuiteCard,
    examples: Sequence[Example],
    *,
    declared: Mapping[str, Split] | None = None,
    left_out: int = 0,
) -> Suite:
    """Check examples against their card and make a suite of them.

    Raises:
        DataError: no examples, no labels, an id twice, a label on a side that the conversation lacks, or
            counts other than the card's.
    """
    if not examples:
        raise DataError(
            f"suite {card.name!r} has no examples ({left_out} records left out)",
            remedy="check the file, and keep, drop and skip in the card's [mapping]",
        )
    _check_ids(card, examples)
    for example in examples:
        for side in set(example.labels) - sides_present(example.conversation):
            raise DataError(
                f"suite {card.name!r}: {example.id!r} is labelled on side {side!r} but has no such turn",
                remedy="a prompt needs a user turn, a response an assistant turn; or label the trajectory",
            )
    suite = Suite(
        card.name, card.version, card, tuple(examples), MappingProxyType(dict(declared or {})), None, left_out
    )
    found = {"examples": len(examples), "unsafe": suite.count("unsafe"), "safe": suite.count("safe")}
    if not found["unsafe"] + found["safe"]:
        raise DataError(
            f"suite {card.name!r} has no labels",
            remedy='label at least one side: {"labels": {"prompt": "safe"}}',
        )
    for key, number in found.items():
        expected = getattr(card, key)
        if expected not in (None, number):
            raise DataError(
                f"suite {card.name!r}: {number} {key}, but its card says {expected}",
                remedy="the data changed: check it, then correct the card",
            )
    only: Label | None = "unsafe" if not found["safe"] else "safe" if not found["unsafe"] else None
    if card.one_class not in (None, only):
        raise DataError(
            f"suite {card.name!r}: its card says that all items are {card.one_class}, but they are not",
            remedy="correct one_class in the card",
        )
    return replace(suite, card=card.model_copy(update={**found, "one_class": only}))


def _check_ids(card: SuiteCard, examples: Sequence[Example]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"suite {card.name!r}: the id {example.id!r} is there twice",
                remedy="make ids unique, or leave id out of the [mapping]: rows are then numbered",
            )
        seen.add(example.id)


def sides_present(conversation: Conversation) -> set[Side]:
    """The sides that a conversation has something to judge on."""
    roles = {turn.role for turn in conversation.turns}
    sides: set[Side] = {"trajectory"}
    if "user" in roles:
        sides.add("prompt")
    if "assistant" in roles:
        sides.add("response")
    return sides


def last_turn(conversation: Conversation, role: str) -> Turn | None:
    """The last turn of a role."""
    return next((t for t in reversed(conversation.turns) if t.role == role), None)


def _by_bytes(image: Image) -> Image:
    """A picture in a file named by its content; what is no file stays as it is, and is unscored later."""
    if image.kind != "path" or not Path(image.source).is_file():
        return image
    return replace(image, source=f"sha256:{digest(image.source)}")
