"""`/v1/moderations` in OpenAI's schema: hosted moderation, and servers that speak like it.

Request: {model, input: text or a list}. Answer: {results: [{flagged, categories: {name: bool}, category_scores: {name:
number}}]}, in the order of the inputs.

P(unsafe) is the highest category score. A service that flags by a threshold of each category may flag below 0.5: set
`threshold`, or take its word alone with `score = "flagged"`, which gives 0 or 1. A prompt is the last user message, a
response the reply alone: the schema has no place for what it answers. Categories are those that the service flagged,
by its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.judged import judged_text
from guardkeel.guards.remote.api import Asked, entries, probability
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.config import RemoteConfig


class Moderations:
    """See Api."""

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config

    def prepare(self, item: Judgement) -> Asked:
        """See Api: the text under judgement."""
        text = judged_text(item.conversation, item.side).encode("utf-8", "replace").decode()
        if not text.strip():
            raise ConfigError("the text is empty")
        return Asked(text, item.side)

    def body(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """See Api."""
        texts = [a.value for a in asked]
        return {
            "model": self._config.model,
            "input": texts[0] if len(texts) == 1 else texts,
        } | self._config.extra

    def read(self, answer: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """See Api."""
        return [self._verdict(entry) for entry in entries(answer, "results", len(asked))]

    def _verdict(self, entry: dict[str, Any]) -> Verdict:
        flagged, named, scores = (entry.get(k) for k in ("flagged", "categories", "category_scores"))
        if not isinstance(flagged, bool):
            raise Failed("the answer does not say whether the text is flagged")
        names = tuple(sorted(k for k, v in named.items() if v is True)) if isinstance(named, dict) else ()
        if self._config.score == "flagged":
            return Verdict(float(flagged), categories=names)
        known = [probability(v) for v in scores.values() if v is not None] if isinstance(scores, dict) else []
        if not known:
            raise Failed("the answer has no category_scores")
        return Verdict(max(known), categories=names)
