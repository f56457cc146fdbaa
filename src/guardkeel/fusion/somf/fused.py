"""The fused guard while its mask is learned: θ_safe, loaded once, with W = W_safe + merged in place of some weights.

A step runs in two parts, so that the masks' arithmetic needs the memory of one tensor and not of the whole graph:

    1. every W is made in float32, without a graph, and cast once to the model's number format; the objective is run
       through the model with these as its weights, and ∂objective/∂W is taken;
    2. tensor by tensor, W is made again from the same draw with a graph, through which ∂objective/∂W goes on to the
       logits, in float32.

This is the chain rule, exactly; the cast counts as the identity. The model's own weights are read and never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from guardkeel.errors import ModelError
from guardkeel.fusion.methods.merging import Merging
from guardkeel.fusion.somf.changes import Change
from guardkeel.fusion.somf.mask import Draw, Granularity, count, logits_shape, rescaled

Rescale = Literal["tensor", "model", "none"]


class Logits:
    """The logits of all masks, and by what each mask is divided.

    rescale: `tensor` is the paper's mean over the tensor's mask; `model` is the mean over all masks, each counted by
    its tensor's size; `none` divides by 1. A single number divided by its own mean is 1, so that masks of granularity
    `tensor` cannot be rescaled by tensor.
    """

    def __init__(
        self,
        changes: Iterable[Change],
        *,
        granularity: Granularity = "element",
        rescale: Rescale = "tensor",
        init: float = 0.0,
        device: Any = "cpu",
    ) -> None:
        if granularity == "tensor" and rescale == "tensor":
            raise ValueError("one mask a tensor, divided by its own mean, is always 1")
        self.rescale = rescale
        self.shapes = {name: tuple(t.shape) for change in changes for name, t in change.parts.items()}
        self.each = {
            name: torch.full(logits_shape(shape, granularity), init, device=device, requires_grad=True)
            for name, shape in sorted(self.shapes.items())
        }
        self.elements = sum(count(shape) for shape in self.shapes.values())

    def mask(self, name: str, draw: Draw) -> Tensor:
        """The mask in [0, 1] of a tensor, not rescaled."""
        return draw(name, self.each[name])

    def density(self, draw: Draw) -> Tensor:
        """The mean over all masks, each counted by its tensor's size; a scalar without a graph."""
        with torch.no_grad():
            means = [self.mask(name, draw).mean().double() * self.share(name) for name in self.each]
            return torch.stack(means).sum().to(next(iter(self.each.values())).dtype)

    def share(self, name: str) -> float:
        """Which part of all masked elements this tensor's are."""
        return count(self.shapes[name]) / self.elements

    def factor(self, name: str, draw: Draw, density: Tensor) -> Tensor:
        """What the tensor's change is multiplied by: its rescaled mask."""
        mask = self.mask(name, draw)
        if self.rescale == "none":
            return mask
        return rescaled(mask, mask.mean() if self.rescale == "tensor" else density)


class Fused:
    """θ_safe, changes and masks put together.

    Args:
        model: θ_safe; frozen here.
        changes: by the name of the weight that each changes, as in the model.
        logits: of the changes' parts.
        how: several candidates are merged.
        seed: of what the merge draws.
    """

    def __init__(
        self, model: Any, changes: Mapping[str, Change], logits: Logits, how: Merging, seed: int = 0
    ) -> None:
        weights = dict(model.named_parameters(remove_duplicate=False))
        absent = sorted(changes.keys() - weights.keys())
        if absent:
            raise ModelError(
                f"{type(model).__name__} has no weight {absent[0]!r}: its checkpoint names weights otherwise",
                remedy="masks can be learned for architectures whose weights have the names of their checkpoints",
            )
        model.requires_grad_(False)
        self.model, self.changes, self.logits, self.how, self.seed = (
            model,
            dict(sorted(changes.items())),
            logits,
            how,
            seed,
        )
        self._safe = {name: weights[name] for name in self.changes}

    def change(self, name: str, draw: Draw, density: Tensor) -> Tensor:
        """The fused change of a weight, in float32."""
        change = self.changes[name]
        masks = {part: self.logits.factor(part, draw, density) for part in change.parts}
        return change.merged(masks, self.how, self.seed)

    def weights(self, draw: Draw) -> dict[str, Tensor]:
        """W of every changed weight under a draw, in the model's number format: leaves whose gradients are wanted."""
        density = self.logits.density(draw) if self.logits.rescale == "model" else torch.ones(())
        made = {}
        with torch.no_grad():
            for name, safe in self._safe.items():
                made[name] = (safe.float() + self.change(name, draw, density)).to(safe.dtype)
        return {name: weight.requires_grad_() for name, weight in made.items()}

    def backward(self, weights: Mapping[str, Tensor], draw: Draw) -> None:
        """Add to the logits' gradients what follows from those of the weights; these are freed on the way."""
        density = torch.ones(())
        if self.logits.rescale == "model":
            density = self.logits.density(draw).requires_grad_()
        for name in self.changes:
            gradient, weights[name].grad = weights[name].grad, None
            if gradient is not None:  # a weight that no row went through
                torch.autograd.backward(self.change(name, draw, density), gradient.float())
        if density.grad is not None:
            for name in self.logits.each:
                mean = self.logits.mask(name, draw).mean() * self.logits.share(name)
                torch.autograd.backward(mean, density.grad)

    def with_weights(self, weights: Mapping[str, Tensor]) -> WithWeights:
        """The model with these weights in place of its own."""
        return WithWeights(self.model, weights)

    def at(self, draw: Draw) -> WithWeights:
        """The model fused under a draw, for looking at: without gradients."""
        return WithWeights(self.model, {k: w.detach() for k, w in self.weights(draw).items()})


class WithWeights:
    """Called like the model, with some of its weights replaced; weights that are tied to them follow."""

    def __init__(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        self._model, self._weights = model, dict(weights)
        self.config, self.device = model.config, model.device

    def __call__(self, **inputs: Any) -> Any:
        """Run the model on keyword inputs."""
        return functional_call(self._model, self._weights, kwargs=inputs)
