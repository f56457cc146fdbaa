"""OpenAI's moderation schema: its thirteen keys, what counts as which, requests in, results out.

Sources: the published reference and the types of the `openai` package. Categories of the home taxonomy that OpenAI has
no key for (PII/Privacy, Profanity, …) raise `flagged` alone, unless the policy gives them a key; the rich endpoint
names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

KEYS = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)

CROSSWALK: dict[str, tuple[str, ...]] = {
    "Hate/Identity Hate": ("hate",),
    "Sexual": ("sexual",),
    "Violence": ("violence",),
    "Suicide and Self Harm": ("self-harm",),
    "Threat": ("harassment", "harassment/threatening"),
    "Sexual (minor)": ("sexual", "sexual/minors"),
    "Guns and Illegal Weapons": ("illicit", "illicit/violent"),
    "Controlled/Regulated Substances": ("illicit",),
    "Criminal Planning/Confessions": ("illicit",),
    "Harassment": ("harassment",),
    "Illegal Activity": ("illicit",),
    "Fraud/Deception": ("illicit",),
    "Malware": ("illicit",),
    **{key: (key,) for key in KEYS},
}


class TextPart(BaseModel):
    """A piece of text."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A picture, which guards of text cannot judge: it is refused, never passed over."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["image_url"]
    image_url: Any


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ModerationRequest(BaseModel):
    """Of `/v1/moderations`. `language` is ours: the context whose weights are used."""

    model_config = ConfigDict(extra="ignore")

    input: str | list[str] | list[Part]
    model: str = "omni-moderation-latest"
    language: str | None = Field(default=None, max_length=35)


def result(flagged: bool, scores: Iterable[tuple[tuple[str, ...], float, bool]]) -> dict[str, Any]:
    """One entry of `results`, from (keys, score, flagged) of each category."""
    categories, numbers = dict.fromkeys(KEYS, False), dict.fromkeys(KEYS, 0.0)
    for keys, score, over in scores:
        for key in keys:
            categories[key] = categories[key] or over
            numbers[key] = max(numbers[key], score)
    return {
        "flagged": flagged,
        "categories": categories,
        "category_scores": numbers,
        "category_applied_input_types": {key: ["text"] for key in KEYS},
    }


def error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
