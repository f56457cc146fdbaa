"""Splits never share a group, a text or a near-duplicate, whatever comes in."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from near_duplicate_reference import all_pairs

from guardkeel.conversation import Conversation, Example
from guardkeel.evaluation.suites.card import SuiteCard
from guardkeel.evaluation.suites.near_duplicates import UnionFind, join, near_duplicates
from guardkeel.evaluation.suites.splits import SPLITS, Member, assign, comparable
from guardkeel.evaluation.suites.suite import build, split_many

WORDS = [f"{a}{b}" for a in ("ba", "ke", "li", "mo") for b in ("n", "rt", "st", "ll", "ck")]


def varied(seed: int, count: int) -> list[str]:
    """Texts of which many are copies of one another with a few words added, cut or changed."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.6:
            words = rng.choice(texts).split()
            for _ in range(rng.choice([0, 1, 1, 2])):
                place = rng.randrange(len(words) + 1)
                words[place : place + rng.choice([0, 1])] = rng.choices(WORDS, k=rng.choice([0, 1]))
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(rng.choices(WORDS, k=rng.choice([1, 3, 8, 12, 14, 25, 60]))))
    return texts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_lsh_joins_what_comparing_all_pairs_joins(seed):
    texts = varied(seed, 40)
    sets = UnionFind(len(texts))
    join(texts, sets, range(len(texts)))
    assert sets.roots() == all_pairs(texts)


def test_the_texts_do_have_near_duplicates():
    groups = [len(set(all_pairs(varied(seed, 40)))) for seed in range(10)]
    assert all(10 < g < 38 for g in groups)
    texts = varied(1, 40)
    assert any(near_duplicates(a, b) and a != b for a in texts for b in texts)


@st.composite
def members(draw):
    texts = varied(draw(st.integers(0, 10**9)), draw(st.integers(1, 25)))
    groups = st.sampled_from(["", "", "", "g1", "g2"])
    declared = st.sampled_from([None, None, None, *SPLITS])
    proportions = st.sampled_from([(0.4, 0.2, 0.4), (0.0, 0.5, 0.5), (0.6, 0.1, 0.3)])
    return [Member((t,), draw(groups), draw(proportions), draw(declared)) for t in texts]


@settings(max_examples=30, deadline=None)
@given(members())
def test_no_pair_straddles(rows):
    chosen = assign(rows)
    for i, a in enumerate(rows):
        for j in range(i):
            b = rows[j]
            texts = comparable(a.texts[0]), comparable(b.texts[0])
            alike = any(texts) and near_duplicates(*texts)  # two empty texts share nothing
            if (a.group and a.group == b.group) or alike:
                assert chosen[i] == chosen[j]


@settings(max_examples=30, deadline=None)
@given(members(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, rng):
    order = list(range(len(rows)))
    rng.shuffle(order)
    chosen, shuffled = assign(rows), assign([rows[i] for i in order])
    assert [chosen[i] for i in order] == shuffled


@settings(max_examples=30, deadline=None)
@given(members())
def test_nothing_moves_to_a_laxer_split_than_it_declares(rows):
    for row, split in zip(rows, assign(rows), strict=True):
        if row.declared:
            assert SPLITS.index(split) >= SPLITS.index(row.declared)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9))
def test_joint_splits_hold_across_suites(seed):
    texts = varied(seed, 30)
    halves = {"one": texts[:15], "two": texts[15:]}
    suites = [
        build(
            SuiteCard(name=name, reference="x"),
            [Example(str(i), Conversation.of(t), {"prompt": "safe"}) for i, t in enumerate(half)],
        )
        for name, half in halves.items()
    ]
    first, second = split_many(suites)
    for i, a in enumerate(halves["one"]):
        for j, b in enumerate(halves["two"]):
            if near_duplicates(comparable(a), comparable(b)):
                assert first.splits[str(i)] == second.splits[str(j)]
    everything = [*first.splits.values(), *second.splits.values()]
    assert everything == assign([m for s in suites for m in s.members()])
