import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.tuning.regularisers import ssr_maths as maths
from guardkeel.tuning.regularisers.base import Seen
from guardkeel.tuning.regularisers.fwssr import FWSSR, LADDER, FWSSRSettings

DEPTH, WIDTH, TOKENS = 4, 6, 3


class Net(torch.nn.Module):
    """Causal mixing and a tanh in residual blocks, a verdict at the last token."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.head = torch.nn.Linear(WIDTH, 2)
        self.to(dtype)

    def forward(self, x, layers, logits, nudge):
        steps = torch.arange(1, TOKENS + 1, dtype=x.dtype).unsqueeze(1)
        hidden = {}
        for number, block in enumerate(self.blocks, 1):
            x = x + torch.tanh(block(x + x.cumsum(1) / steps))
            last = x[:, -1] + nudge.get(number, 0)
            x = torch.cat([x[:, :-1], last.unsqueeze(1)], 1)  # what is handed out lies on the path
            if number in layers:
                hidden[number] = last
            if not logits and number == max(layers):
                return hidden, None
        return hidden, self.head(x[:, -1])


class TinyProbes:
    """A real implementation of Probes over `Net`."""

    depth = DEPTH

    def __init__(self, n=20, dtype=torch.float32, batch=7):
        generator = torch.Generator().manual_seed(2)
        self.unsafe = torch.arange(n) % 2 == 1
        self.x = torch.randn(n, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
        self.x[self.unsafe, -1, 0] += 2.0
        self.x = self.x.to(dtype)
        self.net, self.batch, self.nudge = Net(dtype), batch, {}
        self.looks = []

    def __len__(self):
        return len(self.unsafe)

    def draw(self, step):
        half = np.random.default_rng([3, step]).choice(len(self) // 2, 2, replace=False)
        return [int(i) for h in half for i in (2 * h, 2 * h + 1)]

    def chunks(self):
        backwards = list(range(len(self)))[::-1]  # an order of their own, as when sorted by length
        return [backwards[i : i + self.batch] for i in range(0, len(self), self.batch)]

    def look(self, picks, *, layers=(), logits=True):
        self.looks.append(logits)
        hidden, out = self.net(self.x[list(picks)], layers, logits, self.nudge)
        return Seen(hidden, None if out is None else torch.log_softmax(out, -1), out)

    def frozen(self):
        return nullcontext()

    def answer_loss(self, picks):
        verdict = self.look(picks).verdict
        return torch.nn.functional.nll_loss(verdict, self.unsafe[list(picks)].long())

    def gradients(self, loss):
        named = self.parameters()
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {
            k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(named.items(), found, strict=True)
        }

    def parameters(self):
        return dict(self.net.named_parameters())

    def modules(self):
        return dict(self.net.named_modules())

    def move(self, seed=5, size=0.1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.net.parameters():
                p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def prepared(dtype=torch.float32, **settings):
    probes = TinyProbes(dtype=dtype)
    regulariser = FWSSR(FWSSRSettings(rank=3, **settings))
    regulariser.prepare(probes)
    return regulariser, probes


SETTINGS = {
    "uniform": {"weights": "uniform"},
    "proxy": {"weights": "proxy"},
    "fisher": {},
    "random": {"weights": "uniform", "space": "random"},
    "full": {"weights": "uniform", "space": "full"},
    "full fisher": {"space": "full"},
    "sharpen": {"sharpen": 0.5},
    "sharpen full": {"sharpen": 0.5, "space": "full", "weights": "uniform"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gradient_of_the_loss_against_finite_differences(settings):
    regulariser, probes = prepared(torch.float64, **settings)
    probes.move()
    gradient = probes.gradients(regulariser.loss(probes, 1))
    generator = torch.Generator().manual_seed(8)
    for name, p in probes.parameters().items():
        direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        sides = []
        for epsilon in (1e-5, -1e-5):
            with torch.no_grad():
                p += epsilon * direction
            sides.append(regulariser.loss(probes, 1).item())
            with torch.no_grad():
                p -= epsilon * direction
        expected = (sides[0] - sides[1]) / 2e-5
        assert (gradient[name] * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name
    assert any(g.abs().max() > 1e-4 for g in gradient.values())


@pytest.mark.parametrize("settings", list(SETTINGS.values())[:6], ids=list(SETTINGS)[:6])
def test_the_penalty_and_its_gradient_are_exactly_zero_at_the_reference(settings):
    regulariser, probes = prepared(**settings)
    probes.draw = lambda step: probes.chunks()[step]
    for step in range(len(probes.chunks())):
        loss = regulariser.loss(probes, step)
        assert loss.item() == 0
        assert all((g == 0).all() for g in probes.gradients(loss).values())
    del probes.draw  # drawn in other batches: rounding only
    assert regulariser.loss(probes, 1).item() < 1e-11


def test_sharpening_starts_at_one_and_stops_at_its_bound():
    regulariser, probes = prepared(sharpen=0.5, sharpen_until=1.5)
    assert regulariser.loss(probes, 1).item() == pytest.approx(-0.5, abs=1e-5)
    assert regulariser.log()["separation"] == pytest.approx(1, abs=1e-5)
    for step in range(1, 150):
        gradients = probes.gradients(regulariser.loss(probes, step))
        with torch.no_grad():
            for name, p in probes.parameters().items():
                p -= 0.05 * gradients[name]
    assert 1.1 < regulariser.log()["separation"] < 3
    regulariser.settings = regulariser.settings.model_copy(
        update={"strength": 0.0, "sharpen_until": 1.000001}
    )
    probes.draw = lambda step: list(range(len(probes)))  # all blocks are beyond the bound on all probes
    bounded = regulariser.loss(probes, 1)
    assert bounded.item() == pytest.approx(-0.5, abs=1e-5)
    assert all((g == 0).all() for g in probes.gradients(bounded).values())


def test_fisher_against_brute_force():
    regulariser, probes = prepared(torch.float64)
    epsilon = 1e-5
    for layer in regulariser.layers(DEPTH):
        basis = regulariser.fixed[f"basis.{layer}"].double()
        expected = torch.zeros(basis.shape[1], dtype=torch.float64)
        for x in range(len(probes)):
            for i, direction in enumerate(basis.T):
                sides = []
                for sign in (1, -1):
                    probes.nudge = {layer: sign * epsilon * direction}
                    verdict = probes.look([x], layers=[layer]).verdict
                    sides.append(verdict[0, int(probes.unsafe[x])].item())
                expected[i] += ((sides[0] - sides[1]) / (2 * epsilon)) ** 2 / len(probes)
        torch.testing.assert_close(
            regulariser.fixed[f"importance.{layer}"].double(), expected, rtol=1e-5, atol=1e-9
        )


def test_weights_are_refreshed_on_the_step_s_probes_and_averaged():
    for kind in ("fisher", "proxy"):
        regulariser, probes = prepared(weights=kind, refresh=3, ema=0.75)
        probes.move()
        for step in (1, 2):
            regulariser.loss(probes, step)
        assert not regulariser.moving
        probes.looks.clear()
        regulariser.loss(probes, 3)
        assert probes.looks == ([True, False] if kind == "fisher" else [False])
        picks = probes.draw(3)
        seen = probes.look(picks, layers=[4])
        basis = regulariser.fixed["basis.4"]
        if kind == "fisher":
            right = seen.verdict[range(len(picks)), probes.unsafe[picks].long()].sum()
            (slope,) = torch.autograd.grad(right, [seen.hidden[4]])
            fresh = (slope @ basis).square().mean(0)
        else:
            fresh = (seen.hidden[4] @ basis).square().mean(0)
        expected = 0.75 * regulariser.fixed["importance.4"] + 0.25 * fresh
        torch.testing.assert_close(regulariser.moving["importance.4"], expected)


def test_a_saturated_draw_says_nothing_and_saturated_probes_are_an_error():
    regulariser, probes = prepared(refresh=1)
    with torch.no_grad():
        probes.net.head.weight.zero_()
    regulariser.loss(probes, 1)
    assert not regulariser.moving
    with pytest.raises(DataError, match="saturated"):
        FWSSR().prepare(probes)


def test_a_run_shared_with_other_terms_survives_the_fisher():
    regulariser, probes = prepared(refresh=1)
    probes.move()
    own, runs = probes.look, {}

    def shared(picks, **options):
        if tuple(picks) not in runs:
            runs[tuple(picks)] = own(picks, layers=[2, 3, 4])
        return runs[tuple(picks)]

    probes.look = shared
    loss = regulariser.loss(probes, 1) + probes.answer_loss(probes.draw(1))
    assert all(g.isfinite().all() for g in probes.gradients(loss).values())
    assert "importance.2" in regulariser.moving


def test_blocks_below_all_training_are_refused():
    probes = TinyProbes()
    probes.net.blocks[:2].requires_grad_(False)
    refused, fine = (
        FWSSR(FWSSRSettings(weights="uniform", depths=d)) for d in ((0.5, 0.75, 1.0), (0.75, 1.0))
    )
    refused.prepare(probes)
    with pytest.raises(ConfigError, match="blocks 2, 3, 4 the first is monitored but nothing in training"):
        refused.loss(probes, 0)
    fine.prepare(probes)
    assert fine.loss(probes, 0).requires_grad


def test_stored_reference_and_scale_are_those_of_the_probes():
    regulariser, probes = prepared()
    assert regulariser.layers(DEPTH) == [2, 3, 4]
    assert regulariser.layers(30) == [15, 19, 24, 30]
    assert regulariser.layers(1) == [1]
    with torch.no_grad():
        hidden = probes.look(range(len(probes)), layers=[3]).hidden[3]
    z = hidden @ regulariser.fixed["basis.3"]
    torch.testing.assert_close(regulariser.fixed["reference.3"], z)
    torch.testing.assert_close(regulariser.fixed["scale.3"], maths.spread(z))


def test_random_and_full_space_are_controls():
    safety, probes = prepared(weights="uniform")
    full, _ = prepared(weights="uniform", space="full")
    assert not any(key.startswith("basis") for key in full.fixed)
    assert full.fixed["reference.4"].shape == (len(probes), WIDTH)
    probes.move()
    seen = probes.look(probes.draw(1), layers=[2, 3, 4])
    by_hand = [
        ((seen.hidden[i] - full.fixed[f"reference.{i}"][probes.draw(1)]) ** 2).sum(1).mean()
        / full.fixed[f"scale.{i}"]
        for i in (2, 3, 4)
    ]
    assert full.loss(probes, 1).item() == pytest.approx(sum(by_hand).item() / 3, rel=1e-5)

    bases, values = [], []
    for seed in range(60):
        random, _ = prepared(weights="uniform", space="random", seed=seed)
        bases.append(random.fixed["basis.4"])
        torch.testing.assert_close(bases[-1].T @ bases[-1], torch.eye(3), atol=1e-6, rtol=0)
        values.append(random.loss(probes, 1).item())
    assert not torch.allclose(bases[0], bases[1])
    assert not torch.allclose(bases[0], random.fixed["basis.3"])
    again, _ = prepared(weights="uniform", space="random", seed=0)
    assert torch.equal(again.fixed["basis.4"], bases[0])
    assert not torch.allclose(safety.fixed["basis.4"], bases[0])
    # with its own scale a random subspace pulls about as hard as the whole space does
    assert np.mean(values) == pytest.approx(full.loss(probes, 1).item(), rel=0.25)


def test_the_released_no_op_measures_and_does_not_pull():
    regulariser, probes = prepared(**LADDER["ssr-noop"])
    probes.move()
    assert regulariser.loss(probes, 1) is None
    assert regulariser.log()["penalty"] > 0
    assert not any(regulariser.wants(step) for step in range(100))
    regulariser.loss(probes, 50)
    assert "importance.4" in regulariser.moving
    assert regulariser.strength == 0.1
    attached, _ = prepared(**LADDER["ssr-noop"] | {"detached": False})
    assert attached.loss(probes, 1).requires_grad


def test_without_strength_nothing_is_computed():
    regulariser, probes = prepared(strength=0.0, schedule="conflict")
    probes.looks.clear()
    assert regulariser.loss(probes, 0) is None
    assert not regulariser.wants(0)
    assert not probes.looks


def test_lambda_follows_the_conflict():
    regulariser, probes = prepared(schedule="conflict", every=4, gain=1.0, smoothing=0.5, strength=2.0)
    assert [step for step in range(9) if regulariser.wants(step)] == [0, 4, 8]
    guard = probes.gradients(probes.answer_loss(probes.draw(4)))
    regulariser.loss(probes, 4)
    regulariser.observe(probes, 4, {k: -g for k, g in guard.items()})
    assert regulariser.strength == pytest.approx(2 * math.e)
    assert regulariser.log()["conflict"] == pytest.approx(-1)
    assert regulariser.log()["lambda"] == pytest.approx(2 * math.e)
    regulariser.observe(probes, 4, guard)
    assert regulariser.strength == pytest.approx(2 * math.e)  # mean conflict (−1 + 1)/2 = 0
    regulariser.observe(probes, 4, guard)
    assert regulariser.strength == pytest.approx(2 * math.e**0.5)
    for _ in range(20):
        regulariser.observe(probes, 4, {k: -g for k, g in guard.items()})
    assert regulariser.strength == pytest.approx(20)
    regulariser.loss(probes, 5)
    assert "conflict" not in regulariser.log()


def test_the_released_rule_compares_with_the_penalty():
    regulariser, probes = prepared(schedule="released", every=20, strength=0.5)
    probes.move()
    own = {k: g / 0.5 for k, g in probes.gradients(regulariser.loss(probes, 20)).items()}
    regulariser.observe(probes, 20, own)
    assert regulariser.log()["conflict"] == pytest.approx(1, abs=1e-5)
    assert regulariser.strength == pytest.approx(0.95 * 0.5 + 0.05 * 0.25, rel=1e-5)


def test_the_log_holds_only_what_was_computed():
    regulariser, probes = prepared(weights="uniform")
    assert regulariser.log() == {"lambda": 1.0}
    probes.move()
    loss = regulariser.loss(probes, 1)
    assert regulariser.log() == {"lambda": 1.0, "penalty": pytest.approx(loss.item())}
    weighted, _ = prepared()
    numbers = weighted.log()
    assert numbers.keys() == {"lambda", "fisher_top", "fisher_rank"}
    assert 1 <= numbers["fisher_rank"] <= 3
    assert 1 <= numbers["fisher_top"] <= 3


def train(regulariser, probes, steps):
    """Plain descent on a task that pulls every verdict to safe; the calls of a trainer, in its order."""
    losses = []

    def task(step):
        return -probes.look(probes.draw(1000 + step)).verdict[:, 0].mean()

    for step in steps:
        term = regulariser.loss(probes, step)
        if regulariser.wants(step):
            regulariser.observe(probes, step, probes.gradients(task(step)))
        gradients = probes.gradients(task(step) + term)
        regulariser.edit(probes, step, gradients)
        with torch.no_grad():
            for name, p in probes.parameters().items():
                p -= 0.1 * gradients[name]
        losses.append((term.item(), tuple(sorted(regulariser.log().items()))))
    return losses


@pytest.mark.parametrize("rung", ["ssr-proxy", "fwssr-adaptive", "fwssr-released-rule", "fwssr-sharpen"])
def test_restored_state_goes_on_exactly(rung):
    settings = LADDER[rung] | {"refresh": 4, "every": 3}
    whole, probes = prepared(**settings)
    expected = train(whole, probes, range(24))

    first, probes = prepared(**settings)
    assert train(first, probes, range(10)) == expected[:10]
    second = FWSSR(FWSSRSettings(rank=3, **settings))
    second.fixed, second.moving = load(save(first.fixed)), load(save(first.moving))
    assert train(second, probes, range(10, 24)) == expected[10:]
    assert save(second.moving) == save(whole.moving)
    assert "importance.4" in whole.moving


def test_a_run_restored_before_its_first_checkpoint_starts_anew():
    first, probes = prepared(**LADDER["fwssr-adaptive"])
    second = FWSSR(FWSSRSettings(rank=3, **LADDER["fwssr-adaptive"]))
    second.fixed = load(save(first.fixed))
    probes.move()
    assert torch.equal(first.loss(probes, 1), second.loss(probes, 1))


def test_the_penalty_keeps_the_probes_where_they_were():
    def drift(**settings):
        regulariser, probes = prepared(**settings)
        train(regulariser, probes, range(40))
        with torch.no_grad():
            verdict = probes.look(range(len(probes))).verdict
        measure, _ = prepared(weights="uniform")
        probes.draw = lambda step: list(range(len(probes)))
        return measure.loss(probes, 1).item(), verdict[probes.unsafe, 1].exp().mean().item()

    loose, lost = drift(strength=1e-6, weights="uniform")
    held, kept = drift(strength=5.0, weights="uniform")
    assert held < loose / 5
    assert kept > lost


def test_every_rung_makes_one_step():
    for rung, settings in LADDER.items():
        regulariser, probes = prepared(**settings)
        probes.move()
        term = regulariser.loss(probes, 1)
        assert (term is None) == (rung == "ssr-noop")
    assert set(LADDER["fwssr"].items()) <= set(FWSSRSettings().model_dump().items())


def test_bad_settings_and_data_are_refused():
    for bad in ({"depths": (0.0,)}, {"depths": (1.5,)}, {"depths": ()}, {"nonsense": 1}, {"strength": -1}):
        with pytest.raises(ValidationError):
            FWSSRSettings(**bad)
    with pytest.raises(ValidationError, match="sharpen must be 0"):
        FWSSRSettings(detached=True, sharpen=0.1)
    assert all(field.description for field in FWSSRSettings.model_fields.values())

    probes = TinyProbes()
    with pytest.raises(RunError, match="no reference for block 2"):
        FWSSR().loss(probes, 1)
    probes.unsafe = torch.zeros(len(probes), dtype=torch.bool)
    with pytest.raises(DataError, match="both classes"):
        FWSSR().prepare(probes)
    with pytest.raises(DataError, match="both classes"):
        FWSSR(FWSSRSettings(space="random", sharpen=0.1)).prepare(probes)
    same = TinyProbes()
    same.x[:] = same.x[0]
    with pytest.raises(DataError, match="look the same"):
        FWSSR(FWSSRSettings(space="full")).prepare(same)
    broken = TinyProbes()
    broken.x[4] = math.nan
    with pytest.raises(DataError, match="not finite"):
        FWSSR(FWSSRSettings(weights="uniform", space="random")).prepare(broken)
