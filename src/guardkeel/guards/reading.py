"""One batch through a causal guard: the blanks of its form filled, the verdict read at the last of them.

The first forward covers the conversation and the opening of the first blank. Later blanks, category names and free
text go on from its key/value cache. A guard that would write something else than the opening leaves its grammar, and
the item is unscored: forcing it on would make a verdict that it never gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Side
from guardkeel.guards.base import Step, Verdict
from guardkeel.guards.decoding import Decoding
from guardkeel.guards.encoding import Encoded
from guardkeel.guards.ground import Ground
from guardkeel.guards.offsets import shifted

if TYPE_CHECKING:
    from guardkeel.guards.causal import CausalGuard

ANSWER_TOKENS = 512
"""Longest free text that is read, where the family does not say otherwise (`answer_tokens`)."""


@dataclass(frozen=True, slots=True)
class Read:
    """A verdict, and the hidden states (layers, width) at its place; NaN where the item could not be run."""

    verdict: Verdict
    hidden: Any


class Reading:
    """Batches of one group of items, which share prefix and blanks."""

    def __init__(
        self,
        guard: CausalGuard,
        side: Side,
        ground: Ground,
        encoded: Sequence[Encoded | str],
        capture: Capture,
        categories: bool,
    ) -> None:
        self.guard, self.side, self.encoded = guard, side, encoded
        self.pad, self.capture = ground.encoder.pad_id, capture
        width = guard.model.config.get_text_config(decoder=True).hidden_size
        self._nothing = np.full((len(capture.layers), width), np.nan, np.float32)
        if side not in guard.grammar.sides:  # its items have no ids and are never run
            return
        self.form, self.prefix = ground.form, ground.prefix
        self.reader = ground.reader if categories else None

    def __call__(self, indices: list[int]) -> list[Read]:
        """Verdicts of these items; those that have no ids are unscored."""
        good = {i: e for i in indices if isinstance(e := self.encoded[i], Encoded)}
        # Entered here and not around the loop: a generator's caller must not find itself in inference mode.
        with torch.inference_mode():
            rows = dict(zip(good, self._run(list(good.values())), strict=True)) if good else {}
        return [
            rows.get(i) or Read(Verdict(None, unscored=str(self.encoded[i])), self._nothing) for i in indices
        ]

    def _run(self, chosen: list[Encoded]) -> list[Read]:
        blanks = self.form.blanks
        goes_on = self.reader is not None or len(blanks) != 1
        state = Decoding(self.guard.model, self.prefix, more=goes_on)
        opened = max(e.opened for e in chosen)
        logits = state.feed([e.ids for e in chosen], keep=opened + 1, pad=self.pad)
        reasons = self._strayed(logits, [e.ids[len(e.ids) - e.opened :] for e in chosen])
        if not blanks:
            hidden = self._hidden()
            verdicts = self._free_text(state, logits[:, -1], chosen)
        else:
            filled: list[tuple[str, ...]] = [()] * len(chosen)
            for _ in blanks[1:]:
                logits, filled = self._fill(state, logits[:, -1], filled, reasons)
            hidden = self._hidden()
            verdicts = self._verdicts(logits[:, -1], filled, reasons, state, chosen)
        return [
            Read(v, hidden[:, i] if hidden is not None else self._nothing) for i, v in enumerate(verdicts)
        ]

    def _hidden(self) -> Any:
        return self.capture.take(-1) if self.capture.layers else None

    def _fill(
        self, state: Decoding, logits: torch.Tensor, filled: list[tuple[str, ...]], reasons: list[str]
    ) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
        """The guard's own answer to a blank that is not the verdict, and the logits after the next opening."""
        pieces = []
        for i, before in enumerate(filled):
            answers = self.form.step(before).answers
            tokens = list(answers)
            greedy = int(logits[i].argmax())
            if greedy not in answers:
                reasons[i] = reasons[i] or f"output goes on with {self._text(greedy)!r}, outside the form"
            filled[i] = (*before, answers[tokens[int(logits[i, tokens].argmax())]])
            pieces.append(list(self.form.step(filled[i]).ids))
        logits = state.feed(pieces, keep=max(map(len, pieces)))
        for i, reason in enumerate(self._strayed(logits, [piece[1:] for piece in pieces])):
            reasons[i] = reasons[i] or reason
        return logits, filled

    def _strayed(self, logits: torch.Tensor, written: list[list[int]]) -> list[str]:
        """Why a row's greedy tokens are not those that are written here, or "". The last logits come after them."""
        reasons = []
        for row, ids in zip(logits, written, strict=True):
            greedy = row[len(row) - 1 - len(ids) : -1].argmax(-1).tolist() if ids else []
            odd = [g for g, i in zip(greedy, ids, strict=True) if g != i and self._text(g) != self._text(i)]
            reasons.append(f"output goes on with {self._text(odd[0])!r}, outside the form" if odd else "")
        return reasons

    def _verdicts(
        self,
        logits: torch.Tensor,
        filled: list[tuple[str, ...]],
        reasons: list[str],
        state: Decoding,
        chosen: list[Encoded],
    ) -> list[Verdict]:
        steps = [self.form.step(before) for before in filled]
        offsets = [self.guard.offsets.get(e.side, 0.0) for e in chosen]
        raw = self._chances(logits, steps)
        chances = [shifted(min(1.0, p), offset) for p, offset in zip(raw, offsets, strict=True)]
        greedy = logits.argmax(-1).tolist()
        finite = torch.isfinite(logits).all(-1).tolist()
        for i, step in enumerate(steps):
            if not finite[i]:
                reasons[i] = "logits are not finite"
            elif not reasons[i] and greedy[i] not in (*step.unsafe, *step.safe):
                said = step.answers.get(greedy[i], self._text(greedy[i]))
                begins = "output begins with" if len(self.form.blanks) == 1 else "the verdict's place holds"
                reasons[i] = f"{begins} {said!r}, not a verdict"
        names: dict[int, tuple[str, ...]] = {}
        if self.reader is not None:
            flagged = [i for i, r in enumerate(reasons) if not r and chances[i] >= self.guard.threshold]
            words = {i: steps[i].answers.get(greedy[i], "") for i in flagged}
            names = self.reader.read(state, words)
        return [
            Verdict(None, unscored=reason, dropped=e.dropped)
            if reason
            else Verdict(chances[i], categories=names.get(i, ()), dropped=e.dropped)
            for i, (reason, e) in enumerate(zip(reasons, chosen, strict=True))
        ]

    @staticmethod
    def _chances(logits: torch.Tensor, steps: list[Step]) -> list[float]:
        """P(unsafe) of each row: the share of the unsafe answers in the verdicts."""
        kinds: dict[tuple[Any, Any], list[int]] = {}
        for i, step in enumerate(steps):
            kinds.setdefault((step.unsafe, step.safe), []).append(i)
        chances = [0.0] * len(steps)
        for (unsafe, safe), rows in kinds.items():
            ids = torch.tensor([*unsafe, *safe], device=logits.device)
            found = logits[rows][:, ids].softmax(-1)[:, : len(unsafe)].sum(-1)
            for i, chance in zip(rows, found.tolist(), strict=True):
                chances[i] = chance
        return chances

    def _free_text(self, state: Decoding, logits: torch.Tensor, chosen: list[Encoded]) -> list[Verdict]:
        """Verdicts parsed from what the guard writes of itself, greedily, to its end token."""
        family, tokenizer = self.guard.grammar, self.guard.tokenizer
        ends = _ends(self.guard)
        written: list[list[int]] = [[] for _ in chosen]
        done = [not bool(torch.isfinite(row).all()) for row in logits]
        broken = list(done)
        for _ in range(getattr(family, "answer_tokens", ANSWER_TOKENS)):
            tokens = logits.argmax(-1).tolist()
            for i, token in enumerate(tokens):
                if not done[i]:
                    done[i] = token in ends
                    written[i].append(token)
            if all(done):
                break
            logits = state.feed([[token] for token in tokens])[:, -1]
        verdicts = []
        for ids, finished, bad, e in zip(written, done, broken, chosen, strict=True):
            if bad or not finished:
                why = "logits are not finite" if bad else f"output does not end within {len(ids)} tokens"
                verdicts.append(Verdict(None, unscored=why, dropped=e.dropped))
                continue
            found = family.parse(tokenizer.decode(ids, skip_special_tokens=True), self.side)
            verdicts.append(Verdict(found.unsafe, found.unscored, found.categories, e.dropped))
        return verdicts

    def _text(self, token: int) -> str:
        return str(self.guard.tokenizer.decode([token])).strip()


def _ends(guard: CausalGuard) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those that the checkpoint's generation settings name."""
    said = getattr(getattr(guard.model, "generation_config", None), "eos_token_id", None)
    listed = said if isinstance(said, list) else [said]
    return {int(i) for i in (guard.tokenizer.eos_token_id, *listed) if i is not None}
