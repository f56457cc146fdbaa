"""Paper, colours and the one font: what pictures are drawn with.

Only Pillow's built-in font is used, so the same Pillow draws the same pixels on every machine.
"""

from __future__ import annotations

import io
import random
from bisect import bisect_right
from functools import cache
from typing import Any

from guardkeel.images import Image
from guardkeel.pictures import pillow

COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 86, 190),
    "green": (34, 139, 60),
    "yellow": (240, 200, 30),
    "purple": (128, 60, 160),
    "black": (20, 20, 20),
}
PAPERS = ((255, 255, 255), (245, 240, 228), (228, 238, 245), (235, 235, 235))
SHAPES = ("circle", "square", "triangle", "star", "cross")

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


def paper(size: int, colour: Colour = PAPERS[0]) -> tuple[Any, Any]:
    """An empty square picture, and the pen to draw on it."""
    from PIL import ImageDraw

    sheet = pillow().new("RGB", (size, size), colour)
    return sheet, ImageDraw.Draw(sheet)


@cache
def font(height: int) -> Any:
    """Pillow's built-in font, `height` pixels tall where Pillow has FreeType."""
    from PIL import ImageFont

    return ImageFont.load_default(height)


def stored(sheet: Any, alt: str = "") -> Image:
    """A drawn picture as a PNG in a `data:` URL."""
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=6)
    return Image.of(out.getvalue(), alt)


def shape(pen: Any, name: str, box: Box, colour: Colour) -> None:
    """One of SHAPES, filling a box."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    elif name == "triangle":
        pen.polygon([(x0 + w / 2, y0), (x1, y1), (x0, y1)], fill=colour)
    elif name == "cross":
        pen.rectangle((x0 + w * 0.35, y0, x1 - w * 0.35, y1), fill=colour)
        pen.rectangle((x0, y0 + h * 0.35, x1, y1 - h * 0.35), fill=colour)
    else:
        points = (
            (50, 0),
            (61, 36),
            (98, 36),
            (68, 58),
            (79, 94),
            (50, 72),
            (21, 94),
            (32, 58),
            (2, 36),
            (39, 36),
        )
        pen.polygon([(x0 + w * x / 100, y0 + h * y / 100) for x, y in points], fill=colour)


def cells(rng: random.Random, size: int, count: int, across: int) -> list[Box]:
    """Boxes of `count` cells of a grid, drawn at random and a little out of place."""
    side = size / across
    found = []
    for cell in rng.sample(range(across * across), count):
        x, y = (cell % across) * side, (cell // across) * side
        room = side * rng.uniform(0.5, 0.75)
        x += side * 0.08 + rng.uniform(0, 1) * (side * 0.84 - room)  # neighbours never touch
        y += side * 0.08 + rng.uniform(0, 1) * (side * 0.84 - room)
        found.append((x, y, x + room, y + room))
    return found


def written(text: str, size: int, *, height: int = 0, colour: Colour = (0, 0, 0)) -> tuple[Any, int]:
    """A square picture of a text in lines, and the height of its letters in pixels.

    With `height` 0 the letters are as large as fit; below eight pixels they go on over the edge, as they would for any
    text that is too long for its picture.
    """
    sheet, pen = paper(size)
    margin = max(2, size // 24)
    heights = (height,) if height else tuple(range(size // 5, 8, -2)) or (8,)
    for each in (*heights, *(() if height else (8,))):
        lines = _lines(pen, text, font(each), size - 2 * margin)
        if height or each == 8 or _tall(pen, lines, each) <= size - 2 * margin:
            break
    pen.multiline_text((margin, margin), "\n".join(lines), font=font(each), fill=colour, spacing=each // 4)
    return sheet, each


def _tall(pen: Any, lines: list[str], height: int) -> float:
    box = pen.multiline_textbbox((0, 0), "\n".join(lines), font=font(height), spacing=height // 4)
    return float(box[3])


def _lines(pen: Any, text: str, letters: Any, width: float) -> list[str]:
    """The text in lines no wider than `width`; a word that is wider is cut."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            for piece in _pieces(pen, word, letters, width):
                joined = f"{line} {piece}".strip()
                if line and pen.textlength(joined, font=letters) > width:
                    lines.append(line)
                    joined = piece
                line = joined
        lines.append(line)
    return lines


def _pieces(pen: Any, word: str, letters: Any, width: float) -> list[str]:
    pieces = []
    while len(word) > 1 and pen.textlength(word, font=letters) > width:
        # a longer part of a word is never narrower
        end = 1 + bisect_right(
            range(2, len(word)), width, key=lambda n: pen.textlength(word[:n], font=letters)
        )
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]
