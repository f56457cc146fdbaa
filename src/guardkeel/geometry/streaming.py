"""Sums over items from which geometry is measured when activations are too many to be kept.

`Moments` of some items can be merged with those of others, in any order and grouping, by Chan, Golub & LeVeque's (1979)
update: sums are kept about the mean of their own items, so nothing is lost where the mean is far from zero. With
u = x − μ_x and v = y − μ_y they hold Σuuᵀ, Σvvᵀ, Σuvᵀ (class scatter, Gram matrices in feature space) and the sums with
‖u‖² and ‖v‖² that debiased CKA needs. Memory is 2d² + de + e² numbers, whatever n.

With Σ‖u‖² = A, Σ‖v‖² = B and Q = Σ‖u‖²‖v‖², the unbiased HSIC of Song et al. (2012) is, in feature space,

    n(n − 3) · HSIC = ‖Σuvᵀ‖² − Q + AB/((n − 1)(n − 2)) − 2Q/(n − 2).

`measure_moments` gives the point estimates of `measure_layer` for independent items: separability, angles and overlap,
CKA, drift and its share inside the subspace, cross-fitted on the same folds. What needs the items themselves is not
measured: intervals, label permutations and the probe; each result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike

from guardkeel.geometry.angles import (
    expected_overlap,
    overlap,
    principal_angles,
    random_overlaps,
    random_shares,
)
from guardkeel.geometry.cka import SMALLEST as CKA_SMALLEST
from guardkeel.geometry.separability import SMALLEST
from guardkeel.geometry.subspace import COPIES, GAIN
from guardkeel.geometry.values import (
    Array,
    LayerMeasures,
    MeasureValue,
    Value,
    against_null,
    not_measured,
    unmeasured,
)

NOTE = "from sums over the items: no interval, and groups of items taken as independent"
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over n items with activations x (d) and, of a second guard, y (e; e = 0 where there is none).

    `xx`, `yy`, `xy` are centred scatter matrices; with a = ‖u‖² and b = ‖v‖², `xa` is Σua, `xb` Σub, `ya` Σva, `yb`
    Σvb, `quartic` (Σa², Σb², Σab). `broken` counts items whose activations are not finite; they are in no sum.
    """

    n: int
    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array
    xa: Array
    xb: Array
    ya: Array
    yb: Array
    quartic: Array
    broken: int = 0

    @classmethod
    def of(cls, first: ArrayLike, second: ArrayLike | None = None) -> Moments:
        """Of (n, d) and (n, e) activations of the same items; n may be 0."""
        x: Array = np.asarray(first, np.float64)
        y: Array = np.zeros((len(x), 0)) if second is None else np.asarray(second, np.float64)
        if len(x) != len(y):
            raise ValueError(f"both guards must have read the same items, got {len(x)} and {len(y)}")
        good = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        broken, x, y = int((~good).sum()), x[good], y[good]
        n = len(x)
        mx, my = (z.mean(axis=0) if n else np.zeros(z.shape[1]) for z in (x, y))
        u, v = x - mx, y - my
        a, b = (u**2).sum(axis=1), (v**2).sum(axis=1)
        quartic = np.array([a @ a, b @ b, a @ b])
        return cls(n, mx, my, u.T @ u, v.T @ v, u.T @ v, a @ u, b @ u, a @ v, b @ v, quartic, broken)

    def __add__(self, other: Moments) -> Moments:
        """Of the items of both."""
        n, broken = self.n + other.n, self.broken + other.broken
        if not self.n or not other.n:
            return replace(self if self.n else other, broken=broken)
        share = other.n / n
        x, y = self.x + (other.x - self.x) * share, self.y + (other.y - self.y) * share
        p, q = self._about(x, y), other._about(x, y)
        sums = ("xx", "yy", "xy", "xa", "xb", "ya", "yb", "quartic")
        return replace(p, n=n, broken=broken, **{s: getattr(p, s) + getattr(q, s) for s in sums})

    def _about(self, x: Array, y: Array) -> Moments:
        """The same sums about other centres."""
        n, r, s = self.n, self.x - x, self.y - y
        rr, ss = r @ r, s @ s
        a, b = np.trace(self.xx), np.trace(self.yy)
        xxr, yys, yxr, xys = self.xx @ r, self.yy @ s, r @ self.xy, self.xy @ s
        aa, bb, ab = self.quartic
        quartic = np.array(
            [
                aa + 4 * (r @ xxr) + 4 * (r @ self.xa) + 2 * rr * a + n * rr**2,
                bb + 4 * (s @ yys) + 4 * (s @ self.yb) + 2 * ss * b + n * ss**2,
                ab + 2 * (s @ self.ya) + 2 * (r @ self.xb) + 4 * (r @ xys) + ss * a + rr * b + n * rr * ss,
            ]
        )
        return Moments(
            n,
            x,
            y,
            self.xx + n * np.outer(r, r),
            self.yy + n * np.outer(s, s),
            self.xy + n * np.outer(r, s),
            self.xa + 2 * xxr + r * (a + n * rr),
            self.xb + 2 * xys + r * (b + n * ss),
            self.ya + 2 * yxr + s * (a + n * rr),
            self.yb + 2 * yys + s * (b + n * ss),
            quartic,
            self.broken,
        )

    def turned(self) -> Moments:
        """The two guards in each other's place."""
        return Moments(
            self.n, self.y, self.x, self.yy, self.xx, self.xy.T, self.yb, self.ya, self.xb, self.xa,
            self.quartic[[1, 0, 2]], self.broken,
        )  # fmt: skip

    def moved(self) -> Array:
        """Σ(y − x)(y − x)ᵀ, not centred; e = d."""
        step = self.y - self.x
        out: Array = self.xx + self.yy - self.xy - self.xy.T + self.n * np.outer(step, step)
        return out


Cells = Mapping[tuple[int, bool], Moments]
"""The moments of one layer by fold (0, 1) and label (True = unsafe)."""


def cka(m: Moments) -> float:
    """Debiased linear CKA, as geometry.cka; NaN where it is undefined."""
    if m.n < CKA_SMALLEST:
        return float("nan")
    a, b = np.trace(m.xx), np.trace(m.yy)
    aa, bb, ab = m.quartic
    xx, yy, xy = _hsic(m.n, m.xx, aa, a * a), _hsic(m.n, m.yy, bb, b * b), _hsic(m.n, m.xy, ab, a * b)
    return float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else float("nan")


def _hsic(n: int, gram: Array, quartic: float, product: float) -> float:
    total = np.vdot(gram, gram) - quartic + product / ((n - 1) * (n - 2)) - 2 * quartic / (n - 2)
    return float(total / (n * (n - 3)))


def drift(m: Moments) -> float:
    """RMS‖y − x‖ / RMS‖x − μ‖, as geometry.drift; NaN where x does not vary."""
    spread = np.trace(m.xx)
    return float(np.sqrt(max(0.0, np.trace(m.moved())) / spread)) if spread > 0 else float("nan")


def safety_basis(unsafe: Moments, safe: Moments, rank: int) -> Array:
    """The class-conditional basis of x, (d, ≤ rank), as geometry.safety_basis but for signs."""
    from scipy.linalg import eigh

    step = unsafe.x - safe.x
    scatter = unsafe.xx + safe.xx + GAIN**2 * min(COPIES, unsafe.n) * np.outer(step, step)
    d = len(scatter)
    values, vectors = eigh(scatter, subset_by_index=[max(0, d - rank), d - 1])
    keep = values > max(values[-1], 0.0) * d * _EPSILON
    basis: Array = vectors[:, keep][:, ::-1]
    return basis


def fisher_ratio(unsafe: Moments, safe: Moments, basis: Array) -> float:
    """Debiased tr(S_b)/tr(S_w) of x in the span of a basis, as geometry.fisher_ratio; NaN where undefined."""
    n1, n0 = unsafe.n, safe.n
    one, zero = (float(np.einsum("dk,dk->", m.xx @ basis, basis)) for m in (unsafe, safe))
    within = (one + zero) / (n1 + n0 - 2)
    noise = one / (n1 * (n1 - 1)) + zero / (n0 * (n0 - 1))
    step = (unsafe.x - safe.x) @ basis
    return n1 * n0 / (n1 + n0) ** 2 * (float(step @ step) - noise) / within if within > 0 else float("nan")


def measure_moments(
    layer: int, cells: Cells, *, paired: bool, rank: int = 32, seed: int = 0, draws: int = 100
) -> LayerMeasures:
    """What can be measured of one layer from the sums of its items.

    Args:
        layer: number of the decoder block, from 1.
        cells: moments by fold and label; all four keys.
        paired: there is a second guard, whose activations are y.
        rank: directions of the safety subspace, ≥ 1.
        seed: of random subspaces.
        draws: random subspaces of each null.
    """
    total = reduce(add, cells.values())
    n = total.n + total.broken
    probe = unmeasured(n, "the probe needs the items themselves, of which only sums were kept")
    if total.broken:
        no = unmeasured(n, f"{total.broken} of {n} items are not finite")
        rest = {"cka": no, "overlap": no, "drift": no.estimate, "drift_inside": no} if paired else {}
        return LayerMeasures(layer, n, 0, no, probe, *((no, probe) if paired else ()), **rest)  # type: ignore[arg-type]
    turned = {key: m.turned() for key, m in cells.items()}
    own = _separability(cells, rank, n)
    bases = None if _thin(cells) else safety_basis(_of(cells, True), _of(cells, False), rank)
    used = 0 if bases is None else bases.shape[1]
    if not paired:
        return LayerMeasures(layer, n, used, own, probe)
    theirs, alike = _separability(turned, rank, n), _measure(cka(total), n, "CKA is undefined here")
    if total.x.shape != total.y.shape:
        why = unmeasured(n, f"hidden sizes differ: {total.x.size} and {total.y.size}")
        return LayerMeasures(
            layer,
            n,
            used,
            own,
            probe,
            theirs,
            probe,
            alike,
            overlap=why,
            drift=why.estimate,
            drift_inside=why,
        )
    angles: tuple[float, ...] = ()
    same = unmeasured(n, "the two subspaces need both classes and activations that vary")
    if bases is not None:
        other = safety_basis(_of(turned, True), _of(turned, False), rank)
        d, k1, k2 = total.x.size, bases.shape[1], other.shape[1]
        if k1 and k2:
            angles = tuple(float(v) for v in principal_angles(bases, other))
            null = random_overlaps(d, k1, k2, draws, np.random.default_rng((seed, 5)))
            value = Value(overlap(bases, other), None, None, n, NOTE)
            same = against_null(value, null, mean=expected_overlap(d, k1, k2))
    moved = _measure(drift(total), n, "the reference's activations do not vary").estimate
    inside = _inside(cells, total, rank, seed, draws, n)
    return LayerMeasures(
        layer, n, used, own, probe, theirs, probe, alike, angles, same, moved, inside
    )  # fmt: skip


def _of(cells: Cells, unsafe: bool) -> Moments:
    return cells[0, unsafe] + cells[1, unsafe]


def _thin(cells: Cells) -> bool:
    return min(m.n for m in cells.values()) < SMALLEST


def _measure(value: float, n: int, otherwise: str) -> MeasureValue:
    return MeasureValue(
        Value(value, None, None, n, NOTE) if np.isfinite(value) else not_measured(n, otherwise)
    )


def _separability(cells: Cells, rank: int, n: int) -> MeasureValue:
    """Cross-fitted: each fold is scored in the basis of the other."""
    if _thin(cells):
        return unmeasured(n, "separability needs at least 4 independent items of each class")
    value = 0.0
    for fold in (0, 1):
        basis = safety_basis(cells[1 - fold, True], cells[1 - fold, False], rank)
        share = (cells[fold, True].n + cells[fold, False].n) / n
        value += share * fisher_ratio(cells[fold, True], cells[fold, False], basis)
    return _measure(value, n, "no spread inside the classes, so separability is not finite")


def _inside(cells: Cells, total: Moments, rank: int, seed: int, draws: int, n: int) -> MeasureValue:
    """Share of the squared change inside the reference's subspace, cross-fitted, against random subspaces."""
    if _thin(cells):
        return unmeasured(n, "the safety subspace needs both classes in both folds and activations that vary")
    scatter = total.moved()
    whole = float(np.trace(scatter))
    if whole <= 0:
        return unmeasured(n, "nothing moved, so no share of it is inside")
    inside, used = 0.0, 0
    for fold in (0, 1):
        basis = safety_basis(cells[1 - fold, True], cells[1 - fold, False], rank)
        moved = (cells[fold, True] + cells[fold, False]).moved()
        inside, used = inside + float(np.einsum("dk,dk->", moved @ basis, basis)), max(used, basis.shape[1])
    d = len(scatter)
    weights = np.clip(np.linalg.eigvalsh(scatter), 0.0, None)
    null = random_shares(weights, d, used, draws, np.random.default_rng((seed, 3)))
    return against_null(Value(inside / whole, None, None, n, NOTE), null, mean=used / d)
