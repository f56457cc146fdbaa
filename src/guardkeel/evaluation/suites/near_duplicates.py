"""Which texts are the same or nearly the same.

Texts are compared in normalised form (`conversation.normalised`). Two texts are near-duplicates when the
Jaccard similarity |A ∩ B| / |A ∪ B| of their shingle sets is at least 0.8, in either of two spaces:

    words   sets of 3 consecutive words, for texts of 10 words or more
    chars   sets of 5 consecutive characters, for texts of 13 words or fewer

(short texts have too few word shingles to compare; the spaces overlap so that a pair at the border is seen).
Candidates come from MinHash LSH (Broder 1997) with 32 bands of 4 rows, which misses a pair at similarity s
with probability (1 - s^4)^32 — 5e-8 at s = 0.8 — and each candidate is then checked exactly, so there are
no false alarms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

THRESHOLD = 0.8
WORD_SHINGLE = 3
CHAR_SHINGLE = 5
WORDS_FROM = 10
CHARS_TO = 13

BANDS, ROWS = 32, 4
_SEED = 1
_CHUNK = 8192


class UnionFind:
    """Disjoint sets of 0 … n-1; the root of a set is its smallest member."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        """The smallest member of i's set."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def union(self, i: int, j: int) -> None:
        """Join the sets of i and j."""
        a, b = self.find(i), self.find(j)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> list[int]:
        """The root of each member, in order."""
        return [self.find(i) for i in range(len(self._parent))]


def word_shingles(text: str) -> frozenset[str]:
    """Runs of 3 words of a normalised text; empty when the text is too short for this space."""
    words = text.split(" ")
    if len(words) < WORDS_FROM:
        return frozenset()
    return frozenset(" ".join(words[i : i + WORD_SHINGLE]) for i in range(len(words) - WORD_SHINGLE + 1))


def char_shingles(text: str) -> frozenset[str]:
    """Runs of 5 characters of a normalised text; empty when the text is too long for this space."""
    if not text or text.count(" ") >= CHARS_TO:
        return frozenset()
    return frozenset(text[i : i + CHAR_SHINGLE] for i in range(max(1, len(text) - CHAR_SHINGLE + 1)))


def jaccard(a: frozenset[str] | frozenset[int], b: frozenset[str] | frozenset[int]) -> float:
    """|a ∩ b| / |a ∪ b|; 0 when either is empty."""
    if not a or not b:
        return 0.0
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def near_duplicates(a: str, b: str) -> bool:
    """Whether two normalised texts are the same or near-duplicates. Exact, and the definition."""
    return a == b or any(
        jaccard(shingle(a), shingle(b)) >= THRESHOLD for shingle in (word_shingles, char_shingles)
    )


def join(texts: Sequence[str], sets: UnionFind, members: Sequence[int]) -> None:
    """Join the sets of members whose normalised texts are the same or near-duplicates.

    Args:
        texts: normalised texts; empty ones are not compared.
        sets: changed in place.
        members: the set member that each text belongs to.
    """
    first: dict[str, int] = {}
    for text, member in zip(texts, members, strict=True):
        if text:
            sets.union(first.setdefault(text, member), member)
    distinct, owners = list(first), list(first.values())
    for shingle in (word_shingles, char_shingles):
        _join_space([frozenset(map(_hash, shingle(t))) for t in distinct], sets, owners)


def _join_space(shingled: Sequence[frozenset[int]], sets: UnionFind, owners: Sequence[int]) -> None:
    for i, j in _candidates(shingled):
        a, b = owners[i], owners[j]
        if sets.find(a) != sets.find(b) and _near(shingled[i], shingled[j]):
            sets.union(a, b)


def _near(a: frozenset[int], b: frozenset[int]) -> bool:
    small, large = sorted((len(a), len(b)))
    return small >= THRESHOLD * large and jaccard(a, b) >= THRESHOLD


def _candidates(shingled: Sequence[frozenset[int]]) -> Iterator[tuple[int, int]]:
    """Pairs that share a band of their MinHash signatures, each with the earlier text second."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    empty = MinHash(num_perm=BANDS * ROWS, seed=_SEED, hashfunc=_low)
    for i, shingles in enumerate(shingled):
        if not shingles:
            continue
        signature = empty.copy()
        ordered = list(shingles)
        for start in range(0, len(ordered), _CHUNK):  # bounds the memory of a very long text
            signature.update_batch(ordered[start : start + _CHUNK])
        for j in sorted(index.query(signature)):
            yield i, j
        index.insert(i, signature, check_duplication=False)


def _hash(shingle: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(shingle.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _low(value: int) -> int:
    return value & 0xFFFFFFFF
