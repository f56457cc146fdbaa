"""Safe Delta (arXiv:2505.12038): keep the changes that cost little safety, and make good what they cost.

H (in, in) is the Hessian of a linear layer's squared output error on safe conversations, E[2 x xᵀ] of its inputs x, of
any scale. U is the upper Cholesky factor of (H + damping · mean(diag H) · I)⁻¹; U_jj² is the [H⁻¹]_jj that is left when
columns before j are fixed.

1. Choose. Keeping a change costs (ΔW_ij)² / U_jj². To keep as much of ‖ΔW‖² for a cost of at most ε, columns are taken
   by falling U_jj² (rows in order) until the next element does not fit.
2. Compensate. Columns from first to last: kept elements become the candidate's, and the columns after it take up the
   error, w_ik += (w_ij − θ_ij)·(−U_jk / U_jj) for k > j (OBS, as in SparseGPT). What was not kept ends as θ₀ plus that.

The budget is in one of two units:
  curvature  ε = s · n / 4096² · mean_j(1/U_jj²), n elements: the released rule (s 0.1 there), brought from its blocks
             of 2048 columns to whole tensors. It does not grow with the change: a harsher tuning keeps a lesser share.
  change     ε = s · the cost of keeping everything: 0 is the reference, 1 the candidate.

Departures from the released code: errors are passed on column by column (there 4 at a time), inputs that are never
active have no special curvature beyond the damping, the share of never kept elements (15% there) is the setting
`withheld`, by whole columns. Matrix products are involved: the last bits depend on the device and its libraries.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from guardkeel.errors import DataError
from guardkeel.fusion.methods import base

Unit = Literal["curvature", "change"]
_WIDTH = 128  # columns whose errors are passed on together


def inverse_factor(hessian: Tensor, damping: float, name: str) -> Tensor:
    """U (in, in), upper, with UᵀU = (H + damping · mean(diag H) · I)⁻¹; DataError where that is not positive."""
    factor: Tensor = hessian.to(torch.float32, copy=True)
    factor.diagonal().add_(damping * factor.diagonal().mean())
    # One name for all of them, so that at most two are held.
    factor, bad = torch.linalg.cholesky_ex(factor)
    factor = torch.cholesky_inverse(factor)
    factor, worse = torch.linalg.cholesky_ex(factor, upper=True)
    if bad or worse or not bool(factor.diagonal().isfinite().all()):
        raise DataError(
            f"the Hessian of {name!r} is not positive definite with a damping of {damping}",
            remedy="raise the damping, or measure it on more conversations",
        )
    return factor


def chosen(delta: Tensor, scale: Tensor, budget: float, unit: Unit, withheld: float) -> Tensor:
    """Which changes are kept, bool (out, in); `scale` is U's diagonal (in,)."""
    rows, columns = delta.shape
    curvature = scale.double() ** -2
    order = curvature.argsort(stable=True)[: columns - int(withheld * columns)]
    costs = delta.square().sum(0, dtype=torch.float64) * curvature
    spent = costs[order].cumsum(0)
    everything = spent[-1] if len(order) == columns else costs.sum()
    limit = budget * (everything if unit == "change" else rows * columns / 4096**2 * curvature.mean())
    fits = int((spent <= limit).sum())
    keep = torch.zeros_like(delta, dtype=torch.bool)
    keep[:, order[:fits]] = True
    if fits < len(order):
        left = limit - (spent[fits - 1] if fits else 0)
        column = order[fits]
        keep[:, column] = (delta[:, column].double() ** 2 * curvature[column]).cumsum(0) <= left
    return keep


def compensated(reference: Tensor, candidate: Tensor, keep: Tensor, factor: Tensor) -> Tensor:
    """θ₀ with the kept elements set to θ, column after column, and later columns moved against each one's error."""
    result = reference.clone()
    columns = reference.shape[1]
    for first in range(0, columns, _WIDTH):
        part = slice(first, min(first + _WIDTH, columns))
        u = factor[part, part]
        # Columns lie as rows here, so that each is contiguous.
        weights, tuned, kept = (t[:, part].T.contiguous() for t in (result, candidate, keep))
        errors = torch.zeros_like(weights)
        for j, column in enumerate(weights):
            if not bool(kept[j].any()):
                continue
            target = torch.where(kept[j], tuned[j], column)
            errors[j] = (column - target) / u[j, j]
            weights[j + 1 :].addr_(u[j, j + 1 :], errors[j], alpha=-1)
            column.copy_(target)
        result[:, part] = weights.T
        result[:, part.stop :] -= errors.T @ factor[part, part.stop :]
    return result


class SafeDeltaSettings(base.Settings):
    """Settings of Safe Delta."""

    budget: float = Field(
        default=0.1, ge=0, allow_inf_nan=False, description="s: how much safety may be spent"
    )
    unit: Unit = Field(
        default="curvature",
        description="what s is a multiple of: curvature (as released, whatever the change), or change (1 keeps it all)",
    )
    compensate: bool = Field(
        default=True, description="let the columns that follow make good each one's error"
    )
    withheld: float = Field(
        default=0.0, ge=0, le=1, description="share of columns, of the highest curvature, that is never kept"
    )
    damping: float = Field(
        default=0.01,
        gt=0,
        allow_inf_nan=False,
        description="added to the Hessian's diagonal, in multiples of its mean",
    )
    elsewhere: Literal["reference", "candidate"] = Field(
        default="reference", description="what tensors without a Hessian are taken from (embeddings, norms)"
    )


class SafeDelta(base.Method):
    """θ₀ plus the changes that fit into a safety budget, and the compensation of their cost.

    A tensor that has no Hessian, or one of zeros, is taken whole from `elsewhere`: in the released code the reference.
    """

    name = "safe-delta"
    summary = "changes that cost little on safe conversations, their cost compensated"
    Settings = SafeDeltaSettings
    settings: SafeDeltaSettings
    extras = ("safe-hessian",)
    work = 8  # two matrices (in, in) at a time; for in up to four times out

    def fuse(self, tensors: base.Tensors, generator: Generator | None = None) -> Tensor:
        """θ₀ for a budget of 0, θ for one without bounds (and nothing withheld), bit for bit.

        Raises:
            DataError: the Hessian does not fit the tensor, or is not positive definite.
        """
        reference, candidate, s = tensors.reference, tensors.candidates[0], self.settings
        hessian = tensors.extras.get("safe-hessian")
        if hessian is None or not bool(hessian.any()):
            return (reference if s.elsewhere == "reference" else candidate).clone()
        if reference.ndim != 2 or hessian.shape != 2 * (reference.shape[1],):
            raise DataError(
                f"the Hessian of {tensors.name!r} is {tuple(hessian.shape)} for a tensor of {tuple(reference.shape)}",
                remedy="measure it on this very guard",
            )
        factor = inverse_factor(hessian.to(reference.device), s.damping, tensors.name)
        keep = chosen(candidate - reference, factor.diagonal(), s.budget, s.unit, s.withheld)
        if s.compensate:
            return compensated(reference, candidate, keep, factor)
        return torch.where(keep, candidate, reference)
