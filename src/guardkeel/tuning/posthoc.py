"""Repairs after plain training: interpolation with the reference, and Safe LoRA (arXiv:2405.16833).

For a model with LoRA in memory, in place (`interpolate`, `safe_lora`), and for whole weights as state dicts
(`interpolated`, `safe_projected`). Both expect a LoRA that began at ΔW = 0: the reference is the model without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.errors import ConfigError, ModelError
from guardkeel.tuning.regularisers.asft import along, direction
from guardkeel.tuning.regularisers.base import Regulariser, Settings
from guardkeel.tuning.regularisers.factors import adapters, inner, pair, squared_norm, wide


@dataclass(frozen=True, slots=True)
class Projection:
    """What Safe LoRA found in one module."""

    module: str
    cosine: float | None
    """cos(ΔW, ĈΔW); None where ΔW is zero or the module was never aligned: such a module is left alone."""
    projected: bool


def interpolated(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """θ₀ + α(θ − θ₀) of two state dicts, exact at α = 0 and 1; in float32, rounded once to the dtype of `after`.

    What is not floating point is taken from `after`. ModelError where the two do not hold the same tensors.
    """
    _same(before, after)
    return {
        name: torch.lerp(wide(before[name]), wide(tuned), alpha).to(tuned.dtype)
        if tuned.is_floating_point()
        else tuned.clone()
        for name, tuned in after.items()
    }


def interpolate(model: Any, alpha: float) -> None:
    """θ₀ + α(θ − θ₀) of a model with LoRA, in place: every B is scaled by α, modules trained whole are interpolated.

    Raises:
        ModelError: there is no LoRA, it is merged, or something else was trained that α cannot reach this way
            (DoRA, biases, single token embeddings); nothing has been changed then.
    """
    layers = _lora_layers(model)
    biased = any(getattr(c, "bias", "none") != "none" for c in getattr(model, "peft_config", {}).values())
    tokens = any(hasattr(m, "trainable_tokens_delta") for m in model.modules())
    odd = [
        name
        for name, layer in layers.items()
        if {*layer.lora_magnitude_vector, *getattr(layer, "lora_variant", {})}.intersection(
            layer.active_adapters
        )
    ]
    if biased or tokens or odd:
        raise ModelError(
            f"this model cannot be interpolated through its LoRA: {_first(odd) or 'biases or tokens were trained'}",
            remedy="merge it and interpolate the whole weights",
        )
    with torch.no_grad():
        for layer in layers.values():
            for name in layer.active_adapters:
                if name in layer.lora_B:
                    for weight in layer.lora_B[name].parameters():
                        weight.mul_(alpha)
                elif name in layer.lora_embedding_B:
                    layer.lora_embedding_B[name].mul_(alpha)
        for module in model.modules():
            if hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
                start = module.original_module.state_dict()
                for name in module.active_adapters:
                    whole = module.modules_to_save[name]
                    whole.load_state_dict(interpolated(start, whole.state_dict(), alpha))


def safe_lora(
    model: Any, alignment: Mapping[str, Tensor], *, threshold: float = 0.5, top: int | None = None
) -> list[Projection]:
    """B ← ĈB, Ĉ = VVᵀ/‖V‖_F, in every LoRA layer with cos(ΔW, ĈΔW) ≤ threshold; in place.

    Args:
        model: with a LoRA that is not merged.
        alignment: V = W_aligned − W_unaligned (out, in) by module name, with or without peft's prefix.
        threshold: between 0 and 1 (Ĉ is positive semi-definite, so no cosine is below 0).
        top: instead of the threshold, this many modules of the lowest cosines.

    Returns:
        What was found, by module in the model's order.

    Raises:
        ModelError: no LoRA, or merged, or a module's update is not a product of two factors (DoRA).
        ConfigError: a module has no V of its shape.
    """
    layers = {name: layer for name, layer in _lora_layers(model).items() if adapters(layer)}
    directions: dict[str, Tensor | None] = {}
    cosines: dict[str, float | None] = {}
    with torch.no_grad():
        for name, layer in layers.items():
            update = pair(layer)
            if update is None:
                raise ModelError(
                    f"Safe LoRA cannot be applied to {name!r}: its update is not a product of two factors",
                    remedy="merge the adapter and project the whole weights",
                )
            directions[name] = direction(alignment, name, update[0].shape[0])
            cosines[name] = _cosine(*update, directions[name])
        for name in (projected := _failing(cosines, threshold, top)):
            v = directions[name]
            assert v is not None  # a module without a direction has no cosine
            for adapter in adapters(layers[name]):
                up = layers[name].lora_B[adapter].weight
                up.copy_(along(v, wide(up)))
    return [Projection(name, cosine, name in projected) for name, cosine in cosines.items()]


def safe_projected(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    alignment: Mapping[str, Tensor],
    *,
    threshold: float = 0.5,
    top: int | None = None,
) -> tuple[dict[str, Tensor], list[Projection]]:
    """Safe LoRA on whole weights: W ← W₀ + ĈΔW of "<module>.weight" where a module of `alignment` fails the test."""
    _same(before, after)
    missing = [name for name in alignment if f"{name}.weight" not in after]
    if missing:
        raise ConfigError(
            f"there is no weight {missing[0] + '.weight'!r} to project",
            remedy="name the directions by the modules of the state dict",
        )
    deltas = {n: wide(after[f"{n}.weight"]) - wide(before[f"{n}.weight"]) for n in alignment}
    directions = {n: direction(alignment, n, delta.shape[0]) for n, delta in deltas.items()}
    cosines = {n: _cosine(delta, None, directions[n]) for n, delta in deltas.items()}
    projected = _failing(cosines, threshold, top)
    weights = dict(after)
    for n in projected:
        start, v = before[f"{n}.weight"], directions[n]
        assert v is not None  # a module without a direction has no cosine
        weights[f"{n}.weight"] = (wide(start) + along(v, deltas[n])).to(after[f"{n}.weight"].dtype)
    return weights, [Projection(n, cosine, n in projected) for n, cosine in cosines.items()]


class PostHoc(Regulariser, ABC):
    """Trains as plain; `apply` follows on the trained model."""

    needs: tuple[str, ...] = ()

    @abstractmethod
    def apply(self, model: Any) -> dict[str, Any]:
        """Repair the model in place. Returns what was done, for the run's record."""


class InterpolationSettings(Settings):
    """Settings of interpolation."""

    alpha: float = Field(
        default=0.5, ge=0, le=1, description="share of the change that is kept: 0 is the reference, 1 plain"
    )


class Interpolation(PostHoc):
    """θ₀ + α(θ − θ₀)."""

    name = "interpolation"
    Settings = InterpolationSettings
    settings: InterpolationSettings

    def apply(self, model: Any) -> dict[str, Any]:
        """Interpolate with the reference."""
        interpolate(model, self.settings.alpha)
        return {"alpha": self.settings.alpha}


class SafeLoRASettings(Settings):
    """Settings of Safe LoRA."""

    threshold: float = Field(
        default=0.5, ge=0, le=1, description="modules with a cosine up to this are projected"
    )
    top: int | None = Field(
        default=None, ge=1, description="instead of the threshold: how many modules are projected"
    )


class SafeLoRA(PostHoc):
    """Projects the updates that point away from the alignment direction; `alignment` is set before `apply`."""

    name = "safe-lora"
    Settings = SafeLoRASettings
    settings: SafeLoRASettings
    needs: tuple[str, ...] = ("unaligned",)
    alignment: Mapping[str, Tensor] | None = None

    def apply(self, model: Any) -> dict[str, Any]:
        """Project; ConfigError when no alignment was given."""
        if self.alignment is None:
            raise ConfigError(
                "safe-lora needs the model that the guard was aligned from",
                remedy="name it with the option `unaligned`, or choose a method that needs no such model",
            )
        found = safe_lora(model, self.alignment, threshold=self.settings.threshold, top=self.settings.top)
        return {
            "projected": [p.module for p in found if p.projected],
            "cosines": {p.module: p.cosine for p in found},
        }


def _cosine(left: Tensor, right: Tensor | None, v: Tensor | None) -> float | None:
    """cos(ΔW, ĈΔW) of ΔW = left · right, or of `left` itself; None where it is not defined."""
    if v is None or not left.any():
        return None
    kept = along(v, left)
    if right is None:
        products = (left * kept).sum(), left.square().sum(), kept.square().sum()
    else:
        products = inner(left, kept, right), squared_norm(left, right), squared_norm(kept, right)
    both, whole, inside = (float(p) for p in products)
    return both / (whole**0.5 * inside**0.5) if whole > 0 and inside > 0 else None


def _failing(cosines: Mapping[str, float | None], threshold: float, top: int | None) -> list[str]:
    known = {name: cosine for name, cosine in cosines.items() if cosine is not None}
    if top is not None:
        return sorted(known, key=lambda name: known[name])[:top]
    return [name for name, cosine in known.items() if cosine <= threshold]


def _lora_layers(model: Any) -> dict[str, Any]:
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    merged = [name for name, layer in layers.items() if layer.merged_adapters]
    if not layers or merged:
        raise ModelError(
            f"the LoRA of {merged[0]!r} is merged into its weights"
            if merged
            else "this model has no LoRA layer",
            remedy="unmerge it first, or work on the whole weights",
        )
    return layers


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    odd = sorted(before.keys() ^ after.keys())
    odd += [n for n in before if not odd and before[n].shape != after[n].shape]
    if odd:
        raise ModelError(
            f"the two models do not hold the same tensors; the first that differs is {odd[0]!r}",
            remedy="compare a model with the one that it was tuned from",
        )


def _first(names: list[str]) -> str:
    return f"{names[0]!r} is no plain LoRA" if names else ""
