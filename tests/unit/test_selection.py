"""Which items an audit judges."""

import hashlib

import pytest

from guardkeel.conversation import Conversation, Example, text_digest
from guardkeel.errors import DataError
from guardkeel.evaluation.selection import geometry_sample, meta, row, select, suite_infos
from guardkeel.evaluation.suites import SuiteCard
from guardkeel.evaluation.suites.suite import build

# Nothing resembles anything else, so every example is a cluster of its own.
THINGS = [hashlib.sha256(str(i).encode()).hexdigest()[:24] for i in range(400)]


def suite(name, splits, *, start=0, labels=("unsafe", "safe"), **fields):
    """A suite whose rows declare their splits: [(split, how many), …]."""
    examples, declared = [], {}
    for split, count in splits:
        for _ in range(count):
            number = len(examples)
            label = labels[number % len(labels)]
            examples.append(
                Example(
                    f"{split}-{number}", Conversation.of(THINGS[start + number]), {"prompt": label}, **fields
                )
            )
            declared[examples[-1].id] = split
    card = SuiteCard(name=name, reference="x.jsonl", licence="CC0", origin="here")
    return build(card, examples, declared=declared)


def ids(items):
    return [i.judgement.id for i in items]


def test_test_and_calibrate_and_never_fit():
    made = suite("a", [("fit", 5), ("calibrate", 3), ("test", 4)])
    found = select([made])
    assert [i.split for i in found] == ["test"] * 4 + ["calibrate"] * 3
    assert ids(select([made], calibrate=False)) == ids(found)[:4]
    assert ids(found)[0] == "a/test-8#prompt"


def test_limit_is_for_each_suite_and_split_and_keeps_the_order():
    suites = [suite("a", [("calibrate", 3), ("test", 9)]), suite("b", [("test", 2)], start=50)]
    everything, found = select(suites), select(suites, limit=4)
    count = {}
    for item in found:
        count[item.suite, item.split] = count.get((item.suite, item.split), 0) + 1
    assert count == {("a", "test"): 4, ("a", "calibrate"): 3, ("b", "test"): 2}
    assert ids(found) == [i for i in ids(everything) if i in set(ids(found))]
    by_hash = sorted(
        (i for i in ids(everything) if i.startswith("a/test")),
        key=lambda i: hashlib.sha256(i.encode()).hexdigest(),
    )
    assert {i for i in ids(found) if i.startswith("a/test")} == set(by_hash[:4])


def test_what_a_limit_keeps_does_not_depend_on_the_order_of_the_file():
    made = suite("a", [("test", 30)])
    backwards = build(
        made.card.model_copy(update={"one_class": None}), made.examples[::-1], declared=made.declared
    )
    assert set(ids(select([made], limit=7))) == set(ids(select([backwards], limit=7)))


def test_a_suite_without_test_items_is_named():
    with pytest.raises(DataError, match=r"suite 'a': the test split has no items") as error:
        select([suite("b", [("test", 2)], start=50), suite("a", [("fit", 3), ("calibrate", 2)])])
    assert "fit 3, calibrate 2" in error.value.remedy


def test_no_text_is_in_two_splits_across_suites():
    mine, theirs = suite("a", [("fit", 1), ("test", 3)]), suite("b", [("test", 3)])
    assert mine.examples[0].conversation == theirs.examples[0].conversation
    found = select([mine, theirs])
    assert "a/fit-0#prompt" in ids(found)  # the stricter split: what b tests, a may not fit on
    assert len(found) == 7


def test_sides_are_items_of_their_own():
    one = Example(
        "e",
        Conversation.of("a question about tea", "a reply about tea"),
        {"prompt": "safe", "response": "unsafe"},
        ("Fraud/Deception",),
        "desk",
        "en",
    )
    made = build(SuiteCard(name="s", reference="x.jsonl"), [one], declared={"e": "test"})
    prompt, response = select([made])
    assert (prompt.side, prompt.label, response.side, response.label) == (
        "prompt",
        "safe",
        "response",
        "unsafe",
    )
    m = meta(response)
    assert (m.id, m.suite, m.side, m.label) == ("s/e#response", "s", "response", "unsafe")
    assert (m.categories, m.source, m.language) == (("Fraud/Deception",), "desk", "en")
    assert m.length == len("a question about tea\na reply about tea")
    assert row(response) == {
        "id": "s/e#response",
        "suite": "s",
        "split": "test",
        "side": "response",
        "label": "unsafe",
        "categories": ["Fraud/Deception"],
        "source": "desk",
        "language": "en",
        "length": m.length,
        "digest": text_digest("a question about tea\na reply about tea"),
        "messages": [
            {"role": "user", "content": "a question about tea"},
            {"role": "assistant", "content": "a reply about tea"},
        ],
    }


def test_suite_infos_count_what_was_used():
    suites = [
        suite("a", [("calibrate", 3), ("test", 5)]),
        suite("b", [("test", 2)], start=50, labels=("safe",)),
    ]
    infos = suite_infos(suites, select(suites))
    assert [(i.name, i.split, i.n, i.n_unsafe, i.n_safe) for i in infos] == [
        ("a", "test", 5, 2, 3),
        ("a", "calibrate", 3, 2, 1),
        ("b", "test", 2, 0, 2),
    ]
    assert infos[0].digest == suites[0].digest and (infos[0].licence, infos[0].origin) == ("CC0", "here")


def test_the_geometry_sample_is_balanced_and_spread_over_suites():
    suites = [
        suite("big", [("calibrate", 20), ("test", 100)]),
        suite("small", [("test", 6)], start=200),
        suite("calm", [("test", 30)], start=300, labels=("safe",)),
    ]
    items = select(suites)
    sample = geometry_sample(items, 40)
    chosen = [items[k] for k in sample]
    assert sample == sorted(set(sample)) and all(i.split == "test" for i in chosen)
    count = {}
    for item in chosen:
        count[item.suite, item.label] = count.get((item.suite, item.label), 0) + 1
    # 20 unsafe: in turn from big and small (which has 3); 20 safe: in turn from all three.
    assert count == {
        ("big", "unsafe"): 17,
        ("small", "unsafe"): 3,
        ("big", "safe"): 9,
        ("small", "safe"): 3,
        ("calm", "safe"): 8,
    }
    assert geometry_sample(items, 40) == sample


def test_a_geometry_sample_takes_what_there_is():
    items = select([suite("a", [("test", 5)])])
    assert geometry_sample(items, 400) == [0, 1, 2, 3, 4]
    calm = select([suite("a", [("test", 5)], labels=("safe",))])
    assert len(geometry_sample(calm, 4)) == 2  # half of them are kept for unsafe items
    assert geometry_sample([], 400) == []


def test_ids_with_lone_surrogates():
    odd = Example("\ud800", Conversation.of(THINGS[0]), {"prompt": "safe"})
    plain = Example("b", Conversation.of(THINGS[1]), {"prompt": "unsafe"})
    made = build(
        SuiteCard(name="s", reference="x.jsonl"), [odd, plain], declared={"\ud800": "test", "b": "test"}
    )
    items = select([made], limit=1)
    assert len(items) == 1 and len(geometry_sample(select([made]), 20)) == 2
