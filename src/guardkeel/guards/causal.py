"""Guards that are causal language models: one forward, logits of the verdict tokens at the last position."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from guardkeel.activations.capture import Capture
from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Batch, Family, Guard, Judgement
from guardkeel.guards.batching import halving, plan
from guardkeel.guards.encoding import PROBES, Encoded, Encoder, NotSharedError
from guardkeel.guards.ground import Ground
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
        self._kept: dict[Any, Ground] | None = None
        self._weights: list[Any] = []
        self._versions: list[int] = []

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard."""
        said = {"max_tokens": self.max_tokens, "token_budget": self.token_budget}
        return model_facts(self.model) | said | ({"offsets": dict(self.offsets)} if self.offsets else {})

    def keep(self) -> None:
        """See Guard. A policy of n tokens keeps 2 · layers · key/value heads · head width · n numbers for a side.

        For keel-135m that is 4 MB. Weights that an optimiser or `load_state_dict` changes in place are noticed by their
        version counters; after any other change (hooks, adapters) call this again.
        """
        self._kept, self._weights, self._versions = {}, list(self.model.parameters()), []

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
            for kind, group in self._groups(items).items():
                ground, encoded = self._encode([items[i] for i in group], kind)
                lengths = [len(e.ids) if isinstance(e, Encoded) else 1 for e in encoded]
                run: Reading | None = None
                for chosen in plan(lengths, self.token_budget):
                    number += 1
                    if number in skip:
                        continue
                    side = items[group[0]].side
                    run = run or Reading(self, side, ground, encoded, capture, categories)
                    rows = halving(run, chosen)
                    hidden = np.stack([r.hidden for r in rows], axis=1) if layers else None
                    yield Batch(number, [group[i] for i in chosen], [r.verdict for r in rows], hidden)

    def _groups(self, items: Sequence[Judgement]) -> dict[Any, list[int]]:
        """Indices of the items by what they share: prefix and blanks, which differ by side in some families."""
        kinds: dict[Side, Any] = {}
        groups: dict[Any, list[int]] = {}
        for i, item in enumerate(items):
            if item.side not in kinds:
                kinds[item.side] = self._kind(item.side)
            groups.setdefault(kinds[item.side], []).append(i)
        return groups

    def _kind(self, side: Side) -> Any:
        if side not in self.grammar.sides:
            return None
        asked = Conversation.of("a", None if side == "prompt" else "b")
        prefix = self.grammar.render(asked, side, self.tokenizer).prefix if self.share_prefix else ""
        return prefix, self.grammar.blanks(side)

    def _encode(self, items: Sequence[Judgement], kind: Any) -> tuple[Ground, list[Encoded | str]]:
        """What the items of a kind share, and the ids of each, or why it has none."""
        for ground in self._grounds(items, kind):
            with contextlib.suppress(NotSharedError):
                return ground, [_encode(ground.encoder, item) for item in items]
        raise AssertionError("a ground that shares nothing fits all items")

    def _grounds(self, items: Sequence[Judgement], kind: Any) -> Iterator[Ground]:
        """Ways to encode items, to be tried in turn: the kept one, what these share, and nothing shared."""
        side = items[0].side
        judged = side in self.grammar.sides
        if self._kept is not None and judged:
            yield self._known(kind, side, self._kept)
        if self.share_prefix and judged:
            yield Ground(self, side, self._encoder().share(_spread(items)))
        yield Ground(self, side, self._encoder())

    def _known(self, kind: Any, side: Side, kept: dict[Any, Ground]) -> Ground:
        """The ground that is kept; it depends on no item, so scores do not depend on which came first."""
        versions = [weight._version for weight in self._weights]
        if versions != self._versions:
            kept.clear()
            self._versions = versions
        if kind not in kept:
            answer = None if side == "prompt" else "b"
            typical = [Judgement("", Conversation.of(p, answer), side) for p in PROBES if p]
            encoder = self._encoder()
            kept[kind] = Ground(self, side, encoder.share(typical) if self.share_prefix else encoder)
        return kept[kind]

    def _encoder(self) -> Encoder:
        return Encoder(self.grammar, self.tokenizer, max_tokens=self.max_tokens)


def _encode(encoder: Encoder, item: Judgement) -> Encoded | str:
    try:
        return encoder.encode(item)
    except NotSharedError:
        raise
    except ConfigError as e:
        return e.problem


def _spread(items: Sequence[Judgement], most: int = 32) -> list[Judgement]:
    return list(items[:: max(1, len(items) // most)])
