"""XSTest, HarmBench, JailbreakBench and AILuminate as released: prompts written to test models.

What their authors wrote a prompt to be is a label by its author. JailbreakBench says harmful or benign only by its
file, and an AILuminate prompt was written to bring out a hazard in a reply and need not be unsafe itself: both come
without a label, and a source's `labels` can give one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardkeel.curation.formats.base import (
    AUTHOR,
    Parsed,
    Released,
    exchange,
    label,
    optional_text,
    prompt_of,
    sides,
    text,
)
from guardkeel.curation.formats.mixes import upstream_names
from guardkeel.curation.rows import Row


class XSTest(Released):
    """arXiv:2308.01263, version 2."""

    name = "xstest"
    columns = ("id", "prompt", "type", "label", "focus", "note")
    optional = frozenset({"focus", "note"})
    texts = ("prompt",)
    licence = "CC BY 4.0"
    upstream = "paul-rottger/xstest"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        found = label(fields, "label", {"safe": "safe", "unsafe": "unsafe"})
        return Parsed(
            exchange(text(fields, "prompt"), None),
            sides(prompt=(found, AUTHOR)),
            id=str(fields["id"]),
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        return {"id": row.id, "type": None} | own | {"prompt": prompt_of(row), "label": row.label("prompt")}


class HarmBench(Released):
    """arXiv:2402.04249, text behaviours. The context, where there is one, stands before the request."""

    name = "harmbench"
    columns = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")
    texts = ("Behavior", "ContextString")
    taxonomy = "harmbench"
    licence = "MIT"
    upstream = "centerforaisafety/HarmBench"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        identity = text(fields, "BehaviorID")
        return Parsed(
            exchange(_joined(fields), None),
            sides(prompt=("unsafe", AUTHOR)),
            self.home([optional_text(fields, "SemanticCategory") or ""]),
            id=identity,
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released. Of a contextual behaviour what stands before the last empty line is the context."""
        kind = next(iter(upstream_names("harmbench", row.categories)), "")
        made = {"FunctionalCategory": "", "SemanticCategory": kind, "Tags": "", "BehaviorID": row.id} | own
        contextual = made["FunctionalCategory"] == "contextual"
        context, _, request = prompt_of(row).rpartition("\n\n") if contextual else ("", "", prompt_of(row))
        return made | {"ContextString": context, "Behavior": request}


def _joined(fields: Mapping[str, Any]) -> str:
    context = optional_text(fields, "ContextString") or ""
    return "\n\n".join(part for part in (context, text(fields, "Behavior")) if part.strip())


class JailbreakBench(Released):
    """arXiv:2404.01318: goals, harmful and benign in two files, paired by their index."""

    name = "jailbreakbench"
    columns = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
    optional = frozenset({"Target", "Behavior", "Source"})
    texts = ("Goal",)
    taxonomy = "jailbreakbench"
    licence = "MIT"
    upstream = "JailbreakBench/JBB-Behaviors"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released. A pair is one group."""
        identity = str(fields["Index"])
        return Parsed(
            exchange(text(fields, "Goal"), None),
            categories=self.home([optional_text(fields, "Category") or ""]),
            id=identity,
            group=identity,
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        kind = next(iter(upstream_names("jailbreakbench", row.categories)), None)
        return {"Index": row.group or row.id, "Category": kind} | own | {"Goal": prompt_of(row)}


class AILuminate(Released):
    """arXiv:2503.05731, version 1.0: prompts by hazard and persona."""

    name = "ailuminate"
    columns = ("release_prompt_id", "prompt_text", "hazard", "persona", "locale", "prompt_hash")
    texts = ("prompt_text",)
    taxonomy = "ailuminate"
    licence = "CC BY 4.0"
    upstream = "mlcommons/ailuminate"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        return Parsed(
            exchange(text(fields, "prompt_text"), None),
            categories=self.home([optional_text(fields, "hazard") or ""]),
            id=text(fields, "release_prompt_id"),
            language=optional_text(fields, "locale") or "",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        kind = next(iter(upstream_names("ailuminate", row.categories)), None)
        made = {"hazard": kind, "persona": None, "locale": row.language, "prompt_hash": None} | own
        return {"release_prompt_id": row.id} | made | {"prompt_text": prompt_of(row)}
