"""Which of very many texts are the same or nearly the same, in bounded memory and linear time.

What "nearly the same" means is what splits mean by it (evaluation/suites/near_duplicates.py): Jaccard similarity of 0.8
or more, of 3-word shingles for texts of 10 words or more, of 5-character shingles for texts of 13 words or fewer. The
difference is in the way there, which has to go for a million texts:

- Texts and MinHash signatures (datasketch, 128 permutations) go to files as they come: one file for each of the 32
  bands of 4 rows. Memory holds about 60 bytes a text: its digest, its place in the file, its set.
- Texts that share a band are found by sorting the band's keys. Within a run of equal keys each text is compared with
  the first, what is left with the next, `ROUNDS` times: work is linear in the texts, also where thousands share a
  band. Near-duplicates meet in many bands, so what one misses another finds.
- A pair is looked at closely only where the share of equal signature rows is 0.64 or more: 4.5 standard deviations,
  √(0.8·0.2/128), below 0.8. Then the texts decide, so there are no false alarms.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from guardkeel.evaluation.suites.near_duplicates import (
    BANDS,
    CHAR_SHINGLE,
    CHARS_TO,
    ROWS,
    THRESHOLD,
    WORD_SHINGLE,
    WORDS_FROM,
    near_duplicates,
)

ROUNDS = 8
FLOOR = THRESHOLD - 4.5 * (THRESHOLD * (1 - THRESHOLD) / (BANDS * ROWS)) ** 0.5
PART = "\x1f"
"""Stands between the parts of a text that are compared one by one; a space, where a text is shingled whole."""

_CHUNK = 2048
_PAIRS = 8192
_REMEMBERED = 1_000_000  # pairs that were looked at closely and are not near
_MOST = 8192  # shingles of a text hashed at once
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))

Ints = npt.NDArray[np.int64]
Watch = Callable[[int, int], None]


class Sets:
    """Disjoint sets of 0 … n-1; the root of a set is its smallest member."""

    def __init__(self, n: int) -> None:
        self._parent: Ints = np.arange(n, dtype=np.int64)

    def find(self, i: int) -> int:
        """The root of i's set."""
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def union(self, i: int, j: int) -> None:
        """Join the sets of i and j."""
        a, b = self.find(i), self.find(j)
        self._parent[max(a, b)] = min(a, b)

    def roots(self) -> Ints:
        """The root of each member, in order."""
        while True:
            above = self._parent[self._parent]
            if np.array_equal(above, self._parent):
                return above
            self._parent = above


class Texts:
    """Texts in a file, by number."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("w+b")
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        start, end = self._ends[i], self._ends[i + 1]
        self._file.seek(start)
        return self._file.read(end - start).decode("utf-8", "surrogatepass")

    def append(self, text: str) -> None:
        """Add a text at the end, before the first is read."""
        self._ends.append(self._ends[-1] + self._file.write(text.encode("utf-8", "surrogatepass")))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Space:
    """Signatures of the texts that have shingles of one kind, a file a band."""

    def __init__(self, folder: Path, name: str) -> None:
        from datasketch import MinHash

        self._sketch: Any = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=zlib.crc32)
        self._files = [(folder / f"{name}-{band:02d}.bin").open("w+b") for band in range(BANDS)]
        self.members = array("Q")
        self._waiting: list[npt.NDArray[np.uint32]] = []

    def add(self, member: int, shingles: list[bytes]) -> None:
        sketch = self._sketch
        sketch.clear()
        for start in range(0, len(shingles), _MOST):
            sketch.update_batch(shingles[start : start + _MOST])
        self.members.append(member)
        self._waiting.append(sketch.hashvalues.astype(np.uint32))
        if len(self._waiting) >= _CHUNK:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            block = np.stack(self._waiting).reshape(-1, BANDS, ROWS)
            for band, file in enumerate(self._files):
                file.write(np.ascontiguousarray(block[:, band]).tobytes())
            self._waiting.clear()

    def bands(self) -> list[npt.NDArray[np.uint32]]:
        """The signatures, band by band, each (members, ROWS)."""
        self._write()
        for file in self._files:
            file.flush()
        if not self.members:
            return []
        return [np.memmap(f, np.uint32, "r", shape=(len(self.members), ROWS)) for f in self._files]

    def close(self) -> None:
        for file in self._files:
            file.close()


class NearIndex:
    """Texts go in one by one; then `sets` says which are the same or nearly the same.

        with NearIndex(folder) as index:
            for text in texts:
                index.add(normalised(text))
            roots = index.sets().roots()

    Args:
        folder: an existing folder for its files: about 0.5 kB a text, and the texts.
        near: whether two texts are near-duplicates; the default is the definition above.
    """

    def __init__(self, folder: Path, near: Callable[[str, str], bool] = near_duplicates) -> None:
        self._near = near
        self.texts = Texts(folder / "texts.bin")
        self._digests = array("Q")
        self._apart: set[tuple[int, int]] = set()
        self._spaces = (_Space(folder, "words"), _Space(folder, "chars"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.texts.close()
        for space in self._spaces:
            space.close()

    def add(self, text: str, *, near: bool = True) -> int:
        """Add a normalised text and return its number. An empty one equals no other.

        Without `near` only equal texts are found for it.
        """
        number = len(self.texts)
        self.texts.append(text)
        raw = text.encode("utf-8", "surrogatepass")
        self._digests.append(int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big"))
        if near and text:
            whole = text.replace(PART, " ")
            words, chars = self._spaces
            count = whole.count(" ") + 1
            if count >= WORDS_FROM:
                words.add(number, _words(whole))
            if count <= CHARS_TO:
                chars.add(number, _chars(whole))
        return number

    def equal(self) -> Sets:
        """The sets of equal texts."""
        sets = Sets(len(self.texts))
        digests = np.array(self._digests, dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        again = np.flatnonzero(digests[order][1:] == digests[order][:-1]) + 1
        for at in again:
            i, j = int(order[at - 1]), int(order[at])
            if self.texts[i] == self.texts[j] and self.texts[i]:
                sets.union(i, j)
        return sets

    def sets(self, watch: Watch | None = None) -> Sets:
        """The sets of equal and nearly equal texts. `watch` is called with (bands done, bands)."""
        sets = self.equal()
        done = 0
        for space in self._spaces:
            bands = space.bands()
            members = np.array(space.members, dtype=np.int64)
            for band in bands:
                self._join(members, band, bands, sets)
                done += 1
                if watch:
                    watch(done, 2 * BANDS)
        if watch:
            watch(2 * BANDS, 2 * BANDS)
        return sets

    def _join(
        self,
        members: Ints,
        band: npt.NDArray[np.uint32],
        bands: list[npt.NDArray[np.uint32]],
        sets: Sets,
    ) -> None:
        for first, other in _met(_keys(band), members, sets):
            for i, j in _close(first, other, bands):
                a, b = int(members[i]), int(members[j])
                if (a, b) in self._apart or sets.find(a) == sets.find(b):
                    continue
                if self._near(self.texts[a], self.texts[b]):
                    sets.union(a, b)
                elif len(self._apart) < _REMEMBERED:
                    self._apart.add((a, b))


def _keys(band: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """One number for the rows of a band; different rows that get the same one cost a comparison, no more."""
    two = np.ascontiguousarray(band).view(np.uint64)
    mixed: npt.NDArray[np.uint64] = (two[:, 0] * _MIX[0]) ^ (
        two[:, 1] * _MIX[1] + (two[:, 1] >> np.uint64(29))
    )
    return mixed


def _met(keys: npt.NDArray[np.uint64], members: Ints, sets: Sets) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of places in `members` with equal keys that are not of one set yet, round by round."""
    order = np.argsort(keys, kind="stable").astype(np.int64)
    run = np.cumsum(np.r_[True, keys[order][1:] != keys[order][:-1]])
    for _ in range(ROUNDS):
        shared = np.bincount(run, minlength=1)[run] > 1
        order, run = _one_of_each(order[shared], run[shared], sets.roots()[members[order[shared]]])
        if not order.size:
            return
        starts = np.flatnonzero(np.r_[True, run[1:] != run[:-1]])
        lengths = np.diff(np.r_[starts, run.size])
        first = np.repeat(order[starts], lengths)
        rest = first != order
        yield first[rest], order[rest]
        roots = sets.roots()
        left = roots[members[first]] != roots[members[order]]
        order, run = order[left], run[left]


def _one_of_each(order: Ints, run: Ints, roots: Ints) -> tuple[Ints, Ints]:
    """The first member of each set in each run: what holds for it holds for the others."""
    if not order.size:
        return order, run
    by_set = np.lexsort((np.arange(order.size), roots, run))
    run_of, root_of = run[by_set], roots[by_set]
    fresh = np.r_[True, (run_of[1:] != run_of[:-1]) | (root_of[1:] != root_of[:-1])]
    kept = np.sort(by_set[fresh])
    return order[kept], run[kept]


def _close(first: Ints, other: Ints, bands: list[npt.NDArray[np.uint32]]) -> Iterator[tuple[int, int]]:
    """Those pairs whose signatures are equal in enough rows."""
    for start in range(0, first.size, _PAIRS):
        a, b = first[start : start + _PAIRS], other[start : start + _PAIRS]
        same = np.zeros(a.size)
        for band in bands:
            same += (band[a] == band[b]).sum(axis=1)
        for at in np.flatnonzero(same >= FLOOR * BANDS * ROWS):
            yield int(a[at]), int(b[at])


def _words(text: str) -> list[bytes]:
    words = text.encode("utf-8", "surrogatepass").split(b" ")
    return [b" ".join(words[i : i + WORD_SHINGLE]) for i in range(len(words) - WORD_SHINGLE + 1)]


def _chars(text: str) -> list[bytes]:
    last = max(1, len(text) - CHAR_SHINGLE + 1)
    if text.isascii():  # one byte a character
        raw = text.encode()
        return [raw[i : i + CHAR_SHINGLE] for i in range(last)]
    return [text[i : i + CHAR_SHINGLE].encode("utf-8", "surrogatepass") for i in range(last)]
