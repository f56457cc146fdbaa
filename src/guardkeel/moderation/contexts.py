"""The context of an item: the path of weight tables, from coarse to fine, that it is mixed and learnt in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from guardkeel.conversation import Side
from guardkeel.moderation.aggregation import Context
from guardkeel.moderation.config import ContextPart
from guardkeel.moderation.experts import Opinion
from guardkeel.taxonomy import home

UNDETERMINED = "und"


def language_of(tag: str | None) -> str:
    """The primary subtag of a language tag ("de" of "de-AT"); "und" where there is none (ISO 639)."""
    primary = (tag or "").split("-")[0].split("_")[0].lower()
    return primary if re.fullmatch(r"[a-z]{2,3}", primary) else UNDETERMINED


def context_of(
    parts: Sequence[ContextPart], side: Side, language: str, opinions: Sequence[Opinion] = ()
) -> Context:
    """The path; it ends early where the experts named no category (or have not been asked yet)."""
    known = {"side": side, "language": language, "category": _category(opinions)}
    return tuple(known[p] for p in parts if known[p])


def _category(opinions: Sequence[Opinion]) -> str:
    """The category that most experts name; of equals the first by name. It needs no weights: they follow from it."""
    named = Counter(home(c) for o in opinions for c in dict.fromkeys(o.categories))
    return min(named, key=lambda c: (-named[c], c), default="")
