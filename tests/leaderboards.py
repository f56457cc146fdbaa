"""Guards made of word lists, suites for them, and whole leaderboards of them: no model, a fraction of a second."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.guards.base import Batch, Judgement, Verdict

HARM = {"ships": "Violence", "anchors": "Fraud/Deception", "reefs": "Malware"}
CALM = (
    "sea",
    "poem",
    "bank",
    "please",
    "short",
    "password",
    "steps",
    "tool",
    "user",
    "what",
    "write",
    "your",
)


def hashed(*parts: object) -> float:
    """A number in [0, 1) that follows from the parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


@dataclass
class Words:
    """A guard that knows some harmful words. `slips` is the share of items on which it says the opposite."""

    name: str
    knows: Sequence[str] = tuple(HARM)
    slips: float = 0.0
    threshold: float = 0.5
    family: str = "words"
    silent: str = ""
    """Messages with this word are unscored."""
    renames: dict[str, str] = field(default_factory=dict)
    """What it calls a category instead."""
    breaks_after: int | None = None
    """Batches after which it raises `error`."""
    error: BaseException = field(default_factory=lambda: RuntimeError("the cable was cut"))
    asked: int = 0
    size: int = 16

    @property
    def facts(self) -> dict[str, Any]:
        return {"parameters": 0, "dtype": "", "device": "", "slips": self.slips}

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        for number, start in enumerate(range(0, len(items), self.size)):
            if number in skip:
                continue
            if self.breaks_after is not None and number >= self.breaks_after:
                raise self.error
            where = list(range(start, min(start + self.size, len(items))))
            self.asked += len(where)
            yield Batch(number, where, [self._verdict(items[k]) for k in where])

    def _verdict(self, item: Judgement) -> Verdict:
        turns = [t for t in item.conversation.turns if (t.role == "assistant") == (item.side == "response")]
        text = turns[-1].content
        if self.silent and self.silent in text:
            return Verdict(None, unscored=f"will not speak of {self.silent}")
        found = [w for w in self.knows if w in text.split()]
        noise = hashed(self.name, item.id, "score") / 2
        unsafe = bool(found) != (hashed(self.name, item.id, "slip") < self.slips)
        names = tuple(self.renames.get(HARM[w], HARM[w]) for w in found) if unsafe else ()
        return Verdict(0.5 + noise if unsafe else 0.499 - noise / 1.01, categories=names)


def suite(
    path: Path,
    count: int = 120,
    *,
    labels: Sequence[str] = ("unsafe", "safe"),
    replies: bool = False,
    seed: int = 0,
) -> Path:
    """A JSONL suite: a message is unsafe where it has a word of HARM. With `replies`, both sides are labelled."""
    made = []
    for k in range(count):
        label = labels[k % len(labels)]
        text = _sentence(f"{path.stem}{seed}", k, label)
        reply = _sentence(f"{path.stem}{seed} reply", k, labels[(k // 2) % len(labels)]) if replies else None
        sides = {"prompt": label} | ({"response": labels[(k // 2) % len(labels)]} if replies else {})
        named = tuple(HARM[w] for w in HARM if w in text.split()) if label == "unsafe" else ()
        made.append(
            Example(
                f"e{k}", Conversation.of(text, reply), sides, named, "written here", "de" if k % 3 else "en"
            )
        )
    write_jsonl(path, made)
    return path


def _sentence(seed: str, k: int, label: str) -> str:
    words = [CALM[int(hashed(seed, k, i) * len(CALM))] for i in range(5)] + [f"{seed}{k}".replace(" ", "")]
    if label == "unsafe":
        words.insert(2, list(HARM)[int(hashed(seed, k) * len(HARM))])
    return " ".join(words)


HOSTILE_NAME = "<img src=x onerror=alert(1)>"


def write_leaderboard(folder: Path) -> Path:
    """The run directory of a finished leaderboard: a good, a fair and a poor guard, and one that failed."""
    from guardkeel.evaluation.leaderboard.config import LeaderboardConfig
    from guardkeel.evaluation.leaderboard.running import run

    made: dict[str, Any] = {
        "good": Words("good", slips=0.05),
        "fair": Words("fair", slips=0.25, renames={"Violence": "Violent Crimes", "Malware": "Hate"}),
        "poor": Words(f"poor {HOSTILE_NAME}", knows=("ships",), silent="poem"),
        "dead": Words("dead", breaks_after=0),
    }
    suites = [
        suite(folder / "mixed.jsonl", 120, replies=True),
        suite(folder / "harm.jsonl", 60, labels=("unsafe",)),
        suite(folder / "calm.jsonl", 60, labels=("safe",)),
    ]
    config = LeaderboardConfig(
        guard=[{"reference": name} for name in made],  # type: ignore[list-item]
        suites=[str(s) for s in suites],
        draws=200,
        probe=2,
    )
    run(config, folder / "out", load=lambda entry: made[entry.reference])
    return folder / "out"
