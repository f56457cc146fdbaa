"""AsFT (arXiv:2506.08473): keep updates along the direction in which the model was aligned.

    strength · Σ_modules ‖(I − Ĉ) ΔW‖²_F,   Ĉ = V Vᵀ / ‖V‖_F,   V = W_aligned − W_unaligned

Ĉ is the stand-in of Safe LoRA (arXiv:2405.16833) and AsFT for the projector V (VᵀV)⁻¹ Vᵀ onto V's columns. It is no
projector: its eigenvalues are σ²/‖V‖_F, σ the singular values of V. A faint alignment (‖V‖_F ≪ 1) keeps next to
nothing, and the term nears plain L2 on ΔW; a σ far above 1 overshoots. `outside` in the log tells: it is
‖(I − Ĉ)ΔW‖² / ‖ΔW‖² over all modules.

For LoRA nothing as large as ΔW or Ĉ is formed: M = B − V(VᵀB)/‖V‖_F, then tr((MᵀM)(AAᵀ)). Fully trained linear layers
use W − W₀; other modules are left free, and DoRA is refused. V is kept of every module: the memory of their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.tuning.regularisers import base
from guardkeel.tuning.regularisers.factors import adapters, pair, since, squared_norm, wide

_WRAPPER = "base_model.model."  # what peft puts before a module's own name


class AsFTSettings(base.Settings):
    """Settings of AsFT."""

    strength: float = Field(
        default=1.0, ge=0, description="weight of the update outside the alignment direction"
    )


def along(v: Tensor, x: Tensor) -> Tensor:
    """Ĉx = V(Vᵀx) / ‖V‖_F for V (out, in), not all zeros, and x (out, k)."""
    v = v.to(x.device, x.dtype)
    kept: Tensor = v @ (v.T @ x) / torch.linalg.matrix_norm(v)
    return kept


def direction(alignment: Mapping[str, Tensor], name: str, rows: int) -> Tensor | None:
    """V of a module (peft's prefix may be there or not), None where it is all zeros: that module was never aligned.

    Raises:
        ConfigError: there is no V of it, it has not `rows` rows, or it is not finite.
    """
    plain = name.removeprefix(_WRAPPER)
    v = next((alignment[key] for key in (name, plain, _WRAPPER + plain) if key in alignment), None)
    if v is None:
        raise ConfigError(
            f"no alignment direction is given for the module {plain!r}",
            remedy="give the unaligned base that this very guard was aligned from",
        )
    if v.ndim != 2 or v.shape[0] != rows or not v.isfinite().all():
        raise ConfigError(
            f"the alignment direction of {plain!r} is {tuple(v.shape)}; it must be {rows} rows of finite numbers",
            remedy="give the unaligned base that this very guard was aligned from",
        )
    return v if v.any() else None


class AsFT(base.Regulariser):
    """Penalises what an update does outside the alignment direction. Zero, with its gradient, at θ₀.

    Before `prepare` the caller sets `alignment`: V = W_aligned − W_unaligned (out, in) by the names of
    `probes.modules()`. Modules whose V is all zeros are skipped, and counted in the log.
    """

    name = "asft"
    Settings = AsFTSettings
    settings: AsFTSettings
    needs: tuple[str, ...] = ("unaligned",)
    alignment: Mapping[str, Tensor] | None = None
    _last: tuple[Tensor, Tensor, int] | None = None

    def prepare(self, probes: base.Probes) -> None:
        """Keep V, and θ₀ where it is not a fresh LoRA.

        Raises:
            ConfigError: no alignment was given, it does not fit, is zero everywhere, or a module uses DoRA.
        """
        if not self.settings.strength:
            return
        if self.alignment is None:
            raise ConfigError(
                "asft needs the model that the guard was aligned from",
                remedy="name it with the option `unaligned`, or choose a method that needs no such model",
            )
        for name, module in _matrices(probes).items():
            left, right = _update(name, module)
            v = direction(self.alignment, name, left.shape[0])
            if v is None:
                continue
            self.fixed[f"direction/{name}"] = v.detach().to(left.device).contiguous().clone()
            if right is None or left.any():
                self.fixed[f"left/{name}"] = left.detach().clone()
            if right is not None and left.any():
                self.fixed[f"right/{name}"] = right.detach().clone()
        if not self.fixed:
            raise ConfigError(
                "the unaligned model has the very weights of the guard in every trained module",
                remedy="give the base that the guard was aligned from, not the guard itself",
            )

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """strength · Σ ‖(I − Ĉ) ΔW‖²_F."""
        if not self.settings.strength:
            return None
        modules = _matrices(probes)
        kept = {name: module for name, module in modules.items() if f"direction/{name}" in self.fixed}
        outside: list[Tensor] = []
        whole: list[Tensor] = []
        for name, module in kept.items():
            left, right = self._change(name, module)
            v = self.fixed[f"direction/{name}"]
            out = left - along(v, left)
            for total, part in ((outside, out), (whole, left)):
                total.append(part.square().sum() if right is None else squared_norm(part, right))
        found = torch.stack(outside).sum()
        self._last = found.detach(), torch.stack(whole).sum().detach(), len(modules) - len(kept)
        return self.settings.strength * found

    def _change(self, name: str, module: Any) -> tuple[Tensor, Tensor | None]:
        left, right = _update(name, module)
        start = self.fixed.get(f"left/{name}")
        if right is None:
            assert start is not None  # `prepare` keeps W₀ of every module trained whole
            return left - wide(start.to(left.device)), None
        return since((left, right), None if start is None else (start, self.fixed[f"right/{name}"]))

    def log(self) -> dict[str, float]:
        """The weighted term of the last step, the share of ‖ΔW‖² outside, and how many modules were never aligned."""
        if self._last is None:
            return {}
        outside, whole, skipped = self._last
        share = float(outside / whole) if whole else 0.0
        return {
            "penalty": self.settings.strength * float(outside),
            "outside": share,
            "skipped": float(skipped),
        }


def _matrices(probes: base.Probes) -> dict[str, Any]:
    """The trained modules that AsFT speaks of: LoRA layers, and linear layers trained whole."""
    return {
        name: module
        for name, module in probes.modules().items()
        if adapters(module) or (isinstance(module, torch.nn.Linear) and module.weight.requires_grad)
    }


def _update(name: str, module: Any) -> tuple[Tensor, Tensor | None]:
    """(left, right) of a LoRA layer; (W, None) of a linear layer."""
    if not adapters(module):
        return wide(module.weight), None
    found = pair(module)
    if found is None:
        raise ConfigError(
            f"asft cannot be used on {name!r}: its update is not a product of two factors (DoRA or another variant)",
            remedy="tune with plain LoRA or in full, or choose another method",
        )
    return found
