"""Greedy replies of a chat model to many prompts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from guardkeel.guards.prefix import left_padded
from guardkeel.heads.prompts import Prompt, checked

_TOKENS = 4096  # padded tokens in a batch, replies included


def replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    tokens: int = 48,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """What the model says to each prompt, in order, without special tokens; it may be `ablated` meanwhile.

    Args:
        model: a causal language model.
        tokenizer: its own.
        prompts: see prompts.py.
        tokens: longest reply.
        watch: called with (done, total).
    """
    from transformers import GenerationConfig

    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    said = getattr(model, "generation_config", None)
    ends = getattr(said, "eos_token_id", None)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
    )
    asked = checked(prompts)
    found = [""] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i].ids))
    done = 0
    while done < len(order):
        rows = max(1, _TOKENS // (len(asked[order[done]].ids) + tokens))
        some = order[done : done + rows]
        ids, mask = left_padded([list(asked[i].ids) for i in some], pad, model.device)
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(some, texts, strict=True):
            found[i] = text
        done += len(some)
        watch(done, len(order))
    return found
