from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from bench_folders import items_of, write_bench, write_cell
from guardkeel.records import Estimate, write_json
from guardkeel.results import LayerGeometry, Measure
from guardkeel.tuning.collapse.measuring import Measuring
from guardkeel.tuning.collapse.prediction import Point, points, predict, spearman
from guardkeel.tuning.collapse.reading import geometry, read_bench, update_norm


def line(
    n: int, *, arms: int = 4, noise: float = 0.0, scenario: str = "one", lift: float = 0.0
) -> list[Point]:
    """Cells whose change in recall falls with CKA lost, plus noise."""
    rng = np.random.default_rng(1)
    return [
        Point(
            scenario,
            f"arm {k % arms}",
            {"CKA lost, last": (x := k / n), "task loss fall": 1.0},
            {"shipped": lift - x + noise * rng.standard_normal(), "recalibrated": lift - x**3, "auroc": x},
        )
        for k in range(n)
    ]


def test_spearman_is_scipys_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 20).astype(float), rng.integers(0, 7, 20).astype(float)
    counts = np.concatenate((np.ones((1, 20)), rng.integers(0, 3, (6, 20)))).astype(float)
    for weights, found in zip(counts, spearman(x, y, counts), strict=True):
        again = np.repeat(np.arange(20), weights.astype(int))
        assert found == pytest.approx(spearmanr(x[again], y[again]).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0), np.ones((1, 5)))).all()


def test_perfect_order_is_found_whatever_its_shape() -> None:
    found = {(p.measure, p.outcome): p for p in predict(line(24), draws=50)}
    assert found["CKA lost, last", "recalibrated"].rho.value == pytest.approx(-1)
    assert found["CKA lost, last", "auroc"].rho.value == pytest.approx(1)
    constant = found["task loss fall", "shipped"]
    assert constant.baseline and constant.rho.value is None and "never varies" in constant.rho.note


def test_intervals_hold_the_value_and_clusters_widen_them() -> None:
    """Cells of one arm are copies of each other: there are six of them, not sixty."""
    rng = np.random.default_rng(5)
    one = rng.standard_normal((6, 2))
    cells = [
        Point("one", f"arm {k}", {"drift, mean": x}, {"shipped": y, "recalibrated": y, "auroc": y})
        for k, (x, y) in enumerate(one.tolist())
        for _ in range(10)
    ]
    p = predict(cells, draws=400)[0]
    assert p.clusters == 6 and p.rho.n == 60
    assert p.rho.value is not None and p.rho.low is not None and p.rho.high is not None
    assert p.rho.low < p.rho.value < p.rho.high
    assert p.cluster_low is not None and p.cluster_high is not None
    assert p.cluster_high - p.cluster_low > 1.5 * (p.rho.high - p.rho.low)


def test_within_scenarios_is_blind_to_what_tells_them_apart() -> None:
    """Inside each scenario recall falls with CKA lost; a scenario that lost more also caught more."""
    far = [
        Point("two", p.arm, {"CKA lost, last": p.measures["CKA lost, last"] + 5}, p.changes)
        for p in line(12, lift=9)
    ]
    p = next(p for p in predict([*line(12), *far], draws=20) if p.outcome == "shipped")
    assert p.within == pytest.approx(-1) and p.within_scenarios == 2
    assert p.rho.value is not None and p.rho.value > 0.3


def test_few_cells_say_so() -> None:
    [p, *_] = predict(line(3), draws=20)
    assert p.rho.value is None and p.rho.n == 3 and "fewer than" in p.rho.note
    assert p.within is None and p.cluster_low is None
    assert predict([], draws=20) == []


def test_points_of_a_bench(tmp_path: Path) -> None:
    items = items_of({"a": (4, 4)}, calibrate=4)
    before: list[float | None] = [0.9 if x[1] == "unsafe" else 0.1 for x in items]
    after: list[float | None] = [0.2 if x[1] == "unsafe" else 0.1 for x in items]
    write_cell(
        tmp_path,
        "one",
        "plain",
        items=items,
        before=before,
        after=after,
        losses=(2.0, 0.5),
        layers=2,
        moved=1.0,
    )
    [point] = points(Measuring(read_bench(tmp_path), 10))
    assert point.changes == {"shipped": -1.0, "recalibrated": 0.0, "auroc": 0.0}
    assert point.measures["task loss fall"] == 1.5
    assert point.measures["learning rate × steps"] == pytest.approx(2e-4 * 50)
    assert "update norm" not in point.measures  # no adapter is there
    assert point.measures["CKA lost, last"] == pytest.approx(0.45)


def test_a_bench_is_predicted_by_what_moves_it(tmp_path: Path) -> None:
    write_bench(tmp_path, arms=("plain", "replay", "kl", "ssr-full"), seeds=1, layers=2)
    found = predict(points(Measuring(read_bench(tmp_path), 10)), draws=40)
    lost = next(p for p in found if (p.measure, p.outcome) == ("CKA lost, mean", "shipped"))
    assert lost.rho.value is not None and lost.rho.value < -0.8 and lost.rho.n == 8


def layer(number: int, cka: float | None, drift: float = 0.2, share: float | None = 0.25) -> LayerGeometry:
    def of(value: float | None) -> Measure | None:
        return None if value is None else Measure(estimate=Estimate(value=value, n=9))

    return LayerGeometry(
        layer=number,
        n=9,
        rank=4,
        separability_reference=Measure(estimate=Estimate(value=2.0, n=9)),
        separability_candidate=of(1.5),
        probe_reference=Measure(estimate=Estimate(value=0.9, n=9)),
        probe_candidate=of(0.8),
        cka=of(cka),
        overlap=of(0.7),
        drift=Estimate(value=drift, n=9),
        drift_inside=of(share),
    )


def test_geometry_by_hand() -> None:
    found = geometry([layer(8, 0.6, 0.4), layer(4, 0.9, 0.2)])  # in any order
    assert found["CKA lost, last"] == pytest.approx(0.4)
    assert found["CKA lost, mean"] == pytest.approx(0.25)
    assert found["separability kept, last"] == pytest.approx(0.75)
    assert found["probe AUROC change, mean"] == pytest.approx(-0.1)
    assert found["overlap lost, last"] == pytest.approx(0.3)
    assert found["drift, mean"] == pytest.approx(0.3)
    assert found["drift inside, last"] == pytest.approx(0.4 * 0.5)
    assert found["drift outside, last"] ** 2 + found["drift inside, last"] ** 2 == pytest.approx(0.4**2)
    assert geometry([]) == {}
    part = geometry([layer(4, 0.9), layer(8, None, share=None)])
    assert "CKA lost, last" not in part and part["CKA lost, mean"] == pytest.approx(0.1)
    assert "drift inside, last" not in part and "drift, last" in part


def test_update_norm_of_an_adapter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((2, 5)), rng.standard_normal((4, 2))) for _ in range(2)]
    tensors = {}
    for k, (a, b) in enumerate(pairs):
        tensors[f"model.{k}.q.lora_A.weight"] = a.astype(np.float32)
        tensors[f"model.{k}.q.lora_B.weight"] = b.astype(np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    write_json(tmp_path / "adapter_config.json", {"lora_alpha": 16, "r": 2})
    full = [8 * b @ a for a, b in pairs]
    assert update_norm(tmp_path) == pytest.approx(np.sqrt(sum((w**2).sum() for w in full)), rel=1e-6)
    write_json(tmp_path / "adapter_config.json", {"lora_alpha": 16, "r": 2, "use_dora": True})
    assert update_norm(tmp_path) is None  # its magnitudes move weights too
    assert update_norm(tmp_path / "gone") is None
