"""Guards that are causal language models: one forward, logits of the verdict tokens at the last position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Batch, Family, Guard, Judgement
from guardkeel.guards.batching import halving, plan
from guardkeel.guards.encoding import Encoded, Encoder, NotSharedError
from guardkeel.guards.offsets import NO_OFFSETS, Offsets
from guardkeel.guards.prefix import reusable
from guardkeel.guards.reading import Reading
from guardkeel.models.devices import model_facts


class CausalGuard(Guard):
    """A causal LM with a family's template and grammar.

    P(unsafe) = Σ p(unsafe answers) / Σ p(verdicts) at the place of the verdict: see reading.py. Where greedy decoding
    would leave the grammar before or at that place, the item is unscored. `offsets`: see offsets.py.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        name: str,
        threshold: float = 0.5,
        max_tokens: int = 2048,
        token_budget: int | None = None,
        share_prefix: bool = True,
        offsets: Offsets = NO_OFFSETS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.grammar = family
        self.name = name
        self.family = family.name
        self.threshold = threshold
        self.offsets = offsets
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", max_tokens)
        self.max_tokens = min(max_tokens, longest)
        self.token_budget = token_budget or (2048 if model.device.type == "cpu" else 65536)
        self.share_prefix = share_prefix and reusable(model.config)

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard."""
        said = {"max_tokens": self.max_tokens, "token_budget": self.token_budget}
        return model_facts(self.model) | said | ({"offsets": dict(self.offsets)} if self.offsets else {})

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """Score in deterministic batches; those numbered in `skip` are already known and are not run."""
        number = -1
        with Capture(self.model, layers) as capture:
            for group in self._groups(items):
                encoder, encoded = self._encode([items[i] for i in group])
                lengths = [len(e.ids) if isinstance(e, Encoded) else 1 for e in encoded]
                run: Reading | None = None
                for chosen in plan(lengths, self.token_budget):
                    number += 1
                    if number in skip:
                        continue
                    side = items[group[0]].side
                    run = run or Reading(self, side, encoder, encoded, capture, categories)
                    rows = halving(run, chosen)
                    hidden = np.stack([r.hidden for r in rows], axis=1) if layers else None
                    yield Batch(number, [group[i] for i in chosen], [r.verdict for r in rows], hidden)

    def _groups(self, items: Sequence[Judgement]) -> list[list[int]]:
        """Indices of the items by what they share: prefix and blanks, which differ by side in some families."""
        kinds: dict[Side, Any] = {}
        groups: dict[Any, list[int]] = {}
        for i, item in enumerate(items):
            if item.side not in kinds:
                kinds[item.side] = self._kind(item.side)
            groups.setdefault(kinds[item.side], []).append(i)
        return list(groups.values())

    def _kind(self, side: Side) -> Any:
        if side not in self.grammar.sides:
            return None
        asked = Conversation.of("a", None if side == "prompt" else "b")
        prefix = self.grammar.render(asked, side, self.tokenizer).prefix if self.share_prefix else ""
        return prefix, self.grammar.blanks(side)

    def _encode(self, items: Sequence[Judgement]) -> tuple[Encoder, list[Encoded | str]]:
        """Ids of the items, or why an item has none.

        Nothing is shared where the items turn out not to begin alike.
        """
        encoder = Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)
        if self.share_prefix and items[0].side in self.grammar.sides:
            encoder.share(_spread(items))
        try:
            return encoder, [_encode(encoder, item) for item in items]
        except NotSharedError:
            whole = Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)
            return whole, [_encode(whole, item) for item in items]


def _encode(encoder: Encoder, item: Judgement) -> Encoded | str:
    try:
        return encoder.encode(item)
    except NotSharedError:
        raise
    except ConfigError as e:
        return e.problem


def _spread(items: Sequence[Judgement], most: int = 32) -> list[Judgement]:
    return list(items[:: max(1, len(items) // most)])
