"""Which labels of a sequence classifier mean unsafe, read from their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from guardkeel.errors import ModelError

UNSAFE_NAMES = frozenset(
    {
        *(
            "unsafe",
            "harmful",
            "harm",
            "toxic",
            "toxicity",
            "severetoxic",
            "severetoxicity",
            "hate",
            "hateful",
        ),
        *(
            "hatespeech",
            "identityhate",
            "identityattack",
            "offensive",
            "obscene",
            "insult",
            "threat",
            "abusive",
        ),
        *("harassment", "violence", "selfharm", "sexual", "sexualexplicit", "profanity", "nsfw"),
        *("injection", "jailbreak", "malicious", "attack", "flagged", "unacceptable"),
    }
)
SAFE_NAMES = frozenset(
    {
        *(
            "safe",
            "harmless",
            "unharmful",
            "benign",
            "legit",
            "legitimate",
            "ok",
            "clean",
            "acceptable",
            "sfw",
        ),
        *("neutral", "normal", "none"),
    }
)
_WEAK = frozenset({"neutral", "normal", "none"})  # of other classifiers too: safe only beside a known harm
# Jigsaw's "unintended bias" models also say who is spoken of, which is no harm.
IDENTITY_NAMES = frozenset(
    {
        *("male", "female", "homosexualgayorlesbian", "christian", "jewish", "muslim", "black", "white"),
        *("psychiatricormentalillness",),
    }
)
_ANONYMOUS = ({"label0", "label1"}, {"0", "1"})
_NEGATION = re.compile(r"(?:non|not|no)(?=.)")


def unsafe_labels(names: Mapping[int, str], *, multi_label: bool = False) -> list[int]:
    """Ids of the labels that mean unsafe.

    Where a label is known to be safe, all others are unsafe. Two anonymous labels (LABEL_0, LABEL_1) are read
    as the field's convention has it: 1 is unsafe. A multi-label model of harms needs no safe label: every
    label is unsafe (but see IDENTITY_NAMES).

    Raises:
        ModelError: the names do not tell.
    """
    plain = {i: re.sub(r"[\W_]+", "", name.lower()) for i, name in names.items()}
    if len(plain) == 2 and set(plain.values()) in _ANONYMOUS:
        return [i for i, name in plain.items() if name.endswith("1")]
    safe = {i for i, name in plain.items() if _means_safe(name)}
    harm = not UNSAFE_NAMES.isdisjoint(plain.values())
    if multi_label and harm:
        return [i for i, name in plain.items() if i not in safe and name not in IDENTITY_NAMES]
    if safe and len(safe) < len(plain) and (harm or any(plain[i] not in _WEAK for i in safe)):
        return [i for i in plain if i not in safe]
    raise ModelError(
        f"labels {sorted(names.values())} do not say which of them are unsafe",
        remedy='add {"unsafe_labels": ["…"]} to a guardkeel.json beside config.json',
    )


def _means_safe(name: str) -> bool:
    denied = _NEGATION.match(name)
    return name in SAFE_NAMES or (denied is not None and name[denied.end() :] in UNSAFE_NAMES)
