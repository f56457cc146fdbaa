"""Guards that are causal language models: one forward, logits of the verdict tokens at the last position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError, ModelError, RunError
from guardkeel.guards.base import Family, Judgement, Verdict
from guardkeel.guards.batching import MEMORY_REMEDY, halving, plan
from guardkeel.guards.categories import CategoryReader
from guardkeel.guards.encoding import Encoded, Encoder, NotSharedError
from guardkeel.guards.prefix import KeyValues, encode_prefix, forward, left_padded, reusable
from guardkeel.models.devices import is_out_of_memory


@dataclass(frozen=True, slots=True)
class Batch:
    """Verdicts of some items.

    `hidden` is (layers, rows, width) at the verdict position, rows as in `indices`; NaN where an item
    could not be run.
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

    P(unsafe) = Σ p(unsafe tokens) / Σ p(verdict tokens) at the position after the rendered input. When
    the likeliest token there is not a verdict token, greedy decoding would leave the grammar: the item is
    unscored.
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
        number = -1
        with Capture(self.model, layers) as capture:
            for group in self._groups(items):
                encoder, encoded = self._encode([items[i] for i in group])
                lengths = [len(e.ids) if isinstance(e, Encoded) else 1 for e in encoded]
                run: _Forward | None = None
                for chosen in plan(lengths, self.token_budget):
                    number += 1
                    if number in skip:
                        continue
                    run = run or _Forward(self, encoder, encoded, capture, categories)
                    rows = halving(run, chosen)
                    hidden = (
                        np.stack([_or_nan(r.hidden, run.shape) for r in rows], axis=1) if layers else None
                    )
                    yield Batch(number, [group[i] for i in chosen], [r.verdict for r in rows], hidden)

    def _groups(self, items: Sequence[Judgement]) -> list[list[int]]:
        """Indices of the items by the prefix that they will share: it differs by side in some families."""
        if not self.share_prefix:
            return [list(range(len(items)))] if items else []
        prefixes: dict[Side, str] = {}
        groups: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            if item.side not in prefixes:
                asked = Conversation.of("a", None if item.side == "prompt" else "b")
                prefixes[item.side] = self.grammar.render(asked, item.side, self.tokenizer).prefix
            groups.setdefault(prefixes[item.side], []).append(i)
        return list(groups.values())

    def _encode(self, items: Sequence[Judgement]) -> tuple[Encoder, list[Encoded | str]]:
        """Ids of the items, or why an item has none.

        Nothing is shared where the items turn out not to begin alike.
        """
        encoder = Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)
        if self.share_prefix:
            encoder.share(_spread(items))
        try:
            return encoder, [_encode(encoder, item) for item in items]
        except NotSharedError:
            whole = Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)
            return whole, [_encode(whole, item) for item in items]


class _Forward:
    """One batch through the model."""

    def __init__(
        self,
        guard: CausalGuard,
        encoder: Encoder,
        encoded: list[Encoded | str],
        capture: Capture,
        categories: bool,
    ) -> None:
        self.guard, self.encoded, self.pad, self.capture = guard, encoded, encoder.pad_id, capture
        safe, unsafe = guard.grammar.verdict_tokens(guard.tokenizer)
        if set(safe) & set(unsafe):
            raise ModelError(
                f"{guard.name}: both verdicts of family {guard.family!r} begin with the same token",
                remedy="check that the family and the tokenizer are this model's own",
            )
        self.unsafe = len(unsafe)
        self.verdict_ids = torch.tensor([*unsafe, *safe], device=guard.model.device)
        named = categories and bool(guard.grammar.categories)
        self.reader = CategoryReader(guard.grammar, guard.tokenizer) if named else None
        width = guard.model.config.get_text_config(decoder=True).hidden_size
        self.shape = (len(capture.layers), width)
        self.prefix = self._shared(encoder.prefix_ids)

    def _shared(self, ids: list[int]) -> KeyValues | None:
        if not ids:
            return None
        try:
            with torch.inference_mode():
                return encode_prefix(self.guard.model, ids)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            raise RunError(
                f"out of memory on the policy prefix of {len(ids)} tokens", remedy=MEMORY_REMEDY
            ) from e

    def __call__(self, indices: list[int]) -> list[_Row]:
        good = [i for i in indices if isinstance(self.encoded[i], Encoded)]
        # Entered here and not around the loop: a generator's caller must not find itself in inference mode.
        with torch.inference_mode():
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
                verdict = Verdict(
                    None, unscored=f"output begins with {token!r}, not a verdict", dropped=encoded.dropped
                )
            else:
                chance = min(1.0, float(chances[i]))
                verdict = Verdict(chance, categories=names.get(i, ()), dropped=encoded.dropped)
            rows.append(_Row(verdict, hidden[:, i] if hidden is not None else None))
        return rows


def _encode(encoder: Encoder, item: Judgement) -> Encoded | str:
    try:
        return encoder.encode(item)
    except NotSharedError:
        raise
    except ConfigError as e:
        return e.problem


def _spread(items: Sequence[Judgement], most: int = 32) -> list[Judgement]:
    return list(items[:: max(1, len(items) // most)])


def _or_nan(hidden: np.ndarray[Any, np.dtype[np.float32]] | None, shape: tuple[int, int]) -> Any:
    return np.full(shape, np.nan, np.float32) if hidden is None else hidden
