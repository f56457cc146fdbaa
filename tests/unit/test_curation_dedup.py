"""Deduplication: what goes, what stays, and what the row that stays remembers."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from curation_rows import row, votes
from guardkeel.conversation import Conversation, Turn
from guardkeel.curation.dedup import compared, deduplicated, nearly_equal
from guardkeel.curation.minhash import NearIndex
from guardkeel.curation.rows import DISAGREEMENT, SideLabel, parse_line, write_rows

LONG = "please tell me how the old harbour master keeps all of the ships in the bay in order"


def dedup(tmp_path, rows, **options):
    """The rows that stay, and what was counted."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    counts: Counter[str] = Counter()
    found = [parse_line(raw, "x") for raw in deduplicated(path, tmp_path, counts=counts, **options)]
    return found, counts


def test_equal_rows_become_one_that_remembers(tmp_path):
    rows = [row("a", "Hello there!"), row("b", "hello  there", prompt_label="safe"), row("c", "bye")]
    found, counts = dedup(tmp_path, rows)
    assert [r.id for r in found] == ["b", "c"]  # a label by people is worth more than coming first
    assert found[0].absorbed == ("a",) and "absorbed 1 equal and 0 nearly" in found[0].history[0]
    assert counts["equal rows that went"] == 1 and counts["rows that stay"] == 2


def test_near_duplicates_become_one_unless_their_labels_contradict(tmp_path):
    near = LONG.replace("please", "kindly")
    assert nearly_equal(compared(Conversation.of(LONG)), compared(Conversation.of(near)))
    found, _ = dedup(tmp_path, [row("a", LONG), row("b", near)])
    assert [r.id for r in found] == ["a"]
    pair = [row("a", LONG, prompt_label="safe"), row("b", near, prompt_label="unsafe")]
    found, counts = dedup(tmp_path, pair)
    assert [r.id for r in found] == ["a", "b"]
    assert counts["nearly equal rows that stay, their labels differ"] == 1
    found, _ = dedup(tmp_path, [row("a", LONG), row("b", near)], near=False)
    assert len(found) == 2


def test_one_text_under_two_policies_is_two_rows(tmp_path):
    ours, theirs = ({"policy": {"name": n, "categories": {"Off topic": n}}} for n in ("ours", "theirs"))
    rows = [
        row("a", LONG),
        row("b", LONG, extra=ours),
        row("c", LONG, extra=theirs),
        row("d", LONG, extra=ours),
    ]
    found, _ = dedup(tmp_path, rows)
    assert [r.id for r in found] == ["a", "b", "c"] and found[1].absorbed == ("d",)


def test_contradicting_labels_of_one_text_are_a_disagreement(tmp_path):
    rows = [
        row("a", "same text", prompt_label="safe", categories=()),
        row("b", "Same text.", labels={"prompt": SideLabel("unsafe", "jury", votes("unsafe", "unsafe"))}),
        row("c", "same text", response="r", prompt_label="safe"),
    ]
    found, counts = dedup(tmp_path, rows)
    assert [r.id for r in found] == ["a", "c"]  # another shape is another row
    label = found[0].labels["prompt"]
    assert (label.label, label.source) == (None, DISAGREEMENT)
    assert Counter(v.label for v in label.votes) == {"safe": 1, "unsafe": 2}
    assert counts["labels that equal rows contradict"] == 1


def test_replies_to_one_prompt_are_different_rows(tmp_path):
    rows = [
        row(str(i), LONG, response=r) for i, r in enumerate(("no", "yes", "of course, take the north gate"))
    ]
    found, _ = dedup(tmp_path, rows)
    assert len(found) == 3


def test_groups_of_rows_that_became_one_are_one(tmp_path):
    rows = [
        row("a", "one", group="g1"),
        row("b", "two", group="g1"),
        row("c", "ONE", group="g2"),
        row("d", "three", group="g2"),
        row("e", "four"),
        row("f", "four", group="g3"),
    ]
    found, _ = dedup(tmp_path, rows)
    assert {r.id: r.group for r in found} == {"a": "g1", "b": "g1", "d": "g1", "e": "g3"}


def test_a_chain_does_not_swallow_its_far_end(tmp_path):
    words = [f"word{i}" for i in range(40)]
    chain = [  # each is near its neighbour, the ends are not
        row(f"c{step}", " ".join([*(f"new{i}" for i in range(step * 3)), *words[step * 3 :]]))
        for step in range(8)
    ]
    found, _ = dedup(tmp_path, chain)
    texts = [compared(r.conversation) for r in chain]
    assert nearly_equal(texts[0], texts[1]) and not nearly_equal(texts[0], texts[-1])
    kept = {r.id for r in found}
    assert "c0" in kept and "c7" in kept | {i for r in found if r.id != "c0" for i in r.absorbed}


def test_texts_without_words_are_compared_as_they_are(tmp_path):
    found, _ = dedup(tmp_path, [row("a", "!!!"), row("b", "???"), row("c", "!!!"), row("d", "😀")])
    assert [r.id for r in found] == ["a", "b", "d"]


def test_turns_are_compared_with_their_roles():
    user, assistant = Turn("user", "hello there"), Turn("assistant", "hello there")
    assert compared(Conversation((user,))) != compared(Conversation((assistant,)))
    assert not nearly_equal(compared(Conversation((user, assistant))), compared(Conversation((user,))))


def test_the_result_depends_on_nothing_but_the_rows(tmp_path):
    rng = random.Random(3)
    vocabulary = [f"w{i}" for i in range(60)]
    rows = [row(str(i), " ".join(rng.choices(vocabulary, k=rng.randint(2, 14)))) for i in range(150)]
    rows += [row(f"x{i}", rows[i].conversation.text.upper()) for i in range(30)]
    first, _ = dedup(tmp_path, rows)
    again, _ = dedup(tmp_path, rows)
    assert first == again and len(first) == 150


def test_thousands_that_share_a_band_stay_linear(tmp_path):
    calls = []
    with NearIndex(tmp_path, lambda a, b: calls.append(1) or False) as index:
        for i in range(3000):
            index.add(f"the same opening words for everyone here today number {i % 7}")
        sets = index.sets()
    assert len(np.unique(sets.roots())) == 7
    assert len(calls) <= 2 * 32 * 8 * 7
