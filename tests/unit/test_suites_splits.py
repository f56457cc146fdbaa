"""Near-duplicates and splits by hand."""

import time

import pytest

from guardkeel.evaluation.suites.near_duplicates import (
    UnionFind,
    char_shingles,
    jaccard,
    join,
    near_duplicates,
    word_shingles,
)
from guardkeel.evaluation.suites.splits import Member, assign, clusters, comparable, position

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def roots(texts):
    sets = UnionFind(len(texts))
    join(texts, sets, range(len(texts)))
    return sets.roots()


def test_word_shingles():
    assert word_shingles("a b c d e f g h i") == frozenset()  # nine words
    assert len(word_shingles("a b c d e f g h i j")) == 8
    assert "i j k" in word_shingles("a b c d e f g h i j k")


def test_char_shingles():
    assert char_shingles("abcdef") == {"abcde", "bcdef"}
    assert char_shingles("abc") == {"abc"}
    assert char_shingles("") == frozenset()
    assert char_shingles("a b c d e f g h i j k l m") != frozenset()  # 13 words
    assert char_shingles("a b c d e f g h i j k l m n") == frozenset()


def test_jaccard():
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert jaccard(frozenset(), frozenset({1})) == 0.0
    assert jaccard(frozenset({1}), frozenset()) == 0.0


def test_one_word_more_at_the_end_is_near_one_word_changed_inside_is_not():
    # 14 shingles; one word more adds one: 14 / 15. An inner word changed: 11 / 17.
    assert near_duplicates(LONG, LONG + " seventeen")
    assert not near_duplicates(LONG, LONG.replace("seven ", "sept "))
    assert roots([LONG, "something else", LONG + " seventeen", LONG.replace("seven ", "sept ")]) == [
        0,
        1,
        0,
        3,
    ]


def test_short_texts_compare_by_characters():
    assert near_duplicates("how do i boil a large egg", "how do i boil a large eggs")
    assert not near_duplicates("how do i boil a large egg", "how do i boil a small egg")
    assert roots(
        ["how do i boil a large egg", "how do i boil a large eggs", "how do i boil a small egg"]
    ) == [0, 0, 2]


def test_a_pair_across_the_border_of_the_spaces():
    nine, ten = (
        "a bb ccc dddd eeeee ffffff ggggggg hhhhhhhh iiiiiiiii",
        "a bb ccc dddd eeeee ffffff ggggggg hhhhhhhh iiiiiiiii j",
    )
    assert len(nine.split()) == 9
    assert near_duplicates(nine, ten)
    assert roots([nine, ten]) == [0, 0]


def test_empty_texts_are_not_alike():
    assert roots(["", "", "x", "x"]) == [0, 1, 2, 2]


def test_union_find_keeps_the_smallest_as_root():
    sets = UnionFind(5)
    sets.union(4, 3)
    sets.union(3, 1)
    assert sets.roots() == [0, 1, 2, 1, 1]
    sets.union(0, 4)
    assert sets.roots() == [0, 0, 2, 0, 0]


def test_five_thousand_texts_take_seconds():
    texts = [" ".join(f"w{(i * 7919 + k * k * 31) % 4001}" for k in range(20 + i % 40)) for i in range(4800)]
    texts += [t + " extra" for t in texts[:200]]
    start = time.perf_counter()
    found = roots(texts)
    assert time.perf_counter() - start < 30  # about 2 s on an idle core
    assert found[4800:] == list(range(200))


def test_one_very_long_text_is_no_trouble():
    huge = " ".join(f"w{i}" for i in range(60_000))
    assert roots([huge, huge + " more", "short"]) == [0, 0, 2]


def test_clusters_join_by_group_text_and_chain():
    members = [
        Member(("alpha beta",), group="g"),
        Member(("gamma delta",), group="g"),
        Member(("Gamma, DELTA!",)),
        Member(("epsilon", "alpha BETA")),
        Member(("zeta",)),
    ]
    assert clusters(members) == [0, 0, 0, 0, 4]


def test_emoji_are_texts_too():
    assert comparable("🙂 ") == "🙂"
    assert clusters([Member(("🙂",)), Member(("🙃",)), Member(("🙂",))]) == [0, 1, 0]


def test_position_is_the_hash_as_a_fraction():
    # sha256("text a") begins with the 8 bytes below
    import hashlib

    head = int(hashlib.sha256(b"text a").hexdigest()[:16], 16)
    assert position("text a") == (head >> 11) / 2**53
    assert 0 <= position("\ud800") < 1


@pytest.mark.parametrize(
    ("cut", "split"), [((1, 0, 0), "fit"), ((0, 1, 0), "calibrate"), ((0, 0, 1), "test")]
)
def test_proportions_of_one(cut, split):
    assert set(assign([Member((f"text {i}",), proportions=cut) for i in range(50)])) == {split}


def test_default_proportions():
    chosen = assign([Member((f"{i * 7919} {i * 104729} some words",)) for i in range(2000)])
    assert [round(chosen.count(s) / 2000, 1) for s in ("fit", "calibrate", "test")] == [0.4, 0.2, 0.4]


def test_boundaries_are_half_open():
    u = position("text a")
    assert assign([Member(("a",), proportions=(u, 1 - u, 0))]) == ["calibrate"]
    above = u + 1e-9
    assert assign([Member(("a",), proportions=(above, 1 - above, 0))]) == ["fit"]
    assert assign([Member(("a",), proportions=(0, u, 1 - u))]) == ["test"]


def test_a_declared_split_pulls_its_cluster_to_the_strictest():
    members = [
        Member(("a b",), declared="fit"),
        Member(("A b",), declared="calibrate"),
        Member(("c d",), declared="fit"),
        Member(("C. D.",)),
        Member(("e f",), declared="test"),
        Member(("e, f",), declared="fit"),
    ]
    assert assign(members) == ["calibrate", "calibrate", "fit", "fit", "test", "test"]


def test_all_declared_alike_needs_no_comparison():
    assert assign([Member(("a",), declared="test"), Member(("b",), declared="test")]) == ["test", "test"]
    assert assign([]) == []


def test_a_new_row_moves_no_other():
    members = [Member((f"{i * 7919} words of row {i * i}",)) for i in range(200)]
    assert assign([*members, Member(("a row of its own",))])[:200] == assign(members)
