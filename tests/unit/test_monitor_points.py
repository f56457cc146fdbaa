"""What the monitor measures at one step: numbers by hand on fixed scores, and its lines read back."""

import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.evaluation.items import ItemMeta
from guardkeel.tuning.points import POINTS, Look, Watched, line, numbers, read_points

NAN = float("nan")


def metas(unsafe, safe, *, suites=("a",)):
    return [
        ItemMeta(f"{suites[i % len(suites)]}/{i}#prompt", suites[i % len(suites)], "prompt", label)
        for i, label in enumerate(["unsafe"] * unsafe + ["safe"] * safe)
    ]


def point(before, after, *, unsafe, threshold=0.5, suites=("a",), **options):
    items = metas(unsafe, len(before) - unsafe, suites=suites)
    watched = Watched(items, threshold, **options)
    return watched.point(3, Look(np.array(before)), Look(np.array(after)))


# Six unsafe items, four safe ones of which the reference flags one.
BEFORE = [0.9, 0.8, 0.8, 0.7, 0.6, 0.2, 0.55, 0.3, 0.2, 0.1]
MOVED = [s / 2 for s in BEFORE]  # the same ranking, at half the height


def test_numbers_by_hand():
    found = point(BEFORE, MOVED, unsafe=6)
    assert (found.step, found.n, found.n_unsafe) == (3, 10, 6)
    assert (found.recall.value, found.fpr.value) == (0, 0)  # nothing reaches 0.5 any more
    assert found.auroc.value == pytest.approx(
        (5 * 4 + 1.5) / 24
    )  # 0.2 is above one safe item and ties with one
    assert found.threshold == pytest.approx((0.275 + 0.15) / 2)  # flags one safe item, as the reference does
    assert found.recall_recalibrated.value == 5 / 6
    assert (found.worse, found.better, found.fall, found.harm_p) == (0, 0, 0, 1)
    assert found.recall.low is not None and found.recall.low <= 0 < found.recall.high


def test_without_recalibration_a_moved_threshold_is_harm():
    found = point(BEFORE, MOVED, unsafe=6, recalibrate=False)
    assert (found.worse, found.better) == (5, 0)  # the reference caught five of six
    assert found.fall == 5 / 6
    assert found.harm_p == pytest.approx(0.5**5)
    assert found.trips(0.05) and not found.inside(0.05)
    assert found.inside(0.9) and not found.trips(0.9)


def test_an_unchanged_model_falls_by_nothing():
    # The only flagged safe item is far above the threshold, so that the matched one lies above many unsafe items.
    scores = [*np.linspace(0.51, 0.7, 20), 0.9, *np.linspace(0.01, 0.45, 19)]
    found = point(scores, scores, unsafe=20)
    assert found.threshold == pytest.approx(0.675)
    assert (found.fall, found.worse, found.better) == (0, 0, 0)
    assert not found.trips(0.0)


def test_a_fall_by_chance_does_not_trip():
    before = [0.9] * 20 + [0.1] * 20
    after = [0.0] * 4 + [0.9] * 16 + [0.1] * 20
    found = point(before, after, unsafe=20)
    assert found.fall == 0.2
    assert found.harm_p == pytest.approx(0.5**4)
    assert not found.inside(0.05) and not found.trips(0.05)
    assert point(before, [0.0] * 5 + after[5:], unsafe=20).trips(0.05)


def test_items_of_one_conversation_count_once():
    items = [
        ItemMeta(f"a/{i // 2}#{side}", "a", side, "unsafe")
        for i, side in enumerate(["prompt", "response"] * 6)
    ] + metas(0, 8)
    before, after = np.array([0.9] * 12 + [0.1] * 8), np.array([0.0] * 6 + [0.9] * 6 + [0.1] * 8)
    found = Watched(items, 0.5).point(1, Look(before), Look(after))
    assert found.worse == 6
    assert found.harm_p > 0.1  # three conversations, not six items: p would be 0.016


def test_unscored_is_never_caught_and_never_safe():
    after = [NAN, NAN, *BEFORE[2:6], NAN, *BEFORE[7:]]
    found = point(BEFORE, after, unsafe=6)
    assert found.unscored.value == 0.3
    assert (found.recall.n, found.fpr.n) == (4, 3)  # of what was scored
    # Of the safe items that both scored the reference flags none: the threshold lies just above the highest.
    assert found.threshold == pytest.approx(0.3)
    assert found.recall_recalibrated.value == 3 / 4
    assert (found.worse, found.fall) == (2, 2 / 6)


@pytest.mark.parametrize("recalibrate", [True, False])
def test_a_guard_without_scores_trips(recalibrate):
    before = [0.9] * 8 + [0.1] * 8
    found = point(before, [NAN] * 16, unsafe=8, recalibrate=recalibrate)
    assert found.recall.value is None and found.fpr.value is None and found.threshold is None
    assert found.recall_recalibrated.value is None and found.auroc.value is None
    assert (found.unscored.value, found.fall) == (1, 1)
    assert found.trips(0.05)
    assert set(numbers(found)) == {"safety/unscored", "safety/fall", "safety/harm_p"}
    assert line(found, found) == "step 3  recall – (ref –; at ref. FPR –)  FPR –  AUROC –  unscored 1.00"


def test_suites_show_who_falls():
    before = [0.9] * 8 + [0.1] * 8
    after = [0.9, 0.0] * 4 + [0.1] * 8
    found = point(before, after, unsafe=8, suites=("a", "b"))
    assert {k: e.value for k, e in found.suites.items()} == {"a": 1, "b": 0}
    assert numbers(found)["safety/recall_recalibrated/b"] == 0


def test_one_line():
    reference = point(BEFORE, BEFORE, unsafe=6)
    told = line(point(BEFORE, MOVED, unsafe=6), reference)
    assert told == "step 3  recall 0.00 (ref 0.83; at ref. FPR 0.83)  FPR 0.00  AUROC 0.896"


def geometry(now, *, unsafe=12, safe=12, width=6):
    rng = np.random.default_rng(0)
    n = unsafe + safe
    hidden = rng.standard_normal((2, n, width)).astype(np.float32)
    hidden[:, :unsafe, 0] += 3
    watched = Watched(metas(unsafe, safe), 0.5, layers=(1, 4), sample=range(n), rank=2)
    scores = np.linspace(0, 1, n)
    return watched.point(1, Look(scores, hidden), Look(scores, now(hidden.copy()))).geometry


def test_geometry_of_nothing_moved():
    for found, layer in zip(geometry(lambda h: h), (1, 4), strict=True):
        assert found.layer == layer
        assert found.cka.value == pytest.approx(1)
        assert found.drift.value == 0
        assert found.drift_inside.value is None and "nothing moved" in found.drift_inside.note
        assert found.separability.value > 0.5


def test_geometry_knows_inside_from_outside():
    def along_the_contrast(hidden):
        hidden[:, :, 0] *= 0.5
        return hidden

    def far_from_it(hidden):
        hidden[:, :, 5] *= 0.5
        return hidden

    inside, outside = geometry(along_the_contrast)[0], geometry(far_from_it)[0]
    assert inside.drift_inside.value > 0.8
    assert outside.drift_inside.value < 0.5
    assert inside.chance == pytest.approx(2 / 6)
    assert inside.separability.value < geometry(lambda h: h)[0].separability.value


def test_geometry_of_broken_activations_has_no_value():
    def broken(hidden):
        hidden[1, 3] = NAN
        return hidden

    fine, bad = geometry(broken)
    assert fine.cka.value == pytest.approx(1)
    for estimate in (bad.cka, bad.separability, bad.drift, bad.drift_inside):
        assert estimate.value is None and "not finite" in estimate.note


def test_geometry_of_too_few_items_says_so():
    (found, _) = geometry(lambda h: h + 1, unsafe=1, safe=3)
    assert found.drift.value > 0
    for estimate in (found.cka, found.separability, found.drift_inside):
        assert estimate.value is None and estimate.note


def test_points_are_read_back(tmp_path):
    assert read_points(tmp_path) == []
    one = point(BEFORE, MOVED, unsafe=6)
    row = one.model_dump_json() + "\n"
    (tmp_path / POINTS).write_text(row + row[:40])  # a kill cut the second short
    assert read_points(tmp_path) == [one]
    (tmp_path / POINTS).write_text(row + '{"step": -1}\n')
    with pytest.raises(DataError, match=r"monitor\.jsonl, line 2: step"):
        read_points(tmp_path)


def test_sides_slide_apart():
    """Trajectories fell to a hundredth, prompts stayed: one threshold loses one of them, two lose none."""
    labels = ["unsafe"] * 20 + ["safe"] * 20
    items = [
        ItemMeta(f"a/{side}{i}#{side}", "a", side, label)
        for side in ("prompt", "trajectory")
        for i, label in enumerate(labels)
    ]
    scores = np.concatenate([np.linspace(0.6, 0.95, 20), np.linspace(0.05, 0.55, 20)])
    before, after = np.tile(scores, 2), np.concatenate([scores, scores / 100])
    found = Watched(items, 0.5).point(1, Look(before), Look(after))
    assert set(found.sides) == {"prompt", "trajectory"}
    assert found.sides["trajectory"] == pytest.approx(found.sides["prompt"] / 100)
    assert (found.recall.value, found.recall_recalibrated.value, found.fall) == (0.5, 1, 0)
    flat = [ItemMeta(i.id, "a", "prompt", i.label) for i in items]  # the same as one side
    one = Watched(flat, 0.5).point(1, Look(before), Look(after))
    assert one.sides == {} and one.fall == 0.5
