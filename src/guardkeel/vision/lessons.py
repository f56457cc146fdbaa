"""Conversations with pictures → lessons: any number of pictures, in any turns, in the checkpoint's chat template.

A lesson's ids hold the pictures' own ids (see models/sight.py), so lessons with one picture, several or none are padded
and taught together by the same learner, and its loss falls on the answer alone:

    lessons = seeing_lessons(examples, guard.tokenizer, guard.sight)
    batch = CausalLearner(guard).collate(lessons[:8])            # left-padded ids, right-aligned targets and weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import ConfigError
from guardkeel.guards.vision import placed
from guardkeel.models.sight import Shown, Sight
from guardkeel.tuning.lessons import Lesson, instruction_lessons
from guardkeel.tuning.targets import Instruction

_MARK = "\uef02"


def seeing_lessons(
    examples: Sequence[Instruction], tokenizer: Any, sight: Sight, max_tokens: int = 1024
) -> list[Lesson]:
    """The lessons of conversations whose last turn is learned; pictures come before the text of their turn.

    Raises:
        ConfigError: there is no chat template, or an example does not fit: pictures are never cut.
        DataError: a picture cannot be opened.
    """
    shows = _Shows(tokenizer, sight)
    marked = [replace(e, conversation=shows.mark(e.conversation)) for e in examples]
    lessons = instruction_lessons(marked, shows, 1 << 20)
    for lesson in lessons:
        length = len(lesson.prompt_ids) + len(lesson.answer_ids)
        if length > max_tokens:
            raise ConfigError(
                f"instruction {lesson.id!r}: {length} tokens with its pictures, at most {max_tokens} are taken",
                remedy="raise max_tokens, or show fewer or smaller pictures",
            )
    return lessons


def question_ids(conversation: Conversation, tokenizer: Any, sight: Sight) -> list[int]:
    """Ids of a conversation up to where the assistant is to answer."""
    asked = Conversation((*conversation.turns, Turn("assistant", "x")))
    return seeing_lessons([Instruction("question", asked)], tokenizer, sight, 1 << 20)[0].prompt_ids


class _Shows:
    """A tokenizer in whose texts marks stand for pictures."""

    def __init__(self, tokenizer: Any, sight: Sight) -> None:
        self._tokenizer, self._sight = tokenizer, sight
        self._shown: list[Shown] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def mark(self, conversation: Conversation) -> Conversation:
        """The conversation with marks for its pictures, and without marks that were in its texts."""
        return Conversation(tuple(self._marked(turn) for turn in conversation.turns))

    def _marked(self, turn: Turn) -> Turn:
        marks = ""
        for image in turn.images:
            self._shown.append(self._sight.show(image))
            marks += f"{_MARK}{len(self._shown) - 1}{_MARK}"
        return replace(turn, content=marks + turn.content.replace(_MARK, "\ufffd"), images=())

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        pieces = text.split(_MARK)  # text, number, text, number, … text
        shown = [self._shown[int(number)] for number in pieces[1::2]]
        pieces[1::2] = [one.text for one in shown]
        ids = self._tokenizer("".join(pieces), **options)["input_ids"]
        return {"input_ids": placed(ids, shown, self._sight)}
