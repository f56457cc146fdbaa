"""The index for a million texts finds what comparing every pair finds; redaction and rows hold for any text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guardkeel.conversation import Conversation
from guardkeel.curation.dedup import compared, nearly_equal
from guardkeel.curation.minhash import NearIndex, Sets
from guardkeel.curation.rows import Row, SideLabel, merged, parse_line
from guardkeel.evaluation.suites.near_duplicates import near_duplicates

WORDS = st.sampled_from(["ship", "sea", "harbour", "a", "old", "gate", "north", "keeps", "bay", "é", "船"])
TEXTS = st.lists(WORDS, min_size=0, max_size=22).map(" ".join)
LABELS = st.builds(SideLabel, st.sampled_from(["safe", "unsafe", None]), st.sampled_from(["human", "jury"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=12), st.integers(0, 21))
def test_as_every_pair_compared(texts, at):
    texts += [" ".join([*t.split(" ")[:at], "new", *t.split(" ")[at + 1 :]]) for t in texts[:4]]  # near ones
    brute = Sets(len(texts))
    for i, a in enumerate(texts):
        for j in range(i):
            if a and texts[j] and near_duplicates(a, texts[j]):
                brute.union(i, j)
    with tempfile.TemporaryDirectory() as folder, NearIndex(Path(folder)) as index:
        for text in texts:
            index.add(text)
        found = index.sets().roots()
    assert np.array_equal(found, brute.roots())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_nearly_equal_is_symmetric_and_holds_for_itself(a, b):
    one, two = compared(Conversation.of(a)), compared(Conversation.of(b))
    assert nearly_equal(one, two) == nearly_equal(two, one)
    assert nearly_equal(one, one)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=20), LABELS)
def test_a_row_survives_its_line(text, extra, label):
    given_row = Row("i", Conversation.of(text), {"prompt": label}, extra={"x": extra})
    raw = given_row.line()
    assert raw.count(b"\n") == 1 and parse_line(raw, "x") == given_row


@given(LABELS, LABELS)
def test_merging_in_either_order_gives_the_same_label(a, b):
    one, two = merged(a, b), merged(b, a)
    assert one.label == two.label
    known = {a.label, b.label} - {None}
    assert one.label == (known.pop() if len(known) == 1 else None)
