"""Aegis 1.0 (arXiv:2404.05993) and 2.0 (arXiv:2501.09004) as released.

Aegis 1.0: one text of a user, of a model, or of a whole dialogue, and three to five raters who each named categories,
"Safe" or "Needs Caution", with commas between several. The label is the majority of all raters that said something,
with "Needs Caution" as unsafe; a tie is null. Votes keep their categories, so that a permissive reader can count again.

Aegis 2.0: `violated_categories` are the dialogue's, with commas between them, in order of votes. A null response is
a prompt alone; an empty one is a model that said nothing, and was labelled. Ids repeat: rows with a refusal added share
the id of the dialogue they were made from, so the id is the group. Prompts that upstream may not pass on read
"REDACTED"; `reconstruction_id_if_redacted` names their row in the Suicide Detection set, which users fetch themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from guardkeel.conversation import Conversation, Label, Side, Turn
from guardkeel.curation.formats.base import (
    HUMAN,
    Parsed,
    Released,
    exchange,
    label,
    names,
    optional_text,
    prompt_of,
    response_of,
    said,
    sides,
    source_of,
    text,
)
from guardkeel.curation.mapping import CAUTION, majority
from guardkeel.curation.rows import Row, SideLabel, Vote
from guardkeel.errors import DataError

REDACTED = "REDACTED"
LABELS: dict[str, Label] = {"safe": "safe", "unsafe": "unsafe"}
RATERS = tuple(f"labels_{i}" for i in range(5))

_SIDE: dict[str, Side] = {"user_message": "prompt", "llm_response": "response"}


class Aegis1(Released):
    """See the module's text."""

    name = "aegis-1"
    columns = ("text", "text_type", *RATERS)
    optional = frozenset({"labels_3", "labels_4"})
    texts = ("text",)
    licence = "CC BY 4.0"
    upstream = "nvidia/Aegis-AI-Content-Safety-Dataset-1.0"

    def fits(self, names: set[str]) -> bool:
        """Some copies have further columns, such as num_annotations."""
        return {"text", "text_type", "labels_0"} <= names

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        kind = text(fields, "text_type")
        side = _SIDE.get(kind, "trajectory")
        turn = Turn("assistant" if side == "response" else "user", text(fields, "text"))
        votes = self._votes(fields)
        if not votes:
            raise DataError("no rater said anything", remedy="check the columns labels_0 to labels_4")
        found = SideLabel(majority(votes), HUMAN, votes)
        named = Counter(c for vote in votes for c in vote.categories)
        order = sorted(named, key=lambda c: (-named[c], list(named).index(c)))
        return Parsed(
            Conversation((turn,)), {side: found}, tuple(order) if found.label != "safe" else (), language="en"
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """A row from elsewhere is written side by side of its label, each vote as a rater, else the label as one."""
        side: Side = next((s for s in ("prompt", "response", "trajectory") if s in row.labels), "prompt")
        kinds = {v: k for k, v in _SIDE.items()}
        given = row.labels.get(side)
        made: dict[str, Any] = {"text_type": own.get("text_type", kinds.get(side, "dialogue"))}
        by = {"prompt": prompt_of(row), "response": response_of(row) or ""}
        made["text"] = by.get(side, row.conversation.text)
        cells = self._cells(given, row.categories)
        made |= dict.fromkeys(RATERS) | dict(zip(RATERS, cells, strict=False))
        if own and given is not None and given.votes == self._votes(own):
            made |= {r: own[r] for r in RATERS if r in own}  # in the very words of the raters
        return made

    def _votes(self, fields: Mapping[str, Any]) -> tuple[Vote, ...]:
        return tuple(self._vote(rater, fields.get(rater)) for rater in RATERS if said(fields.get(rater)))

    def _vote(self, rater: str, value: Any) -> Vote:
        named = names(value)
        unsafe = any(name != "Safe" for name in named)
        return Vote(rater, "unsafe" if unsafe else "safe", categories=self.home(named))

    def _cells(self, given: SideLabel | None, categories: tuple[str, ...]) -> list[str]:
        if given is None:
            return []
        votes = [v for v in given.votes if v.label] or (
            [Vote(given.source, given.label)] if given.label else []
        )
        named = ", ".join(categories) or CAUTION
        return [
            "Safe" if v.label == "safe" else ", ".join(v.categories) or named for v in votes[: len(RATERS)]
        ]


class Aegis2(Released):
    """See the module's text."""

    name = "aegis-2"
    columns = (
        "id",
        "reconstruction_id_if_redacted",
        "prompt",
        "response",
        "prompt_label",
        "response_label",
        "violated_categories",
        "prompt_label_source",
        "response_label_source",
    )
    texts = ("prompt", "response")
    licence = "CC BY 4.0"
    upstream = "nvidia/Aegis-AI-Content-Safety-Dataset-2.0"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        identity, prompt = text(fields, "id"), optional_text(fields, "prompt") or ""
        if not prompt.strip():
            return Parsed(None, id=identity, left_out="the prompt is empty")
        if prompt == REDACTED and said(fields.get("reconstruction_id_if_redacted")):
            return Parsed(None, id=identity, left_out="upstream shows the prompt as REDACTED")
        by_prompt = optional_text(fields, "prompt_label_source") or HUMAN
        by_response = optional_text(fields, "response_label_source") or HUMAN
        return Parsed(
            exchange(prompt, optional_text(fields, "response")),
            sides(
                prompt=(label(fields, "prompt_label", LABELS), by_prompt),
                response=(label(fields, "response_label", LABELS), by_response),
            ),
            self.home(names(fields.get("violated_categories"))),
            id=identity,
            group=identity,
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released. A prompt that was put back in is written as REDACTED again: it is not ours to pass on."""
        hidden = own.get("reconstruction_id_if_redacted")
        written = own.get("violated_categories")
        same = written is not None and self.home(names(written)) == row.categories
        return {
            "id": own.get("id", row.group or row.id),
            "reconstruction_id_if_redacted": hidden,
            "prompt": REDACTED if said(hidden) else prompt_of(row),
            "response": response_of(row),
            "prompt_label": row.label("prompt"),
            "response_label": row.label("response"),
            "violated_categories": written if same else ", ".join(row.categories),
            "prompt_label_source": source_of(row, "prompt"),
            "response_label_source": source_of(row, "response"),
        }
