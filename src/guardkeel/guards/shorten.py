"""Fitting long texts into the context: tokens are cut out of the middle of the longest, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import cached_property
from typing import Any, TypeVar

from guardkeel.errors import ConfigError

GAP = " […] "
_CHUNK = 65536  # characters that are tokenised at once when tokens are only counted
_KEPT = 2  # tokens of a shortened text that stay, one at each end

T = TypeVar("T", bound=Sized)


class Shortener:
    """Cuts texts with one tokenizer until what is made of them fits."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def fit(
        self,
        texts: Sequence[str],
        encode: Callable[[list[str]], T],
        room: int,
        shown: Callable[[], Sequence[bool]] | None = None,
    ) -> tuple[T, int]:
        """`encode(texts)`, no longer than `room`, and the number of text tokens left out.

        Only the longest text is shortened as long as that is enough; then the next. `shown` says which texts
        `encode` makes use of at all; the others are neither cut nor counted. It is asked when it matters.

        Raises:
            ConfigError: what surrounds the texts leaves no room for them.
        """
        halves = [self._halves(t) for t in texts]
        short = [text for text, _ in halves]
        encoded = encode(short)
        over = len(encoded) - room
        if over <= 0 and not any(n for _, n in halves):
            return encoded, 0
        used = shown() if shown else [True] * len(short)
        dropped = sum(n for (_, n), use in zip(halves, used, strict=True) if use)
        if over <= 0:
            return encoded, dropped
        spans = [self._spans(text) if use else [] for text, use in zip(short, used, strict=True)]
        cuts = [0] * len(spans)
        while over > 0:
            self._deepen(spans, cuts, over)
            parts = [_cut(*each) for each in zip(short, spans, cuts, strict=True)]
            encoded = encode([text for text, _ in parts])
            over = len(encoded) - room
        return encoded, dropped + sum(n for _, n in parts)

    def _deepen(self, spans: list[list[tuple[int, int]]], cuts: list[int], over: int) -> None:
        """Raise the cuts by about `over` tokens, the longest text first."""
        before = sum(cuts)
        for i in sorted(range(len(spans)), key=lambda i: -len(spans[i])):
            most = len(spans[i]) - _KEPT
            if over <= 0 or most <= self._gap:
                break
            wanted = min(most, cuts[i] + over + (0 if cuts[i] else self._gap))
            over -= wanted - cuts[i] - (0 if cuts[i] else self._gap)
            cuts[i] = wanted
        if sum(cuts) == before:
            raise ConfigError(
                f"needs more than max_tokens={self.max_tokens} even with its messages shortened",
                remedy="raise max_tokens, shorten tool-call arguments, or split the conversation",
            )

    def _halves(self, text: str) -> tuple[str, int]:
        """A text that cannot fit whatever its tokens are, without its middle: the rest is soon tokenised."""
        most = self.max_tokens * self._longest_token
        if len(text) <= most + len(GAP):
            return text, 0
        start, end = most // 2, len(text) - most // 2
        dropped = sum(len(self._ids(text[i : min(i + _CHUNK, end)])) for i in range(start, end, _CHUNK))
        # More is always cut, around this gap: its own tokens will then be counted and are no one's loss.
        return text[:start] + GAP + text[end:], dropped - len(self._ids(GAP))

    def _spans(self, text: str) -> list[tuple[int, int]]:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ConfigError(
                f"needs more than max_tokens={self.max_tokens}, and this tokenizer cannot tell where to cut",
                remedy="raise max_tokens, or convert the tokenizer to a tokenizer.json",
            )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _gap(self) -> int:
        return len(self._ids(GAP)) + 2

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))


def _cut(text: str, spans: list[tuple[int, int]], cut: int) -> tuple[str, int]:
    """The text without about `cut` tokens of its middle, and how many went; characters are never split."""
    if not cut:
        return text, 0
    keep = (len(spans) - cut) // 2
    start, end = spans[keep][0], spans[keep + cut - 1][1]
    gone = sum(start <= a and b <= end for a, b in spans)
    return text[:start] + GAP + text[end:], gone
