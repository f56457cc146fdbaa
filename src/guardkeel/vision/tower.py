"""A vision tower that has learned to see what guardkeel draws, before a language model is joined to it.

A tower of random weights and a language model that never saw anything teach each other next to nothing in a few hundred
steps. So the tower learns first, alone and hundreds of times faster: a small reader asks it the drawn questions,

    q = W · (words of the question),   a = attention(q over LayerNorm(f)),   answer = MLP([a, q]) among the choices,

with f (places, width) the features that a LLaVA takes, the last layer's without the class token. Loss: cross-entropy of
the answer. AdamW, a rate that rises over 50 steps and falls in a line. (To tell the words of each picture's alternative
text as well, as a bag, taught it no faster.)

What guardkeel brings was trained on its own drawings alone (`recipes/drawn-tower`), and none of the first 1,000
pictures that adaptations are asked of was among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from guardkeel.evaluation.intervals import proportion
from guardkeel.models.tiny_vision import square_processor
from guardkeel.pictures import open_picture
from guardkeel.records import Estimate, atomic_writer, write_json
from guardkeel.tuning.learner import training
from guardkeel.vision.pairs import KINDS, Pair, key, pairs, tested
from guardkeel.vision.shape import VisionShape

WEIGHTS, CARD = "tower.safetensors", "tower.json"


class TowerCard(BaseModel):
    """What a tower is, learned and knows: tower.json."""

    model_config = ConfigDict(extra="forbid")

    shape: VisionShape
    words: list[str] = Field(description="of questions")
    answers: list[str]
    pictures: int
    seed: int
    accuracy: Estimate | None = Field(default=None, description="of the reader, on pictures not learned")
    kinds: dict[str, Estimate] = Field(default_factory=dict)


class Reader(nn.Module):
    """A vision tower, and what reads answers from its features."""

    def __init__(self, card: TowerCard) -> None:
        super().__init__()
        self.card, width = card, card.shape.width
        self.tower = clip_tower(card.shape)
        self.norm = nn.LayerNorm(width)
        self.question = nn.Linear(len(card.words), width)
        self.look = nn.MultiheadAttention(width, card.shape.heads, batch_first=True)
        self.answer = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(card.answers))
        )
        self._words, self._answers = (
            {name: i for i, name in enumerate(names)} for names in (card.words, card.answers)
        )
        self._processor = square_processor(card.shape.size)

    def forward(self, asked: Sequence[Pair]) -> Tensor:
        """Logits of the answers (rows, answers), −∞ where they are none of the choices."""
        opened = [open_picture(pair.image).pixels for pair in asked]
        pixels = self._processor(images=opened, return_tensors="pt")["pixel_values"]
        features = self.norm(self.tower(pixels).last_hidden_state[:, 1:])
        question = self.question(_bags([_words(p.question) for p in asked], self._words))
        seen = self.look(question[:, None], features, features, need_weights=False)[0][:, 0]
        possible = _bags([p.choices for p in asked], self._answers).bool()
        logits: Tensor = self.answer(torch.cat([seen, question], -1))
        return logits.masked_fill(~possible, -torch.inf)

    def loss(self, asked: Sequence[Pair]) -> Tensor:
        """Of a batch; see the module."""
        right = torch.tensor([self._answers[p.answer] for p in asked])
        return nn.functional.cross_entropy(self(asked), right)

    def right(self, asked: Sequence[Pair], batch: int = 64) -> list[bool]:
        """Whether each answer is the likeliest."""
        found: list[bool] = []
        with torch.inference_mode():
            for i in range(0, len(asked), batch):
                best = self(asked[i : i + batch]).argmax(-1).tolist()
                found += [
                    self.card.answers[b] == p.answer for b, p in zip(best, asked[i : i + batch], strict=True)
                ]
        return found


def clip_tower(shape: VisionShape) -> Any:
    """A CLIP vision transformer of a shape, its weights random."""
    from transformers import CLIPVisionModel

    return CLIPVisionModel(clip_config(shape))


def clip_config(shape: VisionShape) -> Any:
    """The configuration of a tower."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.size,
        patch_size=shape.patch,
        attention_dropout=0.0,
    )


def train_tower(
    folder: str | Path,
    *,
    shape: VisionShape | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    pictures: int = 80_000,
    measured: int = 600,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> TowerCard:
    """Train a tower on `pictures` drawings, each seen once, and write it: weights in float16, and its card.

    Args:
        folder: where WEIGHTS and CARD are written.
        shape: of the tower.
        kinds: of pictures.
        pictures: how many are learned, in whole batches.
        measured: how many others its accuracy is measured on, at most TESTED.
        batch: pictures a step.
        rate: the largest learning rate.
        seed: of weights and drawings.
        watch: called with (step, steps).
    """
    shape, folder = shape or VisionShape(), Path(folder)
    batch = min(batch, pictures)
    kept = tested(shape.size, kinds)
    drawn = list(pairs(pictures, seed=seed, size=shape.size, kinds=kinds, without={key(p) for p in kept}))
    every = [*kept, *drawn]
    card = TowerCard(
        shape=shape,
        words=sorted({w for p in every for w in _words(p.question)}),
        answers=sorted({c for p in every for c in p.choices}),
        pictures=pictures // batch * batch,
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(card)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=rate, weight_decay=0.05)
    steps = pictures // batch
    with training(reader):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - 0.95 * step / steps)
            loss: Any = reader.loss(drawn[step * batch : (step + 1) * batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            watch(step + 1, steps)
    reader.half().float()  # as it is written
    hits = reader.right(kept[:measured])
    card.accuracy = _share(hits)
    card.kinds = {
        kind: _share([hit for hit, p in zip(hits, kept, strict=False) if p.kind == kind])
        for kind in sorted({p.kind for p in kept[:measured]})
    }
    _write(reader, folder)
    return card


def load_reader(folder: str | Path | None = None) -> Reader:
    """A tower that was trained, with what reads from it; by default the one that guardkeel brings."""
    from safetensors.torch import load

    home = Path(folder) if folder else files("guardkeel.vision") / "data" / "drawn"
    reader = Reader(TowerCard.model_validate_json((home / CARD).read_bytes()))
    reader.load_state_dict({n: w.float() for n, w in load((home / WEIGHTS).read_bytes()).items()})
    return reader.eval()


def knows(shape: VisionShape) -> bool:
    """Whether the tower that guardkeel brings is of this shape, whatever its weights."""
    said = json.loads((files("guardkeel.vision") / "data" / "drawn" / CARD).read_text())["shape"]
    return VisionShape(**said | {"weights": shape.weights}) == shape


def _write(reader: Reader, folder: Path) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_writer(folder / WEIGHTS) as out:
        out.write(save({n: w.half().contiguous() for n, w in reader.state_dict().items()}))
    write_json(folder / CARD, reader.card.model_dump(mode="json"))


def _share(hits: Sequence[bool]) -> Estimate:
    import numpy as np

    return proportion(np.array(hits, bool), empty="no pictures")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _bags(named: Sequence[Sequence[str]], known: dict[str, int]) -> Tensor:
    """(rows, names), 1 where a row has a name."""
    found = torch.zeros(len(named), len(known))
    for row, names in enumerate(named):
        found[row, [known[n] for n in names if n in known]] = 1
    return found
