"""What is judged: conversations with system, user, assistant and tool turns, and their labels.

The file format is JSON Lines with OpenAI-style messages:

    {"id": "a1", "messages": [{"role": "user", "content": "…"}], "labels": {"prompt": "unsafe"},
     "categories": ["Threat"], "source": "mine", "language": "en"}

Lines end at "\\n" only, so that texts may hold U+2028 and friends. Unknown fields are refused.

A turn may carry images (see images.py): content parts of type `image_url`, which are taken from files of examples and
refused elsewhere. They come before the turn's text, whatever stood between them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from guardkeel.errors import DataError
from guardkeel.images import PARTS, Image, from_part

Role = Literal["system", "user", "assistant", "tool"]
Side = Literal["prompt", "response", "trajectory"]
Label = Literal["safe", "unsafe"]

ROLES: tuple[Role, ...] = get_args(Role)
SIDES: tuple[Side, ...] = get_args(Side)
LABELS: tuple[Label, ...] = get_args(Label)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that an assistant turn makes. `arguments` is the JSON text as the model wrote it."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. A `tool` turn is a tool's result and may name its tool and call. Images come before the content."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """An ordered, non-empty sequence of turns."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise DataError("a conversation has no turns", remedy="give at least one message")

    @classmethod
    def of(cls, prompt: str, response: str | None = None, images: Sequence[Image] = ()) -> Conversation:
        """The commonest shape: one user message, with its images, and, if given, one assistant reply."""
        turns = (Turn("user", prompt, images=tuple(images)),)
        return cls(turns if response is None else (*turns, Turn("assistant", response)))

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]], *, images: bool = False) -> Conversation:
        """Read OpenAI-style messages; raises DataError naming the message and field.

        Without `images` a message with one is an error: who has not asked for them would pass over them.
        """
        given: Any = messages  # whatever a file holds
        if not isinstance(given, list | tuple) or not given:
            raise DataError(
                f"messages must be a non-empty list, not {given!r:.80}",
                remedy="give OpenAI-style messages: [{role, content}]",
            )
        return cls(tuple(_turn(m, i, images) for i, m in enumerate(given)))

    def to_messages(self) -> list[dict[str, Any]]:
        """OpenAI-style messages; `from_messages` of the result, with `images`, is this conversation."""
        return [_message(t) for t in self.turns]

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all turns, in order."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def text(self) -> str:
        """All that is judged as one string: contents and tool calls, in order; of images what tells them apart."""
        return "\n".join(
            part
            for t in self.turns
            for part in (
                *(f"[image {i.mark}]" for i in t.images),
                t.content,
                *(f"{c.name}({c.arguments})" for c in t.tool_calls),
            )
            if part
        )

    def anchored(self, folder: Path) -> Conversation:
        """Paths of images that are relative taken from `folder`."""
        return self.with_images(lambda image: image.anchored(folder))

    def with_images(self, change: Callable[[Image], Image]) -> Conversation:
        """Each image as `change` gives it."""
        if not self.images:
            return self
        return Conversation(tuple(replace(t, images=tuple(map(change, t.images))) for t in self.turns))


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled conversation.

    `labels` holds a label for each side that was judged: `prompt` is the last user turn, `response` the
    last assistant turn, `trajectory` the whole. A side without a label is unknown, never safe.
    Rows with the same `group` (default: the id) stay in one split.
    """

    id: str
    conversation: Conversation
    labels: Mapping[Side, Label] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    source: str = ""
    language: str = ""
    group: str = ""

    def to_row(self) -> dict[str, Any]:
        """The JSON object of this example, without empty fields."""
        row = {
            "id": self.id,
            "messages": self.conversation.to_messages(),
            "labels": dict(self.labels),
            "categories": list(self.categories),
            "source": self.source,
            "language": self.language,
            "group": self.group,
        }
        return {k: v for k, v in row.items() if v or k in ("id", "messages")}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Example:
        """Read one JSON object; raises DataError naming the field and value."""
        unknown = set(row) - {"id", "messages", "labels", "categories", "source", "language", "group"}
        if unknown:
            raise DataError(
                f"unknown field {sorted(unknown)[0]!r}",
                remedy="fields are id, messages, labels, categories, source, language, group; "
                "rename it, or map other formats with a field mapping",
            )
        identity = _name(row.get("id"), "id")
        if not identity:
            raise DataError("field 'id' must be a non-empty string, not ''", remedy="give each row an id")
        if "messages" not in row:
            raise DataError(
                "field 'messages' is missing", remedy="give OpenAI-style messages: [{role, content}]"
            )
        return cls(
            id=identity,
            conversation=Conversation.from_messages(row["messages"], images=True),
            labels=parse_labels(row.get("labels", {})),
            categories=tuple(_strings(row.get("categories", ()), "categories")),
            source=_string(row.get("source", ""), "source"),
            language=_string(row.get("language", ""), "language"),
            group=_name(row.get("group", ""), "group"),
        )


def parse_labels(value: Any) -> Mapping[Side, Label]:
    """Check a {side: label} object; raises DataError naming the bad side or label."""
    if not isinstance(value, Mapping):
        raise DataError(
            f"labels must be an object, not {value!r:.80}", remedy="write labels like {'prompt': 'unsafe'}"
        )
    for side, label in value.items():
        if side not in SIDES:
            raise DataError(f"unknown side {side!r} in labels", remedy=f"sides are {', '.join(SIDES)}")
        if label not in LABELS:
            raise DataError(
                f"unknown label {label!r} for side {side!r}",
                remedy="labels are 'safe' and 'unsafe'; leave a side out if it was not judged",
            )
    return MappingProxyType(dict(value))


def normalised(text: str) -> str:
    """Text for duplicate detection: NFKC, case-folded, every run of non-word characters one space."""
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_digest(text: str) -> str:
    """Sixteen hex digits that name a text in logs and run files without showing it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_jsonl(path: str | Path) -> Iterator[Example]:
    """Stream examples from a JSONL file; a bad line raises DataError with file, line, value and remedy.

    Relative paths of images start from the file's folder.
    """
    path = Path(path)
    try:
        handle = path.open("rb")
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="check the path and permissions"
        ) from e
    with handle:
        for number, raw in enumerate(handle, 1):
            if raw.strip():
                example = _parse_line(raw, f"{path}:{number}")
                yield replace(example, conversation=example.conversation.anchored(path.parent))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> int:
    """Write examples as JSONL and return their number. The file appears whole or not at all."""
    from guardkeel.records import atomic_writer

    count = 0
    with atomic_writer(path) as out:
        for example in examples:
            line = json.dumps(example.to_row(), ensure_ascii=False)
            out.write(line.encode("utf-8", "backslashreplace") + b"\n")  # lone surrogates as JSON escapes
            count += 1
    return count


def _parse_line(raw: bytes, where: str) -> Example:
    try:
        row = json.loads(raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))  # some editors write a mark first
    except UnicodeDecodeError as e:
        raise DataError(
            f"{where}: not UTF-8 ({e.reason} at byte {e.start})", remedy="re-encode the file as UTF-8"
        ) from e
    except (ValueError, RecursionError) as e:  # also a number of thousands of digits
        raise DataError(f"{where}: not JSON ({e})", remedy="each line must be one JSON object") from e
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a line must be a JSON object, not {type(row).__name__}",
            remedy='write rows like {"id": "a1", "messages": [{"role": "user", "content": "…"}]}',
        )
    try:
        return Example.from_row(row)
    except DataError as e:
        raise DataError(f"{where}: {e.problem}", remedy=e.remedy) from e


def _turn(message: Any, index: int, images: bool) -> Turn:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where}: must be an object with role and content, not {message!r:.80}",
            remedy="see the OpenAI message format",
        )
    unknown = set(message) - {"role", "content", "tool_calls", "name", "tool_call_id", "refusal"}
    if unknown:
        raise DataError(
            f"{where}: unknown field {sorted(unknown)[0]!r}", remedy="see the OpenAI message format"
        )
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {role!r}", remedy=f"roles are {', '.join(ROLES)}")
    listed = message.get("tool_calls") or ()
    if not isinstance(listed, list | tuple):
        raise DataError(
            f"{where}: tool_calls must be a list, not {listed!r:.80}", remedy="see the OpenAI message format"
        )
    calls = tuple(_tool_call(c, where) for c in listed)
    content = message.get("content")
    shown: tuple[Image, ...] = ()
    if isinstance(content, list | tuple):
        if images:
            shown = tuple(from_part(p, where) for p in content if _is_image(p))
            content = [p for p in content if not _is_image(p)]
        content = "\n".join(_text_part(p, where) for p in content)
    refusal = message.get("refusal") or ""
    if content is None and (calls or refusal):
        content = ""
    if not isinstance(content, str) or not isinstance(refusal, str):
        wrong = content if isinstance(refusal, str) else refusal
        raise DataError(
            f"{where}: content must be text, not {wrong!r:.80}", remedy="give a string, or text parts"
        )
    content = f"{content}\n{refusal}" if content and refusal else content or refusal  # both were said
    return Turn(
        role=cast(Role, role),
        content=content,
        tool_calls=calls,
        name=_string(message.get("name") or "", "name"),
        tool_call_id=_string(message.get("tool_call_id") or "", "tool_call_id"),
        images=shown,
    )


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in PARTS


def _text_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in ("text", "input_text", "output_text", "refusal"):
        return _string(part.get("refusal" if kind == "refusal" else "text"), f"{where}: {kind}")
    raise DataError(
        f"{where}: content part of type {kind!r} is not text", remedy="only text parts can be judged here"
    )


def _tool_call(call: Any, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{where}: a tool call needs function.name, got {call!r:.80}",
            remedy="see the OpenAI message format",
        )
    unknown = {*(set(call) - {"id", "type", "index", "function"}), *(set(function) - {"name", "arguments"})}
    if unknown:
        raise DataError(
            f"{where}: unknown field {min(map(str, unknown))!r} in a tool call",
            remedy="see the OpenAI message format",
        )
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, sort_keys=True)
    return ToolCall(
        name=function["name"], arguments=arguments, id=_name(call.get("id") or "", "tool call id")
    )


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        text = [{"type": "text", "text": turn.content}] if turn.content else []
        message["content"] = [*(i.to_part() for i in turn.images), *text]
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in turn.tool_calls
        ]
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message


def _string(value: Any, field_name: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"field {field_name!r} must be a string, not {value!r:.80}",
            remedy="put it in quotes, or leave it out",
        )
    return value


def _name(value: Any, field_name: str) -> str:
    """An id: a string, or a whole number read as one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(value, field_name)


def _strings(value: Any, field_name: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise DataError(
            f"field {field_name!r} must be a list of strings, not {value!r:.80}", remedy='write ["…", "…"]'
        )
    return [_string(v, field_name) for v in value]
