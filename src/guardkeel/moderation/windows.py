"""Long texts in windows: a guard shortens what is too long in its middle, and what it has not read may be the harm.

A judged message of more than `size` characters becomes several items, each with a window of it in its place; the
windows overlap by an eighth. The verdict is that of the worst window. What is not judged, the turns around it, is
context: the nearest `size / 2` characters of it are kept, so that a long chat does not crowd out its last message.
Trajectories are judged whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from guardkeel.conversation import Conversation, Side, Turn

GAP = " … "


def windows(conversation: Conversation, side: Side, size: int) -> list[Conversation]:
    """The conversation itself where it is short, else one for each window."""
    role = {"prompt": "user", "response": "assistant"}.get(side)
    turns = conversation.turns
    at = next((i for i in reversed(range(len(turns))) if turns[i].role == role), None)
    if at is None:
        return [conversation]
    judged = turns[at]
    before = tuple(reversed(_near(reversed(turns[:at]), size // 2)))
    after = tuple(_near(turns[at + 1 :], size // 2))
    text, step = judged.content, size - size // 8
    starts = range(0, max(1, len(text) - size // 8), step)
    return [
        Conversation((*before, replace(judged, content=text[start : start + size]), *after))
        for start in starts
    ]


def _near(turns: Iterable[Turn], room: int) -> list[Turn]:
    """Turns from the nearest on, as many as there is room for; the last of them without its middle if need be."""
    kept = []
    for turn in turns:
        calls = sum(len(c.name) + len(c.arguments) for c in turn.tool_calls)
        if calls + len(turn.content) > room:
            if calls <= room and room - calls > len(GAP) + 1:
                kept.append(replace(turn, content=_shortened(turn.content, room - calls)))
            break
        kept.append(turn)
        room -= calls + len(turn.content)
    return kept


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = (most - len(GAP)) // 2
    return text[:half] + GAP + text[len(text) - half :]
