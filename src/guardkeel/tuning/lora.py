"""Plain LoRA fine-tuning of a causal guard on labelled conversations (arXiv:2106.09685).

Loss, per example: −log p(first verdict token) − (w / m) Σ log p(remaining answer tokens), m of them; mean over
the batch. The shared policy prefix runs once a step and gradients flow through its key/value cache, so a
step costs the unshared tokens only and equals the plain step (tests/parity/test_shared_prefix.py).
Batches hold examples of similar length (random within windows of 32 batches), so little is padding.
AdamW, linear warm-up, cosine decay. The base stays in its dtype, LoRA weights are fp32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from guardkeel.errors import DataError, RunError
from guardkeel.guards.base import Family
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.prefix import encode_prefix, forward, left_padded, reusable
from guardkeel.tuning.learner import training
from guardkeel.tuning.order import batches, schedule
from guardkeel.tuning.targets import Target
from guardkeel.tuning.weights import save, trainable


class LoraSettings(BaseModel):
    """Settings of a plain LoRA run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=8, ge=1, description="rank of every update")
    alpha: float = Field(default=16.0, gt=0, description="updates are scaled by alpha / rank")
    learning_rate: float = Field(default=2e-4, gt=0)
    steps: int = Field(default=50, ge=1)
    batch: int = Field(default=8, ge=1, description="examples a step")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    decay: bool = Field(default=False, description="cosine decay of the learning rate to a tenth")
    answer_weight: float = Field(default=0.3, ge=0, description="w, weight of what follows the verdict token")
    first_layer: int = Field(default=0, ge=0, description="blocks before this one stay as they are")
    max_tokens: int = Field(default=512, ge=64, description="longest input; longer messages are shortened")
    seed: int = 0


class Step(BaseModel):
    """What one optimiser step did."""

    step: int
    loss: float
    seconds: float


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap a causal LM with a fresh LoRA on all linear layers of its blocks. Returns the PeftModel."""
    return trainable(
        model,
        adapter="lora",
        rank=settings.rank,
        alpha=settings.alpha,
        first_layer=settings.first_layer,
        seed=settings.seed,
        task="causal",
    )


def answer_loss(
    model: Any,
    encoder: Encoder,
    batch: Sequence[Target],
    answers: Sequence[list[int]],
    answer_weight: float,
) -> torch.Tensor:
    """Mean loss of a batch. `answers[i]` are the answer's token ids, its end token included."""
    rows = [encoder.encode(t.judgement).ids + a for t, a in zip(batch, answers, strict=True)]
    prefix = encode_prefix(model, encoder.prefix_ids) if encoder.prefix_ids else None
    ids, mask = left_padded(rows, encoder.pad_id, model.device)
    longest = max(map(len, answers))
    logits = forward(model, prefix, ids, mask, keep=longest + 1).logits[:, :-1].float()
    losses = []
    for i, (target, answer) in enumerate(zip(batch, answers, strict=True)):
        wanted = torch.tensor(answer, device=logits.device)
        each = torch.nn.functional.cross_entropy(logits[i, longest - len(answer) :], wanted, reduction="none")
        rest = each[1:].mean() if len(answer) > 1 else each.new_zeros(())
        losses.append(target.weight * (each[0] + answer_weight * rest))
    return torch.stack(losses).mean()


def train(
    model: Any,
    tokenizer: Any,
    family: Family,
    examples: Sequence[Target],
    settings: LoraSettings,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Train the LoRA weights of `model` in place; the order of examples follows from the seed alone.

    Raises RunError at the first non-finite loss or gradient, before the step that would spread it.
    """
    if not examples:
        raise DataError(
            "nothing to train on: no labelled example", remedy="give data with at least one label"
        )
    encoder = Encoder(family, tokenizer, max_tokens=settings.max_tokens)
    if reusable(model.config):
        encoder.share([t.judgement for t in examples])
    end = tokenizer.eos_token_id
    texts = [(t.judgement.side, family.answer(t.label, t.categories, t.judgement.side)) for t in examples]
    answers = [[*encoder.form(side).after(text), end] for side, text in texts]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    log = []
    longest = 4 * (settings.max_tokens - len(encoder.prefix_ids))
    lengths = [min(len(t.judgement.conversation.text), longest) for t in examples]
    order = batches(lengths, size=settings.batch, count=settings.steps, seed=settings.seed)
    with training(model):
        for number, picks in enumerate(order):
            started = time.perf_counter()
            for group in optimiser.param_groups:
                factor = schedule(number, steps=settings.steps, warmup=settings.warmup, decay=settings.decay)
                group["lr"] = settings.learning_rate * factor
            loss = torch.zeros(())
            for part in _parts(picks, lengths):
                chosen, said = [examples[i] for i in part], [answers[i] for i in part]
                share = answer_loss(model, encoder, chosen, said, settings.answer_weight)
                share = share * len(part) / len(picks)
                share.backward()  # type: ignore[no-untyped-call]
                loss += share.detach().cpu()
            norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise RunError(
                    f"step {number + 1}: loss {loss.item():g}, gradient norm {norm.item():g}",
                    remedy="lower the learning rate, or train in float32",
                )
            optimiser.step()
            optimiser.zero_grad()
            log.append(Step(step=number + 1, loss=loss.item(), seconds=time.perf_counter() - started))
            on_step(log[-1])
    return log


def _parts(picks: list[int], lengths: Sequence[int], characters: int = 10000) -> list[list[int]]:
    """A batch cut so that no forward holds much more than `characters`, which bounds memory."""
    longest = max([1, *(lengths[i] for i in picks)])
    rows = max(1, characters // longest)
    return [picks[i : i + rows] for i in range(0, len(picks), rows)]


def save_adapter(model: Any, folder: Path, base: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Save the LoRA weights of a PeftModel, made on `base`; see weights.save."""
    save(model, folder, base=base, dtype=dtype)
