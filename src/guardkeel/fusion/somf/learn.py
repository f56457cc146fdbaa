"""The loop: draw masks, look at rows, step along the logits with Adam; a killed run goes on as if it had not been.

What a step does follows from the seed and its number alone: which rows it sees, and the uniform numbers of its draw. So
the logits and Adam's two moments after a step are all there is to keep (state.safetensors); the run that is resumed
takes the steps that the other would have taken, bit for bit on the same machine and number of threads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ConfigError, RunError
from guardkeel.fusion.somf.files import read_tensors, write_tensors
from guardkeel.fusion.somf.fused import Fused
from guardkeel.fusion.somf.mask import Draw, drawn, middle
from guardkeel.fusion.somf.objectives import Objective, over
from guardkeel.records import write_text
from guardkeel.tuning.learner import kept, training
from guardkeel.tuning.order import batches

STATE, LOG = "state.safetensors", "log.jsonl"
_ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a tensor that has had a gradient: how many, and their two moments."""


@dataclass(frozen=True)
class Learning:
    """How masks are learned. `sample` draws them anew in every step; without it the median is learned through."""

    steps: int = 200
    learning_rate: float = 1e-2
    batch: int = 8
    temperature: float = 0.5
    sample: bool = True
    every: int = 20
    seed: int = 0

    def draw(self, step: int) -> Draw:
        """The masks of a step."""
        return drawn(self.seed, step, self.temperature) if self.sample else middle(self.temperature)


@dataclass(frozen=True)
class Term:
    """A part of what is minimised."""

    name: str
    objective: Objective
    weight: float = 1.0


def learn(
    fused: Fused,
    terms: Sequence[Term],
    how: Learning,
    folder: Path,
    *,
    digest: str = "",
    watch: Callable[[int], None] = lambda step: None,
) -> None:
    """Learn the logits of `fused` in place, from the state in the folder where there is one.

    Args:
        fused: θ_safe, changes and logits.
        terms: what is minimised: Σ weight · mean loss over a batch of rows of its own.
        how: steps, rate, draws.
        folder: of state.safetensors and log.jsonl, a line a step.
        digest: of what the run follows from; a state of another run is refused.
        watch: told the number of each step that is done.

    Raises:
        RunError: a loss or gradient is not finite; the state is that of the last good checkpoint.
        ConfigError: the state is of another run.
    """
    logits = fused.logits.each
    optimiser = torch.optim.Adam(list(logits.values()), lr=how.learning_rate, foreach=False)
    done = _resume(folder / STATE, logits, optimiser, digest)
    _shorten(folder / LOG, done)
    orders = [
        batches(t.objective.lengths, size=how.batch, count=how.steps, seed=how.seed + i)
        for i, t in enumerate(terms)
    ]
    with training(fused.model), kept(fused.model), (folder / LOG).open("a", encoding="utf-8") as log:
        for step in range(done, how.steps):
            draw = how.draw(step)
            weights = fused.weights(draw)
            model = fused.with_weights(weights)
            seen: dict[str, float] = {}
            for term, order in zip(terms, orders, strict=True):
                loss = term.weight * term.objective.losses(model, order[step]).mean()
                torch.autograd.backward(loss)
                seen[term.name] = float(loss.detach())
            fused.backward(weights, draw)
            norm = math.sqrt(
                sum(float(t.grad.double().square().sum()) for t in logits.values() if t.grad is not None)
            )
            if not all(map(math.isfinite, (*seen.values(), norm))):
                raise RunError(
                    f"step {step + 1}: the objective is {sum(seen.values()):g}, its gradient's norm {norm:g}",
                    remedy="lower the learning rate, raise the temperature, or use dtype float32",
                )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            density = float(fused.logits.density(middle(how.temperature)))
            line = {
                "step": step + 1,
                "loss": sum(seen.values()),
                "norm": norm,
                "density": density,
                "terms": seen,
            }
            log.write(json.dumps(line) + "\n")
            if (step + 1) % how.every == 0 or step + 1 == how.steps:
                log.flush()
                _keep(folder / STATE, step + 1, logits, optimiser, digest)
            watch(step + 1)


def value(model: Any, terms: Sequence[Term], rows: int) -> float:
    """What is minimised, for a model as it is, over at most `rows` rows of each term, evenly spread over all."""
    total = 0.0
    for term in terms:
        every = len(term.objective)
        shown = min(rows, every)
        picks = [i * every // shown for i in range(shown)]
        total += term.weight * float(over(shown, partial(_losses, term.objective, model, picks)).mean())
    return total


def _losses(objective: Objective, model: Any, picks: Sequence[int], some: Sequence[int]) -> Tensor:
    return objective.losses(model, [picks[i] for i in some])


def _keep(path: Path, step: int, logits: dict[str, Tensor], optimiser: torch.optim.Adam, digest: str) -> None:
    held: dict[str, Tensor] = {}
    for name, tensor in logits.items():
        moments = optimiser.state[tensor]
        held |= {f"logits/{name}": tensor}
        held |= {f"{kind}/{name}": moments[kind] for kind in _ADAM if kind in moments}
    write_tensors(path, held, {"step": str(step), "digest": digest})


def _resume(path: Path, logits: dict[str, Tensor], optimiser: torch.optim.Adam, digest: str) -> int:
    """Take up a state; how many steps it has behind it."""
    if not path.is_file():
        return 0
    held, said = read_tensors(path)
    named = {f"logits/{name}" for name in logits}
    if said.get("digest") != digest or not named <= held.keys():
        raise ConfigError(
            f"{path}: the state of a run with other guards, data or settings",
            remedy="repeat its command to resume it, or choose another --out",
        )
    with torch.no_grad():
        for name, tensor in logits.items():
            tensor.copy_(held[f"logits/{name}"])
            if f"step/{name}" in held:  # Adam counts on the CPU
                count, *moments = (held[f"{kind}/{name}"] for kind in _ADAM)
                both = (m.to(tensor.device) for m in moments)
                optimiser.state[tensor] = dict(zip(_ADAM, (count, *both), strict=True))
    return int(said["step"])


def _shorten(path: Path, steps: int) -> None:
    """Leave out of a log what is done again: every line is a step."""
    if path.is_file():
        lines = path.read_text("utf-8").splitlines(keepends=True)[:steps]
        write_text(path, "".join(lines))
