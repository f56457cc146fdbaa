"""WildGuardMix, BeaverTails, ToxicChat and OpenAI's moderation set as released.

WildGuardMix (arXiv:2406.18495): null labels are rows on which raters did not agree, and rows without a response.
BeaverTails (arXiv:2307.04657): the label is the pair's, never the question's. ToxicChat (arXiv:2310.17389): toxicity is
the user's message's; the model's reply has no label. OpenAI (arXiv:2208.03274): eight categories of which any may be
missing, and what is missing is unknown: a text is safe only where all eight say 0, unsafe where one says 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from guardkeel.conversation import Label, normalised, text_digest
from guardkeel.curation.formats.base import (
    HUMAN,
    MODEL,
    Parsed,
    Released,
    exchange,
    label,
    optional_text,
    prompt_of,
    response_of,
    said,
    sides,
    text,
)
from guardkeel.curation.mapping import taxonomy_table
from guardkeel.curation.rows import Row
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.values import value_key

_HARM: dict[str, Label] = {"harmful": "unsafe", "unharmful": "safe"}
_WORDS: dict[Label | None, str | None] = {"unsafe": "harmful", "safe": "unharmful", None: None}
_TRUE = ("1", "true", "True")


def upstream_names(taxonomy: str, home: Iterable[str]) -> list[str]:
    """The names of a taxonomy that stand for one of some home names, in the taxonomy's order."""
    wanted = set(home)
    return [name for name, to in taxonomy_table(taxonomy).items() if wanted & set(to)]


class WildGuardMix(Released):
    """Training and test part; the test part has the raters' agreement besides."""

    name = "wildguardmix"
    _agreement = ("prompt_harm_agreement", "response_refusal_agreement", "response_harm_agreement")
    columns = (
        "prompt",
        "adversarial",
        "response",
        "prompt_harm_label",
        "response_refusal_label",
        "response_harm_label",
        "subcategory",
        *_agreement,
    )
    optional = frozenset(_agreement)
    texts = ("prompt", "response")
    taxonomy = "wildguard"
    licence = "ODC-BY 1.0"
    upstream = "allenai/wildguardmix"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released. Labels of the training part are a language model's, those of the test part people's."""
        source = HUMAN if any(said(fields.get(c)) for c in self._agreement) else MODEL
        reply = optional_text(fields, "response")
        prompt = label(fields, "prompt_harm_label", _HARM)
        response = label(fields, "response_harm_label", _HARM)
        unsafe = "unsafe" in (prompt, response)
        kind = optional_text(fields, "subcategory") or ""
        return Parsed(
            exchange(text(fields, "prompt"), reply),
            sides(prompt=(prompt, source), response=(response if reply is not None else None, source)),
            self.home([kind]) if unsafe else (),
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        made = {
            "adversarial": None,
            "response_refusal_label": None,
            "subcategory": next(iter(upstream_names("wildguard", row.categories)), None),
        }
        return (
            made
            | own
            | {
                "prompt": prompt_of(row),
                "response": response_of(row),
                "prompt_harm_label": _WORDS[row.label("prompt")],
                "response_harm_label": _WORDS[row.label("response")],
            }
        )


class BeaverTails(Released):
    """Question, reply, fourteen categories as true or false, is_safe."""

    name = "beavertails"
    columns = ("prompt", "response", "category", "is_safe")
    texts = ("prompt", "response")
    taxonomy = "beavertails"
    licence = "CC BY-NC 4.0"
    upstream = "PKU-Alignment/BeaverTails"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released. Replies to one question are one group."""
        prompt = text(fields, "prompt")
        safe = label(
            fields, "is_safe", {"true": "safe", "True": "safe", "false": "unsafe", "False": "unsafe"}
        )
        return Parsed(
            exchange(prompt, optional_text(fields, "response") or ""),
            sides(response=(safe, HUMAN)),
            self._named(fields),
            group=text_digest(normalised(prompt)),
            language="en",
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released. A response whose label is unknown cannot be said in this format: is_safe is null."""
        known = {None: None, "safe": True, "unsafe": False}
        meant = set(upstream_names("beavertails", row.categories))
        flags = {name: name in meant for name in taxonomy_table("beavertails") if name != "*"}
        same = bool(own) and self._named(own) == row.categories
        return {
            "prompt": prompt_of(row),
            "response": response_of(row) or "",
            "category": own["category"] if same else flags,
            "is_safe": known[row.label("response")],
        }

    def _named(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        given = fields.get("category")
        if isinstance(given, str):  # tables keep objects as JSON text
            try:
                given = json.loads(given)
            except ValueError as e:
                raise DataError(
                    "field 'category' is no object", remedy="give the object of categories"
                ) from e
        if not isinstance(given, Mapping):
            raise DataError(f"field 'category' must be an object, not {given!r:.80}", remedy="as released")
        return self.home([k for k, v in given.items() if value_key(v) in _TRUE])


class ToxicChat(Released):
    """Version 0124: message, reply, toxicity, jailbreaking, and whether people labelled it."""

    name = "toxicchat"
    columns = (
        "conv_id",
        "user_input",
        "model_output",
        "human_annotation",
        "toxicity",
        "jailbreaking",
        "openai_moderation",
    )
    texts = ("user_input", "model_output")
    licence = "CC BY-NC 4.0"
    upstream = "lmsys/toxic-chat"

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released. Rows that nobody looked at were labelled by a model's score."""
        source = HUMAN if value_key(fields.get("human_annotation")) in _TRUE else MODEL
        identity = text(fields, "conv_id")
        reply = optional_text(fields, "model_output")
        return Parsed(
            exchange(text(fields, "user_input"), reply),
            sides(prompt=(label(fields, "toxicity", {"0": "safe", "1": "unsafe"}), source)),
            id=identity,
            group=identity,
        )

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released."""
        known = {None: None, "safe": 0, "unsafe": 1}
        found = known[row.label("prompt")]
        given = row.labels.get("prompt")
        made = {"conv_id": row.id, "jailbreaking": None, "openai_moderation": None} | own
        if not own or value_key(own["toxicity"]) != value_key(found):
            made["toxicity"] = found
        if not own:
            made["human_annotation"] = given is not None and given.source == HUMAN
        return made | {"user_input": prompt_of(row), "model_output": response_of(row)}


class OpenAIModeration(Released):
    """Text and eight categories, any of which may be missing."""

    name = "openai-moderation"
    codes = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
    columns = ("prompt", *codes)
    optional = frozenset(codes)
    texts = ("prompt",)
    taxonomy = "openai"
    licence = "MIT"
    upstream = "openai/moderation-api-release"

    def fits(self, names: set[str]) -> bool:
        """At least one category: a prompt alone is anything."""
        return super().fits(names) and len(names) > 1

    def read(self, fields: Mapping[str, Any]) -> Parsed:
        """See Released."""
        found, names = self._judged(fields)
        return Parsed(exchange(text(fields, "prompt"), None), sides(prompt=(found, HUMAN)), names)

    def write(self, row: Row, own: dict[str, Any]) -> dict[str, Any]:
        """See Released. Of a row from elsewhere only what follows is said: 0 everywhere, or 1 for its categories."""
        found = row.label("prompt")
        if own and self._judged(own) == (found, row.categories):
            marks = {c: own[c] for c in self.codes if said(own.get(c))}
        elif found == "unsafe":
            marks = dict.fromkeys((c for c in upstream_names("openai", row.categories) if c in self.codes), 1)
        else:
            marks = dict.fromkeys(self.codes if found == "safe" else (), 0)
        return {"prompt": prompt_of(row)} | marks

    def _judged(self, fields: Mapping[str, Any]) -> tuple[Label | None, tuple[str, ...]]:
        known = {c: label(fields, c, {"0": "safe", "1": "unsafe"}) for c in self.codes}
        flagged = [c for c, v in known.items() if v == "unsafe"]
        return "unsafe" if flagged else None if None in known.values() else "safe", self.home(flagged)
