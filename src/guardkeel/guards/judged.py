"""The text that is judged on a side, for guards that read plain text: rule lists, linear models, classifiers."""

from __future__ import annotations

from guardkeel.conversation import Conversation, Side
from guardkeel.guards.transcript import transcript

BLIND = "it has images, and this guard reads texts alone"
"""Why such a guard leaves a conversation with images unscored: a text without its image may be another request."""


def judged_text(conversation: Conversation, side: Side) -> str:
    """The last user message, the last reply with its tool calls, or the whole transcript.

    A conversation without a turn of that side gives its transcript, as with other guards.
    """
    turns = conversation.turns
    role = {"prompt": "user", "response": "assistant"}.get(side)
    last = next((turn for turn in reversed(turns) if turn.role == role), None)
    if last is None:
        return transcript(conversation) if any(t.content or t.tool_calls for t in turns) else ""
    calls = (f"{call.name}({call.arguments})" for call in last.tool_calls)
    return "\n".join(part for part in (last.content, *calls) if part)


def judged_pair(conversation: Conversation, side: Side) -> list[str]:
    """What a sequence classifier reads: the last user message, the pair of it and the reply, or the transcript."""
    turns = conversation.turns
    users = [i for i, t in enumerate(turns) if t.role == "user"]
    replies = [i for i, t in enumerate(turns) if t.role == "assistant"]
    if side == "prompt" and users:
        return [turns[users[-1]].content]
    if side == "response" and replies:
        reply = transcript(Conversation((turns[replies[-1]],))).removeprefix("Assistant: ")
        asked = [i for i in users if i < replies[-1]]
        return [turns[asked[-1]].content, reply] if asked else [reply]
    return [transcript(conversation)]
