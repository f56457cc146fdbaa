"""The store: one person, one item, one label, whatever races, kills and clocks do."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest

pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from adjudication_parts import Clock, items, say, store_of
from guardkeel.curation.adjudication.decisions import read_decisions, write_decisions
from guardkeel.curation.adjudication.store import Answer, Store
from guardkeel.curation.adjudication.tally import Tally
from guardkeel.errors import ConfigError, DataError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adjudication.sqlite"


def answer(claim, who="ann", choice="unsafe", **options):
    return Answer(claim.token, claim.item["key"], who, choice, **options)


def test_an_item_is_one_persons_until_the_lease_ends(file):
    clock = Clock()
    store = store_of(file, 2, clock=clock)
    first = store.claim("ann", 60)
    assert store.claim("ann", 60).token == first.token  # reading the page again changes nothing
    second = store.claim("bob", 60)
    assert second.item["key"] != first.item["key"] and store.claim("cem", 60) is None
    clock.now += 50
    assert store.renew("bob", second.token, 60)
    clock.now += 20  # ann's has ended, bob's has not
    third = store.claim("cem", 60)
    assert third.item["key"] == first.item["key"]
    assert not store.renew("ann", first.token, 60)
    assert store.submit(answer(first)).status == "late"
    assert store.submit(answer(third, "cem")).status == "new"
    assert store.submit(answer(first)).status == "late"
    assert [r["annotator"] for r in store.records()] == ["cem"]


def test_who_is_late_and_has_lost_the_place_to_nobody_is_heard(file):
    clock = Clock()
    store = store_of(file, 1, clock=clock)
    claim = store.claim("ann", 60)
    clock.now += 3600
    assert store.submit(answer(claim)).status == "new"
    assert store.records()[0]["seconds"] == 3600


def test_the_same_answer_counts_once_and_another_one_is_refused(file):
    store = store_of(file, 3)
    claim = store.claim("ann", 60)
    first = store.submit(answer(claim, categories=("Threat",), note="n"))
    assert store.submit(answer(claim, categories=("Threat",), note="n")) == type(first)(
        "known", first.sequence
    )
    assert store.submit(answer(claim, choice="safe")).status == "conflict"
    assert store.submit(Answer("elsewhere", claim.item["key"], "ann", "safe")).status == "conflict"
    assert store.submit(Answer("nowhere", "0" * 40, "ann", "safe")).status == "unknown"
    assert len(store.records()) == 1


def test_the_log_is_only_added_to_even_by_hand(file):
    store = store_of(file, 1)
    say(store, "ann")
    for statement in ("UPDATE log SET choice = 'safe'", "DELETE FROM log"):
        with pytest.raises(IntegrityError, match="only added to"), store._writer.begin() as connection:
            connection.execute(text(statement))
    assert store.records()[0]["choice"] == "unsafe"


def test_undo_is_a_record_and_gives_the_item_back(file):
    store = store_of(file, 3)
    key = say(store, "ann", "unsafe", ("Threat",))
    held = store.claim("ann", 60)
    last = store.last("ann")
    assert store.undo("bob", last["id"], 60).status == "unknown"  # nobody else's
    undone = store.undo("ann", last["id"], 60)
    assert undone.status == "new" and store.undo("ann", last["id"], 60) == type(undone)(
        "known", undone.sequence
    )
    assert store.claim("ann", 60).item["key"] == key and store.last("ann") is None
    assert store.claim("bob", 60).item["key"] == held.item["key"]  # let go of
    assert store.outcomes(1, "strict") == {} and store.progress("ann", 0).decided == 0
    assert say(store, "ann", "safe") == key
    assert store.outcomes(1, "strict")[key].label == "safe"
    assert [(r["kind"], r["choice"]) for r in store.records()] == [
        ("label", "unsafe"),
        ("undo", None),
        ("label", "safe"),
    ]
    assert store.undo("ann", last["id"], 60).status == "known"  # not the second label
    assert store.undo("ann", "undo." + last["id"], 60).status == "unknown"  # an undo is not undone


def test_undo_goes_back_through_labels_and_skips(file):
    store = store_of(file, 3)
    first = say(store, "ann")
    second = say(store, "ann", None)
    assert store.undo("ann", store.last("ann")["id"], 60).status == "new"
    assert store.claim("ann", 60).item["key"] == second
    assert store.undo("ann", store.last("ann")["id"], 60).status == "new"
    assert store.claim("ann", 60).item["key"] == first and store.last("ann") is None


def test_what_is_skipped_comes_again_after_all_others(file):
    store = store_of(file, 3)
    first = say(store, "ann", None)
    second = say(store, "ann", None)
    third = say(store, "ann")
    assert [say(store, "ann", None) for _ in range(3)] == [first, second, first]
    assert store.progress("ann", 0).skipped == 2
    assert [say(store, "ann"), say(store, "ann"), say(store, "ann")] == [second, first, None]
    assert len({first, second, third}) == 3 and store.progress("ann", 0).decided == 3
    assert (
        say(store_of(file.with_name("other"), 1), "bob", None) is not None
    )  # skipped by one, open to others


def test_two_people_alone_and_a_third_where_they_differ(file):
    store = store_of(file, 1, people=2)
    assert say(store, "ann", "unsafe") and store.claim("ann", 60) is None
    assert store.progress("ann", 0).others == 1
    assert say(store, "bob", "safe") and store.claim("bob", 60) is None
    assert store.progress("bob", 0).decided == 0
    third, none = store.claim("cem", 60), store.claim("dan", 60)
    assert third is not None and none is None  # one more, not two
    store.submit(answer(third, "cem", "safe"))
    (found,) = store.outcomes(2, "strict").values()
    assert (found.label, found.by) == ("safe", ("bob", "cem")) and store.progress("ann", 0).decided == 1
    store.undo("bob", store.last("bob")["id"], 60)
    assert store.progress("ann", 0).decided == 0  # unsafe and safe stand: a third is wanted
    assert say(store, "bob", "unsafe") and store.outcomes(2, "strict").popitem()[1].label == "unsafe"


def test_a_changed_rule_opens_items_again_and_keeps_what_was_said(file):
    store = store_of(file, 3)
    keys = [say(store, "ann") for _ in range(3)]
    store.load(items(2), 2, "strict")  # one item fewer, one person more
    now = store.progress("ann", 0)
    assert (now.total, now.decided, now.others) == (2, 0, 2)
    assert {say(store, "bob"), say(store, "bob")} <= set(keys) and say(store, "bob") is None
    assert store.progress("ann", 0).decided == 2 and len(store.outcomes(1, "strict")) == 3
    store.load(items(3), 1, "strict")
    assert store.progress("ann", 0).open == 0


def race(path, workers, take):
    """So many threads, each with its own connection, all at once."""
    ready, problems = threading.Barrier(workers), []

    def work(n):
        store = Store(path)
        try:
            ready.wait(20)
            take(store, n)
        except BaseException as e:
            problems.append(e)
        finally:
            store.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []


@pytest.mark.parametrize("people", [1, 2])
def test_people_who_race_label_every_item_as_often_as_it_should_be(file, people):
    store = store_of(file, 25, people=people)

    def take(own, n):
        while say(own, f"p{n}", "safe"):
            pass

    race(file, 6, take)
    race(file, 6, take)  # whoever ended while the last item was somebody else's
    counts = Counter(r["item"] for r in store.records())
    assert set(counts.values()) == {people} and len(counts) == 25
    assert len({(r["item"], r["annotator"]) for r in store.records()}) == 25 * people
    assert [r["sequence"] for r in store.records()] == list(range(1, 25 * people + 1))


def test_one_answer_from_many_tabs_is_written_once(file):
    store = store_of(file, 2)
    claim = store.claim("ann", 60)
    found = []
    race(file, 8, lambda own, n: found.append(own.submit(answer(claim)).status))
    assert sorted(found) == ["known"] * 7 + ["new"] and len(store.records()) == 1
    undone, last = [], store.last("ann")["id"]
    race(file, 8, lambda own, n: undone.append(own.undo("ann", last, 60).status))
    assert sorted(undone) == ["known"] * 7 + ["new"] and len(store.records()) == 2


def test_decisions_go_out_and_come_back_as_they_were(file, tmp_path):
    store = store_of(file, 6, people=2)
    for _ in range(4):
        say(store, "ann", "unsafe", ("Threat", "Profanity"), "a note: é, 漢 \u202e")
    say(store, "ann", None)
    store.undo("ann", store.last("ann")["id"], 60)
    say(store, "bob", "caution")
    store.undo("bob", store.last("bob")["id"], 60)
    say(store, "bob", "safe")
    out = tmp_path / "decisions.jsonl"
    assert write_decisions(out, store.records()) == len(store.records()) == 9
    first = json.loads(out.read_text().splitlines()[0])
    assert first["created"].endswith("+00:00") and first["propensity"] == 1.0 and first["blind"] is True
    assert "text of" not in out.read_text()  # nothing of what was judged
    other = store_of(tmp_path / "other.sqlite", 6, people=2)
    assert other.bring(read_decisions(out)) == {"new": 9}
    assert other.bring(read_decisions(out)) == {"known": 9}
    assert other.outcomes(2, "strict") == store.outcomes(2, "strict") and other.digest() == store.digest()
    same = [{k: v for k, v in r.items() if k != "created"} for r in store.records()]
    assert [{k: v for k, v in r.items() if k != "created"} for r in other.records()] == same
    assert [r["created"] for r in other.records()] == pytest.approx(
        [r["created"] for r in store.records()], abs=1e-5
    )
    assert other.progress("ann", 0) == store.progress("ann", 0)
    conflict = store_of(tmp_path / "third.sqlite", 6)
    say(conflict, "ann", "safe")
    assert conflict.bring(read_decisions(out)) == {"new": 8, "conflict": 1}  # ann has labelled that item


def test_a_broken_file_of_decisions_is_refused_with_its_place(file, tmp_path):
    store = store_of(file, 1)
    say(store, "ann")
    out = tmp_path / "d.jsonl"
    write_decisions(out, store.records())
    good = out.read_text()
    for bad, word in ((good.replace('"unsafe"', '"awful"'), "choice"), ("{", "not JSON"), ("{}", "id")):
        out.write_text(good + bad)
        with pytest.raises(DataError, match=rf"d\.jsonl:2: .*{word}"):
            list(read_decisions(out))


def test_the_tally_follows_the_log(file):
    store = store_of(file, 4)  # a and c say unsafe of all, b safe
    tally = Tally(store, "strict")
    for choice in ("unsafe", "safe", "unclear"):
        say(store, "ann", choice)
    tally.follow()
    assert tally.of("ann") == [("a", 1, 2), ("b", 1, 2), ("c", 1, 2), ("jury", 1, 2)]
    store.undo("ann", store.last("ann")["id"], 60)
    say(store, "ann", "caution")
    tally.follow()
    assert (
        tally.of("ann") == [("a", 2, 3), ("b", 1, 3), ("c", 2, 3), ("jury", 2, 3)] and tally.of("bob") == []
    )


def test_a_file_of_something_else_is_refused(tmp_path, file):
    with pytest.raises(ConfigError, match="no adjudication there"):
        Store(file)
    file.write_bytes(b"not a database, but long enough to look at" * 40)
    with pytest.raises(ConfigError, match="cannot keep decisions"):
        Store(file, create=True)
    newer = store_of(tmp_path / "newer.sqlite", 1)
    with newer._writer.begin() as connection:
        connection.execute(text("PRAGMA user_version = 99"))
    with pytest.raises(ConfigError, match="schema 99"):
        Store(tmp_path / "newer.sqlite")
