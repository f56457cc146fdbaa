"""Sums over items give what the items themselves give, however they were cut and merged."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from guard_doubles import make_adapter
from guardkeel.evaluation.run import audit
from guardkeel.geometry import streaming
from guardkeel.geometry.layer import measure_layer
from guardkeel.geometry.resampling import stratified_folds
from guardkeel.geometry.streaming import Moments, measure_moments
from guardkeel.records import read_record
from trained_guards import suite_file

N, D = 400, 24


@pytest.fixture(scope="module")
def layer():
    """Activations of two guards far from the origin, as those of language models are, and labels."""
    rng = np.random.default_rng(3)
    unsafe = rng.random(N) < 0.4
    shape = rng.standard_normal((D, D))
    x = rng.standard_normal((N, D)) @ shape + 40 * rng.standard_normal(D)
    x[unsafe] += 2 * rng.standard_normal(D)
    y = x + 0.3 * rng.standard_normal((N, D)) @ shape + rng.standard_normal(D)
    return x, y, unsafe


def cells_of(x, y, unsafe, seed=0):
    folds = stratified_folds(unsafe, np.arange(len(x)), 2, np.random.default_rng((seed, 1)))
    keys = [(f, c) for f in (0, 1) for c in (True, False)]
    return {(f, c): Moments.of(x[w], y[w]) for f, c in keys for w in [(folds == f) & (unsafe == c)]}


def parts(m):
    return [np.asarray(getattr(m, name)) for name in m.__slots__]


@pytest.mark.parametrize("seed", range(3))
def test_merged_in_any_order_and_grouping_they_are_those_of_all_items(layer, seed):
    x, y, _ = layer
    rng = np.random.default_rng(seed)
    order = rng.permutation(N)
    cuts = np.sort(rng.choice(np.arange(N + 1), 6))  # some pieces may be empty
    pieces = [Moments.of(x[rows], y[rows]) for rows in np.split(order, cuts)]
    whole = Moments.of(x, y)
    left = reduce(add, pieces)
    right = reduce(lambda a, b: b + a, reversed(pieces))
    for merged in (left, right):
        for found, wanted in zip(parts(merged), parts(whole), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


def test_they_measure_what_the_items_measure(layer):
    x, y, unsafe = layer
    from_items = measure_layer(7, x, y, unsafe, rank=6, seed=0, draws=19)
    from_sums = measure_moments(7, cells_of(x, y, unsafe), paired=True, rank=6, seed=0, draws=19)
    assert (from_sums.layer, from_sums.n, from_sums.rank) == (7, N, 6)
    for name in ("separability_reference", "separability_candidate", "cka", "overlap", "drift_inside"):
        found, wanted = getattr(from_sums, name), getattr(from_items, name)
        assert found.estimate.value == pytest.approx(wanted.estimate.value, rel=1e-8), name
        assert found.estimate.low is None and found.estimate.note == streaming.NOTE
    assert from_sums.drift.value == pytest.approx(from_items.drift.value, rel=1e-8)
    np.testing.assert_allclose(from_sums.principal_angles, from_items.principal_angles, atol=1e-5)
    for name in ("overlap", "drift_inside"):  # nulls that know nothing of the items are the same draws
        assert getattr(from_sums, name).null_high == pytest.approx(getattr(from_items, name).null_high)
        assert getattr(from_sums, name).p == getattr(from_items, name).p
    assert (
        from_sums.probe_reference.estimate.value is None and "sums" in from_sums.probe_reference.estimate.note
    )


def test_one_guard_alone(layer):
    x, _, unsafe = layer
    empty = np.zeros((N, 0))
    found = measure_moments(1, cells_of(x, empty, unsafe), paired=False, rank=6)
    wanted = measure_layer(1, x, None, unsafe, rank=6, draws=19)
    assert found.separability_reference.estimate.value == pytest.approx(
        wanted.separability_reference.estimate.value, rel=1e-8
    )
    assert found.cka is None and found.drift is None


def test_what_cannot_be_measured_says_why(layer):
    x, y, unsafe = layer
    spoiled = y.copy()
    spoiled[5] = np.nan
    found = measure_moments(1, cells_of(x, spoiled, unsafe), paired=True)
    assert found.n == N and found.cka.estimate.value is None
    assert "1 of 400 items are not finite" in found.separability_reference.estimate.note
    few = measure_moments(1, cells_of(x, y, np.arange(N) < 2), paired=True, rank=4)
    assert few.separability_reference.estimate.value is None
    assert few.cka.estimate.value is not None and few.drift.value is not None
    still = measure_moments(1, cells_of(x, x, unsafe), paired=True, rank=4)
    assert still.drift.value == 0 and still.drift_inside.estimate.value is None
    assert still.cka.estimate.value == pytest.approx(1)


def test_an_audit_that_keeps_no_activations(tiny_folder, tiny_loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder("llama")
    tuned = make_adapter(tiny_loaded("llama")[0], tmp_path / "tuned", base=folder)
    suite = suite_file(tmp_path / "mine.jsonl", 90)
    kept, sums = (
        audit(
            str(folder),
            str(tuned),
            out=tmp_path / f"held-{held}",
            suites=[str(suite)],
            family="keel",
            dtype="float32",
            device="cpu",
            draws=19,
            rank=4,
            geometry_held=held,
        ).geometry
        for held in (4000, 0)
    )
    assert [g.layer for g in sums] == [g.layer for g in kept] == [1, 2] and sums[0].n == kept[0].n > 20
    for a, b in zip(sums, kept, strict=True):  # batches differ, so the last digits of activations do
        assert a.cka.estimate.value == pytest.approx(b.cka.estimate.value, abs=1e-3)
        assert a.drift.value == pytest.approx(b.drift.value, rel=1e-3)
        assert (
            a.separability_candidate.estimate.value is not None and a.probe_candidate.estimate.value is None
        )
    assert (tmp_path / "held-4000" / "geometry.safetensors").exists()
    assert not (tmp_path / "held-0" / "geometry.safetensors").exists()
    assert any("summed-up items" in note for note in read_record(tmp_path / "held-0").not_measured)
