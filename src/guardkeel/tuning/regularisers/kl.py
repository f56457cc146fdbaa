"""KL to the reference: the guard's answer to guard conversations stays as it was, word for word.

    KL(p_θ₀ ‖ p_θ) · T²,  p = softmax(logits / T) at the verdict position, over the whole vocabulary,

mean over the step's probes (T² keeps gradients alike over temperatures, arXiv:1503.02531). No label is used.
log p_θ₀ of every probe is computed once and kept in half precision on the CPU: 2 bytes · probes · vocabulary
(400 probes, 128k tokens: 103 MB; a second model would be gigabytes).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from guardkeel.errors import DataError
from guardkeel.tuning.regularisers import base

_LOWEST = -6e4  # of half precision; e^-60000 is zero in any precision, and unlike -inf it can be subtracted
_RELATIVE, _ABSOLUTE = 2.0**-11, 2.0**-25  # half a step of half precision, of normal and subnormal numbers


class KLSettings(base.Settings):
    """Settings of the KL term."""

    strength: float = Field(default=1.0, ge=0, description="weight of the divergence")
    temperature: float = Field(
        default=1.0, gt=0, description="T, of both distributions; above 1 rare words count more"
    )


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) along the last axis, bounded so that half precision can hold it."""
    return torch.log_softmax(logits / temperature, -1).clamp(min=_LOWEST)


def reference(probes: base.Probes, temperature: float = 1.0) -> Tensor:
    """log p of every probe as the model is now: (n, vocabulary), float16, on the CPU. DataError without probes."""
    kept: Tensor | None = None
    with probes.frozen(), torch.no_grad():
        for picks in probes.chunks():
            now = log_probabilities(_logits(probes, picks), temperature).half().cpu()
            if kept is None:
                kept = now.new_zeros(len(probes), now.shape[1])
            kept[picks] = now
    if kept is None:
        raise DataError(
            "there are no guard conversations to hold the model to", remedy="give labelled probes"
        )
    return kept


def divergence(stored: Tensor, now: Tensor) -> Tensor:
    """Mean KL(reference ‖ now) of log-probabilities, both (n, vocabulary), `stored` in half precision.

    A stored number stands for all that round to it, so the reference is taken as the one nearest to `now`: rounding is
    never mistaken for drift, and at θ₀ divergence and gradient are exactly zero. As such a reference sums to one up to
    rounding only, KL is taken in its general form Σ r (log r − log p) − r + p, whose every summand is ≥ 0.
    """
    stored = stored.to(now.device, now.dtype)
    slack = stored.abs() * _RELATIVE + _ABSOLUTE
    nearest = torch.clamp(now.detach(), stored - slack, stored + slack)
    r = nearest.exp()
    return (r * (nearest - now) - r + now.exp()).sum(-1).mean()


def penalty(probes: base.Probes, picks: list[int], stored: Tensor, temperature: float) -> Tensor:
    """T² · mean KL(reference ‖ model) of these probes; `stored` from `reference`."""
    now = log_probabilities(_logits(probes, picks), temperature)
    return temperature**2 * divergence(stored[picks], now)


def _logits(probes: base.Probes, picks: list[int]) -> Tensor:
    logits = probes.look(picks).logits
    assert logits is not None  # `look` was asked for them
    return logits


class KL(base.Regulariser):
    """Holds the whole distribution at the verdict position on guard conversations. Zero, with its gradient, at θ₀."""

    name = "kl"
    looks: base.Looks = "verdict"
    sharded = True
    Settings = KLSettings
    settings: KLSettings
    _last: Tensor | None = None

    @property
    def passes(self) -> int:
        """The reference's forward."""
        return int(self.settings.strength > 0)

    def prepare(self, probes: base.Probes) -> None:
        """Keep the reference's log-probabilities."""
        if self.settings.strength:
            self.fixed["reference"] = reference(probes, self.settings.temperature)

    def loss(self, probes: base.Probes, step: int) -> Tensor | None:
        """strength · T² · mean KL of the step's probes."""
        if not self.settings.strength:
            return None
        found = penalty(probes, probes.draw(step), self.fixed["reference"], self.settings.temperature)
        self._last = found.detach()
        return self.settings.strength * found

    def log(self) -> dict[str, float]:
        """The last step's divergence in nats, times T², before the weight."""
        return {} if self._last is None else {"kl": float(self._last)}
