"""The formulas of FW-SSR (arXiv:2605.02914), without a model.

Shapes: n probes, d the hidden width, k directions. A basis U is (d, k) with orthonormal columns; None is the whole
space (U = I, k = d). Everything works in float32 at least, whatever the model's dtype and under any autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guardkeel.errors import RunError
from guardkeel.tuning.regularisers.base import Gradients
from guardkeel.tuning.regularisers.factors import whole

RELEASED_GAIN, RELEASED_EMA = 0.5, 0.95
RELEASED_LOW, RELEASED_HIGH = 1e-4, 1.0


def project(rows: Tensor, basis: Tensor | None) -> Tensor:
    """Coordinates rows·U, (n, d) → (n, k)."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if basis is None:
        return rows
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ basis.to(rows)


def spread(projected: Tensor) -> Tensor:
    """s: mean squared norm of the centred rows, a scalar."""
    return (projected - projected.mean(0)).square().sum(1).mean()


def penalty(
    hidden: Tensor, reference: Tensor, basis: Tensor | None, weights: Tensor, scale: Tensor
) -> Tensor:
    """R_l = mean_x Σ_i F̂_i (u_iᵀ(h(x;θ) − h(x;θ₀)))² / s, a scalar.

    1 means: the probes have moved as far as they lay apart at θ₀. The released code takes a mean over i and has no s,
    so that its λ means something else for every model and rank.

    Args:
        hidden: h(x;θ), (n, d).
        reference: the projections Uᵀh(x;θ₀), (n, k).
        basis: U, or None for the whole space.
        weights: F̂, (k,), of mean 1.
        scale: s.
    """
    moved = project(hidden, basis) - reference
    return (weights * moved.square()).sum(1).mean() / scale


def fisher(gradients: Tensor, basis: Tensor | None) -> Tensor:
    """Diagonal Fisher information of the verdict in U: F_i = mean_x (u_iᵀ ∂log p(y|x)/∂h)², (k,).

    Args:
        gradients: ∂log p(y|x)/∂h(x), one row a probe, (n, d); y is the probe's label.
        basis: U, or None.
    """
    return project(gradients, basis).square().mean(0)


def proxy(projected: Tensor) -> Tensor:
    """What the released code calls Fisher: E[(u_iᵀh)²], (k,). No gradient is in it."""
    return projected.square().mean(0)


def normalised(importance: Tensor) -> Tensor:
    """F̂ = F / mean(F)."""
    mean = importance.mean()
    if not (bool(mean > 0) and bool(mean.isfinite())):
        raise ValueError(f"weights need a positive, finite mean, got {float(mean)}")
    return importance / mean


def effective_rank(weights: Tensor) -> float:
    """exp(entropy of F̂/ΣF̂): how many directions carry the weight, from 1 to k."""
    share = (weights / weights.sum()).double()
    return float(torch.special.entr(share).sum().exp())


def cosine(a: Gradients, b: Gradients) -> float:
    """cos(a, b) over all parameters; a missing gradient is zero, and so is the cosine with a zero gradient.

    Raises:
        RunError: a gradient is not finite.
    """
    dot, aa, bb = _inner(a, b), _inner(a, a), _inner(b, b)
    if not all(map(math.isfinite, (dot, aa, bb))):
        raise RunError(
            "the angle between two gradients cannot be measured: one of them is not finite",
            remedy="lower the learning rate, or tune in bfloat16 or float32 instead of float16",
        )
    norm = math.sqrt(aa) * math.sqrt(bb)
    return max(-1.0, min(1.0, dot / norm)) if norm > 0 else 0.0


def adaptive(strength: float, conflict: float, low: float, high: float, gain: float) -> float:
    """Our rule: λ ← clip(λ·exp(−gain·c), low, high). λ grows where task and guard conflict (c < 0), else relaxes.

    The exponential makes as much conflict as accord leave λ where it was.
    """
    return min(high, max(low, strength * math.exp(-gain * conflict)))


def released(strength: float, cosine_: float) -> float:
    """The released rule: λ' = clip(λ(1 − 0.5·cos(g_task, g_reg)), 1e-4, 1); λ ← 0.95λ + 0.05λ'."""
    aim = min(RELEASED_HIGH, max(RELEASED_LOW, strength * (1 - RELEASED_GAIN * cosine_)))
    return RELEASED_EMA * strength + (1 - RELEASED_EMA) * aim


def class_means(projected: Tensor, unsafe: Tensor) -> tuple[Tensor, Tensor]:
    """What `separation` needs of all probes at θ₀: class means (2, k), safe first, and their mean scatter tr(S_w)."""
    means = torch.stack([projected[~unsafe].mean(0), projected[unsafe].mean(0)])
    return means, (projected - means[unsafe.long()]).square().sum(1).mean()


def separation(live: Tensor, reference: Tensor, unsafe: Tensor, means: Tensor, within: Tensor) -> Tensor:
    """J/J₀, J = tr(S_b)/tr(S_w): how much better the classes are parted than at θ₀; exactly 1 at θ₀.

    A step sees too few probes for class means and scatters of their own (one probe a class has none), so both start
    from those of all probes at θ₀ and follow the change of the drawn ones:

        m_y(θ) = m_y(θ₀) + mean_{x of class y} (z(x;θ) − z(x;θ₀))
        S_w(θ)/S_w(θ₀) = (Σ_x ‖z(x;θ) − m_y(θ)‖² + S_w(θ₀)) / (Σ_x ‖z(x;θ₀) − m_y(θ₀)‖² + S_w(θ₀))

    with S_b = ‖m_unsafe − m_safe‖². Which probes were drawn then makes no noise at θ₀; the added S_w(θ₀) is a probe
    that stays, and keeps the ratio finite. A class that was not drawn keeps its mean. Not in the released code.

    Args:
        live, reference: projections of the drawn probes now and at θ₀, (n, k).
        unsafe: their labels, bool (n,).
        means, within: see `class_means`.
    """
    member = torch.stack([~unsafe, unsafe]).to(live).unsqueeze(2)
    shift = (member * (live - reference)).sum(1) / member.sum(1).clamp(min=1)
    moved, own = means + shift, unsafe.long()
    now = (live - moved[own]).square().sum() + within
    before = (reference - means[own]).square().sum() + within
    gap, gap_before = (moved[1] - moved[0]).square().sum(), (means[1] - means[0]).square().sum()
    return gap / gap_before * (before / now)


def _inner(a: Gradients, b: Gradients) -> float:
    """Inner product in float32 a tensor, float64 over tensors; one transfer from the device."""
    terms = [(a[name].float() * b[name].float()).sum() for name in a if name in b]
    return (
        float(whole(torch.stack([t.to(terms[0].device) for t in terms])).cpu().double().sum())
        if terms
        else 0.0
    )
