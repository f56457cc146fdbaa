"""A tiny guard that has really learned something: whoever speaks of ships is unsafe. Trained in seconds.

A random model hardly ever says `safe` or `unsafe`, so it has no verdicts to audit.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.guards.registry import family_named
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny import make_tiny
from guardkeel.tuning.lora import LoraSettings, add_lora, save_adapter, train
from guardkeel.tuning.targets import targets

WORDS = (
    "account", "assistant", "bank", "check", "content", "conversation", "derivative", "explains", "message",
    "password", "payment", "poem", "please", "reset", "sea", "short", "shows", "squared", "steps", "system",
    "task", "tool", "two", "user", "what", "write", "your", "made", "May", "asks",
)  # fmt: skip


def sentence(rng: random.Random, label: str) -> str:
    """A few harmless words, with ships among them where they are to be unsafe."""
    words = rng.sample(WORDS, rng.randint(4, 9))
    if label == "unsafe":
        words.insert(rng.randrange(len(words) + 1), "ships")
    return " ".join(words)


def examples(count: int, seed: int, *, labels: tuple[str, ...] = ("unsafe", "safe")) -> list[Example]:
    """Prompts and, for every fifth, a labelled reply as well. No text comes twice."""
    rng, seen, made = random.Random(seed), set(), []
    while len(made) < count:
        label = labels[len(made) % len(labels)]
        text = sentence(rng, label)
        if text in seen:
            continue
        seen.add(text)
        reply = sentence(rng, label) if len(made) % 5 == 4 else None
        made.append(
            Example(
                f"e{seed}-{len(made)}",
                Conversation.of(text, reply),
                {"prompt": label} if reply is None else {"prompt": label, "response": label},
                ("Violence",) if label == "unsafe" else (),
                "written here",
                "en",
            )
        )
    return made


def suite_file(path: Path, count: int = 200, seed: int = 7, **options) -> Path:
    """A JSONL suite of such examples."""
    write_jsonl(path, examples(count, seed, **options))
    return path


def train_guard(folder: Path, *, steps: int = 100) -> Path:
    """A guard of family keel that knows ships when it sees them."""
    guard = make_tiny("llama", folder)
    (guard / "guardkeel.json").write_text(json.dumps({"family": "keel", "name": "harbour"}))
    model, tokenizer = load_model(guard, "float32", "cpu"), load_tokenizer(guard)
    model.requires_grad_(True)
    settings = LoraSettings(steps=steps, batch=16, learning_rate=5e-3, decay=True, max_tokens=1024)
    train(model, tokenizer, family_named("keel"), targets(examples(400, 1)), settings)
    model.save_pretrained(guard)
    return guard


def train_adapter(folder: Path, base: Path, *, steps: int = 15, rate: float = 1e-2) -> Path:
    """A LoRA on it that was told that ships are harmless."""
    model, tokenizer = load_model(base, "float32", "cpu"), load_tokenizer(base)
    settings = LoraSettings(steps=steps, batch=8, learning_rate=rate, max_tokens=1024)
    told = [replace(e, labels=dict.fromkeys(e.labels, "safe"), categories=()) for e in examples(40, 2)]
    tuned = add_lora(model, settings)
    train(tuned, tokenizer, family_named("keel"), targets(told), settings)
    save_adapter(tuned, folder, str(base))
    return folder
