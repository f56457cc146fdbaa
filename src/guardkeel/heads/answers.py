"""From last hidden states to what is measured: KL from the original next token, verdict log-odds, states.

KL(p ‖ q) = Σ p (log p − log q), in float64 from float32 logits: Σ p log p − p·z + log Σ exp z for q's logits z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from guardkeel.errors import ModelError
from guardkeel.heads.layout import Layout
from guardkeel.heads.linear import fused
from guardkeel.heads.prompts import Prompt

_CACHED = 8  # rows of logits that are in the cache while float64 is made of them


@dataclass(frozen=True)
class Measured:
    """One variant over the prompts: kl (n,) and log-odds (n,), NaN where not asked for, and states (n, width)."""

    kl: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    hidden: NDArray[np.float32]


class Answers:
    """Measures variants against the original's last states.

    Args:
        layout: of the model.
        prompts: n of them; `of` says which row of the states is whose.
        of: (n,) tensor.
        original: residual streams (rows, hidden) of the model as it is, before the final norm.
        rows: of logits to hold at once.
        kl: measure distributions; else only states.
    """

    def __init__(
        self,
        layout: Layout,
        prompts: Sequence[Prompt],
        of: torch.Tensor,
        original: torch.Tensor,
        rows: int,
        *,
        kl: bool,
    ) -> None:
        self.layout, self.prompts, self.of, self.rows, self.kl = layout, prompts, of, rows, kl
        if not kl:
            return
        self._head = fused([layout.model.get_output_embeddings()], pack=True)
        logits = self._logits(layout.final(original)).double()
        if not bool(torch.isfinite(logits).all()):
            at = int((~torch.isfinite(logits).all(-1))[of].nonzero()[0])
            raise ModelError(
                f"prompt {prompts[at].id!r} gives logits that are not finite",
                remedy="load the model in float32",
            )
        log = logits.log_softmax(-1)
        self._original = log.exp()
        self._negentropy = (self._original * log).sum(-1)

    def measure(self, x: torch.Tensor) -> list[Measured]:
        """Variants' residual streams (variants, rows, hidden) before the final norm."""
        states = self.layout.final(x)
        hidden = states[:, self.of].float().cpu().numpy()
        count, ends = states.shape[:2]
        kl = torch.full((count * ends,), torch.nan, dtype=torch.float64)
        odds = np.full((count, len(self.prompts)), np.nan)
        if self.kl:
            flat = states.flatten(0, 1)
            for start in range(0, count * ends, self.rows):
                self._distributions(flat[start : start + self.rows], start, ends, kl, odds)
        per_prompt = kl.view(count, ends)[:, self.of.cpu()].numpy()
        return [Measured(per_prompt[i], odds[i], hidden[i]) for i in range(count)]

    def _distributions(
        self, states: torch.Tensor, start: int, ends: int, kl: torch.Tensor, odds: NDArray[np.float64]
    ) -> None:
        logits = self._logits(states)
        near = _CACHED if logits.device.type == "cpu" else len(logits)
        whose = torch.arange(start, start + len(logits), device=logits.device) % ends
        for at in range(0, len(logits), near):
            rows = whose[at : at + near]
            z = logits[at : at + near].double()
            top = z.amax(-1, keepdim=True)
            cross = (self._original[rows] * z).sum(-1)
            lse = (z - top).exp_().sum(-1).log_() + top[:, 0]
            found = (self._negentropy[rows] - cross + lse).clamp_(min=0.0)
            kl[start + at : start + at + len(z)] = found.cpu()
        self._odds(logits, start, ends, odds)

    def _odds(self, logits: torch.Tensor, start: int, ends: int, odds: NDArray[np.float64]) -> None:
        for i, (prompt, end) in enumerate(zip(self.prompts, self.of.tolist(), strict=True)):
            if not (prompt.unsafe and prompt.safe):
                continue
            first = (end - start) % ends
            z = logits[first::ends].double()
            unsafe, safe = (z[:, list(ids)].logsumexp(-1) for ids in (prompt.unsafe, prompt.safe))
            variants = range((start + first) // ends, (start + first) // ends + len(z))
            odds[list(variants), i] = (unsafe - safe).cpu().numpy()

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        (out,) = self._head(states)
        return self.layout.scaled(out)
