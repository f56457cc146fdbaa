"""A picture as its own description: what a new projector learns before the language model is run at all.

Through a frozen language model a projector learns to be read a few pictures a second, and needs many thousands. Here it
learns forty times as fast, from the word embeddings alone: place i of a picture is to be the embedding of the i-th
token of the picture's alternative text, so that the language model finds words where it was shown a picture. With f
(places, width) the projected features and E the embeddings of the tokens v that occur,

    log p(v at i) = −s·‖f_i − E_v‖² + const,   loss = mean of −log p(t_i) over tokens + ‖f − E_t‖²/(d·var E),

a line feed where the text has ended, at a tenth of the weight; s such that two embeddings are 20 nats apart on average.
The first term alone tells tokens apart in few directions, and leaves features too far from words to be read as such.
Vision tower and projector are trained, the tower at half the rate; AdamW, 30 steps of rising and then falling rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guardkeel.pictures import open_picture
from guardkeel.tuning.learner import training
from guardkeel.vision.pairs import Pair, key, pairs, tested

PADDING = "\n"
ASKED = 320


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of captions and their embeddings."""

    tokens: list[int]
    embeddings: Tensor
    padding: int
    scale: float

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]], embeddings: Tensor, padding: int) -> Vocabulary:
        """Of all tokens that captions have."""
        tokens = sorted({token for caption in captions for token in caption})
        e = embeddings[tokens].detach().float()
        return cls(tokens, e, padding, 20 / float(torch.cdist(e, e).square().mean()))

    def logits(self, features: Tensor) -> Tensor:
        """−s·‖f − E‖² without what is the same for all tokens, (…, tokens)."""
        e = self.embeddings
        return self.scale * (2 * features @ e.T - e.square().sum(-1))

    def said(self, features: Tensor) -> list[list[int]]:
        """The nearest token at each place."""
        return [[self.tokens[i] for i in row] for row in self.logits(features).argmax(-1).tolist()]

    def loss(self, features: Tensor, captions: Sequence[Sequence[int]]) -> Tensor:
        """See the module; features are (rows, places, width)."""
        at = {token: i for i, token in enumerate(self.tokens)}
        told = torch.tensor([[at[token] for token in caption] for caption in captions])
        each = torch.nn.functional.cross_entropy(
            self.logits(features).transpose(1, 2), told, reduction="none"
        )
        weights = torch.where(told == at[self.padding], 0.1, 1.0)
        away = (features - self.embeddings[told]).square().mean() / self.embeddings.var()
        return (weights * each).sum() / weights.sum() + away


def teach_captions(
    model: Any,
    tokenizer: Any,
    processor: Any,
    *,
    pictures: int,
    seed: int = 0,
    batch: int = 64,
    rate: float = 2e-3,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Teach the vision tower and projector of a LLaVA in float32 on drawings, each seen once.

    None of them is one of the first TESTED that adaptations are asked of.

    Returns:
        The share of caption tokens that are the nearest at their place, on ASKED other pictures.
    """
    vision, projector = model.model.vision_tower, model.model.multi_modal_projector
    size = model.config.vision_config.image_size
    places = (size // model.config.vision_config.patch_size) ** 2
    kept = tested(size)
    drawn = list(pairs(pictures, seed=seed, size=size, without={key(pair) for pair in kept}))
    padding = _ids(tokenizer, PADDING)[0]

    def caption(pair: Pair) -> list[int]:
        ids = _ids(tokenizer, f" {pair.image.alt}.")[:places]
        return ids + [padding] * (places - len(ids))

    captions = [caption(pair) for pair in (*kept, *drawn)]
    known = Vocabulary.of(captions, model.get_input_embeddings().weight, padding)

    def features(of: Sequence[Pair]) -> Tensor:
        seen = processor(images=[open_picture(p.image).pixels for p in of], return_tensors="pt")
        return projector(vision(seen["pixel_values"]).last_hidden_state[:, 1:])  # type: ignore[no-any-return]

    seeing, joining = list(vision.parameters()), list(projector.parameters())
    taught = [*seeing, *joining]
    optimizer = torch.optim.AdamW(
        [{"params": seeing, "share": 0.5}, {"params": joining, "share": 1.0}], lr=rate
    )
    batch = min(batch, pictures)
    steps = pictures // batch
    with training(model):
        for step in range(steps):
            at = rate * min(1.0, (step + 1) / 30) * (1 - 0.95 * step / steps)
            for group in optimizer.param_groups:
                group["lr"] = at * group["share"]
            first = step * batch
            found = features(drawn[first : first + batch])
            loss: Any = known.loss(found, captions[len(kept) + first : len(kept) + first + batch])
            for p in taught:
                p.grad = None
            loss.backward(inputs=taught)
            torch.nn.utils.clip_grad_norm_(taught, 1.0)
            optimizer.step()
            watch(step + 1, steps)
        optimizer.zero_grad()
    with torch.inference_mode():
        said = [known.said(features(kept[i : i + batch])) for i in range(0, ASKED, batch)]
    right = [
        token == told
        for row, caption in zip([r for part in said for r in part], captions, strict=False)
        for token, told in zip(row, caption, strict=True)
        if told != padding
    ]
    return sum(right) / len(right)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
