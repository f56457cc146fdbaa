"""Chat logs as OpenAI messages, and guardkeel's own rows.

messages    {"id": …, "messages": [{"role": …, "content": …}]}, as chat logs and fine-tuning files have them; no labels.
            Fields of messages that are empty or say nothing about content are left out, `developer` is a system turn,
            and the older `function_call` and `function` role are tool calls and results.
guardkeel   rows of an earlier `guardkeel curate` (curation/rows.py), or labelled conversations (conversation.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkeel.conversation import Conversation, Example
from guardkeel.curation.formats.base import Parsed, Released
from guardkeel.curation.rows import Row, SideLabel, row_from_json
from guardkeel.errors import DataError

_KNOWN = ("role", "content", "tool_calls", "name", "tool_call_id", "refusal")
_SILENT = (
    "weight",
    "annotations",
    "audio",
    "reasoning_content",
    "function_call",
    "id",
    "timestamp",
    "created",
)
_OURS = frozenset({"labels", "origin", "history"})
_ROLES = {"developer": "system", "function": "tool"}


class Messages(Released):
    """See the module's text."""

    name = "messages"
    columns = ("id", "messages")
    optional = frozenset({"id"})
    texts = ("messages",)

    def fits(self, names: set[str]) -> bool:
        """Whatever has messages and is no row of ours."""
        return "messages" in names and not names & _OURS

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        given = fields.get("messages")
        if not isinstance(given, list):
            raise DataError(
                f"messages must be a list, not {given!r:.80}", remedy="give OpenAI-style messages"
            )
        identity = fields.get("id")
        conversation = Conversation.from_messages([_message(m) for m in given])
        return Parsed(conversation, id="" if identity is None else str(identity))

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        return {"id": own.get("id", row.id), "messages": row.conversation.to_messages()}


def _message(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given  # from_messages says what is wrong
    made = {
        k: v for k, v in given.items() if k in _KNOWN or (k not in _SILENT and v not in (None, "", [], {}))
    }
    made["role"] = _ROLES.get(made.get("role", ""), made.get("role"))
    call = given.get("function_call")
    if call:
        made["tool_calls"] = [{"function": call}]
        made.setdefault("content", None)
    return made


class Own(Released):
    """See the module's text."""

    name = "guardkeel"
    columns = ("id", "messages", "labels")
    texts = ("messages",)

    def fits(self, names: set[str]) -> bool:
        """Rows and examples have ids and messages, and labels or where they come from."""
        return {"id", "messages"} <= names and bool(names & _OURS)

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released. Provenance of an earlier run is read by `row`."""
        row = self.row(fields)
        return Parsed(row.conversation, row.labels, row.categories, row.id, row.group, row.language)

    def row(self, fields: Mapping[str, Any], source: str = "") -> Row:
        """A whole row; labels of an example have the given source."""
        labels = fields.get("labels")
        if isinstance(labels, Mapping) and any(isinstance(v, Mapping) for v in labels.values()):
            return row_from_json(fields)
        example = Example.from_row(fields)
        return Row(
            id=example.id,
            conversation=example.conversation,
            labels={side: SideLabel(v, source) for side, v in example.labels.items()},
            categories=example.categories,
            group=example.group,
            language=example.language,
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        return row.to_json()

    def record(self, row: Row) -> dict[str, Any]:
        """The row itself."""
        return row.to_json()
