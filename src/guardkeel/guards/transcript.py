"""A conversation as plain lines of text, for families whose template has no turns of its own."""

from __future__ import annotations

from guardkeel.conversation import Conversation, Turn

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result"}


def transcript(conversation: Conversation) -> str:
    """One paragraph a turn: "User: …", "Assistant: …", "Tool call NAME(ARGS)", "Tool result NAME: …"."""
    return "\n".join(line for turn in conversation.turns for line in _lines(turn))


def _lines(turn: Turn) -> list[str]:
    lines = []
    if turn.content or not turn.tool_calls:
        name = f"{_NAMES[turn.role]} {turn.name}" if turn.role == "tool" and turn.name else _NAMES[turn.role]
        lines.append(f"{name}: {turn.content}")
    lines += [f"Tool call {call.name}({call.arguments})" for call in turn.tool_calls]
    return lines
