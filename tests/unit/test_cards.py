"""The packaged cards, without their data: complete, pinned where they can be, and true to the taxonomy."""

import re

import pytest

from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.suites import available
from guardkeel.evaluation.suites.readers import format_of
from guardkeel.evaluation.suites.registry import CARDS
from guardkeel.resources import parse
from guardkeel.taxonomy import AEGIS2

OURS = {card.name: card for card in available() if card.folder == str(CARDS)}
READINGS = {
    reading.full_name: reading
    for card in OURS.values()
    for reading in (card, *(card.copied(c.name) for c in card.copies))
}
STANDARD = [
    "toxicchat",
    "wildguardtest",
    "aegis",
    "aegis-2.0",
    "openai-moderation",
    "xstest",
    "xstest-response",
    "or-bench-80k",
    "or-bench-hard-1k",
    "or-bench-toxic",
    "beavertails",
    "safe-rlhf",
    "harmbench",
    "harmbench-response",
    "advbench",
    "jailbreakbench",
    "jailbreakbench-judged",
    "strongreject",
    "simple-safety-tests",
    "do-not-answer",
    "malicious-instruct",
    "catqa",
    "ailuminate-demo",
    "agentharm",
    "r-judge",
    "assebench-security",
    "injecagent",
    "bipia",
    "deepset-injections",
    "notinject",
    "jailbreak-classification",
    "gandalf",
    "dices-990",
    "cyberseceval-frr",
    "cyberseceval-injection",
    "mind2web-sc",
]


def test_the_standard_sets_are_there():
    assert set(STANDARD) <= set(OURS)


def test_one_file_one_name():
    assert {f.stem for f in CARDS.glob("*.toml")} == set(OURS)


@pytest.mark.parametrize("name", READINGS)
def test_cards_are_complete(name):
    card = READINGS[name]
    for key in ("licence", "tier", "checked", "origin", "description", "traps"):
        assert getattr(card, key), key
    if not name.startswith("keel-"):
        assert card.home.startswith("https://")
        assert card.citation or "bastion" in name
        assert card.sides
    if card.checked == "read" and "://" not in name:
        assert card.examples and card.unsafe is not None and card.safe is not None, "the counts are known"
    if card.unsafe is not None and card.safe is not None:
        assert (card.one_class is None) == bool(card.safe and card.unsafe)
    if card.one_class:
        assert any("all items are" in trap for trap in card.traps)
    if card.gated:
        assert card.tier == "restricted" or "gated mirror" in card.licence
    assert not any(trap.endswith(".") or trap[0] == " " for trap in card.traps)


@pytest.mark.parametrize("name", READINGS)
def test_references_can_be_resolved(name):
    card = READINGS[name]
    for i, part in enumerate(card.files):
        kind = part.reference.partition(":")[0]
        assert kind in ("hub", "pypi", "data", "path")
        located = card.located(part.reference, "/data")
        assert str(parse(located)) == located  # what a reference may look like
        if kind == "hub":
            assert parse(located).name.startswith("datasets/")
        if kind == "pypi":
            assert re.search(r"#sha256=[0-9a-f]{64}$", located)
        mapping = card.mapping_of(i)
        if mapping is not None and mapping.format is None:
            format_of_file(located)
        if name.startswith("keel-"):
            assert part.reference.startswith("path:../data/")


def format_of_file(located):
    from pathlib import Path

    return format_of(Path(located.partition("#")[0]))


@pytest.mark.parametrize("name", READINGS)
def test_categories_are_mapped_to_the_home_taxonomy(name):
    card = READINGS[name]
    for i in range(len(card.files)):
        mapping = card.mapping_of(i)
        if mapping is None:
            continue
        for target in mapping.category_map.values():
            assert set([target] if isinstance(target, str) else target) <= set(AEGIS2)


@pytest.mark.parametrize("name", READINGS)
def test_every_file_has_its_own_ids(name):
    names = [part.name for part in READINGS[name].files]
    assert len(names) == 1 or len(set(names)) == len(names)


def test_restricted_sets_say_why():
    assert OURS["agentharm"].tier == "restricted"
    assert "safety and security of AI" in OURS["agentharm"].licence
    assert any("never train" in trap for trap in OURS["agentharm"].traps)
    assert OURS["wildguardtest"].gated
    assert any("Yes means unsafe" in trap for trap in OURS["dices-990"].traps)


def test_no_reading_reads_nothing():
    for name, card in READINGS.items():
        for copy in OURS[card.name].copies:
            said = copy.model_dump(exclude_unset=True)
            assert {"reference", "parts", "mapping", "splits"} & set(said), f"{name} is the card itself"


def test_a_card_of_another_name_is_no_copy():
    with pytest.raises(GuardkeelError):
        OURS["toxicchat"].copied("LOCAL")
