"""What of a streamed reply may go out: events are held until the text in them has been judged.

Pure: events in, texts to judge and events to pass on out. Every string in a choice's delta counts as text, whatever
its key (content, refusal, reasoning, names and arguments of tools), so a field that is new to us is judged like the
others. Pictures and sounds cannot be judged: a delta with one is unreadable. Of the rest of an event only known keys
are passed on, and no log-probabilities: the tokens that were not chosen have not been judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NO_TEXT = frozenset({"role", "id", "type", "index", "tool_call_id"})
_UNREADABLE = frozenset({"audio", "images", "image_url", "input_audio", "file", "b64_json"})
_KEPT = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage")
_KEPT_OF_CHOICE = ("index", "delta", "message", "finish_reason")


class UnreadableError(Exception):
    """A part of a reply that no expert can judge, or an answer that is none."""


def spoken(value: Any) -> Iterator[str]:
    """All texts in a message or delta, in order; raises UnreadableError for what is no text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _UNREADABLE and inner:
                raise UnreadableError
            if key not in _NO_TEXT or not isinstance(inner, str | int):
                yield from spoken(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from spoken(inner)


def choices_of(answer: Any) -> list[dict[str, Any]]:
    """The choices of an answer or event; raises UnreadableError where it has none of the shape."""
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(c, dict) for c in found):
        raise UnreadableError
    return found


def kept(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer or event with the known keys alone."""
    choices = [{k: c[k] for k in _KEPT_OF_CHOICE if k in c} for c in answer["choices"]]
    return {**{k: answer[k] for k in _KEPT if k in answer}, "choices": choices}


class Held:
    """One stream.

    Args:
        size: new characters from which a check is due.
        window: the most of a reply's end that is judged at once; what is before has been judged.
    """

    def __init__(self, size: int, window: int) -> None:
        self._size, self._window = size, window
        self._texts: dict[int, list[str]] = {}
        self._lengths: dict[int, int] = {}
        self._new: dict[int, int] = {}
        self._events: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}
        """What the events say of the whole answer: id, model and so on."""

    def add(self, event: Any) -> None:
        """Hold one more event; raises UnreadableError."""
        for choice in choices_of(event):
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise UnreadableError
            text = "".join(spoken(choice.get("delta")))
            if text:
                self._texts.setdefault(index, []).append(text)
                self._lengths[index] = self._lengths.get(index, 0) + len(text)
                self._new[index] = self._new.get(index, 0) + len(text)
            else:
                self._texts.setdefault(index, [])
        self.last = {k: event[k] for k in _KEPT[:4] if k in event}
        self._events.append(kept(event))

    @property
    def due(self) -> bool:
        """Whether so much is new that it should be judged now."""
        return sum(self._new.values()) >= self._size

    @property
    def clean(self) -> bool:
        """Whether nothing that is held needs to be judged."""
        return not self._new

    @property
    def indices(self) -> list[int]:
        """Of the choices that have been seen."""
        return sorted(self._texts) or [0]

    def unjudged(self) -> list[str]:
        """For each choice with new text: its text, or as much of its end as holds the new and fits the window."""
        found = []
        for index in sorted(self._new):
            text = "".join(self._texts[index])
            found.append(text[-max(self._window, self._new[index]) :])
        return found

    def release(self) -> list[dict[str, Any]]:
        """The events that are held; they have been judged."""
        out, self._events = self._events, []
        self._new = {}
        for index, texts in self._texts.items():  # older text is not needed any more
            whole = "".join(texts)[-self._window :]
            self._texts[index] = [whole] if whole else []
        return out

    def stopped(self, outcome: str) -> list[dict[str, Any]]:
        """Events that end the stream instead of those held, which are dropped."""
        self._events = []
        ends = [{"index": i, "delta": {}, "finish_reason": "content_filter"} for i in self.indices]
        event = {
            "object": "chat.completion.chunk",
            **self.last,
            "choices": ends,
            "guardkeel": {"output": outcome},
        }
        return [event]


class Lines:
    """Server-sent events out of bytes, however they are cut: the data of each. Lines end at CR, LF or both."""

    def __init__(self, most: int) -> None:
        self._buffer, self._data, self._seen, self._most = b"", list[str](), 0, most

    def feed(self, piece: bytes) -> Iterator[str]:
        """Events that are whole now; raises UnreadableError past `most` bytes, and for what is not UTF-8."""
        self._seen += len(piece)
        if self._seen > self._most:
            raise UnreadableError
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            yield from self._line(line.rstrip(b"\r"))

    def end(self) -> Iterator[str]:
        """What is left where the stream ends without an empty line."""
        yield from self._line(self._buffer.rstrip(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                try:
                    self._data.append(value.removeprefix(b" ").decode("utf-8"))
                except UnicodeDecodeError:
                    raise UnreadableError from None
        elif self._data:
            data, self._data = "\n".join(self._data), []
            yield data


def written(event: Mapping[str, Any]) -> bytes:
    """An event as it goes out."""
    return b"data: " + json.dumps(event, ensure_ascii=True).encode() + b"\n\n"
