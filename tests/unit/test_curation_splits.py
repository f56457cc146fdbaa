"""Splits: no text, group or near-duplicate on both sides, and nothing of a suite in the set."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from curation_rows import row
from guardkeel.conversation import normalised
from guardkeel.curation.config import SplitConfig
from guardkeel.curation.rows import Row
from guardkeel.curation.splits import held_against, place
from guardkeel.errors import DataError
from guardkeel.evaluation.suites import load_suite
from guardkeel.evaluation.suites.near_duplicates import near_duplicates
from trained_guards import examples, suite_file

LONG = "please tell me how the old harbour master keeps all of the ships in the bay in order"


def split(tmp_path, rows, counts=None, **table):
    """Where each row goes, by id."""
    config = SplitConfig(**table)
    held = held_against(config.against) if config.against else None
    placed = place(iter(rows), config, tmp_path, held=held, counts=counts)
    return {r.id: p for r, p in zip(rows, placed, strict=True)}


def many(count, seed=1):
    return [Row(e.id, e.conversation, {}) for e in examples(count, seed)]


def test_nothing_alike_is_parted(tmp_path):
    rng = random.Random(5)
    rows = many(150)
    for i in range(60):
        words = rows[i].conversation.turns[0].content.split()
        words[rng.randrange(len(words))] = "new"
        rows.append(row(f"n{i}", " ".join(words), group=f"g{i % 9}"))
    found = split(tmp_path, rows)
    for a in rows:
        for b in rows:
            one, two = (normalised(r.conversation.turns[0].content) for r in (a, b))
            if near_duplicates(one, two) or (a.group and a.group == b.group):
                assert found[a.id].split == found[b.id].split
    sizes = Counter(p.split for p in found.values())
    assert set(sizes) == {"fit", "calibrate", "test"}


def test_the_order_of_rows_does_not_matter(tmp_path):
    rows = [*many(60), *(row(f"g{i}", f"{LONG} {i}", group=f"g{i % 3}") for i in range(9))]
    assert split(tmp_path, rows) == split(tmp_path, rows[::-1])


def test_proportions(tmp_path):
    found = split(tmp_path, many(400), proportions=(0.8, 0.1, 0.1))
    assert Counter(p.split for p in found.values())["fit"] > 280
    assert {p.split for p in split(tmp_path, many(20), proportions=(0, 0, 1)).values()} == {"test"}
    with pytest.raises(ValueError, match="must add up to 1"):
        SplitConfig(proportions=(0.5, 0.5, 0.5))


def test_declared_splits_win_and_the_strictest_of_them(tmp_path):
    rows = [
        row("a", LONG, split="fit"),
        row("b", LONG + " now", split="test"),
        row("c", "quite other", split="fit"),
    ]
    found = split(tmp_path, rows)
    assert {k: p.split for k, p in found.items()} == {"a": "test", "b": "test", "c": "fit"}


def test_a_prompt_is_known_again_under_another_reply(tmp_path):
    rows = [row(str(i), LONG, response=f"answer {i} " + "x" * i) for i in range(12)]
    assert len({p.split for p in split(tmp_path, rows).values()}) == 1


def test_rows_that_resemble_a_suite_leave_with_their_cluster(tmp_path):
    path = suite_file(tmp_path / "mine.jsonl", 80)
    suite = load_suite(str(path))
    item = next(e for e in suite.examples if suite.splits[e.id] == "test")
    fit = next(e for e in suite.examples if suite.splits[e.id] == "fit")
    text = item.conversation.turns[0].content
    rows = [
        row("leak", text.upper(), group="g"),
        row("kin", "of the same group, otherwise quite another text", group="g"),
        row("fit", fit.conversation.turns[0].content),
        row("own", "nothing that anybody else has said before"),
    ]
    counts: Counter[str] = Counter()
    found = split(tmp_path, rows, counts, against=[str(path)])
    assert found["leak"].split is None and found["kin"].split is None
    assert found["leak"].resembles == f"mine/{item.id}"
    assert found["own"].split and found["fit"].split  # what the suite has for fitting may be fitted on
    assert counts["rows that resemble mine"] == 2
    kept = split(tmp_path, rows, against=[str(path)], overlaps="test")
    assert kept["leak"].split == kept["kin"].split == "test" and kept["leak"].resembles
    every = split(tmp_path, rows, against=[str(path)], against_splits=["fit", "calibrate", "test"])
    assert every["fit"].split is None


def test_an_unlabelled_row_leaks_by_its_prompt_too(tmp_path):
    path = suite_file(tmp_path / "mine.jsonl", 40)
    suite = load_suite(str(path))
    item = next(e for e in suite.examples if suite.splits[e.id] == "test")
    found = split(
        tmp_path,
        [row("a", item.conversation.turns[0].content, response="a long answer " * 9)],
        against=[str(path)],
    )
    assert found["a"].split is None


def test_suites_by_name_must_be_there():
    with pytest.raises(DataError, match="unknown suite 'nosuch'"):
        held_against(["nosuch"])


def test_all_reads_what_can_be_read_and_says_what_not(monkeypatch):
    from guardkeel.curation import splits
    from guardkeel.evaluation.suites import find_card

    cards = [find_card("keel-contrast"), find_card("aegis-2.0")]
    monkeypatch.setattr(splits, "available", lambda: cards)
    held = held_against(["all"], offline=True)
    assert [s.name for s in held.suites] == ["keel-contrast"]
    assert list(held.unread) == ["aegis-2.0"] or not held.unread  # it may lie in a cache
