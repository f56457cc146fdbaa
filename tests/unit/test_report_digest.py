from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guardkeel.errors import DataError
from guardkeel.records import Estimate, read_record, write_record
from guardkeel.report.digest import ROWS, ReportData, _shift, digest
from guardkeel.report.flips import RESERVED, allowance
from guardkeel.results import AuditResults
from run_directories import MEGABYTE, write_run


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("collapsed"), items=600)


@pytest.fixture(scope="module")
def data(collapsed: Path) -> ReportData:
    return digest(collapsed)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_run(tmp_path, items=60, layers=0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def change(directory: Path, name: str, at: int, **fields: Any) -> None:
    rows = lines(directory / name)
    rows[at] |= fields
    rewrite(directory / name, rows)


def edit_results(directory: Path, edit: Any) -> None:
    record = read_record(directory)
    edit(record.results)
    write_record(directory, record)


def test_key_numbers_are_those_of_the_paired_tests(data: ReportData) -> None:
    comparison = data.results.comparison
    assert comparison is not None
    recall, fpr, auroc, unscored = data.numbers
    test = next(t for t in comparison.tests if (t.suite, t.metric) == ("*", "recall"))
    assert (recall.before, recall.after, recall.difference) == (
        test.reference,
        test.candidate,
        test.difference,
    )
    assert recall.shift == "worse"
    assert (fpr.shift, unscored.percent, auroc.percent) == ("unclear", True, False)
    assert auroc.difference == comparison.ranking[0].difference
    assert f"Of {test.n} unsafe items" in recall.gloss
    assert data.split == comparison.recalibration[0]
    assert data.title == "keel-135m-bank against keel-135m"


@pytest.mark.parametrize(
    ("low", "high", "sign", "word"),
    [
        (-0.2, -0.1, 1, "worse"),
        (-0.02, -0.01, 1, "slightly"),
        (0.1, 0.2, 1, "better"),
        (-0.1, 0.1, 1, "unclear"),
        (0.0, 0.1, 1, "unclear"),
        (0.1, 0.2, -1, "worse"),
        (0.01, 0.02, -1, "slightly"),
        (-0.2, -0.1, -1, "better"),
        (None, None, 1, ""),
    ],
)
def test_what_a_change_is_called(low: float | None, high: float | None, sign: int, word: str) -> None:
    assert _shift(Estimate(value=0.1, low=low, high=high, n=9), 0.05, sign=sign) == word
    assert _shift(None, 0.05, sign=sign) == ""


def test_curves_are_drawn_from_the_test_items_alone(collapsed: Path, data: ReportData) -> None:
    items, after = lines(collapsed / "items.jsonl"), lines(collapsed / "candidate.jsonl")
    tested = [(i, v) for i, v in zip(items, after, strict=True) if i["split"] == "test"]
    scored = [v["unsafe"] for i, v in tested if i["label"] == "unsafe" and v["unsafe"] is not None]
    assert data.items == len(tested) < len(items)
    assert data.candidate_curves is not None
    spread, roc = data.candidate_curves.spread, data.candidate_curves.roc
    assert sum(spread.unsafe) == len(scored)
    assert spread.unsafe[0] == sum(s < 0.05 for s in scored)
    assert spread.unscored_unsafe + spread.unscored_safe == sum(v["unsafe"] is None for _, v in tested)
    assert roc is not None
    assert roc.point[1] == data.results.candidate.overall.recall.value  # type: ignore[union-attr]
    assert roc.point[0] == data.results.candidate.overall.fpr.value  # type: ignore[union-attr]


def test_slices_stand_by_loss_and_bands_by_length(data: ReportData) -> None:
    assert [t.by for t in data.slices] == ["category", "side", "source", "language", "length"]
    losses = [r.recall_change for r in data.slices[0].rows]
    assert losses == sorted(losses)  # type: ignore[type-var]
    assert [r.value for r in data.slices[4].rows] == ["0–199", "200–999", "1000–3999"]
    assert data.slices[0].metrics == ("recall",)
    assert data.suites.metrics == ("recall", "fpr")
    assert data.suites.rows[-1].value == "bank-messages"  # no unsafe item, no loss to sort by
    assert data.suites.rows[-1].recall_change is None
    few = {r.value: r.few for r in data.slices[0].rows}
    sizes = {r.value: r.reference.recall.n for r in data.slices[0].rows}
    assert few == {value: n < 30 for value, n in sizes.items()}


def test_the_worst_are_named_with_enough_items(data: ReportData) -> None:
    by = {(w.by, w.metric): w.row for w in data.worst}
    solid = [r for r in data.slices[0].rows if r.reference.recall.n >= 30]
    assert by["category", "recall"] == solid[0]
    assert by["suite", "recall"] == data.suites.rows[0]
    assert ("suite", "fpr") not in by  # false alarms rose nowhere


def test_a_guard_without_a_mistake_has_no_worst(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=60, candidate=False, decision=False, layers=0)

    def perfect(results: dict[str, Any]) -> None:
        for one in results["reference"]["slices"]:
            one["behaviour"]["recall"]["value"] = 1.0
            one["behaviour"]["fpr"]["value"] = 0.0

    edit_results(directory, perfect)
    assert digest(directory).worst == ()


def test_many_slices_are_cut_and_counted(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=240, hostile=True)
    (categories,) = (t for t in digest(directory).slices if t.by == "category")
    assert len(categories.rows) == ROWS
    assert categories.left_out > 0


def test_flips_come_in_the_order_of_the_results(data: ReportData) -> None:
    flips = data.results.comparison.flips  # type: ignore[union-attr]
    assert [i.id for g in data.flips.groups for i in g.items] == [f.id for f in flips]
    assert data.flips.total == data.flips.shown == len(flips)
    first = data.flips.groups[0].items[0]
    assert (first.kind, first.label, first.reference.unsafe) == ("missed", "unsafe", flips[0].reference)
    assert first.candidate is not None
    assert first.candidate.unsafe == flips[0].candidate


def test_flips_are_capped_worst_first_but_every_kind_is_seen(collapsed: Path) -> None:
    flips = digest(collapsed, cap=40).flips
    assert (flips.cap, flips.shown) == (40, 40)
    assert flips.total > 100
    counts = {g.kind: (g.total, len(g.items)) for g in flips.groups}
    assert all(n == min(total, RESERVED) for kind, (total, n) in counts.items() if kind != "missed")
    assert counts["missed"][1] == 40 - sum(n for kind, (_, n) in counts.items() if kind != "missed")


def test_allowance_by_hand() -> None:
    assert allowance(Counter(missed=100, caught=20), 50) == Counter(missed=35, caught=15)
    assert allowance(Counter(missed=3, cleared=2), 50) == Counter(missed=3, cleared=2)
    assert allowance(Counter({"missed": 100, "false alarm": 100}), 10) == Counter(missed=10)
    assert allowance(Counter(unscored=5, missed=1), 4) == Counter(missed=1, unscored=3)


def test_one_guard_alone_shows_its_mistakes(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=600, candidate=False, decision=False, unscored=0.05)
    found = digest(directory, cap=30)
    assert found.flips.alone
    assert (found.split, found.candidate_curves) == (None, None)
    assert all(n.difference is None and n.shift == "" and n.after is None for n in found.numbers)
    groups = {g.kind: g for g in found.flips.groups}
    overall = found.results.reference.overall
    assert groups["unscored"].total == overall.n_unscored
    assert groups["missed"].total == round((1 - overall.recall.value) * overall.recall.n)  # type: ignore[operator]
    missed = [i.reference.unsafe for i in groups["missed"].items]
    assert missed == sorted(missed)  # type: ignore[type-var]
    alarms = [i.reference.unsafe for i in groups["false alarm"].items]
    assert alarms == sorted(alarms, reverse=True)  # type: ignore[type-var]
    assert alarms[0] == max(
        v["unsafe"]
        for i, v in zip(lines(directory / "items.jsonl"), lines(directory / "reference.jsonl"), strict=True)
        if i["label"] == "safe" and i["split"] == "test" and v["unsafe"] is not None
    )
    assert {w.metric for w in found.worst} == {"recall", "fpr"}
    values = [r.reference.recall.value for r in found.suites.rows if r.reference.recall.value is not None]
    assert values == sorted(values)


def test_of_many_mistakes_the_worst_are_kept(tmp_path: Path) -> None:
    directory = write_run(tmp_path, items=600, candidate=False, decision=False)
    pairs = zip(lines(directory / "items.jsonl"), lines(directory / "reference.jsonl"), strict=True)
    tested = [(i["label"], v["unsafe"]) for i, v in pairs if i["split"] == "test" and v["unsafe"] is not None]
    missed = sorted(s for label, s in tested if label == "unsafe" and s < 0.5)
    (group, *_) = digest(directory, cap=5).flips.groups
    assert group.total == len(missed) > 5
    assert [i.reference.unsafe for i in group.items] == missed[:5]


def test_long_texts_are_cut_and_the_judged_turn_gets_the_room(tmp_path: Path) -> None:
    flips = digest(write_run(tmp_path, items=60, texts=[MEGABYTE])).flips
    item = next(i for g in flips.groups for i in g.items if i.side == "response")
    prompt, reply = item.turns
    assert (prompt.judged, reply.judged) == (False, True)
    assert 0 < prompt.text.shown < reply.text.shown < 1201
    assert reply.text.total == len(MEGABYTE)
    assert item.characters == 2 * len(MEGABYTE) + 1


def test_long_conversations_keep_the_turns_around_the_judged_one(small: Path) -> None:
    flip = digest(small).results.comparison.flips[0]  # type: ignore[union-attr]
    rows = lines(small / "items.jsonl")
    at = next(i for i, r in enumerate(rows) if r["id"] == flip.id)
    messages = [{"role": ("user", "assistant")[i % 2], "content": str(i)} for i in range(40)]
    change(small, "items.jsonl", at, messages=messages, side="prompt")
    item = next(i for g in digest(small).flips.groups for i in g.items if i.id == flip.id)
    assert [t.text.pieces[0].text for t in item.turns] == [str(i) for i in range(32, 40)]
    assert [t.judged for t in item.turns].index(True) == 6  # message 38, the last of the user
    assert item.turns_left_out == 32


def test_nan_is_unscored_and_never_safe(small: Path) -> None:
    rows = lines(small / "reference.jsonl")
    at = next(
        i
        for i, r in enumerate(rows)
        if r["unsafe"] is not None and lines(small / "items.jsonl")[i]["split"] == "test"
    )
    before = digest(small).reference_curves.spread
    change(small, "reference.jsonl", at, unsafe=float("nan"))
    after = digest(small).reference_curves.spread
    assert sum(after.unsafe + after.safe) == sum(before.unsafe + before.safe) - 1
    assert after.unscored_safe + after.unscored_unsafe == before.unscored_safe + before.unscored_unsafe + 1


@pytest.mark.parametrize("name", ["run.json", "items.jsonl", "reference.jsonl", "candidate.jsonl"])
def test_a_missing_file_is_named(small: Path, name: str) -> None:
    (small / name).unlink()
    with pytest.raises(DataError, match=rf"{name}.*\n.*remedy"):
        digest(small)


@pytest.mark.parametrize("name", ["items.jsonl", "reference.jsonl", "candidate.jsonl"])
def test_a_file_that_ends_early_is_named(small: Path, name: str) -> None:
    rewrite(small / name, lines(small / name)[:-1])
    with pytest.raises(DataError, match="run the audit again"):
        digest(small)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("items.jsonl", {"label": "maybe"}, r"items.jsonl:3: label 'maybe'"),
        ("items.jsonl", {"messages": "hello"}, r"items.jsonl:3: field 'messages' must be list"),
        ("reference.jsonl", {"unsafe": 1.5}, r"reference.jsonl:3: field 'unsafe' is 1.5"),
        ("reference.jsonl", {"unsafe": "0.5"}, r"reference.jsonl:3: field 'unsafe' is '0.5'"),
        ("candidate.jsonl", {"unsafe": True}, r"candidate.jsonl:3: field 'unsafe' is True"),
        ("candidate.jsonl", {"id": "other"}, r"candidate.jsonl:3: verdict on 'other', expected one on"),
        ("candidate.jsonl", {"dropped": None}, r"candidate.jsonl:3: field 'dropped' must be int"),
    ],
)
def test_a_broken_row_is_named(small: Path, name: str, fields: dict[str, Any], said: str) -> None:
    change(small, name, 2, **fields)
    with pytest.raises(DataError, match=said):
        digest(small)


@pytest.mark.parametrize(
    ("raw", "said"), [("{", "not JSON"), ("[1]", "a line must be a JSON object, not list"), ("\n\n", "")]
)
def test_a_broken_line_is_named_and_an_empty_one_is_nothing(small: Path, raw: str, said: str) -> None:
    path = small / "items.jsonl"
    path.write_text(raw + "\n" + path.read_text())
    if said:
        with pytest.raises(DataError, match=rf"items.jsonl:1: {said}"):
            digest(small)
    else:
        assert digest(small).items > 0


def test_items_that_do_not_fit_the_results_are_refused(small: Path) -> None:
    at = next(i for i, r in enumerate(lines(small / "items.jsonl")) if r["split"] == "calibrate")
    change(small, "items.jsonl", at, split="test")
    with pytest.raises(DataError, match=r"51 test items, but run\.json speaks of 50"):
        digest(small)


def test_a_flip_on_an_unknown_item_is_refused(small: Path) -> None:
    edit_results(small, lambda r: r["comparison"]["flips"][0].update(id="nobody"))
    with pytest.raises(DataError, match="speaks of item 'nobody'"):
        digest(small)


def test_a_shown_item_that_is_no_conversation_is_named(small: Path) -> None:
    flip = digest(small).results.comparison.flips[0]  # type: ignore[union-attr]
    at = next(i for i, r in enumerate(lines(small / "items.jsonl")) if r["id"] == flip.id)
    change(small, "items.jsonl", at, messages=[{"role": "king", "content": ""}])
    with pytest.raises(DataError, match=rf"items.jsonl:{at + 1}: message 0: unknown role 'king'"):
        digest(small)


def test_a_run_of_another_verb_is_refused(small: Path) -> None:
    edit_results(small, lambda r: r.pop("reference"))
    with pytest.raises(DataError, match=r"results.reference: Field required\n.*of an audit"):
        digest(small)


def test_a_candidate_that_was_never_compared_still_reports(tmp_path: Path) -> None:
    found = digest(write_run(tmp_path, items=100, comparison=False, layers=0))
    assert found.flips.alone
    assert found.numbers[0].after == found.results.candidate.overall.recall.value  # type: ignore[union-attr]
    assert found.numbers[0].difference is None
    assert isinstance(found.results, AuditResults)
