"""Curated sets of a toy world for training guards: words of three kinds are unsafe, each by a category of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = {"Ships": "ships", "Banks": "bank", "Poems": "poem"}
"""Category → the word that violates it."""

PLAIN = (
    "check",
    "content",
    "derivative",
    "explains",
    "message",
    "please",
    "reset",
    "short",
    "steps",
    "task",
    "two",
)

POLICY = 'name = "toy"\n' + "".join(f'[[categories]]\nname = "{name}"\n' for name in WORDS)


def text(rng: random.Random, category: str | None) -> str:
    """A few plain words, with the category's word among them."""
    words = rng.sample(PLAIN, rng.randint(3, 6))
    if category:
        words.insert(rng.randrange(len(words) + 1), WORDS[category])
    return " ".join(words)


def records(count: int, seed: int = 0, *, by: str = "human") -> list[dict]:
    """Rows as `guardkeel curate` writes them; every third has a labelled reply as well."""
    rng, seen, made = random.Random(seed), set(), []
    names = [None, *WORDS]
    while len(made) < count:
        n = len(made)
        category = names[n % 4] if n % 2 else None
        said = text(rng, category)
        if said in seen:
            continue
        seen.add(said)
        label = "unsafe" if category else "safe"
        messages = [{"role": "user", "content": said}]
        labels = {"prompt": {"label": label, "source": by}}
        if n % 3 == 2:
            messages.append({"role": "assistant", "content": text(rng, category)})
            labels["response"] = {"label": label, "source": "jury"}
        made.append(
            {
                "id": f"s{seed}/{n}",
                "messages": messages,
                "labels": labels,
                "categories": [category] if category else [],
                "group": f"s{seed}/{n}",
                "source": "toy",
                "licence": "MIT",
                "split": ("fit", "fit", "fit", "calibrate", "test")[n // 8 % 5],
            }
        )
    return made


def topic_records(count: int, seed: int = 9) -> list[dict]:
    """Rows that are judged by a rule of their own: whatever has this word is off topic."""
    rng, made = random.Random(seed), []
    for n in range(count):
        word = ("sea", "payment")[n // 2 % 2]
        off = n % 2 == 1
        said = f"{text(rng, None)} {word if off else ''} turn{n}".strip()
        made.append(
            {
                "id": f"topics/{n}",
                "messages": [{"role": "user", "content": said}],
                "labels": {"prompt": {"label": "unsafe" if off else "safe", "source": "synthesis:templates"}},
                "categories": ["Off topic"] if off else [],
                "source": "topics",
                "split": ("fit", "fit", "test")[n % 3],
                "extra": {
                    "policy": {
                        "name": word,
                        "categories": [{"name": "Off topic", "description": f"Whatever speaks of {word}."}],
                    }
                },
            }
        )
    return made


def write(path: Path, rows: list[dict]) -> Path:
    """As JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def policy_file(path: Path) -> Path:
    """The toy policy."""
    path.write_text(POLICY)
    return path
