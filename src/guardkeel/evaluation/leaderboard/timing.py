"""What a guard's speed is computed from: kept batches, items judged alone, tokens of the messages."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.engines.parts import Spreads
from guardkeel.guards.base import Guard, Judgement

_CHUNK = 256


def batch_times(progress: Path, role: str) -> list[tuple[int, float]]:
    """(items, seconds) of each batch that scoring.score keeps for a role, in the order in which they were made."""
    found = []
    for path in sorted(progress.glob(f"{role}-*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            head = json.loads(stored["head"].tobytes())
        if head["indices"]:
            found.append((len(head["indices"]), float(head["seconds"])))
    return found


def judged_alone(guard: Guard, items: Sequence[Judgement], most: int, seed: int = 0) -> list[float]:
    """Seconds of each of `most` items sent by itself, after one that is not counted.

    Which items follows from the seed and their ids. None where others judge for the guard: the way there and back would
    be most of it.
    """
    if isinstance(guard, Spreads):
        return []

    def key(item: Judgement) -> str:
        return hashlib.sha256(f"{seed} {item.id}".encode("utf-8", "surrogatepass")).hexdigest()

    chosen = sorted(items, key=key)[:most]
    found = []
    for item in chosen[:1] + chosen:
        started = time.perf_counter()
        for _ in guard.batches([item]):
            pass
        found.append(time.perf_counter() - started)
    return found[1:]


def message_tokens(guard: Guard, items: Sequence[Judgement]) -> int | None:
    """Tokens of all messages by the guard's own tokenizer, without policy and template; None where it has none."""
    tokenizer: Any = getattr(guard, "tokenizer", None)
    if tokenizer is None:
        return None
    total = 0
    for start in range(0, len(items), _CHUNK):
        texts = [i.conversation.text for i in items[start : start + _CHUNK]]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        total += sum(len(ids) for ids in encoded)
    return total
