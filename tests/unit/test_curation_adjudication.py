"""Who is asked about what, when an item is decided, and what decisions make of rows."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from adjudication_parts import judged, queue_of
from curation_rows import row
from guardkeel.curation.adjudication.calibration import Known, calibrate
from guardkeel.curation.adjudication.folding import fold
from guardkeel.curation.adjudication.guidelines import categories
from guardkeel.curation.adjudication.quality import between_people, jurors_against_people
from guardkeel.curation.adjudication.reasons import bits, look
from guardkeel.curation.adjudication.resolving import Said, outcome
from guardkeel.curation.adjudication.texts import pieces, plain
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.curation.mapping import HOME
from guardkeel.curation.rows import SideLabel, Vote, vote_json
from guardkeel.guards.guard_policy import GuardPolicy


def said(*choices, **categories_of):
    return [Said(by, c, tuple(categories_of.get(by, ()))) for by, c in zip("ABCDE", choices, strict=False)]


@pytest.mark.parametrize(
    ("choices", "people", "wanted", "label"),
    [
        ((), 1, 1, None),
        (("safe",), 1, 1, "safe"),
        (("unclear",), 1, 1, None),
        (("safe",), 2, 2, None),
        (("safe", "safe"), 2, 2, "safe"),
        (("safe", "unsafe"), 2, 3, None),
        (("safe", "unsafe", "unsafe"), 2, 3, "unsafe"),
        (("unclear", "unsafe"), 2, 3, None),
        (("unclear", "unsafe", "unsafe"), 2, 3, "unsafe"),
        (("unclear", "unsafe", "safe"), 2, 3, None),
        (("unclear", "unclear", "safe"), 2, 3, "safe"),
        (("caution", "unsafe"), 2, 2, "unsafe"),
        (("safe", "unsafe", "unsafe"), 3, 4, None),
        (("safe", "unsafe", "unsafe", "safe"), 3, 4, None),
    ],
)
def test_an_item_is_decided_by_so_many_people_and_one_more_where_they_differ(choices, people, wanted, label):
    found = outcome(said(*choices), people, "strict")
    assert (found.wanted, found.label) == (wanted, label)
    assert found.open == (len(choices) < wanted)


def test_needs_caution_is_read_strictly_or_permissively():
    given = said("caution", "safe")
    assert outcome(given, 2, "strict").open
    found = outcome(given, 2, "permissive")
    assert (found.label, found.contested) == ("safe", True)
    strict = outcome(said("caution", A=("Threat",)), 1, "strict")
    assert (strict.label, strict.categories, strict.by) == ("unsafe", ("Needs Caution", "Threat"), ("A",))


def test_categories_are_those_that_half_of_the_people_name():
    given = said("unsafe", "unsafe", "safe", A=("Threat", "Violence"), B=("Threat",), C=("Malware",))
    found = outcome(given, 3, "strict")
    assert found.open and found.categories == ()
    found = outcome([*given, Said("D", "unsafe", ("Malware",))], 3, "strict")
    assert (found.categories, found.by) == (("Threat",), ("A", "B", "D"))


def test_every_reason_is_said():
    given = SideLabel("unsafe", "jury", (), {"majority": 2 / 3, "dawid-skene": 0.4})
    votes = (Vote("a", "unsafe", 0.9), Vote("b", "unsafe", 0.8), Vote("c", "safe", 0.5), Vote("d", None))
    found = look(given, votes, {"c": 0.55, "a": 0.95}, (0.2, 0.8))
    assert found.reasons == (
        "jurors disagree: unsafe a, b; safe c",
        "majority and Dawid–Skene differ: 0.67 of the votes, P(unsafe) 0.40",
        "Dawid–Skene is unsure: P(unsafe) 0.40",
        "c is unsure: calibrated P(unsafe) 0.55",
    )
    assert found.information == pytest.approx(bits((0.4 + 0.55 + 0.95 + 2.5 / 4) / 4))
    assert look(None, (), {}, (0.2, 0.8)).information == 1.0
    assert look(SideLabel(None, "disagreement"), (), {}, (0, 0)).reasons == ("sources contradict each other",)
    assert look(SideLabel(None, "jury"), (Vote("a", None),), {}, (0, 0)).reasons == (
        "no label came of the votes",
    )


def test_bits_split_into_doubt_and_distance():
    """H of the mean of beliefs is the mean of their H and their Jensen–Shannon divergence."""
    beliefs = np.array([0.1, 0.7, 0.95])
    mean = beliefs.mean()
    divergence = np.mean(
        beliefs * np.log2(beliefs / mean) + (1 - beliefs) * np.log2((1 - beliefs) / (1 - mean))
    )
    assert bits(mean) == pytest.approx(np.mean([bits(b) for b in beliefs]) + divergence)
    assert (bits(0.5), bits(0.0), bits(1.0)) == (1.0, 0.0, 0.0)


def test_the_queue_asks_first_where_most_is_learnt_and_once_about_equal_texts():
    rows = [
        judged("agreed", 0.9, 0.9, 0.9),
        judged("split", 0.9, 0.9, 0.1),
        judged("even", 0.9, 0.1),
        judged("again", 0.9, 0.1, prompt="text of even"),
        judged("mine", 0.9, 0.9, source="human"),
        row("bare", "nobody has seen this"),
    ]
    found = queue_of(rows, audit=0.0)
    assert [i.row for i in found.items] == ["bare", "even", "split"] or [i.row for i in found.items] == [
        "even",
        "bare",
        "split",
    ]
    assert (dict(found.contested), dict(found.agreed)) == ({"prompt": 3}, {"prompt": 1})
    assert all(i.propensity == 1.0 and not i.audit for i in found.items)
    assert [i.rank for i in found.items] == [0.0, 1 / 3, 2 / 3]


def test_a_label_of_its_own_is_asked_about_where_jurors_contradict_it():
    rows = [
        judged("wrong", 0.9, 0.9, 0.1, label="safe", source="author"),
        judged("right", 0.9, 0.9, 0.1, label="unsafe", source="author"),
    ]
    assert queue_of(rows).items == []
    (found,) = queue_of(rows, labelled=True, audit=0.0).items
    assert found.row == "wrong" and found.reasons == ("a, b contradict the label safe by author",)


def test_a_fair_share_of_agreed_items_is_audited_whatever_else_is_there():
    rows = [judged(f"r{i}", 0.9, 0.9, 0.9) for i in range(3000)]
    found = queue_of(rows, audit=0.1).items
    assert abs(len(found) - 300) < 4 * math.sqrt(3000 * 0.1 * 0.9)
    assert all(i.audit and i.propensity == 0.1 for i in found)
    fewer = queue_of(rows[::2], audit=0.1).items
    assert {i.key for i in fewer} == {i.key for i in found} & {
        i.key for i in queue_of(rows[::2], audit=1.0).items
    }
    assert {i.key for i in queue_of(rows, seed=1, audit=0.1).items} != {i.key for i in found}
    places = np.array([i.rank for i in found])
    assert np.all(np.diff(places) >= 0) and abs(places.mean() - 0.5) < 0.1  # spread over the whole queue


def test_a_calibrated_juror_is_known_by_people_and_an_unmeasured_one_is_not_believed():
    rng = np.random.default_rng(0)
    known = []
    for _ in range(400):  # a juror that says 0.9 where people say unsafe half of the time
        chance = float(rng.choice([0.1, 0.9]))
        truth = "unsafe" if rng.random() < {0.1: 0.02, 0.9: 0.5}[chance] else "safe"
        known.append(Known("prompt", (Vote("a", "unsafe", chance), Vote("b", None)), truth))
    made = calibrate(known)
    assert set(made.maps) == {("a", "prompt")} and made.items["a", "prompt"] == 400
    assert made.of("prompt", (Vote("a", "unsafe", 0.9),))["a"] == pytest.approx(0.5, abs=0.08)
    assert made.of("response", (Vote("a", "unsafe", 0.9),)) == {}
    assert calibrate(known[:30]).maps == {}
    (found,) = queue_of([judged("r", 0.9, 0.9, 0.9, chance=1.0)], calibration=made, audit=0.0).items
    assert found.reasons[0].startswith("a is unsure: calibrated P(unsafe) 0.")


def folded(one, *choices, asked=True, strictness="strict", categories_of=(), **table):
    config = AdjudicateConfig(**table)
    (queued,) = queue_of([one], audit=1.0, **{k: v for k, v in table.items() if k != "audit"}).items
    outcomes = (
        {queued.key: outcome(said(*choices, A=categories_of), config.people, strictness)} if choices else {}
    )
    counts = Counter()
    return fold(
        one, config, outcomes, {queued.key: queued.audit} if asked else {}, strictness, counts
    ), counts


def test_a_decision_becomes_the_label_and_everything_before_stays_beside_it():
    one = judged("r", 0.9, 0.9, 0.1)
    made, counts = folded(one, "safe")
    label = made.labels["prompt"]
    assert (label.label, label.source) == ("safe", "human:A")
    assert [(v.by, v.label) for v in label.votes] == [
        ("a", "unsafe"), ("b", "unsafe"), ("c", "safe"), ("jury", "unsafe"), ("human:A", "safe"),
    ]  # fmt: skip
    assert label.scores == one.labels["prompt"].scores and made.history == ("adjudicate: prompt by A",)
    assert counts["labels changed"] == 1 and made.categories == ()


def test_people_who_contradict_each_other_leave_a_disagreement():
    made, counts = folded(judged("r", 0.9, 0.9, 0.1), "safe", "unsafe", "unclear", people=2)
    label = made.labels["prompt"]
    assert (label.label, label.source) == (None, "disagreement")
    assert [v.label for v in label.votes[-3:]] == ["safe", "unsafe", None]
    assert label.votes[-1].reason == "cannot tell" and counts["people contradict each other"] == 1


def test_categories_of_people_take_the_place_of_the_jurys():
    one = judged("r", 0.9, 0.9, 0.1, categories=("Violence",))
    assert folded(one, "unsafe", categories_of=("Threat",))[0].categories == ("Threat",)
    assert folded(one, "unsafe")[0].categories == ("Violence",)
    assert folded(one, "caution")[0].categories == ("Needs Caution",)
    assert folded(one, "safe")[0].categories == ()


@pytest.mark.parametrize(
    ("unresolved", "label"), [("unlabelled", None), ("jury", "unsafe"), ("drop", "no row")]
)
def test_what_is_not_decided_is_left_without_a_label_or_out_or_to_the_jury(unresolved, label):
    contested, agreed = judged("r", 0.9, 0.9, 0.1), judged("r", 0.9, 0.9, 0.9)
    for choices in ((), ("unclear",)):
        made, _ = folded(contested, *choices, unresolved=unresolved)
        assert (made.label("prompt") if made else "no row") == label
    assert folded(agreed, unresolved=unresolved)[0] == agreed  # drawn for audit only
    assert folded(contested, asked=False, unresolved=unresolved)[0] == contested


def test_agreement_of_people_is_over_independent_labels():
    given = {f"i{n}": [Said("A", "safe"), Said("B", "safe")] for n in range(8)}
    given |= {f"u{n}": [Said("A", "unsafe"), Said("B", "unsafe")] for n in range(8)}
    assert between_people(given, 2, "strict").alpha.value == 1.0
    split = {**given, "d": [Said("A", "safe"), Said("B", "unsafe"), Said("C", "safe")]}
    found = between_people(split, 2, "strict")
    assert found.votes["C"] == {"safe": 0, "unsafe": 0, "abstained": 17}  # asked because they differed
    assert between_people({"i": [Said("A", "safe")]}, 1, "strict") is None


def test_weighted_skill_is_that_of_all_items_although_contested_ones_are_asked_more():
    """A juror with known rates over 2,000 items; 10 % of the agreed ones are audited. Raw rates are far off."""
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(20):
        truth = rng.random(2000) < 0.4
        votes = [np.where(rng.random(2000) < p, truth, ~truth) for p in (0.8, 0.95)]
        contested = votes[0] != votes[1]
        asked = contested | (rng.random(2000) < 0.1)
        kept, outcomes, audits = {}, {}, {}
        for i in np.flatnonzero(asked):
            said_by = [
                vote_json(Vote(n, "unsafe" if v[i] else "safe")) for n, v in zip("ab", votes, strict=True)
            ]
            kept[str(i)] = {"votes": said_by, "label": {"label": None, "source": ""}}
            outcomes[str(i)] = outcome([Said("A", "unsafe" if truth[i] else "safe")], 1, "strict")
            audits[str(i)] = not contested[i]
        sizes = {"contested": int(contested.sum()), "agreed": int((~contested).sum())}
        found = {(s.judge, s.source): s for s in jurors_against_people(kept, outcomes, audits, sizes)}
        overall = found["a", "all items"].sensitivity
        true = float((votes[0][truth]).mean())
        errors.append((overall.value - true, overall.low <= true <= overall.high))
        assert found["a", "contested"].sensitivity.value < 0.5
    assert abs(np.mean([e for e, _ in errors])) < 0.02 and np.mean([c for _, c in errors]) >= 0.85


def test_no_share_of_all_items_without_an_audit():
    kept = {"k": {"votes": [vote_json(Vote("a", "safe"))], "label": {"label": "safe", "source": "jury"}}}
    found = jurors_against_people(
        kept, {"k": outcome(said("safe"), 1, "strict")}, {"k": False}, {"contested": 1, "agreed": 9}
    )
    assert {(s.judge, s.source) for s in found} == {("a", "contested"), ("jury", "contested")}


def test_what_does_not_show_is_named():
    assert [(p.text, p.token) for p in pieces("a\u202e\u202eb\u200dc\n")] == [
        ("a", False), ("U+202E ×2", True), ("b\u200dc\n", False),
    ]  # fmt: skip
    assert plain("x\x00y" + "z" * 600, 10) == "x⟨U+0000⟩yzzzzzzz…"
    assert plain("\ud800") == "⟨U+D800⟩"


def test_every_category_is_explained_and_a_policy_brings_its_own():
    assert {c.name for c in categories()} == set(HOME) - {"Needs Caution"}
    assert all(c.description for c in categories()) and [c.number for c in categories()][:3] == [1, 2, 3]
    own = GuardPolicy(name="bank", categories=({"name": "Account takeover", "description": "d"},))
    assert [(c.number, c.name, c.description) for c in categories(own)] == [(1, "Account takeover", "d")]
