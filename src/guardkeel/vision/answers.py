"""What a model knows of pictures: which of the possible answers it finds likeliest, and what it writes of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from guardkeel.conversation import Conversation
from guardkeel.evaluation.intervals import proportion
from guardkeel.guards.decoding import Decoding
from guardkeel.guards.prefix import encode_prefix, forward, left_padded, reusable
from guardkeel.guards.vision import VisionGuard
from guardkeel.records import Estimate
from guardkeel.vision.lessons import question_ids
from guardkeel.vision.pairs import Pair


def chosen(guard: VisionGuard, question: Conversation, choices: Sequence[str]) -> str:
    """The choice c of the largest Σ_t log p(c_t | question, c_<t), its end token included."""
    model, tokenizer = guard.model, guard.tokenizer
    prompt = question_ids(question, tokenizer, guard.sight)
    end = tokenizer.eos_token_id
    rows = [[*_ids(tokenizer, choice), end] for choice in choices]
    longest = max(map(len, rows))
    with torch.inference_mode():
        if guard.sight.eyes.goes_on and reusable(model.config):
            prefix, begin = encode_prefix(model, prompt[:-1]), prompt[-1:]
        else:
            prefix, begin = None, prompt
        ids, mask = left_padded([begin + row for row in rows], 0, model.device)
        logits = forward(model, prefix, ids, mask, keep=longest + 1).logits[:, :-1].float().log_softmax(-1)
    sums = [
        sum(float(logits[i, longest - len(row) + t, token]) for t, token in enumerate(row))
        for i, row in enumerate(rows)
    ]
    return choices[int(np.argmax(sums))]


def accuracy(
    guard: VisionGuard, pairs: Sequence[Pair], watch: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Estimate, dict[str, Estimate]]:
    """Share of pairs whose right answer is the likeliest, over all and by kind, with Wilson's intervals."""
    right: dict[str, list[bool]] = {}
    for number, pair in enumerate(pairs):
        watch(number, len(pairs))
        said = chosen(guard, Conversation.of(pair.question, images=[pair.image]), pair.choices)
        right.setdefault(pair.kind, []).append(said == pair.answer)
    watch(len(pairs), len(pairs))
    kinds = {kind: proportion(np.array(hits), empty="no pictures") for kind, hits in sorted(right.items())}
    return proportion(
        np.array([hit for hits in right.values() for hit in hits], bool), empty="no pictures"
    ), kinds


def chance(pairs: Sequence[Pair]) -> float:
    """Accuracy of guessing."""
    return float(np.mean([1 / len(pair.choices) for pair in pairs])) if pairs else 0.0


def replies(guard: VisionGuard, asked: Sequence[Conversation], most: int = 128) -> list[str]:
    """What the model writes to each, greedily, to its end token or `most` tokens; all of them in one batch."""
    rows = [question_ids(conversation, guard.tokenizer, guard.sight) for conversation in asked]
    said = getattr(getattr(guard.model, "generation_config", None), "eos_token_id", None)
    ends = {guard.tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])}
    written: list[list[int]] = [[] for _ in rows]
    done = [False] * len(rows)
    goes_on = guard.sight.eyes.goes_on
    with torch.inference_mode():
        state = Decoding(guard.model, None, more=goes_on)
        logits = state.feed(rows)
        for _ in range(most):
            tokens = logits[:, -1].argmax(-1).tolist()
            for i, token in enumerate(tokens):
                done[i] = done[i] or token in ends
                if not done[i]:
                    written[i].append(token)
            if all(done):
                break
            if goes_on:
                logits = state.feed([[token] for token in tokens])
            else:  # pictures must be shown again
                whole = [row + own for row, own in zip(rows, written, strict=True)]
                logits = Decoding(guard.model, None, more=False).feed(whole)
    return [str(guard.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in written]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
