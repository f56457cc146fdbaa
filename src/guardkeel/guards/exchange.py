"""A conversation for guards that know two roles: user and assistant texts in turn, the user first.

What is judged comes last:

- prompt: the last user message. What was answered to it is left out.
- response: the last assistant message.
- trajectory: all that came after the first user message, written out as one assistant text.

System messages, tool calls and tool results are written as in a transcript; where they have no place of their
own, calls are the assistant's and the rest is the user's.
"""

from __future__ import annotations

from collections.abc import Sequence

from guardkeel.conversation import Conversation, Side, Turn
from guardkeel.guards.markers import BREAK
from guardkeel.guards.transcript import transcript


def speaker(*names: str) -> str:
    """A pattern for `markers.breaker`: any of these names and a colon where a line begins, the first one too."""
    return rf"(?<![^{BREAK}])[^\S{BREAK}]*(?:{'|'.join(names)})[^\S{BREAK}]*:"


def exchange(conversation: Conversation, side: Side) -> list[str]:
    """All of it: texts of user, assistant, user, …. A text is empty where the role said nothing."""
    turns = conversation.turns
    if side == "trajectory":
        return list(_run(turns))
    judged = "user" if side == "prompt" else "assistant"
    last = max((i for i, turn in enumerate(turns) if turn.role == judged), default=-1)
    if last < 0:  # nothing of that role: what there is, or an empty answer to it
        return [_joined(turns)] if side == "prompt" else [_joined(turns), ""]
    texts: list[str] = []
    for turn in turns[: last + 1]:
        of_assistant = turn.role == "assistant"
        if texts and (len(texts) % 2 == 0) == of_assistant:
            texts[-1] += f"\n\n{_text(turn)}"
        else:
            texts += ["", _text(turn)] if of_assistant and not texts else [_text(turn)]
    return texts


def last_exchange(conversation: Conversation, side: Side) -> tuple[str, str]:
    """One request and one response, for guards trained on no more. The response to a judged prompt is empty.

    Of a longer conversation only the last user message and, when that is judged, the last assistant message are
    seen.
    """
    turns = conversation.turns
    if side == "trajectory":
        return _run(turns)
    if side == "prompt":
        said = [turn for turn in turns if turn.role == "user"]
        return (_text(said[-1]) if said else _joined(turns)), ""
    at = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if at < 0:
        return last_exchange(conversation, "prompt")
    asked = [turn for turn in turns[:at] if turn.role == "user"]
    return (_text(asked[-1]) if asked else _joined(turns[:at])), _text(turns[at])


def _run(turns: Sequence[Turn]) -> tuple[str, str]:
    """What was asked first, and all that was done after it."""
    at = next((i for i, turn in enumerate(turns) if turn.role == "user"), -1) + 1
    done = tuple(turns[at:])
    return _joined(turns[:at]), transcript(Conversation(done)) if done else ""


def _joined(turns: Sequence[Turn]) -> str:
    return "\n\n".join(map(_text, turns))


def _text(turn: Turn) -> str:
    """What a turn says. The name of its role is left to the template, which has it."""
    text = transcript(Conversation((turn,)))
    return text.removeprefix({"user": "User: ", "assistant": "Assistant: "}.get(turn.role, ""))
