"""Pictures with questions and answers to learn from: shapes, counts, places, bar charts, words and signs.

A pair follows from the seed and its number alone, so thousands are drawn in seconds, the same ones everywhere, and any
of them again without the others. Answers are taken from a closed list (`choices`), so that what a model knows can be
measured by which it finds likeliest; chance is 1 / number of choices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guardkeel.conversation import Conversation
from guardkeel.errors import ConfigError
from guardkeel.images import Image
from guardkeel.vision.drawing import COLOURS, PAPERS, SHAPES, cells, font, paper, shape, stored
from guardkeel.vision.signs import SIGNS, draw_sign

SIZE = 96
TEST_SEED = 1_000_003
"""Of the pictures on which accuracy is measured, whatever a run's seed."""
TESTED = 1000
"""As many of them are never learned by a tower or a projector, so that they may be asked of any model."""
NUMBERS = ("one", "two", "three", "four", "five", "six")
WORDS = (
    "ship", "tree", "bread", "music", "river", "stone", "chair", "lemon", "cloud", "paper", "garden", "window",
    "bridge", "rabbit", "summer", "pencil", "orange", "button", "castle", "island",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture, a question on it, the answer, and the answers among which it is chosen."""

    id: str
    kind: str
    image: Image
    question: str
    answer: str
    choices: tuple[str, ...]

    def conversation(self) -> Conversation:
        """The question with its picture, and the answer."""
        return Conversation.of(self.question, self.answer, [self.image])


Drawn = tuple[Any, str, str, tuple[str, ...], str]
"""Picture, question, answer, choices, and what it shows in words."""


def _one(rng: random.Random, size: int) -> Drawn:
    sheet, pen = paper(size, rng.choice(PAPERS))
    name, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    room = size * rng.uniform(0.4, 0.75)
    x, y = rng.uniform(0, size - room), rng.uniform(0, size - room)
    shape(pen, name, (x, y, x + room, y + room), COLOURS[colour])
    alt = f"a {colour} {name}"
    if rng.random() < 0.5:
        return sheet, "What shape is this?", name, SHAPES, alt
    return sheet, f"What colour is the {name}?", colour, tuple(COLOURS), alt


def _count(rng: random.Random, size: int) -> Drawn:
    sheet, pen = paper(size, rng.choice(PAPERS))
    name, colour, count = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randint(1, len(NUMBERS))
    for box in cells(rng, size, count, 3):
        shape(pen, name, box, COLOURS[colour])
    plural = {"cross": "crosses"}.get(name, f"{name}s")
    said = NUMBERS[count - 1]
    return (
        sheet,
        f"How many {plural} are there?",
        said,
        NUMBERS,
        f"{said} {colour} {plural if count > 1 else name}",
    )


def _place(rng: random.Random, size: int) -> Drawn:
    sheet, pen = paper(size, rng.choice(PAPERS))
    first, second = rng.sample(SHAPES, 2)
    colours = rng.sample(list(COLOURS), 2)
    left = rng.random() < 0.5
    half = size / 2
    for name, colour, start in zip((first, second), colours, (0, half) if left else (half, 0), strict=True):
        room = half * rng.uniform(0.5, 0.85)
        x, y = start + rng.uniform(0, half - room), rng.uniform(0, size - room)
        shape(pen, name, (x, y, x + room, y + room), COLOURS[colour])
    side = "left" if left else "right"
    question = f"Is the {first} left or right of the {second}?"
    return sheet, question, side, ("left", "right"), f"a {first} on the {side} of a {second}"


def _chart(rng: random.Random, size: int) -> Drawn:
    sheet, pen = paper(size, PAPERS[0])
    count = rng.randint(3, 4)
    colours = rng.sample(list(COLOURS), count)
    heights = rng.sample(range(2, 11), count)
    step = size / (count + 0.5)
    floor = size * 0.92
    pen.line((size * 0.04, floor, size * 0.98, floor), fill=(90, 90, 90), width=max(1, size // 96))
    for i, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        x = step * (i + 0.4)
        pen.rectangle((x, floor - height / 10 * size * 0.85, x + step * 0.65, floor), fill=COLOURS[colour])
    top = rng.random() < 0.5
    answer = colours[heights.index(max(heights) if top else min(heights))]
    alt = "a bar chart: " + ", ".join(f"{c} {h}" for c, h in zip(colours, heights, strict=True))
    return sheet, f"Which bar is the {'tallest' if top else 'shortest'}?", answer, tuple(COLOURS), alt


def _word(rng: random.Random, size: int) -> Drawn:
    word = rng.choice(WORDS)
    sheet, pen = paper(size, rng.choice(PAPERS))
    letters = font(max(8, round(size * rng.uniform(0.17, 0.24))))
    x0, y0, x1, y1 = pen.textbbox((0, 0), word, font=letters)
    x = rng.uniform(0, max(0, size - (x1 - x0))) - x0
    y = rng.uniform(0, max(0, size - (y1 - y0))) - y0
    pen.text((x, y), word, font=letters, fill=COLOURS[rng.choice(list(COLOURS))])
    return sheet, "What word is written here?", word, WORDS, f"the word {word}"


def _sign(rng: random.Random, size: int) -> Drawn:
    name = rng.choice(list(SIGNS))
    return draw_sign(name, size, rng), "What does this sign show?", name, tuple(SIGNS), f"a sign: {name}"


KINDS: dict[str, Callable[[random.Random, int], Drawn]] = {
    "shape": _one,
    "count": _count,
    "place": _place,
    "chart": _chart,
    "word": _word,
    "sign": _sign,
}


def pair(number: int, *, seed: int = 0, size: int = SIZE, kinds: Sequence[str] = tuple(KINDS)) -> Pair:
    """The pair of a number; kinds take turns.

    Raises:
        ConfigError: a kind is unknown, or Pillow is not installed.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ConfigError(
            f"no pictures of kind {min(unknown, default='')!r}", remedy=f"kinds are {', '.join(KINDS)}"
        )
    kind = kinds[number % len(kinds)]
    rng = random.Random(f"{seed}/{kind}/{number}")  # noqa: S311 - drawings, not secrets
    sheet, question, answer, choices, alt = KINDS[kind](rng, size)
    return Pair(f"{kind}-{seed}-{number}", kind, stored(sheet, alt), question, answer, choices)


def pairs(
    count: int,
    *,
    seed: int = 0,
    size: int = SIZE,
    kinds: Sequence[str] = tuple(KINDS),
    without: Collection[str] = (),
) -> Iterator[Pair]:
    """`count` pairs in order, no picture and question twice, and none whose `image.mark` and question are in `without`.

    `without` holds `key(pair)` of pairs that must not come again, such as those that were learned.

    Raises:
        ConfigError: there are not that many different ones.
    """
    seen = set(without)
    made = number = 0
    while made < count:
        found = pair(number, seed=seed, size=size, kinds=kinds)
        number += 1
        if key(found) not in seen:
            seen.add(key(found))
            made += 1
            yield found
        elif number > 20 * (count + 50):
            raise ConfigError(
                f"only {made} different pictures of {', '.join(kinds)} in {number} drawn",
                remedy="ask for fewer, or for more kinds",
            )


def tested(size: int = SIZE, kinds: Sequence[str] = tuple(KINDS)) -> list[Pair]:
    """The first TESTED pictures that accuracy is measured on."""
    return list(pairs(TESTED, seed=TEST_SEED, size=size, kinds=kinds))


def key(found: Pair) -> str:
    """What tells pairs apart: the picture and the question."""
    return f"{found.image.mark} {found.question}"
