"""One shard of prompts through the sweep: trunk, variants, waves. sweep.py says what it is about."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from guardkeel.errors import ModelError
from guardkeel.heads import ablation
from guardkeel.heads.answers import Answers, Measured
from guardkeel.heads.forward import Asked, Step, replaced
from guardkeel.heads.layout import Head, Layout
from guardkeel.heads.plan import SweepPlan
from guardkeel.heads.prompts import Prompt
from guardkeel.heads.shards import Arrays
from guardkeel.heads.trie import Trie


class Run:
    """`steps` does the sweep, yielding work done in tokens times blocks; `arrays` are its results.

    Args:
        layout: of the model.
        prompts: of this shard, and their `trie`.
        mode, epsilon, within: see `sweep_heads`.
        plan: its variants and sizes of batches.
        kl, hidden: what is kept.
    """

    def __init__(
        self,
        layout: Layout,
        prompts: Sequence[Prompt],
        trie: Trie,
        plan: SweepPlan,
        *,
        mode: str,
        epsilon: float,
        within: Sequence[Head],
        kl: bool,
        hidden: bool,
    ) -> None:
        self.layout, self.prompts, self.trie, self.plan = layout, prompts, trie, plan
        self.mode, self.epsilon, self.kl, self.hidden = mode, epsilon, kl, hidden
        self.within: dict[int, list[int]] = {}
        for layer, index in within:
            self.within.setdefault(layer, []).extend(ablation.members(layout, mode, index))
        self.asked = Asked.by(layout, trie)
        self._measured: dict[int, Measured] = {}
        self._wave: list[int] = []  # numbers of the variants that are carried
        self._streams: torch.Tensor | None = None  # theirs: (wave, tokens, hidden)
        self._step: Step | None = None

    @cached_property
    def final(self) -> torch.Tensor:
        """Last residual streams (last tokens, hidden) of the model as it is."""
        return self._ends(group=False)

    def steps(self) -> Generator[int, None, None]:
        """The whole sweep."""
        layout = self.layout
        self._answers = Answers(
            layout, self.prompts, self.asked.of, self.final, self.plan.logit_rows, kl=self.kl
        )
        original = self._answers.measure(self.final[None])[0]
        self.original = replace(original, kl=np.zeros(len(self.prompts)))
        self.base = self._answers.measure(self._ends(group=True)[None])[0] if self.within else self.original
        by_layer: dict[int, list[int]] = {}
        for number, (layer, _) in enumerate(self.plan.variants):
            by_layer.setdefault(layer, []).append(number)
        trunk = layout.embed(self.asked.ids)[None]
        after = max(by_layer, default=-1) + 1
        for layer in range(after):
            yield from self._carry(layer, layer + 1)
            trunk = yield from self._branch(trunk, layer, by_layer.get(layer, []))
        yield from self._carry(after, layout.layers)

    def arrays(self) -> Arrays:
        """Results: (prompts,) or (prompts, variants, …), variants in the plan's order.

        Raises:
            ModelError: some are not finite.
        """
        runs = [self._measured[number] for number in range(len(self.plan.variants))]
        held: Arrays = {
            "clean_log_odds": self.original.log_odds,
            "clean_hidden": self.original.hidden,
            "base_kl": self.base.kl,
            "log_odds": _columns([m.log_odds for m in runs], self.original.log_odds),
        }
        if self.kl:
            held["kl"] = _columns([m.kl for m in runs], self.original.kl)
        if self.hidden:
            held["hidden"] = _columns([m.hidden for m in runs], self.original.hidden)
        for name in {"kl", "hidden"} & held.keys():
            bad = np.argwhere(~np.isfinite(held[name]))
            if len(bad):
                prompt, (layer, head) = self.prompts[bad[0][0]].id, self.plan.variants[bad[0][1]]
                raise ModelError(
                    f"prompt {prompt!r} with head {layer}-{head} ablated gives numbers that are not finite",
                    remedy="load the model in float32",
                )
        return held

    def _branch(
        self, trunk: torch.Tensor, layer: int, numbers: Sequence[int]
    ) -> Generator[int, None, torch.Tensor]:
        """Make the variants of a block; returns the trunk after it."""
        step = self._at(layer)
        heads = step.heads(trunk)
        by = step.ablated(heads, self.mode, self.epsilon)
        z = replaced(heads.z, by, self.within.get(layer, []))
        live = []
        for number in numbers:
            change = ablation.members(self.layout, self.mode, self.plan.variants[number][1])
            if torch.equal(z[..., change, :], by[..., change, :]):
                self._measured[number] = self.base
                yield self._work(self.layout.layers - layer)
            else:
                live.append((number, change))
        while live:
            room = min(self.plan.wave - len(self._wave), self.plan.chunk)
            if room == 0:
                yield from self._carry(layer + 1, self.layout.layers)
                continue
            some, live = live[:room], live[room:]
            variants = torch.cat([replaced(z, by, change) for _, change in some])
            self._add([number for number, _ in some], self._at(layer).after(trunk, variants))
            yield self._work(len(some))
        return self._at(layer).after(trunk, z)

    def _carry(self, start: int, stop: int) -> Generator[int, None, None]:
        """Take the wave through blocks start to stop − 1; at the end it is measured and gone."""
        for layer in range(start, stop):
            if not self._wave:
                return
            assert self._streams is not None
            ends = []
            for first in range(0, len(self._wave), self.plan.chunk):
                some = slice(first, min(first + self.plan.chunk, len(self._wave)))
                out = self._through(self._streams[some], layer, group=True)
                if self._at(layer).ends:
                    ends.append(out)
                else:
                    self._streams[some] = out
                yield self._work(some.stop - some.start)
            if ends:
                self._measure(self._wave, torch.cat(ends))
                self._wave = []

    def _ends(self, *, group: bool) -> torch.Tensor:
        x = self.layout.embed(self.asked.ids)[None]
        for layer in range(self.layout.layers):
            x = self._through(x, layer, group=group)
        return x[0]

    def _through(self, x: torch.Tensor, layer: int, *, group: bool) -> torch.Tensor:
        """Streams after a block, the heads of the group ablated in it or not."""
        step = self._at(layer)
        heads = step.heads(x)
        z = heads.z
        if group and layer in self.within:
            z = replaced(z, step.ablated(heads, self.mode, self.epsilon), self.within[layer])
        return step.after(x, z)

    def _at(self, layer: int) -> Step:
        """A block, its weights ready for as long as it is the one in use."""
        if self._step is None or self._step.block.index != layer:
            self._step = None  # its weights go before the next ones come
            ends = layer == self.layout.layers - 1
            self._step = Step(self.layout, self.layout.blocks[layer], self.asked, ends=ends)
        return self._step

    def _add(self, numbers: list[int], x: torch.Tensor) -> None:
        """New variants join the wave; those of the last block are at their end."""
        if self._step is not None and self._step.ends:
            self._measure(numbers, x)
            return
        if self._streams is None:
            self._streams = x.new_empty(self.plan.wave, *x.shape[1:])
        self._streams[len(self._wave) : len(self._wave) + len(numbers)] = x
        self._wave += numbers

    def _measure(self, numbers: Sequence[int], x: torch.Tensor) -> None:
        self._measured.update(zip(numbers, self._answers.measure(x), strict=True))

    def _work(self, blocks: int) -> int:
        return blocks * len(self.trie)


def _columns(found: Sequence[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.stack(found, 1) if found else np.empty((like.shape[0], 0, *like.shape[1:]), like.dtype)
