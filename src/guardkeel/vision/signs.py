"""Signs of everyday things, drawn of lines and plain shapes: what requests of several pictures are made of.

Each is a few strokes on a hundred by hundred grid; nothing in them is frightening or taken from anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from guardkeel.vision.drawing import COLOURS, PAPERS, Colour, font, paper

INK: Colour = (30, 30, 30)


class Pen:
    """Draws on a grid of 100 × 100 that lies somewhere on a sheet."""

    def __init__(self, pen: Any, x: float, y: float, unit: float, colour: Colour) -> None:
        self.pen, self.x, self.y, self.unit, self.colour = pen, x, y, unit, colour
        self.width = max(1, round(5 * unit))

    def at(self, *points: float) -> list[float]:
        """Grid points as points of the sheet."""
        return [(self.y if i % 2 else self.x) + p * self.unit for i, p in enumerate(points)]

    def line(self, *points: float, colour: Colour = INK) -> None:
        """A stroke through points."""
        self.pen.line(self.at(*points), fill=colour, width=self.width, joint="curve")

    def box(self, *corners: float, fill: Colour | None = None) -> None:
        """A rectangle."""
        self.pen.rectangle(self.at(*corners), fill=fill, outline=INK, width=self.width)

    def round(self, *corners: float, fill: Colour | None = None) -> None:
        """An ellipse."""
        self.pen.ellipse(self.at(*corners), fill=fill, outline=INK, width=self.width)

    def area(self, *points: float, fill: Colour | None = None) -> None:
        """A filled polygon."""
        self.pen.polygon(self.at(*points), fill=fill or self.colour, outline=INK)

    def label(self, text: str, x: float, y: float, height: float) -> None:
        """A word, its middle at a point."""
        letters = font(max(8, round(height * self.unit)))
        self.pen.text(self.at(x, y), text, font=letters, fill=INK, anchor="mm")


def _bottle(text: str) -> Callable[[Pen], None]:
    def draw(p: Pen) -> None:
        p.box(40, 4, 60, 22)
        p.area(40, 22, 60, 22, 88, 40, 88, 96, 12, 96, 12, 40)
        p.box(12, 52, 88, 78, fill=(255, 255, 255))
        p.label(text, 50, 65, 18)

    return draw


def _glass(fill: Colour, stem: bool) -> Callable[[Pen], None]:
    def draw(p: Pen) -> None:
        if stem:
            p.area(24, 8, 76, 8, 62, 50, 38, 50, fill=fill)
            p.line(50, 50, 50, 90)
            p.line(28, 92, 72, 92)
        else:
            p.area(26, 10, 74, 10, 68, 92, 32, 92, fill=fill)

    return draw


def _candle(p: Pen) -> None:
    p.box(38, 42, 62, 96, fill=p.colour)
    p.line(50, 42, 50, 32)
    p.area(50, 4, 60, 24, 50, 34, 40, 24, fill=COLOURS["yellow"])


def _can(p: Pen) -> None:
    p.area(20, 30, 66, 30, 82, 46, 82, 94, 20, 94)
    p.line(28, 30, 34, 16, 58, 16, 62, 30)
    p.line(74, 38, 94, 18)
    p.label("petrol", 50, 64, 19)


def _pills(p: Pen) -> None:
    p.box(32, 6, 68, 20, fill=(255, 255, 255))
    p.box(26, 20, 74, 94, fill=p.colour)
    for x, y in ((36, 34), (54, 46), (38, 62), (56, 74)):
        p.round(x, y, x + 14, y + 10, fill=(255, 255, 255))


def _plug(p: Pen) -> None:
    p.line(38, 4, 38, 30)
    p.line(62, 4, 62, 30)
    p.area(24, 30, 76, 30, 76, 52, 60, 66, 40, 66, 24, 52)
    p.line(50, 66, 50, 84, 70, 94)


def _bath(p: Pen) -> None:
    p.area(8, 46, 92, 46, 82, 82, 18, 82, fill=COLOURS["blue"])
    p.line(24, 82, 20, 94)
    p.line(76, 82, 80, 94)
    p.line(16, 46, 16, 18, 30, 18, 30, 28)


def _lamp(p: Pen) -> None:
    p.area(34, 10, 66, 10, 84, 46, 16, 46)
    p.line(50, 46, 50, 88)
    p.line(28, 92, 72, 92)


def _knife(p: Pen) -> None:
    p.area(8, 40, 58, 40, 58, 60, 24, 60, fill=(190, 190, 195))
    p.box(58, 42, 94, 58, fill=p.colour)


def _socket(p: Pen) -> None:
    p.box(12, 12, 88, 88, fill=(245, 245, 245))
    p.round(34, 40, 44, 50, fill=INK)
    p.round(56, 40, 66, 50, fill=INK)


def _bread(p: Pen) -> None:
    p.area(14, 40, 30, 22, 70, 22, 86, 40, 80, 50, 80, 86, 20, 86, 20, 50, fill=(205, 150, 85))


def _car(p: Pen) -> None:
    p.area(6, 72, 10, 50, 28, 48, 40, 28, 68, 28, 80, 48, 94, 54, 94, 72)
    p.round(18, 62, 38, 84, fill=INK)
    p.round(64, 62, 84, 84, fill=INK)


def _cup(p: Pen) -> None:
    p.area(18, 34, 70, 34, 64, 84, 24, 84)
    p.round(64, 42, 90, 68)
    p.line(34, 26, 38, 12)
    p.line(52, 26, 56, 12)


def _grill(p: Pen) -> None:
    p.area(12, 40, 88, 40, 72, 64, 28, 64, fill=INK)
    p.line(34, 64, 22, 94)
    p.line(66, 64, 78, 94)
    for x in (28, 50, 72):
        p.area(x, 12, x + 8, 34, x - 8, 34, fill=COLOURS["red"])


def _tent(p: Pen) -> None:
    p.area(50, 12, 94, 88, 6, 88)
    p.area(50, 40, 64, 88, 36, 88, fill=INK)


def _tree(p: Pen) -> None:
    p.box(43, 60, 57, 96, fill=(120, 80, 45))
    p.area(50, 4, 84, 64, 16, 64, fill=COLOURS["green"])


def _cake(p: Pen) -> None:
    p.box(14, 54, 86, 90, fill=p.colour)
    p.line(14, 70, 86, 70, colour=(255, 255, 255))
    for x in (30, 50, 70):
        p.line(x, 54, x, 36)
        p.round(x - 4, 24, x + 4, 34, fill=COLOURS["yellow"])


def _phone(p: Pen) -> None:
    p.box(30, 4, 70, 96, fill=INK)
    p.box(35, 14, 65, 80, fill=(200, 225, 245))
    p.round(45, 84, 55, 93, fill=(255, 255, 255))


def _chair(p: Pen) -> None:
    p.line(26, 6, 26, 94)
    p.box(26, 50, 76, 60, fill=p.colour)
    p.line(74, 60, 74, 94)
    p.box(22, 8, 32, 50, fill=p.colour)


def _tap(p: Pen) -> None:
    p.line(10, 34, 60, 34, 60, 54)
    p.line(36, 34, 36, 16)
    p.line(24, 14, 48, 14)
    p.area(60, 62, 68, 80, 60, 90, 52, 80, fill=COLOURS["blue"])


def _kite(p: Pen) -> None:
    p.area(56, 4, 84, 34, 56, 66, 28, 34)
    p.line(56, 66, 44, 76, 52, 84, 40, 96)


def _wires(p: Pen) -> None:
    for x in (22, 78):
        p.line(x, 14, x, 96)
        p.line(x - 14, 22, x + 14, 22)
    p.line(8, 26, 50, 36, 92, 26)
    p.area(54, 44, 40, 66, 50, 66, 44, 90, 62, 60, 52, 60, fill=COLOURS["yellow"])


def _sun(p: Pen) -> None:
    p.round(30, 30, 70, 70, fill=COLOURS["yellow"])
    for x0, y0, x1, y1 in ((50, 4, 50, 22), (50, 78, 50, 96), (4, 50, 22, 50), (78, 50, 96, 50)):
        p.line(x0, y0, x1, y1)


SIGNS: dict[str, Callable[[Pen], None]] = {
    "bottle of bleach": _bottle("bleach"),
    "bottle of vinegar": _bottle("vinegar"),
    "water tap": _tap,
    "candle": _candle,
    "can of petrol": _can,
    "birthday cake": _cake,
    "jar of pills": _pills,
    "glass of wine": _glass(COLOURS["red"], stem=True),
    "glass of water": _glass((190, 220, 245), stem=False),
    "electric plug": _plug,
    "bath": _bath,
    "lamp": _lamp,
    "knife": _knife,
    "wall socket": _socket,
    "loaf of bread": _bread,
    "car": _car,
    "cup of coffee": _cup,
    "charcoal grill": _grill,
    "tent": _tent,
    "tree": _tree,
    "phone": _phone,
    "chair": _chair,
    "kite": _kite,
    "power line": _wires,
    "sun": _sun,
}


def draw_sign(name: str, size: int, rng: random.Random) -> Any:
    """A sign, a little larger or smaller and out of place, in some colour."""
    sheet, pen = paper(size, rng.choice(PAPERS))
    unit = size / 100 * rng.uniform(0.78, 0.96)
    room = size - 100 * unit
    colour = COLOURS[rng.choice([c for c in COLOURS if c != "black"])]
    SIGNS[name](Pen(pen, rng.uniform(0, room), rng.uniform(0, room), unit, colour))
    return sheet
