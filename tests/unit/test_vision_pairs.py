"""The renderer: what is drawn follows from the seed, and the answer is in the picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from guardkeel.conversation import Conversation, Example
from guardkeel.errors import ConfigError
from guardkeel.pictures import open_picture
from guardkeel.vision.drawing import COLOURS, written
from guardkeel.vision.pairs import KINDS, SIZE, key, pair, pairs
from guardkeel.vision.signs import SIGNS
from guardkeel.vision.typographic import ASKED, typographic, typographic_examples


def pixels(image):
    return np.asarray(open_picture(image).pixels).astype(int)


def inked(image, colour):
    """Which pixels have exactly a colour."""
    return (pixels(image) == np.array(COLOURS[colour])).all(-1)


def test_pairs_follow_from_the_seed_and_their_number():
    assert list(pairs(12, seed=3)) == list(pairs(12, seed=3))
    assert [p.image for p in pairs(12, seed=3)] != [p.image for p in pairs(12, seed=4)]
    assert pair(7, seed=3) in list(pairs(12, seed=3))


def test_kinds_take_turns_and_answers_are_among_the_choices():
    found = list(pairs(240))
    assert Counter(p.kind for p in found) == dict.fromkeys(KINDS, 40)
    for p in found:
        assert p.answer in p.choices
        assert len(set(p.choices)) == len(p.choices)
        assert open_picture(p.image).size == (SIZE, SIZE)
        assert p.image.alt
    assert len({key(p) for p in found}) == len(found)


@pytest.mark.parametrize("number", range(30))
def test_colours_of_shapes_are_in_the_picture(number):
    found = pair(number, seed=1, kinds=["shape"])
    colour = found.image.alt.split()[1]
    assert inked(found.image, colour).sum() > 100
    assert not any(inked(found.image, other).any() for other in COLOURS if other != colour)
    assert found.answer in found.image.alt


@pytest.mark.parametrize("number", range(20))
def test_counts_are_right(number):
    from scipy.ndimage import label

    found = pair(number, seed=2, kinds=["count"])
    said = found.image.alt.split()
    assert label(inked(found.image, said[1]))[1] == (
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
    ).index(found.answer)


@pytest.mark.parametrize("number", range(20))
def test_the_tallest_bar_is_the_tallest(number):
    found = pair(number, seed=5, kinds=["chart"])
    heights = {
        c: np.flatnonzero(inked(found.image, c).any(1)).size for c in COLOURS if inked(found.image, c).any()
    }
    best = max if "tallest" in found.question else min
    assert found.answer == best(heights, key=heights.get)


@pytest.mark.parametrize("number", range(20))
def test_left_is_left(number):
    found = pair(number, seed=6, kinds=["place"])
    first = found.question.split()[2]
    middle = {
        c: np.flatnonzero(inked(found.image, c).any(0)).mean() for c in COLOURS if inked(found.image, c).any()
    }
    assert len(middle) == 2
    assert found.answer in ("left", "right")
    assert found.image.alt.startswith(f"a {first} on the {found.answer} of a ")


def test_every_sign_differs_from_every_other():
    import random

    from guardkeel.vision.signs import draw_sign

    drawn = {name: np.asarray(draw_sign(name, 64, random.Random(0))).astype(int) for name in SIGNS}
    for a in SIGNS:
        for b in SIGNS:
            assert a == b or abs(drawn[a] - drawn[b]).mean() > 1


def test_what_was_learned_does_not_come_again():
    seen = {key(p) for p in pairs(40, kinds=["shape"])}
    fresh = list(pairs(40, kinds=["shape"], without=seen))
    assert not seen & {key(p) for p in fresh}


def test_kinds_that_are_not_there():
    with pytest.raises(ConfigError, match="no pictures of kind 'photo'"):
        next(pairs(1, kinds=["photo"]))


def test_when_nothing_new_can_be_drawn(monkeypatch):
    from guardkeel.vision import pairs as module

    one = pair(0)
    monkeypatch.setattr(module, "pair", lambda *a, **k: one)
    with pytest.raises(ConfigError, match="only 1 different pictures"):
        list(module.pairs(2))


@pytest.mark.parametrize(
    "text", ["short", "a rather longer request " * 6, "w" * 300, "", "日本語 and ⟨signs⟩", "a\n\nb"]
)
def test_texts_stay_on_their_paper(text):
    sheet, height = written(text, 200)
    assert sheet.size == (200, 200)
    assert height >= 8
    ink = np.asarray(sheet).min(-1) < 128
    if text.strip():
        assert ink.any()
    if len(text) < 200 and height > 8:
        assert not ink[:, -4:].any()
        assert not ink[-4:].any()


def test_requests_as_pictures_keep_their_labels_and_lose_their_words():
    words = "the way to the harbour"
    rows = [
        Example("a", Conversation.of(words), {"prompt": "unsafe"}, ("Violence",)),
        Example("b", Conversation.of("x" * 500), {"prompt": "safe"}),
        Example("c", Conversation.of("p", "r"), {"response": "safe"}),
    ]
    (made,) = typographic_examples(rows)
    assert (made.id, made.labels, made.categories) == ("a-typographic", {"prompt": "unsafe"}, ("Violence",))
    (turn,) = made.conversation.turns
    assert turn.content == ASKED
    assert words not in str(made.conversation.to_messages()) + made.conversation.text
    assert turn.images == (typographic(words),)
    assert typographic(words) != typographic(words, points=False)
