"""Elastic weight consolidation (arXiv:1612.00796): what the guard's answers hang on may not move.

    ½ · strength · Σ_j F̂_j (θ_j − θ₀_j)²,   F̂ = F / mean(F),   F_j = E_x [(∂ℓ(x)/∂θ_j)²] at θ₀

ℓ is the loss of a probe's right answer (the empirical Fisher: the label is given, not drawn from the model), one probe
at a time. Dividing by the mean over all trainable parameters is ours: with F̂ = 1 everywhere the term is plain L2-SP on
the parameters, so a strength carries over between models and losses.

Under a fresh LoRA B is zero, so the gradient of A, and A's Fisher information, is zero: EWC then holds B alone.
F and θ₀ are kept in `fixed`: twice the memory of the trainable parameters in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.errors import RunError
from guardkeel.tuning.regularisers import base
from guardkeel.tuning.regularisers.factors import wide


class EWCSettings(base.Settings):
    """Settings of elastic weight consolidation."""

    strength: float = Field(
        default=1.0, ge=0, description="weight of the squared distance, importance having mean 1"
    )
    samples: int = Field(
        default=64, ge=1, description="probes the importance is measured on, half of them unsafe"
    )


def spread(unsafe: Tensor, count: int) -> list[int]:
    """At most `count` probes, half of them unsafe where there are enough, evenly spaced over the set."""
    flags = unsafe.tolist()
    classes = [[i for i, flag in enumerate(flags) if flag is wanted] for wanted in (True, False)]
    first = min(len(classes[0]), max((count + 1) // 2, count - len(classes[1])))
    shares = (first, min(len(classes[1]), count - first))
    return [p[i * len(p) // n] for p, n in zip(classes, shares, strict=True) for i in range(n)]


def fisher(probes: base.Probes, picks: Sequence[int]) -> base.Gradients:
    """Diagonal empirical Fisher information by parameter, mean over these probes, divided by its overall mean.

    Raises:
        RunError: it is not finite, or zero everywhere.
    """
    total = {name: torch.zeros_like(wide(p.detach())) for name, p in probes.parameters().items()}
    for pick in picks:
        for name, gradient in probes.gradients(probes.answer_loss([pick])).items():
            total[name] += wide(gradient).square()
    mean = float(sum(t.sum(dtype=torch.float64) for t in total.values())) / sum(
        t.numel() for t in total.values()
    )
    if not 0 < mean < float("inf"):
        raise RunError(
            f"the Fisher information of {len(picks)} probes has mean {mean}: nothing can be weighted by it",
            remedy="check that the guard scores the probes with finite numbers, or choose l2sp",
        )
    return {name: t / mean for name, t in total.items()}


def penalty(now: Mapping[str, Tensor], start: Mapping[str, Tensor], weight: Mapping[str, Tensor]) -> Tensor:
    """½ Σ_j weight_j (now_j − start_j)²."""
    terms = [
        (weight[n].to(p.device) * (wide(p) - wide(start[n].to(p.device))).square()).sum()
        for n, p in now.items()
    ]
    return 0.5 * torch.stack(terms).sum()


class EWC(base.Regulariser):
    """Pulls every parameter back to θ₀ by its importance. Zero, with its gradient, at θ₀."""

    name = "ewc"
    Settings = EWCSettings
    settings: EWCSettings
    _last: Tensor | None = None

    @property
    def passes(self) -> int:
        """A gradient of every sample; probes beyond `samples` are not looked at."""
        return 2 * (self.settings.strength > 0)

    def prepare(self, probes: base.Probes) -> None:
        """Measure the importance and keep θ₀."""
        if not self.settings.strength:
            return
        importance = fisher(probes, spread(probes.unsafe, self.settings.samples))
        for name, parameter in probes.parameters().items():
            self.fixed[f"fisher/{name}"] = importance[name]
            self.fixed[f"start/{name}"] = parameter.detach().clone()

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """½ · strength · Σ F̂ (θ − θ₀)²."""
        if not self.settings.strength:
            return None
        now = probes.parameters()
        start = {n: self.fixed[f"start/{n}"] for n in now}
        importance = {n: self.fixed[f"fisher/{n}"] for n in now}
        term = self.settings.strength * penalty(now, start, importance)
        self._last = term.detach()
        return term

    def log(self) -> dict[str, float]:
        """The weighted term of the last step."""
        return {} if self._last is None else {"penalty": float(self._last)}
