"""FW-SSR: Fisher-weighted regularisation of the safety subspace (arXiv:2605.02914), with every rung of its ladder.

    R = mean_l mean_x Σ_i F̂_{l,i} (u_{l,i}ᵀ(h_l(x;θ) − h_l(x;θ₀)))² / s_l,        loss = λ_t·R − β·sharpening

over labelled guard conversations x, hidden states at the verdict position. Bases, scales and reference projections
are made once at θ₀, so no second model is held; the forward of a step stops at the highest monitored block.

Where we depart from the released code (github.com/supreme-lab/wsgc): its hidden states are detached, so its penalty
has no gradient and its λ never moves; its "Fisher" is an energy without a gradient; its activations are pooled over
padding. What it computes is the rung `ssr-noop`, what its paper describes is `fwssr`. The whole `LADDER` is below.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.geometry import random_basis, safety_basis
from guardkeel.geometry.inputs import activations
from guardkeel.tuning.regularisers import ssr_maths as maths
from guardkeel.tuning.regularisers.base import Gradients, Probes, Regulariser, Seen, Settings


class FWSSRSettings(Settings):
    """Settings of FW-SSR; the defaults are the paper's method with a fixed λ."""

    strength: float = Field(
        default=1.0, ge=0, description="λ at the start, for all steps if the schedule is fixed"
    )
    depths: tuple[float, ...] = Field(
        default=(0.5, 0.65, 0.8, 1.0),
        min_length=1,
        description="monitored blocks, as shares of the model's depth",
    )
    rank: int = Field(default=32, ge=1, description="directions a block (k)")
    space: Literal["safety", "random", "full"] = Field(
        default="safety",
        description="where movement is penalised: the safety subspace, a random one, or the whole hidden state",
    )
    seed: int = Field(default=0, ge=0, description="which random subspace")
    weights: Literal["uniform", "proxy", "fisher"] = Field(
        default="fisher",
        description="weights of the directions: all 1, their energy E[(uᵀh)²] as in the released code, "
        "or the true diagonal Fisher information of the verdict",
    )
    ema: float = Field(
        default=0.9, ge=0, lt=1, description="share of the old weights kept when they are refreshed"
    )
    refresh: int = Field(default=20, ge=1, description="steps between two refreshes of the weights")
    schedule: Literal["fixed", "conflict", "released"] = Field(
        default="fixed",
        description="λ: fixed; driven by the conflict of the task's gradient with the guard's own; "
        "or by the released code's rule, the task's gradient against the penalty's",
    )
    every: int = Field(
        default=10, ge=1, description="steps between two updates of λ; each costs extra backward passes"
    )
    gain: float = Field(
        default=1.0, gt=0, description="conflict: λ is multiplied by exp(−gain · mean conflict)"
    )
    smoothing: float = Field(
        default=0.5, ge=0, lt=1, description="conflict: share of the old mean conflict kept"
    )
    lambda_min: float = Field(
        default=0.1, gt=0, le=1, description="conflict: smallest λ, in multiples of strength"
    )
    lambda_max: float = Field(default=10.0, ge=1, description="conflict: largest λ, in multiples of strength")
    detached: bool = Field(
        default=False, description="the released no-op: the penalty is logged, nothing is pulled"
    )
    sharpen: float = Field(
        default=0.0, ge=0, description="β: reward for parting the classes better than the reference does"
    )
    sharpen_until: float = Field(
        default=2.0, gt=1, description="no reward beyond this multiple of the reference's separation"
    )

    @model_validator(mode="after")
    def _consistent(self) -> FWSSRSettings:
        if not all(0 < r <= 1 for r in self.depths):
            raise ValueError(f"depths must lie in (0, 1], got {self.depths}")
        if self.detached and self.sharpen:
            raise ValueError("detached = true has no gradient at all, so sharpen must be 0")
        return self


LADDER: dict[str, dict[str, object]] = {
    "ssr-noop": {
        "strength": 0.1,
        "weights": "proxy",
        "refresh": 50,
        "schedule": "released",
        "every": 20,
        "detached": True,
    },
    "ssr-uniform": {"weights": "uniform"},
    "ssr-proxy": {"weights": "proxy"},
    "fwssr": {"weights": "fisher"},
    "fwssr-adaptive": {"weights": "fisher", "schedule": "conflict"},
    "fwssr-released-rule": {"weights": "fisher", "schedule": "released", "every": 20},
    "fwssr-sharpen": {"weights": "fisher", "schedule": "conflict", "sharpen": 0.1},
    "ssr-random": {"weights": "uniform", "space": "random"},
    "ssr-full": {"weights": "uniform", "space": "full"},
}
"""Settings of every rung, bottom to top, then the controls; what is not named is the default."""


class FWSSR(Regulariser):
    """The penalty, its weights, its λ and its sharpening.

    Scale: every space is measured by its own s_l, the mean squared norm of the centred reference activations inside
    it. R is then a relative movement in each, and a random subspace is on average as strong as the full space (both
    its numerator and its s_l shrink by k/d). Under the safety subspace's s_l the random control would pull about
    d/k times less, and would lose for that reason alone.

    Weights: what is averaged over draws is F, not F̂, so a probe counts by how much its verdict depends on the
    direction. A draw whose verdicts are all saturated (F = 0) says nothing and is left out.

    λ: c_t = cos(∇L_task, ∇L_guard), with L_guard the guard's own answer loss on the step's probes (∇R is zero at θ₀,
    so its cosine says nothing there), goes into a running mean c̄ and λ ← clip(λ·exp(−gain·c̄)). A new λ holds from
    the next step on.

    State: `fixed` holds basis, reference, scale and first importance by block, and the class means for sharpening;
    `moving` holds "lambda", "conflict" and "importance.<block>" once they have moved.
    """

    name = "fwssr"
    sharded = True
    Settings = FWSSRSettings
    settings: FWSSRSettings

    def __init__(self, settings: FWSSRSettings | None = None) -> None:
        super().__init__(settings)
        self._numbers: dict[str, Tensor] = {}

    @property
    def strength(self) -> float:
        """λ_t."""
        moved = self.moving.get("lambda")
        return self.settings.strength if moved is None else float(moved)

    def layers(self, depth: int) -> list[int]:
        """The monitored blocks of a model of this depth, counted from 1."""
        return sorted({max(1, int(share * depth)) for share in self.settings.depths})

    @property
    def passes(self) -> int:
        """The reference's forward; Fisher weights are made of gradients."""
        return 1 + (self.settings.weights == "fisher")

    def prepare(self, probes: Probes) -> None:
        """Fit bases and scales at θ₀ on all probes, and store where the probes are."""
        layers, chunks = self.layers(probes.depth), probes.chunks()
        hidden: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        slopes: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        needs_slopes = self.settings.weights == "fisher"
        with probes.frozen(), torch.set_grad_enabled(needs_slopes):
            for picks in chunks:
                seen = probes.look(picks, layers=layers, logits=needs_slopes)
                found = _slopes(seen, probes.unsafe[picks], layers) if needs_slopes else {}
                for layer in layers:
                    hidden[layer].append(seen.hidden[layer].detach().cpu())
                for layer, gradients in found.items():
                    slopes[layer].append(gradients.cpu())
                del seen, found
        order = torch.tensor([pick for chunk in chunks for pick in chunk])
        unsafe = probes.unsafe.cpu()[order]
        back, device = order.argsort(), probes.unsafe.device
        for layer in layers:
            self._fit(layer, hidden.pop(layer), slopes.pop(layer), unsafe, back, device)

    def _fit(
        self,
        layer: int,
        hidden: list[Tensor],
        slopes: list[Tensor],
        unsafe: Tensor,
        back: Tensor,
        device: torch.device,
    ) -> None:
        """Everything `fixed` holds of one block; `hidden`, `slopes` and `unsafe` come in the order of the chunks."""
        basis = self._basis(layer, torch.cat(hidden), unsafe)
        if basis is not None:
            self.fixed[f"basis.{layer}"] = basis = basis.to(device)
        # Chunk by chunk and on the device, as in a step: the same matmul gives the same bits, so R(θ₀) is zero.
        z = torch.cat([maths.project(rows.to(device), basis) for rows in hidden]).cpu()
        scale = maths.spread(z.double())
        if not scale > 0:
            raise DataError(
                f"the probes all look the same at block {layer}", remedy="check that the guard is not broken"
            )
        if self.settings.weights == "fisher":
            importance = maths.fisher(torch.cat(slopes), None if basis is None else basis.cpu())
        else:
            importance = maths.proxy(z) if self.settings.weights == "proxy" else torch.ones(z.shape[1])
        if not _usable(importance, layer):
            raise DataError(
                f"no probe's verdict depends on the hidden state of block {layer}: every verdict is saturated",
                remedy='use harder probes, or weights = "uniform"',
            )
        made = {"reference": z[back], "scale": scale.to(z.dtype), "importance": importance}
        if self.settings.sharpen:
            made["means"], made["within"] = _classes(z, unsafe, layer)
        self.fixed.update({f"{key}.{layer}": value.contiguous().to(device) for key, value in made.items()})

    def _basis(self, layer: int, hidden: Tensor, unsafe: Tensor) -> Tensor | None:
        """U_l (d, k) in float32, fitted in float64; None for the whole space."""
        x, rank = activations(hidden.double().numpy(), f"block {layer}"), self.settings.rank
        if self.settings.space == "full":
            return None
        if self.settings.space == "random":
            rng = np.random.default_rng([self.settings.seed, layer])
            basis = random_basis(x.shape[1], min(rank, x.shape[1]), rng)
        else:
            basis = safety_basis(x, unsafe.numpy(), rank)
        return torch.from_numpy(basis).float().contiguous()

    def loss(self, probes: Probes, step: int) -> Tensor | None:
        """λ_t·R − β·sharpening on the step's probes; None where that is nothing."""
        self._numbers = {}
        s = self.settings
        if s.strength == 0 and s.sharpen == 0:
            return None
        picks, layers = probes.draw(step), self.layers(probes.depth)
        due = step > 0 and step % s.refresh == 0
        if due and s.weights == "fisher":
            with probes.frozen(), torch.enable_grad():
                seen = probes.look(picks, layers=layers)
                fresh = _slopes(seen, probes.unsafe[picks], layers)
            for layer, gradients in fresh.items():
                self._refresh(layer, maths.fisher(gradients, self._held("basis", layer, gradients)))
            del seen, fresh
        seen = probes.look(picks, layers=layers, logits=False)
        if due and s.weights == "proxy":
            for layer, rows in seen.hidden.items():
                z = maths.project(rows.detach(), self._held("basis", layer, rows))
                self._refresh(layer, maths.proxy(z))
        penalty = self._penalty(seen, picks, layers)
        if not all(h.requires_grad for h in seen.hidden.values()):
            raise ConfigError(
                f"of blocks {', '.join(map(str, layers))} the first is monitored but nothing in training can move it",
                remedy="set depths to deeper blocks, or train earlier ones too",
            )
        self._numbers["penalty"] = penalty.detach()
        if s.detached:
            return None
        term = self.strength * penalty
        if s.sharpen:
            term = term - s.sharpen * self._sharpening(seen, probes, picks, layers)
        return term

    def wants(self, step: int) -> bool:
        """Whether λ is updated in this step."""
        s = self.settings
        return s.schedule != "fixed" and not s.detached and s.strength > 0 and step % s.every == 0

    def observe(self, probes: Probes, step: int, task: Gradients) -> None:
        """Update λ from the angle between the task's gradient and the guard's (or, as released, the penalty's)."""
        s, picks = self.settings, probes.draw(step)
        with torch.enable_grad():
            if s.schedule == "released":
                layers = self.layers(probes.depth)
                seen = probes.look(picks, layers=layers, logits=False)
                other = probes.gradients(self._penalty(seen, picks, layers))
            else:
                other = probes.gradients(probes.answer_loss(picks))
        angle = maths.cosine(task, other)
        self._numbers["conflict"] = torch.tensor(angle)
        if s.schedule == "released":
            moved = maths.released(self.strength, angle)
        else:
            old = self.moving.get("conflict")
            mean = angle if old is None else s.smoothing * float(old) + (1 - s.smoothing) * angle
            self.moving["conflict"] = torch.tensor(mean, dtype=torch.float64)
            low, high = s.lambda_min * s.strength, s.lambda_max * s.strength
            moved = maths.adaptive(self.strength, mean, low, high, s.gain)
        self.moving["lambda"] = torch.tensor(moved, dtype=torch.float64)

    def log(self) -> dict[str, float]:
        """λ, and what the last step computed: penalty, conflict (this step's cosine), separation (J/J₀), and how the
        weights are spread: the largest over the mean and the effective rank, both means over blocks.
        """
        numbers = {"lambda": self.strength} | {key: float(value) for key, value in self._numbers.items()}
        if self.settings.weights != "uniform":
            kind = self.settings.weights
            stored = sorted(key for key in self.fixed if key.startswith("importance."))
            weights = [maths.normalised(self.moving.get(key, self.fixed[key])) for key in stored]
            if weights:
                numbers[f"{kind}_top"] = float(np.mean([float(w.max()) for w in weights]))
                numbers[f"{kind}_rank"] = float(np.mean([maths.effective_rank(w) for w in weights]))
        return numbers

    def _penalty(self, seen: Seen, picks: list[int], layers: list[int]) -> Tensor:
        """R, the mean over blocks."""
        terms = []
        for layer in layers:
            h = seen.hidden[layer]
            reference, scale = self._known("reference", layer, h), self._known("scale", layer, h)
            weights = maths.normalised(self._importance(layer, h))
            terms.append(maths.penalty(h, reference[picks], self._held("basis", layer, h), weights, scale))
        return torch.stack(terms).mean()

    def _sharpening(self, seen: Seen, probes: Probes, picks: list[int], layers: list[int]) -> Tensor:
        """min(J_l/J_l(θ₀), sharpen_until), the mean over blocks.

        Relative to θ₀, so that β carries over between models. Bounded, because tr(S_b) grows with the square of the
        movement just as R does: where β outweighs λF̂ an unbounded reward would blow the hidden states up.
        """
        terms = []
        for layer in layers:
            h = seen.hidden[layer]
            z, reference = maths.project(h, self._held("basis", layer, h)), self._known("reference", layer, h)
            means, within = self._known("means", layer, h), self._known("within", layer, h)
            terms.append(maths.separation(z, reference[picks], probes.unsafe[picks], means, within))
        ratios = torch.stack(terms)
        self._numbers["separation"] = ratios.detach().mean()
        return ratios.clamp(max=self.settings.sharpen_until).mean()

    def _refresh(self, layer: int, fresh: Tensor) -> None:
        if _usable(fresh, layer):
            kept = self.settings.ema
            self.moving[f"importance.{layer}"] = kept * self._importance(layer, fresh) + (1 - kept) * fresh

    def _importance(self, layer: int, like: Tensor) -> Tensor:
        """F of a block as it is now: what has moved, else that of θ₀."""
        moved = self.moving.get(f"importance.{layer}")
        return self._known("importance", layer, like) if moved is None else moved.to(like)

    def _held(self, key: str, layer: int, like: Tensor) -> Tensor | None:
        """A tensor of `fixed`, moved once to where it is used (restored state may lie elsewhere)."""
        held = self.fixed.get(f"{key}.{layer}")
        if held is not None and held.device != like.device:
            self.fixed[f"{key}.{layer}"] = held = held.to(like.device)
        return held

    def _known(self, key: str, layer: int, like: Tensor) -> Tensor:
        held = self._held(key, layer, like)
        if held is None:
            raise RunError(
                f"FW-SSR has no {key} for block {layer}",
                remedy="call prepare(probes) before training, or restore it",
            )
        return held


def _slopes(seen: Seen, unsafe: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """∂log p(y|x)/∂h_l(x) at the verdict position, (n, d) by block, y the probe's label.

    The sum over probes may be differentiated at once, because a probe's hidden state moves its own verdict only. The
    graph is kept, because within a step other terms may hold the same run.
    """
    assert seen.verdict is not None
    right = seen.verdict.gather(1, unsafe.long().unsqueeze(1)).sum()
    found = torch.autograd.grad(right, [seen.hidden[layer] for layer in layers], retain_graph=True)
    return dict(zip(layers, found, strict=True))


def _classes(z: Tensor, unsafe: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Class means and scatter of all probes; DataError where there is nothing to sharpen."""
    if unsafe.all() or not unsafe.any():
        raise DataError(
            f"sharpening needs both classes, got {int(unsafe.sum())} unsafe of {len(unsafe)} probes",
            remedy="use probes of both classes, or sharpen = 0",
        )
    means, within = maths.class_means(z, unsafe)
    if not (within > 0 and (means[0] != means[1]).any()):
        raise DataError(
            f"the classes have no distance or no scatter at block {layer}, so there is nothing to sharpen",
            remedy="use more probes, or sharpen = 0",
        )
    return means, within


def _usable(importance: Tensor, layer: int) -> bool:
    """Whether weights can be made of this; RunError where it is not finite."""
    total = importance.sum()
    if not total.isfinite():
        raise RunError(
            f"the weights of block {layer} are not finite",
            remedy="lower the learning rate, or tune in bfloat16 or float32 instead of float16",
        )
    return bool(total > 0)
