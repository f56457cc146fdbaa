"""Guards that are sequence classifiers: P(unsafe) is the probability of the labels that mean unsafe."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Batch, Guard, Judgement, Verdict
from guardkeel.guards.batching import halving, plan
from guardkeel.guards.disarm import Disarmer
from guardkeel.guards.judged import BLIND, judged_pair
from guardkeel.guards.labels import SAFE_NAMES, UNSAFE_NAMES, unsafe_labels
from guardkeel.guards.offsets import NO_OFFSETS, Offsets, shifted
from guardkeel.guards.shorten import Shortener
from guardkeel.models.devices import model_facts

__all__ = ["SAFE_NAMES", "UNSAFE_NAMES", "ClassifierGuard", "unsafe_labels"]

_Ids = list[tuple[int, int]]  # token and segment ids of one input


class ClassifierGuard(Guard):
    """A sequence classifier. One softmax over labels, or a sigmoid each where the model is multi-label.

    A prompt is its last user turn's text, a response the pair (user turn before it, last assistant turn), a
    trajectory the transcript. Over-long texts are cut in the middle, counted as dropped.
    """

    family = "classifier"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        threshold: float = 0.5,
        max_tokens: int = 512,
        token_budget: int | None = None,
        unsafe: Sequence[str] | None = None,
        offsets: Offsets = NO_OFFSETS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.threshold = threshold
        self.offsets = offsets
        limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        self.max_tokens = min([max_tokens, *(n for n in limits if n and n > 0)])
        self.token_budget = token_budget or (4096 if model.device.type == "cpu" else 65536)
        names = {int(i): str(label) for i, label in model.config.id2label.items()}
        several = getattr(model.config, "problem_type", None) == "multi_label_classification"
        self.labels = names
        self.multi_label = several or len(names) == 1  # one output is one sigmoid
        self.unsafe = self._unsafe(unsafe)
        self.causal = hasattr(model, "score")  # the head of decoders, which pool the last token
        pads = (
            getattr(model.config, "pad_token_id", None),
            tokenizer.pad_token_id,
            tokenizer.eos_token_id,
            0,
        )
        self.pad_id = next(i for i in pads if i is not None)
        if self.causal and model.config.pad_token_id is None:
            model.config.pad_token_id = self.pad_id  # transformers finds the last real token by it
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.takes_segments = "token_type_ids" in inspect.signature(plain.forward).parameters
        self._disarm = Disarmer(tokenizer)
        self._shortener = Shortener(tokenizer, self.max_tokens)

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard."""
        said = {"max_tokens": self.max_tokens, "token_budget": self.token_budget}
        return model_facts(self.model) | said | ({"offsets": dict(self.offsets)} if self.offsets else {})

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """Score in deterministic batches; those numbered in `skip` are already known and are not run."""
        encoded = [self.encode(item) for item in items]
        lengths = [1 if isinstance(e, str) else len(e[0]) for e in encoded]
        nothing = (
            np.full((len(layers), self.model.config.hidden_size), np.nan, np.float32) if layers else None
        )
        with Capture(self.model, layers) as capture:

            def run(rows: list[int]) -> list[tuple[Verdict, Any]]:
                good = {i: e for i in rows if not isinstance(e := encoded[i], str)}
                with torch.inference_mode():
                    sides = [items[i].side for i in good]
                    done = self._run(list(good.values()), sides, capture, categories) if good else []
                judged = dict(zip(good, done, strict=True))
                return [judged.get(i) or (Verdict(None, unscored=str(encoded[i])), nothing) for i in rows]

            for number, indices in enumerate(plan(lengths, self.token_budget)):
                if number not in skip:
                    rows = halving(run, indices)
                    hidden = np.stack([h for _, h in rows], axis=1) if layers else None
                    yield Batch(number, indices, [v for v, _ in rows], hidden)

    def _run(
        self, rows: list[tuple[_Ids, int]], sides: list[Side], capture: Capture, categories: bool
    ) -> list[tuple[Verdict, Any]]:
        width, device = max(len(ids) for ids, _ in rows), self.model.device
        ids = torch.full((len(rows), width), self.pad_id)
        segments, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
        for i, (row, _) in enumerate(rows):
            ids[i, : len(row)], segments[i, : len(row)] = torch.tensor(row).T
            mask[i, : len(row)] = 1
        ids, mask = ids.to(device), mask.to(device)
        extra = {"token_type_ids": segments.to(device)} if self.takes_segments else {}
        logits = self.model(input_ids=ids, attention_mask=mask, **extra).logits.float()
        # Encoders pool their first token; decoders their last real one.
        positions = (
            mask.sum(1) - 1 if self.causal else torch.zeros(len(rows), dtype=torch.long, device=device)
        )
        hidden = capture.take(positions) if capture.layers else None
        return [
            (
                self._verdict(logits[i], side, dropped, categories),
                hidden[:, i] if hidden is not None else None,
            )
            for i, ((_, dropped), side) in enumerate(zip(rows, sides, strict=True))
        ]

    def _verdict(self, logits: torch.Tensor, side: Side, dropped: int, categories: bool) -> Verdict:
        if not torch.isfinite(logits).all():
            return Verdict(None, unscored="logits are not finite", dropped=dropped)
        if self.multi_label:
            chances = logits.sigmoid()
            chance = float(chances[self.unsafe].max())
        else:
            chances = logits.softmax(-1)
            chance = min(1.0, float(chances[self.unsafe].sum()))
        chance = shifted(chance, self.offsets.get(side, 0.0))
        names: tuple[str, ...] = ()
        if categories and chance >= self.threshold and len(self.unsafe) > 1:
            names = (self.labels[max(self.unsafe, key=lambda i: float(chances[i]))],)
        return Verdict(chance, categories=names, dropped=dropped)

    def encode(self, item: Judgement) -> tuple[_Ids, int] | str:
        """Ids of an item with the number of tokens dropped, or why it has none."""

        def ids(texts: list[str]) -> _Ids:
            encoded = self.tokenizer(*texts, verbose=False)
            tokens = encoded["input_ids"]  # segments only where the tokenizer says that its model wants them
            return list(zip(tokens, encoded.get("token_type_ids") or [0] * len(tokens), strict=True))

        if item.conversation.images:
            return BLIND
        texts = [self._disarm(text) for text in judged_pair(item.conversation, item.side)]
        try:
            found, dropped = self._shortener.fit(texts, ids, self.max_tokens)
        except ConfigError as e:
            return e.problem
        return (found, dropped) if found else "the text is empty"

    def _unsafe(self, wanted: Sequence[str] | None) -> list[int]:
        if wanted is None:
            return unsafe_labels(self.labels, multi_label=self.multi_label)
        known = sorted(self.labels.values())
        absent = set(wanted) - set(known)
        if absent:
            raise ModelError(f"unsafe_labels names {sorted(absent)[0]!r}", remedy=f"labels are {known}")
        found = [i for i, label in self.labels.items() if label in wanted]
        if not found or (len(found) == len(self.labels) and not self.multi_label):
            raise ModelError(
                f"unsafe_labels names {'all' if found else 'none'} of {known}, which tells nothing",
                remedy="name the labels that mean unsafe, and not those that mean safe",
            )
        return found
