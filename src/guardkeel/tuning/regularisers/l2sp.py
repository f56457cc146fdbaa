"""L2-SP (arXiv:1802.01483): decay towards the starting point instead of towards zero.

    ½ · strength · Σ_modules ‖W − W₀‖²_F

A LoRA layer's W − W₀ = scaling·(BA − B₀A₀) is measured by tr((BᵀB)(AAᵀ)), never formed: the distance in weights, which
A and B apart do not tell. Whatever is no such product is measured by its parameters, Σ (θ − θ₀)²: full fine-tuning,
biases, heads trained whole, and DoRA's A, B and magnitude (for DoRA that is a distance in its own coordinates, not in
weights). The paper's second term, on a new head, has no counterpart here: a guard has no new parameters.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.tuning.regularisers import base
from guardkeel.tuning.regularisers.factors import Pair, adapters, pair, since, squared_norm, wide


class L2SPSettings(base.Settings):
    """Settings of L2-SP."""

    strength: float = Field(
        default=0.1, ge=0, description="weight of half the squared distance to the reference's weights"
    )


def layers(probes: base.Probes) -> dict[str, Pair]:
    """The updates of all trained LoRA layers that are a product of two factors."""
    found = {name: pair(m) for name, m in probes.modules().items() if _trained(m)}
    return {name: update for name, update in found.items() if update is not None}


def rest(probes: base.Probes) -> dict[str, Tensor]:
    """The trainable parameters that are no factor of `layers`."""
    modules = [m for m in probes.modules().values() if _trained(m) and pair(m) is not None]
    factors = {id(f[name].weight) for m in modules for f in (m.lora_A, m.lora_B) for name in adapters(m)}
    return {name: p for name, p in probes.parameters().items() if id(p) not in factors}


def _trained(module: torch.nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


class L2SP(base.Regulariser):
    """Pulls the weights back to the reference's, all alike. Zero, with its gradient, at θ₀."""

    name = "l2sp"
    Settings = L2SPSettings
    settings: L2SPSettings
    _last: Tensor | None = None

    def prepare(self, probes: base.Probes) -> None:
        """Keep θ₀, but nothing of a LoRA layer that starts at ΔW = 0."""
        if not self.settings.strength:
            return
        for name, (left, right) in layers(probes).items():
            if left.any():
                self.fixed[f"left/{name}"] = left.detach().clone()
                self.fixed[f"right/{name}"] = right.detach().clone()
        for name, parameter in rest(probes).items():
            self.fixed[f"start/{name}"] = parameter.detach().clone()

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """½ · strength · squared distance."""
        if not self.settings.strength:
            return None
        terms = [squared_norm(*since(now, self._start(name))) for name, now in layers(probes).items()]
        terms += [
            (wide(p) - wide(self.fixed[f"start/{name}"].to(p.device))).square().sum()
            for name, p in rest(probes).items()
        ]
        term = 0.5 * self.settings.strength * torch.stack(terms).sum()
        self._last = term.detach()
        return term

    def _start(self, name: str) -> Pair | None:
        left = self.fixed.get(f"left/{name}")
        return None if left is None else (left, self.fixed[f"right/{name}"])

    def log(self) -> dict[str, float]:
        """The weighted term of the last step."""
        return {} if self._last is None else {"penalty": float(self._last)}
