import dataclasses

import numpy as np
import pytest

from guardkeel.evaluation.geometry_results import to_result
from guardkeel.geometry import (
    LayerMeasures,
    MeasureValue,
    Value,
    cka,
    drift,
    fisher_ratio,
    measure_layer,
    probe,
    safety_basis,
    separability,
)
from guardkeel.geometry.inputs import centred, centred_gram, labels, recentred
from guardkeel.geometry.resampling import stratified_folds
from guardkeel.geometry.values import against_null, interval
from guardkeel.results import LayerGeometry


def guards(n=80, d=60, seed=0, gap=2.0, turn=0.3):
    r = np.random.default_rng(seed)
    scale = np.exp(-np.arange(d) / 10) + 0.05
    y = np.arange(n) % 2 == 0
    x = r.standard_normal((n, d)) * scale
    x[y, 2] += gap
    return x, x + turn * r.standard_normal((n, d)) * scale, y


def values_of(m):
    return {
        f.name: getattr(m, f.name).estimate.value
        for f in dataclasses.fields(m)
        if isinstance(getattr(m, f.name), MeasureValue)
    }


def test_every_field_is_the_measure_by_itself():
    x, x2, y = guards()
    m = measure_layer(7, x, x2, y, rank=6, draws=30, seed=2)
    assert (m.layer, m.n, m.rank) == (7, 80, 6)
    assert m.separability_reference == separability(x, y, rank=6, draws=30, seed=2)
    assert m.separability_candidate == separability(x2, y, rank=6, draws=30, seed=2)
    assert m.probe_reference == probe(x, y, draws=30, seed=2)
    assert m.probe_candidate == probe(x2, y, draws=30, seed=2)
    assert m.cka.estimate == cka(x, x2, draws=30, seed=2).estimate
    assert m.drift == drift(x, x2, seed=2)
    assert len(m.principal_angles) == 6
    assert list(m.principal_angles) == sorted(m.principal_angles)
    assert m.overlap.estimate.value == pytest.approx(np.mean(np.cos(np.radians(m.principal_angles)) ** 2))
    assert m.overlap.null_mean == m.drift_inside.null_mean == 0.1


def test_drift_inside_uses_the_basis_of_the_other_half():
    x, x2, y = guards()
    m = measure_layer(1, x, x2, y, rank=5, draws=10, seed=3)
    folds = stratified_folds(y, np.arange(80), 2, np.random.default_rng((3, 1)))
    inside = 0.0
    for f in range(2):
        u = safety_basis(x[folds != f], y[folds != f], 5)
        inside += np.sum(((x2 - x)[folds == f] @ u) ** 2)
    assert m.drift_inside.estimate.value == pytest.approx(inside / np.sum((x2 - x) ** 2))


def test_reference_alone():
    x, _, y = guards()
    m = measure_layer(1, x, None, y, rank=4, draws=10)
    assert m.separability_reference.estimate.value > 0
    assert (
        m.cka
        is m.overlap
        is m.drift
        is m.drift_inside
        is m.probe_candidate
        is m.separability_candidate
        is None
    )
    assert m.principal_angles == ()


def test_untouched_guard():
    x, _, y = guards()
    m = measure_layer(1, x, x.copy(), y, rank=4, draws=10)
    assert m.cka.estimate.value == pytest.approx(1.0)
    assert m.overlap.estimate.value == pytest.approx(1.0)
    assert max(m.principal_angles) < 1e-4
    assert m.drift.value == 0.0
    assert m.drift_inside.estimate.value is None
    assert m.separability_candidate == m.separability_reference


def test_collapsed_guard():
    """A candidate that keeps everything but the difference between the classes."""
    x, _, y = guards(n=120)
    collapsed = x.copy()
    collapsed[y, 2] -= 2.0
    m = measure_layer(1, x, collapsed, y, rank=4)
    assert m.separability_reference.p == m.probe_reference.p == pytest.approx(1 / 101)
    assert m.separability_candidate.p > 0.05
    assert m.probe_candidate.p > 0.05
    assert m.drift_inside.estimate.value > 0.9


def test_pure_noise_has_nothing_to_show():
    ps = {
        "separability_reference": [],
        "probe_reference": [],
        "separability_candidate": [],
        "cka": [],
        "overlap": [],
    }
    for seed in range(40):
        r = np.random.default_rng(seed)
        m = measure_layer(
            1,
            r.standard_normal((40, 70)),
            r.standard_normal((40, 70)),
            np.arange(40) % 2 == 0,
            rank=6,
            draws=39,
            seed=seed,
        )
        for name, found in ps.items():
            found.append(getattr(m, name).p)
    for name, found in ps.items():
        assert 0.34 < np.mean(found) < 0.68, name
        assert np.mean(np.array(found) <= 0.05) <= 0.175, name


def test_groups_reach_every_measure():
    x, x2, y = guards()
    groups = np.arange(80) // 2
    m = measure_layer(1, x, x2, y, rank=4, draws=20, seed=1, groups=groups)
    assert m.separability_reference == separability(x, y, rank=4, draws=20, seed=1, groups=groups)
    assert m.probe_candidate == probe(x2, y, draws=20, seed=1, groups=groups)
    assert m.cka.estimate == cka(x, x2, draws=20, seed=1, groups=groups).estimate
    assert m.drift == drift(x, x2, seed=1, groups=groups)
    free = measure_layer(1, x, x2, y, rank=4, draws=20, seed=1)
    assert (m.cka.estimate.low, m.overlap.estimate.low) != (free.cka.estimate.low, free.overlap.estimate.low)
    # Names of groups do not matter.
    named = measure_layer(1, x, x2, y, rank=4, draws=20, seed=1, groups=[f"g{g}" for g in groups])
    assert named == m


def test_same_seed_same_answer():
    x, x2, y = guards()
    assert measure_layer(1, x, x2, y, rank=4, draws=9) == measure_layer(1, x, x2, y, rank=4, draws=9)
    assert measure_layer(1, x, x2, y, rank=4, draws=9) != measure_layer(1, x, x2, y, rank=4, draws=9, seed=1)


def test_pruned_candidate():
    x, x2, y = guards()
    m = measure_layer(1, x, x2[:, :40], y, rank=4, draws=9)
    assert m.cka.estimate.value > 0.5
    assert m.probe_candidate.estimate.value > 0.5
    for missing in (m.overlap.estimate, m.drift, m.drift_inside.estimate):
        assert missing.value is None
        assert missing.note == "hidden sizes differ: 60 and 40"


@pytest.mark.parametrize("which", ["reference", "candidate"])
def test_broken_guard_is_reported_and_never_a_number(which):
    x, x2, y = guards()
    (x if which == "reference" else x2)[5, 3] = np.nan
    m = measure_layer(1, x, x2, y, rank=4, draws=9)
    whole = "candidate" if which == "reference" else "reference"
    for name, value in values_of(m).items():
        assert (value is not None) == name.endswith(whole), name
    assert m.cka.estimate.note == f"{which} activations: 1 of 80 items are not finite, first item 5"
    assert m.drift.value is None
    assert m.principal_angles == ()


@pytest.mark.parametrize("which", ["reference", "candidate"])
def test_guard_that_says_the_same_to_everything(which):
    x, x2, y = guards()
    (x if which == "reference" else x2)[:] = 0.1
    m = measure_layer(1, x, x2, y, rank=4, draws=9)
    found = values_of(m)
    assert (
        found[f"separability_{which}"] is found[f"probe_{which}"] is found["cka"] is found["overlap"] is None
    )
    assert (m.drift.value is None) == (which == "reference")
    assert (found["drift_inside"] is None) == (which == "reference")
    assert m.rank == (0 if which == "reference" else 4)


def test_one_class():
    x, x2, _ = guards()
    m = measure_layer(1, x, x2, np.ones(80, bool), rank=4, draws=9)
    found = values_of(m)
    assert found.pop("cka") is not None
    assert m.drift.value is not None
    assert set(found.values()) == {None}
    assert m.rank == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8, 10, 16])
def test_few_items_give_none_or_finite_numbers(n):
    r = np.random.default_rng(n)
    x, x2 = r.standard_normal((n, 6)), r.standard_normal((n, 6))
    m = measure_layer(1, x, x2, np.arange(n) % 2 == 0, rank=3, draws=5)
    estimates = [
        v.estimate if isinstance(v, MeasureValue) else v
        for v in (m.cka, m.overlap, m.drift, m.probe_reference)
    ]
    for e in estimates:
        assert e.value is not None or e.note
        assert all(v is None or np.isfinite(v) for v in (e.value, e.low, e.high))
    if n < 8:
        assert m.separability_reference.estimate.value is None


def test_rank_beyond_the_data_is_told():
    r = np.random.default_rng(0)
    x = r.standard_normal((40, 5))
    m = measure_layer(1, x, x + r.standard_normal((40, 5)), np.arange(40) % 2 == 0, rank=32, draws=5)
    assert m.rank == 5
    assert m.overlap.null_mean == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: measure_layer(1, x, None, y, rank=0), "rank must be at least 1, got 0"),
        (
            lambda x, y: measure_layer(1, x[0], None, y),
            r"reference: expected a non-empty array .*got shape \(60,\)",
        ),
        (lambda x, y: measure_layer(1, x, x[:0], y), r"candidate: expected a non-empty array .*\(0, 60\)"),
        (lambda x, y: measure_layer(1, x, x[:5], y), "same items, got 80 and 5"),
        (lambda x, y: measure_layer(1, x, None, y[:5]), r"labels: expected shape \(80,\), got \(5,\)"),
        (lambda x, y: measure_layer(1, x, None, y, groups=[1]), "groups: expected 80 entries, got 1"),
    ],
)
def test_arrays_that_do_not_fit(call, message):
    x, _, y = guards()
    with pytest.raises(ValueError, match=message):
        call(x, y)


def test_typed_results_carry_everything_over():
    x, x2, y = guards()
    m = measure_layer(3, x, x2, y, rank=4, draws=9)
    r = to_result(m)
    assert isinstance(r, LayerGeometry)
    assert LayerGeometry.model_validate_json(r.model_dump_json()) == r
    assert r.layer == 3
    assert r.principal_angles == list(m.principal_angles)
    assert r.drift.model_dump(exclude={"confidence"}) == dataclasses.asdict(m.drift)
    for f in dataclasses.fields(m):
        if isinstance(mine := getattr(m, f.name), MeasureValue):
            theirs = getattr(r, f.name).model_dump()
            del theirs["estimate"]["confidence"]
            assert theirs == dataclasses.asdict(mine)


def test_typed_results_of_the_reference_alone():
    x, _, y = guards()
    r = to_result(measure_layer(3, x, None, y, rank=4, draws=9))
    assert (
        r.cka
        is r.overlap
        is r.drift
        is r.drift_inside
        is r.probe_candidate
        is r.separability_candidate
        is None
    )


def test_note_of_what_was_not_measured_is_carried_over():
    none = MeasureValue(Value(None, None, None, 4, "too few"))
    r = to_result(LayerMeasures(1, 4, 0, none, none))
    assert r.probe_reference.estimate.value is None
    assert r.probe_reference.estimate.note == "too few"


def test_against_null_counts_rounding_as_reached():
    v = Value(0.3, 0.2, 0.4, 10)
    m = against_null(v, np.array([0.1, 0.2, 0.1 + 0.2, 0.5]))
    assert m.p == 3 / 5
    assert m.null_mean == pytest.approx(0.275)
    assert against_null(v, np.empty(0), mean=0.1) == MeasureValue(v, null_mean=0.1)
    assert against_null(Value(None, None, None, 3), np.ones(3)).p is None


def test_interval_is_students():
    low, high = interval(1.0, 0.5, 10)
    assert (low, high) == pytest.approx((1 - 0.5 * 2.228139, 1 + 0.5 * 2.228139))


def test_centring():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_array_equal(centred(x), [[-1, 0], [1, 0]])
    assert not centred(np.full((7, 3), 0.1) + 1e-17).any()  # rounding is not variation
    assert centred(np.array([[1.0], [1.0 + 1e-9]])).any()  # a small difference is
    np.testing.assert_allclose(recentred(x @ x.T), centred_gram(x), atol=1e-12)
    assert labels(np.array([1, 0]), 2).dtype == bool
    assert np.isnan(fisher_ratio(np.ones((4, 2)), np.arange(4) < 2))
