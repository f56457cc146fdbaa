"""A family's blanks in token ids: what the guard writes before each, and with which tokens its answers begin."""

from __future__ import annotations

from typing import Any

from guardkeel.conversation import Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Blank, Family, Step, common


class Form:
    """The blanks of one side, filled one after another.

    Texts are tokenised where they stand: after `context`, the end of the input. Some tokenizers write the first word of
    a text otherwise than the first of a line within it.

    `blanks` is empty for a family that writes free text.

    Raises:
        ModelError: answers that do not mean the same begin with the same token.
    """

    def __init__(self, family: Family, side: Side, tokenizer: Any, context: str = "") -> None:
        self.blanks: tuple[Blank, ...] = family.blanks(side)
        self._name, self._side, self._tokenizer = family.name, side, tokenizer
        self._context, self._before = context, self._ids(context)
        self._steps: dict[tuple[str, ...], Step] = {}

    @property
    def opening(self) -> list[int]:
        """What is written before the first blank."""
        return list(self.step(()).ids) if self.blanks else []

    def step(self, filled: tuple[str, ...]) -> Step:
        """The blank after these answers to those before it; its `ids` are written since the last one's place."""
        if filled not in self._steps:
            blank = self.blanks[len(filled)]
            text = "".join(b.opening + a for b, a in zip(self.blanks, filled, strict=False)) + blank.opening
            step = blank.step(self._tokenise, text)
            if {*step.unsafe} & {*step.safe}:
                raise ModelError(
                    f"both verdicts of family {self._name!r} begin with the same token",
                    remedy="check that the family and the tokenizer are this model's own",
                )
            before = sum(len(self.step(filled[:k]).ids) for k in range(len(filled)))
            self._steps[filled] = Step(step.ids[before:], step.unsafe, step.safe, step.answers)
        return self._steps[filled]

    def only(self) -> Step:
        """The blank of a form that has just one: then a verdict can be taught.

        Raises:
            ConfigError: it has more, or none.
        """
        if len(self.blanks) != 1:
            raise ConfigError(
                f"family {self._name!r} on the {self._side} side: "
                + (
                    f"its verdict is the last of {len(self.blanks)} blanks"
                    if self.blanks
                    else "it writes free text"
                ),
                remedy="teach it the side whose verdict comes first, or another family",
            )
        return self.step(())

    def after(self, answer: str) -> list[int]:
        """Ids of an answer to the last blank, with what follows it."""
        opening = self.blanks[-1].opening
        row = self._tokenise(opening + answer)
        alone = [self._tokenise(opening + a) for a in self.blanks[-1].answers]
        return row[min(common([row, *alone]), len(row)) :]

    def _tokenise(self, text: str) -> list[int]:
        ids = self._ids(self._context + text)
        before = len(self._before)
        # Where the text's first token grew together with the context's last, nothing tells what is whose.
        return ids[before:] if ids[:before] == self._before else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
