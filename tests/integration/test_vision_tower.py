"""The vision tower that learns drawn pictures before a language model is joined to it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("PIL")

import torch

from guardkeel.errors import ConfigError
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny_vision import square_processor
from guardkeel.models.towers import language_tower
from guardkeel.vision.answers import chance
from guardkeel.vision.captions import teach_captions
from guardkeel.vision.llava import build_llava
from guardkeel.vision.pairs import TEST_SEED, Pair, pairs, tested
from guardkeel.vision.shape import VisionShape
from guardkeel.vision.tower import Reader, load_reader, train_tower

SMALL = VisionShape(size=32, patch=8, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def brought() -> Reader:
    return load_reader()


@pytest.fixture(scope="module")
def unseen() -> list[Pair]:
    """Pictures that it neither learned nor was measured on."""
    return list(islice(pairs(720, seed=TEST_SEED), 600, 720))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_tower_that_is_brought_sees_pictures_it_has_not_learned(
    brought: Reader, unseen: list[Pair]
) -> None:
    right = sum(brought.right(unseen)) / len(unseen)
    assert right > chance(unseen) + 0.2
    others = [replace(pair, image=other.image) for pair, other in zip(unseen, unseen[6:], strict=False)]
    assert (
        sum(brought.right(others)) / len(others) < right - 0.15
    )  # of the same kinds, and the wrong pictures


def test_its_card_says_what_it_knows(brought: Reader) -> None:
    card = brought.card
    assert card.shape == VisionShape()  # so that a new LLaVA has it unless another shape is asked for
    assert card.accuracy is not None
    assert card.accuracy.n == 600
    measured = sum(brought.right(list(pairs(600, seed=TEST_SEED)))) / 600
    assert measured == pytest.approx(card.accuracy.value, abs=0.01)


def test_a_new_llava_has_it(harbour, brought: Reader, tmp_path: Path) -> None:
    made = load_model(build_llava(str(harbour.guard), tmp_path / "a"), "float32", "cpu", images=True)
    assert torch.equal(weights(made.model.vision_tower), weights(brought.tower))
    shape = VisionShape(weights="random")
    bare = load_model(
        build_llava(str(harbour.guard), tmp_path / "b", shape=shape), "float32", "cpu", images=True
    )
    assert not torch.equal(weights(bare.model.vision_tower), weights(brought.tower))


def test_another_shape_is_random_unless_it_is_to_have_learned(harbour, tmp_path: Path) -> None:
    build_llava(str(harbour.guard), tmp_path / "a", shape=SMALL)
    with pytest.raises(ConfigError, match="another shape"):
        build_llava(str(harbour.guard), tmp_path / "b", shape=SMALL.model_copy(update={"weights": "drawn"}))
    assert not (tmp_path / "b").exists()


def test_what_is_written_answers_as_it_was_measured(tmp_path: Path) -> None:
    steps = []
    card = train_tower(
        tmp_path / "a",
        shape=SMALL,
        pictures=130,
        measured=60,
        batch=32,
        seed=3,
        watch=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert card.pictures == 128
    found = load_reader(tmp_path / "a")
    assert found.card == card
    assert card.accuracy is not None
    hits = found.right(list(pairs(60, seed=TEST_SEED, size=32)))
    assert sum(hits) / 60 == pytest.approx(card.accuracy.value)
    train_tower(tmp_path / "b", shape=SMALL, pictures=130, measured=60, batch=32, seed=3)
    assert torch.equal(weights(found), weights(load_reader(tmp_path / "b")))


def test_it_learns(tmp_path: Path) -> None:
    card = train_tower(tmp_path, shape=SMALL, kinds=["shape"], pictures=64 * 60, measured=300, rate=3e-3)
    guesses = chance(tested(SMALL.size, ["shape"])[:300])
    assert card.accuracy is not None
    assert card.accuracy.value > guesses + 0.15


def test_pictures_become_the_words_of_their_description(harbour, tmp_path):
    """Tower and projector learn them; nothing of the language part moves."""
    found = {}
    for captions in (32, 64 * 40):
        path = build_llava(str(harbour.guard), tmp_path / str(captions), shape=SMALL)
        model, tokenizer = load_model(path, "float32", "cpu", images=True), load_tokenizer(path)
        before = weights(language_tower(model)).clone()
        found[captions] = teach_captions(
            model, tokenizer, square_processor(SMALL.size), pictures=captions, batch=32, rate=5e-3
        )
        assert torch.equal(weights(language_tower(model)), before)
        assert not any(p.grad is not None for p in model.parameters())
    assert found[64 * 40] > found[32] + 0.05


def test_a_llava_that_was_taught_captions_is_the_same_again(harbour, tmp_path):
    made = [
        load_model(
            build_llava(str(harbour.guard), tmp_path / name, shape=SMALL, captions=captions, seed=seed),
            "float32",
            "cpu",
            images=True,
        )
        for name, captions, seed in (("a", 128, 1), ("b", 128, 1), ("c", 128, 2), ("d", 0, 1), ("e", 20, 1))
    ]
    a, b, c, d, e = (weights(model) for model in made)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, d)
    assert not torch.equal(d, e)  # fewer than a batch are learned too
