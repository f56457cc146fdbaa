"""What masks are laid over: the change of one weight in every candidate, dense or as the two factors of a LoRA.

Dense:    merged = Merge({δ_i ⊙ s}),             one mask, the same for all candidates
Factors:  merged = scale · (B ⊙ s_B)(A ⊙ s_A),   a mask for each factor, as in the released code; one candidate

where s = m / mean(m) is a rescaled mask (see mask.py). Masking the factors is not masking ΔW = scale · BA: an element
of the product then has no mask of its own. The reference is the model without that LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion.methods.merging import Merging
from guardkeel.fusion.somf.merging import merge
from guardkeel.fusion.sources import Source


class Change(Protocol):
    """The change of one weight."""

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """What has a mask of its own, by the name that the mask is written under."""
        ...

    def deltas(self) -> tuple[Tensor, ...]:
        """δ_i of the weight, one for each candidate, unmasked."""
        ...

    def to(self, device: Any) -> Change:
        """The change on a device."""
        ...

    def merged(self, masks: Mapping[str, Tensor], how: Merging, seed: int) -> Tensor:
        """The fused change under rescaled masks of the parts; differentiable in them."""
        ...


@dataclass(frozen=True)
class Dense:
    """ΔW of one tensor, in float32, one for each candidate."""

    name: str
    each: tuple[Tensor, ...]

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """See Change."""
        return {self.name: self.each[0]}

    def deltas(self) -> tuple[Tensor, ...]:
        """See Change."""
        return self.each

    def to(self, device: Any) -> Dense:
        """See Change."""
        return replace(self, each=tuple(d.to(device) for d in self.each))

    def merged(self, masks: Mapping[str, Tensor], how: Merging, seed: int) -> Tensor:
        """See Change."""
        return merge(self.name, [d * masks[self.name] for d in self.each], how, seed)


@dataclass(frozen=True)
class Factors:
    """scale · BA of one LoRA module: B is (out, r), A is (r, in), under their names in the adapter's file.

    `transposed`: the weight is kept as (in, out), or is an embedding.
    """

    down_name: str
    down: Tensor
    up_name: str
    up: Tensor
    scale: float
    transposed: bool = False

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """See Change."""
        return {self.down_name: self.down, self.up_name: self.up}

    def deltas(self) -> tuple[Tensor, ...]:
        """See Change."""
        return (self._product(self.up, self.down),)

    def to(self, device: Any) -> Factors:
        """See Change."""
        return replace(self, down=self.down.to(device), up=self.up.to(device))

    def merged(self, masks: Mapping[str, Tensor], how: Merging, seed: int) -> Tensor:
        """See Change; with one candidate there is nothing to merge."""
        return self._product(self.up * masks[self.up_name], self.down * masks[self.down_name])

    def _product(self, up: Tensor, down: Tensor) -> Tensor:
        whole = self.scale * (up @ down)
        return whole.T if self.transposed else whole


def dense_changes(reference: Source, candidates: Sequence[Source]) -> dict[str, Change]:
    """δ_i = θ_i − θ₀ of every floating-point tensor that a candidate changed, by name.

    Raises:
        ModelError: a candidate lacks a tensor or has it in another shape, or none changed anything.
    """
    found: dict[str, Change] = {}
    for name in touched(reference, candidates):
        if not reference.specs[name].floating:
            continue
        safe = reference.read(name).float()
        each = tuple(_delta(c, name, safe) for c in candidates)
        if any(bool(d.any()) for d in each):
            found[name] = Dense(name, each)
    if not found:
        raise ModelError(
            f"{reference.folder}: the candidates hold the same weights as the reference",
            remedy="give guards that were fine-tuned from it",
        )
    return found


def touched(reference: Source, candidates: Sequence[Source]) -> Iterator[str]:
    """Names of the tensors that a candidate may have changed; ModelError where one does not have a tensor."""
    for name in sorted(reference.specs):
        for candidate in candidates:
            spec = candidate.specs.get(name)
            if spec is None or spec.shape != reference.specs[name].shape:
                found = "no" if spec is None else f"a {spec.shape}"
                raise ModelError(
                    f"{candidate.folder}: it has {found} tensor {name!r}, the reference one of "
                    f"{reference.specs[name].shape}",
                    remedy="give guards that were fine-tuned from the reference",
                )
        if any(c.changed is None or name in c.changed for c in candidates):
            yield name


def factor_changes(reference: Source, candidate: Source) -> dict[str, Change]:
    """The LoRA of an adapter on the reference as factors, by the weight that each pair changes.

    Raises:
        ConfigError: it is no adapter, one on another base, or one that does more than two factors say.
    """
    lora = candidate.lora
    if lora is None:
        raise ConfigError(
            f"{candidate.folder}: no LoRA adapter, so that there are no factors to mask",
            remedy="mask the dense change: space = delta",
        )
    if reference.base is not None or candidate.base_digest != reference.base_digest:
        raise ConfigError(
            f"{candidate.folder}: its base {candidate.base} is not the reference {reference.folder}",
            remedy="name the adapter's base as the reference, or mask the dense change: space = delta",
        )
    odd = sorted([*lora.whole, *lora.biases, *(n for n, p in lora.pairs.items() if p.magnitude is not None)])
    if odd or not lora.pairs:
        what = f"it changes {odd[0]!r} by more than two factors" if odd else "it has no factors"
        raise ConfigError(f"{candidate.folder}: {what}", remedy="mask the dense change: space = delta")
    return {
        name: Factors(
            pair.a,
            lora.file.read(pair.a).float(),
            pair.b,
            lora.file.read(pair.b).float(),
            pair.scale,
            pair.transposed,
        )
        for name, pair in sorted(lora.pairs.items())
    }


def _delta(candidate: Source, name: str, safe: Tensor) -> Tensor:
    return candidate.read(name).float() - safe
