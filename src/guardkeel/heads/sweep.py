"""Every head ablated once, exactly, in one growing batch.

1. A clean pass gives the answers to compare with.
2. A trunk runs through the blocks. In each, one more attention call gives the outputs that all its heads would have
   if ablated; each head that is asked for becomes a variant: the trunk's residual stream with that output replaced.
3. Variants are carried through the later blocks together with those of earlier blocks. When a wave is full it is
   carried to the end, and the next one begins where the trunk is.
4. The last block makes keys and values of all tokens, and the rest for the prompts' last tokens alone.
5. What prompts begin with in common is there once (trie.py).

So a variant costs only the blocks after its own, and its shared tokens once for all prompts. Memory is a wave, not a
cache. The output projection is taken of all heads again for each variant, not of the difference alone: Gemma's norm
after it is not linear, and it is half a percent of the work.

A head that gives the same output ablated as not, bit by bit, is not run: it is the clean run. ε = 1 is exactly 0.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from guardkeel.errors import ConfigError, DataError, ModelError, RunError
from guardkeel.heads import ablation
from guardkeel.heads.layout import Head, Layout, checked_heads, layout_of
from guardkeel.heads.plan import SweepPlan, plan_sweep
from guardkeel.heads.prompts import Prompt, checked
from guardkeel.heads.run import Run
from guardkeel.heads.shards import Arrays, Shards, fingerprint
from guardkeel.heads.trie import Trie
from guardkeel.models.devices import is_out_of_memory
from guardkeel.resources import Progress

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sweep:
    """What ablating each head did. NaN where a head was not asked for.

    Attributes:
        ids: of the n prompts, in their order.
        mode, epsilon: of the ablation; `within` was ablated throughout.
        kl: (n, layers, heads), KL(original ‖ ablated) of the next token in nats; None where not asked for.
        log_odds: (n, layers, heads), log P(unsafe)/P(safe) of the ablated guard; NaN for prompts without answers.
        clean_log_odds: (n,), of the guard as it is.
        hidden: (n, layers, heads, width) float32, final-norm states of the last token; None where not asked for.
        clean_hidden: (n, width) float32, of the model as it is.
        base_kl: (n,), KL(original ‖ `within` ablated); zeros where nothing was.
        plan: what was done.
        dtype: number format of the model. In 16 bits values below about 1e-3 are rounding.
        notes: what a reader must be told.
        seconds: wall time.
    """

    ids: tuple[str, ...]
    mode: str
    epsilon: float
    within: tuple[Head, ...]
    kl: Floats | None
    log_odds: Floats
    clean_log_odds: Floats
    hidden: NDArray[np.float32] | None
    clean_hidden: NDArray[np.float32]
    base_kl: Floats
    plan: SweepPlan
    dtype: str
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def sweep_heads(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    mode: str = "q",
    epsilon: float = ablation.EPSILON,
    heads: Collection[Head] | None = None,
    within: Collection[Head] = (),
    kl: bool = True,
    hidden: bool = False,
    share: bool = True,
    memory: int | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Ablate every head once, over every prompt.

    Args:
        model: a loaded causal language model in evaluation mode, peft-wrapped or not.
        prompts: see prompts.py.
        mode, epsilon: see ablation.py.
        heads: only these; by default all.
        within: heads that are ablated in every run, on top of which one more is (Sahara). KL is still from the
            model as it is.
        kl: measure the next token's distribution; without it the language-model head is not run.
        hidden: keep hidden states (for dataset Ships).
        share: compute what prompts begin with in common once.
        memory: bytes to use beside the model; by default half of what is free.
        folder: where finished shards are kept, to resume from; it may hold those of other sweeps.
        progress: called with (what, done, total) in tokens times blocks.

    Raises:
        ModelError: the model is not supported, is in training mode, computes otherwise than layout.py says, or gives
            numbers that are not finite; there is no such head.
        ConfigError: mode or ε is no good, or the model is being ablated.
        DataError: there are no prompts, or one has tokens that the model does not know.
        RunError: too little memory.
    """
    ablation.check(mode, epsilon)
    began = time.monotonic()
    found = layout_of(model)
    asked = _askable(found, prompts)
    planned = plan_sweep(
        found, asked, mode=mode, heads=heads, kl=kl, hidden=hidden, share=share, memory=memory
    )
    base = checked_heads(within, (found.layers, ablation.per_layer(found, mode)))
    what: dict[str, Any] = {"mode": mode, "epsilon": epsilon, "within": base, "kl": kl, "hidden": hidden}
    kept = Shards(folder, _facts(found, planned, {**what, "share": share}) if folder is not None else {})
    total = sum(_work(found, planned, tokens) for tokens in planned.shard_tokens)
    result = _empty((len(asked), found.layers, ablation.per_layer(found, mode)), found.hidden, kl, hidden)
    done, compared = 0, False
    for shard in planned.shards:
        chosen = [asked[i] for i in shard]
        trie = Trie.of([p.ids for p in chosen], share=share)
        own = [[p.ids, p.unsafe, p.safe] for p in chosen]
        arrays = kept.read(own)
        if arrays is None:
            run = Run(found, chosen, trie, planned, **what)
            with _memory_in_words(planned), torch.inference_mode():
                if not compared:
                    _compare(found, run)
                    compared = True
                for step in run.steps():
                    if progress:
                        done += step
                        progress("heads", done, total)
            arrays = run.arrays()
            kept.write(own, arrays)
        elif progress:
            done += _work(found, planned, len(trie))
            progress("heads", done, total)
        _fill(result, arrays, list(shard), planned)
    return Sweep(
        ids=tuple(p.id for p in asked),
        mode=mode,
        epsilon=epsilon,
        within=base,
        kl=result.get("kl"),
        log_odds=result["log_odds"],
        clean_log_odds=result["clean_log_odds"],
        hidden=result.get("hidden"),
        clean_hidden=result["clean_hidden"],
        base_kl=result["base_kl"],
        plan=planned,
        dtype=str(found.dtype).removeprefix("torch."),
        notes=(*found.notes, *planned.notes),
        seconds=time.monotonic() - began,
    )


def _askable(found: Layout, prompts: Sequence[Prompt]) -> list[Prompt]:
    if ablation.is_ablated(found):
        raise ConfigError("the model is being ablated", remedy="leave `ablated` first, or use within=")
    if found.model.training:
        raise ModelError(
            "the model is in training mode: dropout would be measured", remedy="call model.eval()"
        )
    known = int(found.model.get_input_embeddings().weight.shape[0])
    for prompt in checked(prompts):
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < known:
            raise DataError(
                f"prompt {prompt.id!r} has token ids from {min(prompt.ids)} to {max(prompt.ids)}, "
                f"the model knows 0 to {known - 1}",
                remedy="tokenise it with the model's own tokenizer",
            )
    return list(prompts)


@contextlib.contextmanager
def _memory_in_words(planned: SweepPlan) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise RunError(
            f"out of memory: {planned.text}", remedy="give a smaller memory=, fewer or shorter prompts"
        ) from e


def _work(found: Layout, planned: SweepPlan, tokens: int) -> int:
    """Work of a shard, in tokens times blocks: a variant goes through its own block and those after it."""
    return tokens * sum(found.layers - layer for layer, _ in planned.variants)


def _empty(shape: tuple[int, int, int], width: int, kl: bool, hidden: bool) -> Arrays:
    n = shape[0]
    found: Arrays = {
        "log_odds": np.full(shape, np.nan),
        "clean_log_odds": np.full(n, np.nan),
        "clean_hidden": np.full((n, width), np.nan, np.float32),
        "base_kl": np.full(n, np.nan),
    }
    if kl:
        found["kl"] = np.full(shape, np.nan)
    if hidden:
        found["hidden"] = np.full((*shape, width), np.nan, np.float32)
    return found


def _fill(result: Arrays, arrays: Arrays, rows: list[int], planned: SweepPlan) -> None:
    layers = [layer for layer, _ in planned.variants]
    heads = [head for _, head in planned.variants]
    at = np.array(rows)[:, None], np.array(layers, int)[None], np.array(heads, int)[None]
    for name, values in arrays.items():
        result[name][at if name in ("kl", "log_odds", "hidden") else rows] = values


def _facts(found: Layout, planned: SweepPlan, what: dict[str, Any]) -> dict[str, Any]:
    """Everything but its prompts that a shard's numbers follow from."""
    return {
        "model": fingerprint(found.model),
        "kind": [type(found.model).__name__, found.config.to_dict()],
        "variants": planned.variants,
        "what": what,
        "format": 1,
    }


def _compare(found: Layout, run: Run) -> None:
    """The blocks put together here must be the model: its shortest prompt is run both ways."""
    shortest = min(range(len(run.prompts)), key=lambda i: len(run.prompts[i].ids))
    ids = torch.tensor([run.prompts[shortest].ids], device=found.device)
    theirs = found.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].double()
    if not bool(torch.isfinite(theirs).all()):
        return  # the run itself says which prompt
    state = run.final[run.asked.of[shortest]]
    ours = found.scaled(found.model.get_output_embeddings()(found.final(state))).double()
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    apart = float((p.exp() * (p - q)).sum())
    limit = 1e-5 if found.dtype in (torch.float32, torch.float64) else 0.1
    if not apart <= limit:
        raise ModelError(
            f"{type(found.model).__name__} computes otherwise than its parts say: KL {apart:.2g} on one prompt",
            remedy="report this with the checkpoint's name; its heads cannot be swept",
        )
