"""Guards that are causal language models: one forward, logits of the verdict tokens at the verdict position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guardkeel.activations.capture import Capture
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family, Judgement, Verdict
from guardkeel.guards.batching import halving, plan
from guardkeel.guards.categories import CategoryReader
from guardkeel.guards.encoding import Encoded, Encoder
from guardkeel.guards.prefix import KeyValues, encode_prefix, forward, left_padded, reusable


@dataclass(frozen=True, slots=True)
class Batch:
    """Verdicts of some items. `hidden` is (layers, rows, width) at the verdict position, rows as in `indices`;
    NaN where an item could not be run.
    """

    number: int
    indices: list[int]
    verdicts: list[Verdict]
    hidden: np.ndarray[Any, np.dtype[np.float32]] | None


@dataclass(frozen=True, slots=True)
class _Row:
    verdict: Verdict
    hidden: np.ndarray[Any, np.dtype[np.float32]] | None


class CausalGuard:
    """A causal LM with a family's template and grammar.

    P(unsafe) = Σ p(unsafe tokens) / Σ p(verdict tokens) at the position after the rendered input. When the likeliest
    token there is not a verdict token, greedy decoding would leave the grammar: the item is unscored.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        name: str,
        threshold: float = 0.5,
        max_tokens: int = 2048,
        token_budget: int | None = None,
        share_prefix: bool = True,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.grammar = family
        self.name = name
        self.family = family.name
        self.threshold = threshold
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", max_tokens)
        self.max_tokens = min(max_tokens, longest)
        self.token_budget = token_budget or (2048 if model.device.type == "cpu" else 65536)
        self.share_prefix = share_prefix and reusable(model.config)

    def score(self, items: Sequence[Judgement], **options: Any) -> list[Verdict]:
        """One verdict for each item, in order."""
        verdicts: dict[int, Verdict] = {}
        for batch in self.batches(items, **options):
            verdicts.update(zip(batch.indices, batch.verdicts, strict=True))
        return [verdicts[i] for i in range(len(items))]

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """Score in deterministic batches; those numbered in `skip` are already known and are not run."""
        if not items:
            return
        encoder = Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)
        if self.share_prefix:
            encoder.share(_spread(items))
        encoded = [_encode(encoder, item) for item in items]
        lengths = [len(e.ids) if isinstance(e, Encoded) else 1 for e in encoded]
        with torch.inference_mode(), Capture(self.model, layers) as capture:
            prefix = encode_prefix(self.model, encoder.prefix_ids) if encoder.prefix_ids else None
            if prefix:
                capture.take(-1)
            run = _Forward(self, prefix, encoded, encoder.pad_id, capture, categories)
            for number, indices in enumerate(plan(lengths, self.token_budget)):
                if number in skip:
                    continue
                rows = halving(run, indices)
                hidden = np.stack([_or_nan(r.hidden, run.shape) for r in rows], axis=1) if layers else None
                yield Batch(number, indices, [r.verdict for r in rows], hidden)


class _Forward:
    """One batch through the model."""

    def __init__(
        self,
        guard: CausalGuard,
        prefix: KeyValues | None,
        encoded: list[Encoded | str],
        pad: int,
        capture: Capture,
        categories: bool,
    ) -> None:
        self.guard, self.prefix, self.encoded, self.pad, self.capture = guard, prefix, encoded, pad, capture
        safe, unsafe = guard.grammar.verdict_tokens(guard.tokenizer)
        self.unsafe = len(unsafe)
        self.verdict_ids = torch.tensor([*unsafe, *safe], device=guard.model.device)
        self.reader = CategoryReader(guard.grammar, guard.tokenizer) if categories and guard.grammar.categories else None
        width = guard.model.config.get_text_config(decoder=True).hidden_size
        self.shape = (len(capture.layers), width)

    def __call__(self, indices: list[int]) -> list[_Row]:
        good = [i for i in indices if isinstance(self.encoded[i], Encoded)]
        rows = dict(zip(good, self._run(good), strict=True)) if good else {}
        return [rows.get(i) or _Row(Verdict(None, unscored=str(self.encoded[i])), None) for i in indices]

    def _run(self, indices: list[int]) -> list[_Row]:
        chosen = [e for i in indices if isinstance(e := self.encoded[i], Encoded)]
        ids, mask = left_padded([e.ids for e in chosen], self.pad, self.guard.model.device)
        out = forward(self.guard.model, self.prefix, ids, mask, cache=self.reader is not None)
        logits = out.logits[:, -1].float()
        hidden = self.capture.take(-1) if self.capture.layers else None
        chances = logits[:, self.verdict_ids].softmax(-1)[:, : self.unsafe].sum(-1)
        greedy = logits.argmax(-1)
        heard = torch.isin(greedy, self.verdict_ids)
        finite = torch.isfinite(logits).all(-1)
        names: dict[int, tuple[str, ...]] = {}
        if self.reader is not None:
            flagged = (finite & heard & (chances >= self.guard.threshold)).nonzero()[:, 0]
            names = self.reader.read(self.guard.model, out.past_key_values, mask, flagged, self.prefix)
        rows = []
        for i, encoded in enumerate(chosen):
            if not finite[i]:
                verdict = Verdict(None, unscored="logits are not finite", dropped=encoded.dropped)
            elif not heard[i]:
                token = self.guard.tokenizer.decode([int(greedy[i])])
                verdict = Verdict(None, unscored=f"output begins with {token!r}, not a verdict", dropped=encoded.dropped)
            else:
                chance = min(1.0, float(chances[i]))
                verdict = Verdict(chance, categories=names.get(i, ()), dropped=encoded.dropped)
            rows.append(_Row(verdict, hidden[:, i] if hidden is not None else None))
        return rows


def _encode(encoder: Encoder, item: Judgement) -> Encoded | str:
    try:
        return encoder.encode(item)
    except ConfigError as e:
        return e.problem


def _spread(items: Sequence[Judgement], most: int = 32) -> list[Judgement]:
    return list(items[:: max(1, len(items) // most)])


def _or_nan(hidden: np.ndarray[Any, np.dtype[np.float32]] | None, shape: tuple[int, int]) -> Any:
    return np.full(shape, np.nan, np.float32) if hidden is None else hidden
