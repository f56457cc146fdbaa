"""A checkpoint's own chat template, used by any family: its text is cut where the conversation begins and ends.

Which part of the text is the conversation is not said by a template. It is found by rendering marks in place of
the messages: what stands before the first mark and after the last is the frame, and real messages that leave the
frame as it is are the body. `Rendered` needs the parts so that policies are shared and messages alone shortened.

Some templates want contents as text, others as lists of parts (Llama Guard 3 1B and 11B, Llama Guard 4); the one
that shows every mark exactly once is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkeel.errors import ModelError
from guardkeel.guards.base import Rendered

Messages = Callable[[Sequence[str]], list[dict[str, Any]]]

_MARK = "[[turn {}]]"


def template_text(tokenizer: Any) -> str:
    """The tokenizer's default chat template, empty where it has none."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return str(template.get("default", "") if isinstance(template, dict) else template)


def alternating(contents: Sequence[str]) -> list[dict[str, Any]]:
    """User and assistant messages in turn, the user first: what every chat template takes."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One use of a tokenizer's chat template.

    Attributes:
        tokenizer: has a chat template.
        messages: builds the messages from one text for each turn. It puts every text into one message's content.
        options: what else the template is given, e.g. `{"guardian_config": {...}}` or `{"documents": [...]}`.
        opening: what the template writes before the first message and is the conversation's, e.g. "User: ".
        remedy: what to do about a template that cannot be used.
    """

    tokenizer: Any
    messages: Messages = alternating
    options: Mapping[str, Any] = field(default_factory=dict)
    opening: str = ""
    remedy: str = "take the published checkpoint's chat template"

    def render(self, contents: Sequence[str]) -> Rendered | None:
        """The template's own text for these turns; None where the texts change what is around them.

        Raises:
            ModelError: the template fails, or does not show every message once.
        """
        prefix, suffix, parts = self._frame(len(contents))
        text = self._apply(contents, parts)
        if len(text) >= len(prefix) + len(suffix) and text.startswith(prefix) and text.endswith(suffix):
            return Rendered(prefix, text[len(prefix) : len(text) - len(suffix)], suffix)
        return None

    def framed(self, body: str, turns: int) -> Rendered:
        """A conversation that the template cannot take, written by the family, in the frame of `turns` messages.

        `body` begins with the family's form of `opening`. Raises ModelError as `render` does.
        """
        prefix, suffix, _ = self._frame(turns)
        return Rendered(prefix, body, suffix)

    def _frame(self, turns: int) -> tuple[str, str, bool]:
        """What is before and after the marked messages, and whether contents are given in parts."""
        marks = [_MARK.format(i) for i in range(turns)]
        for parts in (False, True):
            text = self._apply(marks, parts)
            if all(text.count(mark) == 1 for mark in marks):
                before, _, rest = text.partition(marks[0])
                after = rest.rpartition(marks[-1])[2] if turns > 1 else rest
                return before.removesuffix(self.opening), after, parts
        raise ModelError(
            "the chat template of this checkpoint does not show every message once", remedy=self.remedy
        )

    def _apply(self, contents: Sequence[str], parts: bool) -> str:
        from jinja2 import TemplateError

        messages = self.messages(contents)
        if parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self.options
                )
            )
        except (TemplateError, TypeError, AttributeError) as e:
            if not parts:
                return ""  # a template that wants parts may fail on text
            raise ModelError(
                f"the chat template of this checkpoint cannot be rendered: {e}", remedy=self.remedy
            ) from e
