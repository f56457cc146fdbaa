"""How the language part of a model that sees is trained, and what a share of its change is.

    Whole     all of its weights, in float32
    LowRank   LoRA (arXiv:2106.09685) on the linear layers of its blocks, in float32, over weights in another format
    Frozen    nothing

A share α of the change is θ₀ + α(θ − θ₀); of LoRA, α times its update.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.interpolation import Interpolation, InterpolationSettings
from guardkeel.models.loading import load_model
from guardkeel.models.towers import language_tower, vision_parameters
from guardkeel.tuning.weights import trainable
from guardkeel.vision.training import LanguageTraining


class Language(Protocol):
    """The language part of a model whose vision part is trained beside it."""

    def share(self, alpha: float) -> contextlib.AbstractContextManager[None]:
        """Within the block, θ₀ + α(θ − θ₀)."""
        ...

    def end(self) -> None:
        """Leave plain weights, as they were learned."""
        ...


def learnable(
    model: Any, settings: LanguageTraining, path: Path, seed: int, *, frozen: bool = False
) -> Language:
    """The language part of a model, made around the one at `path`, ready to be trained as the settings say."""
    if frozen:
        return Frozen(model, settings.language_dtype)
    if settings.adapter == "lora":
        return LowRank(model, settings.rank, settings.language_dtype, seed)
    return Whole(model, path)


class Whole:
    """All weights of the language part of `model`, which was made around the language model at `path`."""

    def __init__(self, model: Any, path: Path) -> None:
        model.requires_grad_(True)
        self._model, self._path = model, path

    @cached_property
    def _before(self) -> dict[str, torch.Tensor]:
        return dict(load_model(self._path, "float32", "cpu").named_parameters())

    @contextlib.contextmanager
    def share(self, alpha: float) -> Iterator[None]:
        """See Language."""
        method = Interpolation(InterpolationSettings(alpha=alpha))
        named = dict(language_tower(self._model).named_parameters())
        learned = {name: p.detach().clone() for name, p in named.items()}
        try:
            with torch.no_grad():
                for name, p in named.items():
                    before = self._before[name].to(p.device)[: p.shape[0]]
                    now = learned[name][: before.shape[0]]  # a picture token that was added has no row before
                    p[: before.shape[0]].copy_(method.fuse(Tensors(name, before, (now,))))
            yield
        finally:
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(learned[name])

    def end(self) -> None:
        """See Language."""


class LowRank:
    """A LoRA of a rank, scaled by 2, over the language part's weights in `dtype`."""

    def __init__(self, model: Any, rank: int, dtype: str, seed: int) -> None:
        self._model = model
        _narrow(model, dtype)
        vision = vision_parameters(model).values()
        self._wrapped = trainable(
            model, adapter="lora", rank=rank, alpha=2.0 * rank, first_layer=0, seed=seed, task="causal"
        )
        for parameter in vision:
            parameter.requires_grad_(True)

    @contextlib.contextmanager
    def share(self, alpha: float) -> Iterator[None]:
        """See Language."""
        from peft.tuners.lora import LoraLayer

        layers = [m for m in self._model.modules() if isinstance(m, LoraLayer)]
        for layer in layers:
            layer.scale_layer(alpha)
        try:
            yield
        finally:
            for layer in layers:
                layer.unscale_layer()

    def end(self) -> None:
        """See Language; merged in float32, so that nothing of the update is rounded away."""
        _narrow(self._model, "float32")
        self._wrapped.merge_and_unload()


class Frozen:
    """A language part that stays as it is, in `dtype`."""

    def __init__(self, model: Any, dtype: str) -> None:
        _narrow(model, dtype)
        model.requires_grad_(True)
        language_tower(model).requires_grad_(False)

    @contextlib.contextmanager
    def share(self, alpha: float) -> Iterator[None]:
        """See Language; there is no change."""
        yield

    def end(self) -> None:
        """See Language."""


def _narrow(model: Any, dtype: str) -> None:
    """The language part's weights in another format, LoRA's own and all buffers (rotary positions) as they are."""
    vision = {id(p) for p in vision_parameters(model).values()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in vision and "lora_" not in name:
            parameter.data = parameter.data.to(getattr(torch, dtype))
