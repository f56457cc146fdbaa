"""Guards that are sequence classifiers: P(unsafe) is the probability of the labels that mean unsafe."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Conversation
from guardkeel.errors import ModelError
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.batching import halving, plan
from guardkeel.guards.causal import Batch
from guardkeel.guards.transcript import transcript

UNSAFE_NAMES = frozenset(
    "unsafe harmful harm toxic toxicity injection jailbreak malicious hate hateful offensive flagged unacceptable nsfw attack".split()
)
SAFE_NAMES = frozenset("safe harmless benign legit ok non-toxic neutral not_toxic acceptable clean unharmful sfw normal no_attack".split())


def unsafe_labels(names: dict[int, str]) -> list[int]:
    """Ids of the labels that mean unsafe; raises ModelError where the names do not tell.

    Two anonymous labels (LABEL_0, LABEL_1) are read as the field's convention has it: 1 is unsafe.
    """
    plain = {i: name.strip().lower() for i, name in names.items()}
    unsafe = [i for i, name in plain.items() if name in UNSAFE_NAMES]
    rest = [name for i, name in plain.items() if i not in unsafe]
    if unsafe and all(name in SAFE_NAMES for name in rest):
        return unsafe
    if len(plain) == 2 and set(plain.values()) == {"label_0", "label_1"}:
        return [i for i, name in plain.items() if name == "label_1"]
    if len(plain) == 2 and sum(name in SAFE_NAMES for name in plain.values()) == 1:
        return [i for i, name in plain.items() if name not in SAFE_NAMES]
    if len(plain) > 2 and any(name in SAFE_NAMES for name in plain.values()):
        return [i for i, name in plain.items() if name not in SAFE_NAMES]
    raise ModelError(
        f"labels {sorted(plain.values())} do not say which of them are unsafe",
        remedy='add {"unsafe_labels": ["…"]} to a guardkeel.json beside config.json',
    )


class ClassifierGuard:
    """A sequence classifier. One softmax over labels, or a sigmoid each where the model is multi-label.

    A prompt is its last user turn's text, a response the pair (last user turn, last assistant turn), a trajectory the
    transcript. Over-long texts are cut in the middle, counted as dropped.
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
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.threshold = threshold
        longest = [n for n in (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length) if n and n > 0]
        self.max_tokens = min([max_tokens, *longest])
        self.token_budget = token_budget or (4096 if model.device.type == "cpu" else 65536)
        names = {int(i): str(label) for i, label in model.config.id2label.items()}
        if unsafe is not None:
            absent = set(unsafe) - set(names.values())
            if absent:
                raise ModelError(f"unsafe_labels names {sorted(absent)[0]!r}", remedy=f"labels are {sorted(names.values())}")
            self.unsafe = [i for i, label in names.items() if label in unsafe]
        else:
            self.unsafe = unsafe_labels(names)
        self.labels = names
        self.multi_label = getattr(model.config, "problem_type", None) == "multi_label_classification"
        self.causal = getattr(model.config, "is_decoder", False) or type(model).__name__.startswith(("Llama", "Mistral", "Qwen", "Gemma"))

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
        encoded = [self._encode(item) for item in items]
        lengths = [len(ids) for ids, _ in encoded]
        with torch.inference_mode(), Capture(self.model, layers) as capture:

            def run(rows: list[int]) -> list[tuple[Verdict, Any]]:
                return self._run([encoded[i] for i in rows], capture, categories)

            for number, indices in enumerate(plan(lengths, self.token_budget)):
                if number not in skip:
                    rows = halving(run, indices)
                    hidden = np.stack([h for _, h in rows], axis=1) if layers else None
                    yield Batch(number, indices, [v for v, _ in rows], hidden)

    def _run(self, rows: list[tuple[list[int], int]], capture: Capture, categories: bool) -> list[tuple[Verdict, Any]]:
        padded = self.tokenizer.pad({"input_ids": [ids for ids, _ in rows]}, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = padded["input_ids"].to(self.model.device), padded["attention_mask"].to(self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
        # Encoders pool their first token; decoders their last real one.
        positions = mask.sum(1) - 1 if self.causal else torch.zeros(len(rows), dtype=torch.long, device=ids.device)
        hidden = capture.take(positions) if capture.layers else None
        return [
            (self._verdict(logits[i], dropped, categories), hidden[:, i] if hidden is not None else None)
            for i, (_, dropped) in enumerate(rows)
        ]

    def _verdict(self, logits: torch.Tensor, dropped: int, categories: bool) -> Verdict:
        if not torch.isfinite(logits).all():
            return Verdict(None, unscored="logits are not finite", dropped=dropped)
        if self.multi_label:
            chances = logits.sigmoid()
            chance = float(chances[self.unsafe].max())
        else:
            chances = logits.softmax(-1)
            chance = min(1.0, float(chances[self.unsafe].sum()))
        names: tuple[str, ...] = ()
        if categories and chance >= self.threshold and len(self.unsafe) > 1:
            names = (self.labels[max(self.unsafe, key=lambda i: float(chances[i]))],)
        return Verdict(chance, categories=names, dropped=dropped)

    def _encode(self, item: Judgement) -> tuple[list[int], int]:
        parts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in _parts(item.conversation, item.side)]
        added = self.tokenizer.num_special_tokens_to_add(pair=len(parts) == 2)
        room, dropped = self.max_tokens - added, 0
        while sum(map(len, parts)) > room:
            longest = max(parts, key=len)
            cut = min(sum(map(len, parts)) - room, len(longest) - 1)
            keep = (len(longest) - cut) // 2
            del longest[keep : keep + cut]
            dropped += cut
        texts = [self.tokenizer.decode(p) for p in parts] if dropped else _parts(item.conversation, item.side)
        return list(self.tokenizer(*texts, truncation=True, max_length=self.max_tokens)["input_ids"]), dropped


def _parts(conversation: Conversation, side: str) -> list[str]:
    last = {turn.role: turn for turn in conversation.turns}
    if side == "prompt" and "user" in last:
        return [last["user"].content]
    if side == "response" and "assistant" in last:
        answer = transcript(Conversation((last["assistant"],))).removeprefix("Assistant: ")
        return [last["user"].content, answer] if "user" in last else [answer]
    return [transcript(conversation)]
