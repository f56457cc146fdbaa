"""Plain-text markers of templates in messages: "<END CONVERSATION>" in a message must not end the conversation.

Special tokens are broken before a family renders (`disarm.py`). What a template writes as plain words is known to
the family alone, which breaks it in the same way: a space after the first character, in every occurrence, in
whatever case. A broken marker is none, and breaking one makes no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from guardkeel.conversation import Conversation, ToolCall

BREAK = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
"""What begins a new line somewhere, for a character class."""

LINE = rf"(?<=[{BREAK}])[^\S{BREAK}]*"
"""Before a marker that is one only where a line begins. The first line of a message follows its role's name."""


def breaker(*patterns: str) -> Callable[[str], str]:
    """A function that breaks what any of these regular expressions match, in any case.

    A match begins, after what `LINE` takes, with a character of the marker that is not a space.
    """
    found = re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)

    def broken(match: re.Match[str]) -> str:
        text = match[0]
        at = len(text) - len(text.lstrip()) + 1
        return f"{text[:at]} {text[at:]}"

    def break_all(text: str) -> str:
        return found.sub(broken, text)

    return break_all


def without_markers(conversation: Conversation, clean: Callable[[str], str]) -> Conversation:
    """The conversation with every text of it, tool calls too, put through `clean`."""
    return Conversation(
        tuple(
            replace(
                turn,
                content=clean(turn.content),
                name=clean(turn.name),
                tool_calls=tuple(ToolCall(clean(c.name), clean(c.arguments), c.id) for c in turn.tool_calls),
            )
            for turn in conversation.turns
        )
    )
