"""Texts as a reviewer must see them: what does not show is named, and nothing is endless.

Characters that are invisible or reorder what is seen (controls, bidi marks, zero-width spaces, tags, fillers, lone
surrogates) become tokens such as `U+202E`; the joiners that scripts and emoji need stay. Stacks of combining marks are
cut. Escaping is the template's part.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

_KEPT = frozenset("\n\t\u200c\u200d")
_FILLERS = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0")  # letters by their category, and blank
_STACK = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text as it is, or (`token`) the name of what does not show."""

    text: str
    token: bool = False


def pieces(text: str) -> Iterator[Piece]:
    """A text, with all that does not show named."""
    for kind, run in groupby(_kinds(text), key=lambda pair: pair[0]):
        found = "".join(character for _, character in run)
        if kind == "plain":
            yield Piece(found)
        elif kind == "mark":
            yield Piece(f"{len(found)} combining marks", token=True)
        else:
            yield Piece(kind + (f" ×{len(found)}" if len(found) > 1 else ""), token=True)


def plain(text: str, limit: int = 500) -> str:
    """The same in one string, for names and reasons: tokens in ⟨⟩, cut at `limit` characters."""
    line = "".join(f"⟨{p.text}⟩" if p.token else p.text for p in pieces(text[:limit]))
    return f"{line}…" if len(text) > limit else line


def _kinds(text: str) -> Iterator[tuple[str, str]]:
    """Each character with what it is: plain, a mark too many, or the name of what does not show."""
    stacked = 0
    for c in text:
        stacked = stacked + 1 if unicodedata.combining(c) else 0
        if stacked > _STACK:
            yield "mark", c
        elif (c.isprintable() and c not in _FILLERS) or c in _KEPT:
            yield "plain", c
        else:
            yield f"U+{ord(c):04X}", c
