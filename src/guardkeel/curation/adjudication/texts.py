"""Texts as a person must see them: what does not show, or reorders what does, is named instead.

Controls, bidi marks, zero-width characters, tags, fillers and lone surrogates become tokens such as `U+202E`; the
joiners that scripts and emoji need stay. Escaping is the template's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

_KEPT = frozenset("\n\t\u200c\u200d")
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0")  # letters by their kind, and blank


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text as it is, or (`token`) the name of what does not show."""

    text: str
    token: bool = False


def pieces(text: str) -> Iterator[Piece]:
    """A text in pieces, none of which hides anything."""
    for name, run in groupby(text.replace("\r\n", "\n"), key=_name):
        found = list(run)
        if not name:
            yield Piece("".join(found))
        else:
            yield Piece(name + (f" ×{len(found)}" if len(found) > 1 else ""), token=True)


def plain(text: str, limit: int = 500) -> str:
    """The same in one string, for names and reasons: tokens in ⟨⟩, cut at `limit` characters."""
    line = "".join(f"⟨{p.text}⟩" if p.token else p.text for p in pieces(text[:limit]))
    return f"{line}…" if len(text) > limit else line


def _name(character: str) -> str:
    shows = character in _KEPT or (character.isprintable() and character not in _BLANK)
    return "" if shows else f"U+{ord(character):04X}"
