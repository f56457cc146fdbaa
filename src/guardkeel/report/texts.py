"""Texts from data and models, made fit to be looked at: nothing invisible, nothing endless.

Characters that do not show or that reorder what does (controls, bidi marks, zero-width marks, tag characters,
lone surrogates) become tokens such as `U+202E`; stacks of combining marks and long texts are cut, and what
was left out is stated. Escaping is the renderer's part: here is no HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LIMIT = 1200  # characters of one text
COST = 3000  # bytes of one text once escaped
NAME_LIMIT = 1500  # characters of a name, reason or note

# Kept: tab, newline, and the joiners U+200C/U+200D that scripts and emoji need.
_INVISIBLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff"
)
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_SPECIAL = re.compile(rf"(?P<invisible>([{_INVISIBLE}])\2*)|(?P<stack>(?<=[{_MARKS}]{{4}})[{_MARKS}]+)")
_TOKEN = 40  # bytes of the markup around a token
_QUOTED = re.compile("[<>&'\"]")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text as it is, or (`token`) the name of something that does not show."""

    text: str
    token: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a text: its pieces, and how many of its `total` characters they stand for."""

    pieces: tuple[Piece, ...]
    shown: int
    total: int

    @property
    def cut(self) -> bool:
        """Whether part of the text was left out."""
        return self.shown < self.total


def shown(text: str, limit: int = LIMIT, cost: int = COST) -> Shown:
    """The start of a text as pieces: at most `limit` characters and `cost` bytes of escaped UTF-8."""
    total = len(text)
    text = text[: limit + 1] if total > limit else text  # a megabyte is never scanned
    found: list[Piece] = []
    count = 0
    for piece, length in _pieces(text[:limit].replace("\r\n", " \n")):
        price = _TOKEN + len(piece.text) if piece.token else _price(piece.text)
        if price > cost:
            if not piece.token:
                start = _affordable(piece.text, cost)
                found.append(Piece(start))
                count += len(start)
            break
        cost -= price
        count += length
        found.append(piece)
    return Shown(tuple(p for p in found if p.text), count, total)


def plain(text: str, limit: int = NAME_LIMIT) -> str:
    """The same as one string, for names and notes: tokens in ⟨⟩, and an end that says what was left out."""
    part = shown(text, limit, 8 * limit)
    line = "".join(f"⟨{p.text}⟩" if p.token else p.text for p in part.pieces)
    return f"{line}… ({part.total:,} characters, {part.shown:,} shown)" if part.cut else line


def _pieces(text: str) -> Iterator[tuple[Piece, int]]:
    """Pieces with the number of characters that each stands for."""
    end = 0
    for match in _SPECIAL.finditer(text):
        if match.start() > end:
            yield Piece(text[end : match.start()]), match.start() - end
        length = match.end() - match.start()
        if match["stack"]:
            name = f"{length} combining mark{'' if length == 1 else 's'}"
        else:
            name = f"U+{ord(match[2]):04X}" + (f" ×{length}" if length > 1 else "")
        yield Piece(name, token=True), length
        end = match.end()
    if end < len(text):
        yield Piece(text[end:]), len(text) - end


def _price(text: str) -> int:
    return len(text.encode("utf-8")) + 4 * len(_QUOTED.findall(text))


def _affordable(text: str, cost: int) -> str:
    for i, character in enumerate(text):
        cost -= _price(character)
        if cost < 0:
            return text[:i]
    return text
