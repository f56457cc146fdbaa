"""Scoring speed: guardkeel's engine beside plain batched transformers and one-by-one scoring.

    python benchmarks/scoring.py [--guard keel-135m] [--policy-tokens 556] [--messages 256] [--pairs 5] [--dtype auto]

Guards share a long policy; the engine computes it once. Everything runs in one process on the same messages, the ways
taking turns; a ratio is the median over the turns. Before any timing the scores are compared: in fp32 with the plain
path's, in bf16 with fp32's, where the engine may err no more than the plain bf16 path does.

The limit is one forward over the unshared tokens alone, as one dense batch without padding or a prefix.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from guardkeel.conversation import Conversation, Side
from guardkeel.guards.base import Judgement, Rendered
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.keel import Keel
from guardkeel.guards.load import load_guard
from guardkeel.guards.prefix import forward, left_padded

WORDS = [
    "please",
    "tell",
    "me",
    "about",
    "the",
    "weather",
    "in",
    "spring",
    "and",
    "how",
    "people",
    "plan",
    "a",
    "garden",
    "with",
    "beans",
    "roses",
    "and",
    "apple",
    "trees",
    "near",
    "the",
    "river",
    "while",
    "children",
    "read",
    "books",
    "at",
    "school",
    "and",
    "trains",
    "leave",
    "the",
    "station",
    "on",
    "time",
    "for",
    "the",
    "mountains",
]


class LongPolicy(Keel):
    """The keel family under a policy of a given length, as long as those of 8B guards."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        self.filler = ""
        rng = random.Random(0)
        empty = Conversation.of("hello")
        while len(tokenizer(self.render(empty, "prompt", tokenizer).prefix)["input_ids"]) < tokens:
            self.filler += " " + rng.choice(WORDS)

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """The same, with the filler behind the policy."""
        plain = super().render(conversation, side, tokenizer)
        head, end, tail = plain.prefix.partition("<|im_end|>")
        return Rendered(head + self.filler + end + tail, plain.body, plain.suffix)


def messages(count: int, words: int = 17) -> list[Judgement]:
    """Synthetic messages of around 26 tokens once rendered."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=max(3, round(rng.gauss(words, 5))))) for _ in range(count)]
    return [Judgement(str(i), Conversation.of(text), "prompt") for i, text in enumerate(texts)]


def plain(guard: CausalGuard, items: list[Judgement], batch: int) -> np.ndarray[Any, Any]:
    """Length-sorted, padded batches of whole inputs; logits of the last position only."""
    encoder = Encoder(guard.grammar, guard.tokenizer)
    rows = [encoder.encode(i).ids for i in items]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    safe, unsafe = guard.grammar.verdict_tokens(guard.tokenizer)
    scores = np.zeros(len(rows))
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            ids, mask = left_padded([rows[i] for i in part], encoder.pad_id, guard.model.device)
            logits = forward(guard.model, None, ids, mask).logits[:, -1].float()
            scores[part] = logits[:, [*unsafe, *safe]].softmax(-1)[:, 0].cpu().numpy()
    return scores


def engine(guard: CausalGuard, items: list[Judgement]) -> np.ndarray[Any, Any]:
    """guardkeel, as an audit runs it, category names left out as the plain ways leave them out."""
    return np.array([v.unsafe for v in guard.score(items, categories=False)], float)


def limit(guard: CausalGuard, items: list[Judgement]) -> None:
    """One dense forward over as many tokens as the items do not share."""
    encoder = Encoder(guard.grammar, guard.tokenizer).share(items)
    tokens = sum(len(encoder.encode(i).ids) for i in items)
    width = 32
    with torch.inference_mode():
        left = tokens
        while left > 0:
            rows = max(1, min(64, left // width))
            forward(guard.model, None, torch.ones(rows, width, dtype=torch.long, device=guard.model.device),
                    torch.ones(rows, width, dtype=torch.long, device=guard.model.device))  # fmt: skip
            left -= rows * width


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Check equality, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guard", default="keel-135m")
    parser.add_argument("--policy-tokens", type=int, default=556)
    parser.add_argument("--messages", type=int, default=256)
    parser.add_argument(
        "--plain-messages",
        type=int,
        default=32,
        help="messages for the plain way, cost a message being constant",
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="batch size of the plain path")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    items = messages(args.messages)

    exact = load_guard(args.guard, dtype="float32")
    assert isinstance(exact, CausalGuard)
    exact.grammar = LongPolicy(exact.tokenizer, args.policy_tokens)
    sample = items[: args.plain_messages]
    truth, ours = plain(exact, sample, args.batch), engine(exact, sample)
    print(f"fp32: largest difference to the plain path {np.abs(truth - ours).max():.2e}")
    assert np.abs(truth - ours).max() < 1e-5

    guard = load_guard(args.guard, dtype=args.dtype)
    assert isinstance(guard, CausalGuard)
    guard.grammar = exact.grammar
    del exact
    a, b = plain(guard, sample, args.batch), engine(guard, sample)
    print(
        f"{guard.model.dtype}: error against fp32, mean (largest): plain {np.abs(a - truth).mean():.1e} "
        f"({np.abs(a - truth).max():.1e}), engine {np.abs(b - truth).mean():.1e} ({np.abs(b - truth).max():.1e})"
    )
    print(
        "verdicts that differ from fp32:",
        f"plain {((a >= 0.5) != (truth >= 0.5)).sum()}, engine {((b >= 0.5) != (truth >= 0.5)).sum()}",
    )

    some, few = items[: args.plain_messages], items[: max(8, args.plain_messages // 8)]
    seconds: dict[str, list[float]] = {"engine": [], "plain": [], "one by one": [], "limit": []}
    for turn in range(args.pairs + 1):
        found = {
            "engine": timed(lambda: engine(guard, items)),
            "limit": timed(lambda: limit(guard, items)),
            "plain": timed(lambda: plain(guard, some, args.batch)) * len(items) / len(some),
            "one by one": timed(lambda: plain(guard, few, 1)) * len(items) / len(few),
        }
        if turn:  # the first turn warms up
            for key, value in found.items():
                seconds[key].append(value)
    print(
        f"\n{len(items)} messages, policy {args.policy_tokens} tokens, "
        f"{torch.get_num_threads()} threads, {guard.model.device}"
    )
    for key, values in seconds.items():
        ratio = statistics.median(v / e for v, e in zip(values, seconds["engine"], strict=True))
        print(
            f"{key:12} {1000 * statistics.median(values) / len(items):8.2f} ms a message   {ratio:6.2f} x the engine"
        )


if __name__ == "__main__":
    main()
