"""Conversations for templates that write every turn under a role name of their own: "User: …", "Agent: …"."""

from __future__ import annotations

from guardkeel.conversation import Conversation, Role, Side
from guardkeel.guards.transcript import transcript

_LAST: dict[Side, Role] = {"prompt": "user", "response": "assistant"}


def until_judged(conversation: Conversation, side: Side) -> Conversation:
    """The conversation up to the message under judgement; all of it for trajectories, and where there is none.

    A prompt is judged without what was answered to it, a response with all that came before it.
    """
    at = [i for i, t in enumerate(conversation.turns) if t.role == _LAST.get(side)]
    return Conversation(conversation.turns[: at[-1] + 1]) if at else conversation


def alternates(conversation: Conversation) -> bool:
    """Whether these are plain user and assistant messages in turn, the user first, without tool calls."""
    roles = ("user", "assistant")
    return all(t.role == roles[i % 2] and not t.tool_calls for i, t in enumerate(conversation.turns))


def labelled(conversation: Conversation, user: str = "User: ", agent: str = "Agent: ") -> str:
    """The turns, a blank line between them.

    What the assistant says and calls is the agent's; system turns and tool results come to it as a user's do, with
    their kind before them: "User: System: …", "User: Tool result NAME: …".
    """
    lines = []
    for turn in conversation.turns:
        text = transcript(Conversation((turn,)))
        plain = text.removeprefix("User: ") if turn.role == "user" else text.removeprefix("Assistant: ")
        lines.append(f"{agent if turn.role == 'assistant' else user}{plain.strip()}")
    return "\n\n".join(lines)
