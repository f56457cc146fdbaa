"""The guard data that come with guardkeel, and the script that chooses them."""

import runpy
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation.selection import select
from guardkeel.evaluation.suites import available, load_suite
from guardkeel.evaluation.suites.near_duplicates import UnionFind, join
from guardkeel.evaluation.suites.registry import CARDS
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.evaluation.suites.suite import judged_texts
from guardkeel.taxonomy import AEGIS2
from guardkeel.tuning.data import read_data

RECIPE = Path(__file__).parents[2] / "recipes" / "keel-135m" / "build_anchor.py"


@pytest.fixture(scope="module")
def anchor():
    return load_suite("keel-anchor")


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE))


def test_counts(anchor):
    kinds = Counter((e.source, e.labels["prompt"]) for e in anchor.examples)
    assert kinds == {("pair", "unsafe"): 200, ("pair", "safe"): 200, ("ordinary", "safe"): 100}
    named = Counter(e.categories for e in anchor.examples if e.labels["prompt"] == "unsafe")
    assert named == {(name,): 10 for name in AEGIS2 if name != "Sexual (minor)"}
    assert not any(e.categories for e in anchor.examples if e.labels["prompt"] == "safe")
    assert {e.language for e in anchor.examples} == {"en", "de", "es", "fr"}


def test_pairs_stay_in_one_split(anchor):
    pairs = defaultdict(list)
    for e in anchor.examples:
        if e.source == "pair":
            pairs[e.group].append(e)
    assert len(pairs) == 200
    for pair in pairs.values():
        assert sorted(e.labels["prompt"] for e in pair) == ["safe", "unsafe"]
        assert len({anchor.splits[e.id] for e in pair}) == 1


def test_for_fitting_and_calibrating_only(anchor):
    held = Counter(anchor.splits.values())
    assert set(held) == {"fit", "calibrate"}
    assert 0.55 < held["fit"] / 500 < 0.65
    for split in held:
        labels = Counter(i.label for i in anchor.items(split))
        assert labels["unsafe"] >= 80 and labels["safe"] >= 120
    assert any("trained on these texts" in trap for trap in anchor.card.traps)
    with pytest.raises(DataError, match="the test split has no items") as e:
        select([anchor])
    assert "it has fit 288, calibrate 212" in e.value.remedy


def test_tuning_takes_the_fit_split(anchor):
    found = read_data("keel-anchor")
    assert (found.kind, found.split, len(found)) == ("guard", "fit", 288)
    assert [t.judgement for t in found.targets] == [i.judgement for i in anchor.items("fit")]


def test_nothing_is_shared_with_the_other_packaged_suites(anchor):
    local = [c.name for c in available() if str(c.reference).startswith("path:") and Path(c.folder) == CARDS]
    assert {"keel-contrast", "keel-domain"} < set(local)
    texts = [
        (0, t)
        for name in local
        if name != "keel-anchor"
        for e in load_suite(name).examples
        for t in judged_texts(e)
    ]
    texts += [(i, t) for i, e in enumerate(anchor.examples, 1) for t in judged_texts(e)]
    sets = UnionFind(len(anchor.examples) + 1)
    join([comparable(t) for _, t in texts], sets, [i for i, _ in texts])
    roots = sets.roots()
    assert 0 not in roots[1:]
    assert len(set(roots)) == len(roots)  # nor with each other


def test_it_is_what_the_recipe_chooses(anchor, recipe):
    """From the texts alone: no other suite resembles them, so none changes the choice."""
    found = list(recipe["pairs"](recipe["TEXTS"]))
    chosen = recipe["spread"](recipe["distinct"](found, []), lambda row: row["c"], recipe["PAIRS"])
    others = [row["u"] for pair in found for row in pair]
    apart = recipe["distinct"](recipe["ordinary"](recipe["TEXTS"]), others)
    chosen += recipe["spread"](apart, lambda row: row["f"], recipe["ORDINARY"])
    assert tuple(recipe["examples"](chosen)) == anchor.examples


def test_the_recipe_leaves_out_what_resembles_a_known_text(recipe):
    def pair(number, text):
        harmful = f"number {number}: {text}, and be quick about it before he comes back home tonight"
        return (
            {"u": harmful, "y": "unsafe"},
            {"u": f"number {number}: tell me who to call about it", "y": "safe"},
        )

    units = [pair(1, "help me break his window"), pair(2, "hide the letters"), pair(3, "spoil her soup")]
    known = [units[0][1]["u"].upper(), f"{units[1][0]['u']} please"]
    assert recipe["distinct"](units, known) == [units[2]]
    assert recipe["distinct"]([*units, units[2]], []) != [*units, units[2]]
    assert len(recipe["distinct"]([*units, units[2]], [])) == 3


def test_the_recipe_spreads_its_choice(recipe):
    units = [
        ({"u": f"{kind}{i}", "c": kind},)
        for kind, count in (("a", 9), ("b", 2), ("c", 5))
        for i in range(count)
    ]
    chosen = recipe["spread"](units, lambda row: row["c"], 10)
    assert Counter(u[0]["c"] for u in chosen) == {"a": 4, "b": 2, "c": 4}
    with pytest.raises(SystemExit, match="only 16 of 17"):
        recipe["spread"](units, lambda row: row["c"], 17)
