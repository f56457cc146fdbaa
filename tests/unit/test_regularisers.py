"""The rivals of FW-SSR: every term against brute force and finite differences, and the registry."""

from types import SimpleNamespace

import pytest
import torch

from guardkeel.errors import ConfigError, RunError
from guardkeel.tuning.regularisers import ewc, factors, kl, l2sp, registry
from guardkeel.tuning.regularisers.asft import AsFT, AsFTSettings
from guardkeel.tuning.regularisers.base import Regulariser
from guardkeel.tuning.regularisers.ewc import EWC, EWCSettings
from guardkeel.tuning.regularisers.fwssr import LADDER
from guardkeel.tuning.regularisers.kl import KL, KLSettings
from guardkeel.tuning.regularisers.l2sp import L2SP, L2SPSettings
from guardkeel.tuning.regularisers.lisa import Lisa, LisaSettings, aligning
from guardkeel.tuning.regularisers.registry import METHODS, build, method, methods
from guardkeel.tuning.regularisers.replay import Replay, ReplaySettings
from guardkeel.tuning.regularisers.safegrad import SafeGrad, SafeGradSettings, project
from guardkeel.tuning.regularisers.several import Several
from regulariser_probes import ToyProbes, dense, differences, directions, make, scatter, task_loss, train

TERMS = {
    "replay": lambda: Replay(ReplaySettings(strength=0.7)),
    "kl": lambda: KL(KLSettings(strength=0.7)),
    "kl-warm": lambda: KL(KLSettings(strength=0.7, temperature=2.0)),
    "ewc": lambda: EWC(EWCSettings(strength=0.7)),
    "l2sp": lambda: L2SP(L2SPSettings(strength=0.7)),
    "asft": lambda: AsFT(AsFTSettings(strength=0.7)),
}
ANCHORED = [name for name in TERMS if name != "replay"]


def prepared(name, kind="lora", moved_first=False):
    """(regulariser, probes) at θ₀; `moved_first`: θ₀ is no fresh LoRA."""
    probes = ToyProbes(make(kind))
    if moved_first:
        scatter(probes, seed=11)
    regulariser = TERMS[name]() if name in TERMS else build(name)
    if "unaligned" in getattr(regulariser, "needs", ()):
        regulariser.alignment = directions(probes)
    regulariser.prepare(probes)
    return regulariser, probes


def same(found, wanted, **options):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **options)


@pytest.mark.parametrize("moved_first", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", TERMS)
def test_gradient_equals_finite_differences(name, kind, moved_first):
    regulariser, probes = prepared(name, kind, moved_first)
    scatter(probes)
    found = probes.gradients(regulariser.loss(probes, 1))
    assert max(g.abs().max() for g in found.values()) > 1e-3
    wanted = differences(lambda: regulariser.loss(probes, 1), probes.parameters())
    same(found, wanted, rtol=1e-5, atol=1e-7)


class Watched(ToyProbes):
    """Counts the probes that are looked at, and those of which a gradient is taken."""

    def __init__(self, model):
        super().__init__(model)
        self.forward, self.backward = {}, {}

    def look(self, picks, **options):
        found = super().look(picks, **options)
        number, size = self.looks, len(picks)
        self.forward[number] = size
        for shown in (*found.hidden.values(), found.logits):
            if shown is not None and shown.requires_grad:
                shown.register_hook(lambda gradient: self.backward.update({number: size}))
        return found


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS.items() if not m.posthoc and not n.startswith("heads")]
)
def test_a_method_says_how_often_it_reads_the_probes_before_the_first_step(name):
    probes = Watched(make("lora"))
    regulariser = build(name)
    if "unaligned" in getattr(regulariser, "needs", ()):
        regulariser.alignment = directions(probes)
    regulariser.prepare(probes)
    read = sum(probes.forward.values()) + sum(probes.backward.values())
    assert read == regulariser.passes * len(probes)


@pytest.mark.parametrize("moved_first", [False, True])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", ANCHORED)
def test_nothing_pulls_at_the_start(name, kind, moved_first):
    regulariser, probes = prepared(name, kind, moved_first)
    term = regulariser.loss(probes, 0)
    # prepare and step batch the probes differently, so the last bits may differ; KL does not see them at all
    assert abs(float(term.detach())) < 1e-14
    assert all(g.abs().max() < 1e-14 for g in probes.gradients(term).values())


@pytest.mark.parametrize("name", list(TERMS))
def test_strength_zero_looks_at_nothing(name):
    probes = ToyProbes(make())
    kind = type(TERMS[name]())
    regulariser = kind(kind.Settings(strength=0))
    regulariser.prepare(probes)
    assert regulariser.loss(probes, 0) is None
    assert probes.looks == 0 and not regulariser.fixed and not regulariser.moving
    assert regulariser.log() == {}


def test_replay_is_the_guards_own_loss():
    regulariser, probes = prepared("replay")
    wanted = 0.7 * probes.answer_loss(probes.draw(4))
    assert regulariser.loss(probes, 4).item() == wanted.item()
    assert regulariser.log() == {"penalty": wanted.item()}


# KL


def test_kl_is_the_textbook_divergence():
    for temperature in (1.0, 2.0):
        probes = ToyProbes(make())
        picks = probes.draw(1)
        before = torch.log_softmax(probes.look(picks).logits.detach() / temperature, -1)
        regulariser = KL(KLSettings(temperature=temperature))
        regulariser.prepare(probes)
        scatter(probes)
        after = torch.log_softmax(probes.look(picks).logits / temperature, -1)
        wanted = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
        found = regulariser.loss(probes, 1)
        # the nearest reference that rounds to what is stored: never more than the exact divergence
        assert 0.99 < found.item() / (temperature**2 * wanted.item()) <= 1 + 1e-9
        assert regulariser.log() == {"kl": found.item()}


def test_kl_reference_is_stored_in_half_precision_for_every_probe():
    regulariser, probes = prepared("kl")
    stored = regulariser.fixed["reference"]
    assert stored.dtype == torch.float16 and stored.shape == (len(probes), 7)
    wanted = torch.log_softmax(probes.look(range(len(probes))).logits.detach(), -1)
    torch.testing.assert_close(stored.double(), wanted, rtol=2**-11, atol=0)


def test_kl_does_not_take_rounding_for_drift():
    logits = torch.linspace(-40, 12, 5000).repeat(3, 1).requires_grad_()
    now = kl.log_probabilities(logits)
    stored = now.detach().half()
    naive = torch.nn.functional.kl_div(now.detach(), stored.float(), log_target=True, reduction="batchmean")
    assert naive.abs() > 1e-6  # what rounding would have read as
    found = kl.divergence(stored, now)
    assert found.item() == 0
    assert torch.autograd.grad(found, logits)[0].abs().max() == 0


def test_kl_bears_words_that_cannot_be():
    logits = torch.tensor([[2.0, 1.0, float("-inf")]], requires_grad=True)
    stored = kl.log_probabilities(torch.tensor([[1.0, 2.0, float("-inf")]])).half()
    assert stored.isfinite().all()
    found = kl.divergence(stored, kl.log_probabilities(logits))
    p, q = torch.softmax(torch.tensor([1.0, 2.0]), 0), torch.softmax(torch.tensor([2.0, 1.0]), 0)
    torch.testing.assert_close(found.detach(), (p * (p / q).log()).sum(), rtol=1e-3, atol=0)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


# EWC


def test_fisher_is_the_mean_of_squared_gradients_of_single_probes():
    probes = ToyProbes(make())
    scatter(probes)
    picks = [0, 3, 5]
    found = ewc.fisher(probes, picks)
    raw = {n: torch.zeros_like(p) for n, p in probes.parameters().items()}
    for pick in picks:
        slopes = differences(lambda pick=pick: probes.answer_loss([pick]), probes.parameters())
        for n, slope in slopes.items():
            raw[n] += slope.square() / len(picks)
    mean = torch.cat([r.flatten() for r in raw.values()]).mean()
    same(found, {n: r / mean for n, r in raw.items()}, rtol=1e-5, atol=1e-8)


def test_fresh_lora_has_no_fisher_information_in_a():
    regulariser, _ = prepared("ewc")
    importance = {n: t for n, t in regulariser.fixed.items() if n.startswith("fisher/")}
    assert all(bool(t.any()) == ("lora_B" in n) for n, t in importance.items())
    assert len(importance) == 4


def test_ewc_of_equal_importance_is_l2sp_on_the_parameters():
    probes = ToyProbes(make("full"))
    equal, plain = EWC(EWCSettings(strength=0.3)), L2SP(L2SPSettings(strength=0.3))
    equal.prepare(probes)
    plain.prepare(probes)
    equal.fixed |= {n: torch.ones_like(t) for n, t in equal.fixed.items() if n.startswith("fisher/")}
    scatter(probes)
    torch.testing.assert_close(equal.loss(probes, 0), plain.loss(probes, 0))


def test_ewc_samples_both_classes_evenly():
    unsafe = torch.tensor([True] * 90 + [False] * 10)
    picks = ewc.spread(unsafe, 30)
    assert len(set(picks)) == 30 and sum(p >= 90 for p in picks) == 10  # all of the rarer class
    assert ewc.spread(unsafe, 4) == [0, 45, 90, 95]
    assert sorted(ewc.spread(unsafe, 500)) == list(range(100))
    assert ewc.spread(torch.tensor([True, True, True]), 2) == [0, 1]


def test_ewc_refuses_importance_that_says_nothing():
    probes = ToyProbes(make())
    with torch.no_grad():
        probes.model.base_model.model.head.weight.zero_()
    with pytest.raises(RunError, match="mean 0"):
        EWC().prepare(probes)
    with torch.no_grad():
        probes.model.base_model.model.head.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="mean nan"):
        EWC().prepare(probes)


# L2-SP


def test_l2sp_is_the_distance_in_weights():
    for moved_first in (False, True):
        probes = ToyProbes(make())
        if moved_first:
            scatter(probes, seed=11)
        before = {n: dense(m).detach() for n, m in probes.modules().items()}
        regulariser = L2SP(L2SPSettings(strength=0.3))
        regulariser.prepare(probes)
        assert bool(regulariser.fixed) is moved_first  # a fresh LoRA needs no memory
        scatter(probes)
        wanted = sum((dense(m) - before[n]).square().sum() for n, m in probes.modules().items())
        torch.testing.assert_close(regulariser.loss(probes, 0), 0.15 * wanted)


def test_l2sp_of_two_active_adapters_is_that_of_their_sum():
    probes = ToyProbes(make())
    model = probes.model
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    model.double()
    regulariser = L2SP(L2SPSettings(strength=2))
    regulariser.prepare(probes)
    scatter(probes)
    modules = probes.modules().values()
    both = (m.get_delta_weight("default") + m.get_delta_weight("other") for m in modules)
    torch.testing.assert_close(regulariser.loss(probes, 0), sum(d.square().sum() for d in both))


def test_l2sp_of_dora_is_the_distance_of_its_parameters():
    probes = ToyProbes(make("dora"))
    start = {n: p.detach().clone() for n, p in probes.parameters().items()}
    assert any("magnitude" in n for n in start)
    regulariser = L2SP(L2SPSettings(strength=2))
    regulariser.prepare(probes)
    assert regulariser.loss(probes, 0).item() == 0
    scatter(probes)
    wanted = sum((p - start[n]).square().sum() for n, p in probes.parameters().items())
    torch.testing.assert_close(regulariser.loss(probes, 0), wanted)


def test_l2sp_counts_what_is_trained_beside_the_lora():
    probes = ToyProbes(make())
    probes.model.base_model.model.head.bias.requires_grad_(True)
    assert [n.rpartition(".")[2] for n in l2sp.rest(probes)] == ["bias"]
    regulariser = L2SP(L2SPSettings(strength=2))
    regulariser.prepare(probes)
    with torch.no_grad():
        probes.model.base_model.model.head.bias += 0.5
    assert regulariser.loss(probes, 0).item() == pytest.approx(7 * 0.25)


# AsFT


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_asft_equals_its_dense_form(kind):
    for moved_first in (False, True):
        regulariser, probes = prepared("asft", kind, moved_first)

        def weights(probes=probes, kind=kind):
            return {
                n: (dense(m) if kind == "lora" else m.weight).detach().clone()
                for n, m in probes.modules().items()
            }

        before = weights()
        scatter(probes)
        after, outside, whole = weights(), 0.0, 0.0
        for name, v in directions(probes).items():
            delta = after[name] - before[name]
            projector = v @ v.T / v.norm()
            outside += ((torch.eye(len(v)) - projector) @ delta).square().sum()
            whole += delta.square().sum()
        assert regulariser.loss(probes, 0).item() == pytest.approx(0.7 * float(outside), rel=1e-9)
        log = regulariser.log()
        assert log["penalty"] == pytest.approx(0.7 * float(outside), rel=1e-9)
        assert log["outside"] == pytest.approx(float(outside / whole), rel=1e-9)
        assert log["skipped"] == 0


def test_asft_leaves_modules_free_that_were_never_aligned():
    probes = ToyProbes(make())
    first, second = probes.modules()
    alignment = directions(probes)
    alignment[first] = torch.zeros_like(alignment[first])
    regulariser = AsFT()
    # peft's own prefix makes no difference to a name
    regulariser.alignment = {n.removeprefix("base_model.model."): v for n, v in alignment.items()}
    regulariser.prepare(probes)
    scatter(probes)
    found = probes.gradients(regulariser.loss(probes, 0))
    assert all(bool(g.any()) == (second in n) for n, g in found.items())
    assert regulariser.log()["skipped"] == 1


def test_asft_says_what_it_lacks():
    probes = ToyProbes(make())
    regulariser = AsFT()
    assert regulariser.needs == ("unaligned",)
    with pytest.raises(ConfigError, match="unaligned"):
        regulariser.prepare(probes)
    alignment = directions(probes)
    for broken, said in (
        ({n: torch.zeros_like(v) for n, v in alignment.items()}, "very weights of the guard"),
        (dict(list(alignment.items())[:1]), "no alignment direction is given for the module 'second'"),
        ({n: v.T for n, v in alignment.items()}, "it must be 6 rows"),
        ({n: v * float("nan") for n, v in alignment.items()}, "finite"),
    ):
        regulariser.alignment = broken
        with pytest.raises(ConfigError, match=said):
            regulariser.prepare(probes)
    dora = AsFT()
    dora.alignment = directions(ToyProbes(make("dora")))
    with pytest.raises(ConfigError, match="DoRA"):
        dora.prepare(ToyProbes(make("dora")))


# SafeGrad


def inner(a, b):
    return sum(float((a[n] * b[n]).sum()) for n in b)


def test_projection_is_orthogonal_where_they_conflict_and_nothing_elsewhere():
    probes = ToyProbes(make())
    scatter(probes)
    guard = probes.gradients(probes.answer_loss([1, 3]))
    task = probes.gradients(task_loss(probes))
    length = (inner(task, task) * inner(guard, guard)) ** 0.5
    cosine = inner(task, guard) / length
    assert cosine < -0.1
    before = {n: g.clone() for n, g in task.items()}
    assert project(task, guard) == (pytest.approx(cosine), True)
    assert abs(inner(task, guard)) < 1e-12 * length
    same(
        {n: before[n] - task[n] for n in task},
        {n: inner(before, guard) / inner(guard, guard) * g for n, g in guard.items()},
    )
    agreeing = {n: -g for n, g in before.items()}
    untouched = {n: g.clone() for n, g in agreeing.items()}
    assert project(agreeing, guard) == (pytest.approx(-cosine), False)
    assert all(torch.equal(agreeing[n], untouched[n]) for n in agreeing)
    zero = {n: torch.zeros_like(g) for n, g in guard.items()}
    assert project(untouched, zero) == (0.0, False)
    assert all(torch.equal(agreeing[n], untouched[n]) for n in agreeing)


def test_safegrad_projects_then_adds_the_gradient_of_kl():
    probes = ToyProbes(make())
    regulariser = SafeGrad(SafeGradSettings(strength=0.4))
    regulariser.prepare(probes)
    held = KL(KLSettings(strength=0.4))
    held.prepare(probes)
    scatter(probes)
    task = probes.gradients(task_loss(probes))
    wanted = {n: g.clone() for n, g in task.items()}
    _, conflict = project(wanted, probes.gradients(probes.answer_loss(probes.draw(1))))
    for name, gradient in probes.gradients(held.loss(probes, 1)).items():
        wanted[name] += gradient
    kept = {n: id(g) for n, g in task.items()}
    regulariser.edit(probes, 1, task)
    same(task, wanted)
    assert {n: id(g) for n, g in task.items()} == kept  # in place
    assert regulariser.log()["projected"] == float(conflict)


def test_safegrad_counts_the_steps_it_projected():
    probes = ToyProbes(make())
    scatter(probes)
    regulariser = SafeGrad(SafeGradSettings(strength=0))
    regulariser.prepare(probes)
    assert regulariser.fixed == {} and regulariser.log() == {}
    guard = probes.gradients(probes.answer_loss(probes.draw(0)))
    for sign in (1, 1, 1, -1):
        regulariser.edit(probes, 0, {n: sign * g for n, g in guard.items()})
    assert regulariser.log() == {"cosine": pytest.approx(-1.0), "projected": 0.25}


# Lisa


def test_lisa_takes_turns_within_the_guard_budget():
    assert [aligning(step, 2, 3) for step in range(7)] == [False, False, False, True, True, False, False]
    shipped = LisaSettings()
    turns = [aligning(step, shipped.align_steps, shipped.task_steps) for step in range(100)]
    assert sum(turns) == 20  # a fifth of the steps look at guard data


def test_lisa_steps_are_the_turns_gradient_plus_the_pull_to_the_last_switch():
    probes = ToyProbes(make())
    regulariser = Lisa(LisaSettings(align_steps=2, task_steps=3, rho=0.5))
    regulariser.prepare(probes)
    switch = None
    for step in range(12):
        turn = step % 5
        parameters = probes.parameters()
        if turn in (0, 3):
            switch = {n: p.detach().clone() for n, p in parameters.items()}
        guard = turn >= 3
        task = probes.gradients(task_loss(probes))
        own = probes.gradients(probes.answer_loss(probes.draw(step))) if guard else task
        wanted = {n: own[n] + 0.5 * (p.detach() - switch[n]) for n, p in parameters.items()}
        looked = probes.looks
        regulariser.edit(probes, step, task)
        assert probes.looks - looked == (1 if guard else 0)
        same(task, wanted)
        assert regulariser.log() == {"guard": float(guard)}
        same({n: regulariser.moving[f"switch/{n}"] for n in switch}, switch)
        with torch.no_grad():
            for n, p in parameters.items():
                p.sub_(task[n], alpha=0.1)


def test_lisas_pull_is_the_gradient_of_half_the_squared_distance():
    probes = ToyProbes(make("full"))
    regulariser = Lisa(LisaSettings(rho=2.0))
    regulariser.edit(probes, 0, {n: torch.zeros_like(p) for n, p in probes.parameters().items()})
    scatter(probes)
    found = {n: torch.zeros_like(p) for n, p in probes.parameters().items()}
    regulariser.edit(probes, 1, found)
    away = {n: regulariser.moving[f"switch/{n}"] for n in found}
    wanted = differences(
        lambda: torch.stack([(p - away[n]).square().sum() for n, p in probes.parameters().items()]).sum(),
        probes.parameters(),
    )
    same(found, wanted, rtol=1e-6, atol=1e-8)


# Several


def test_several_adds_losses_and_edits_in_order():
    probes = ToyProbes(make())
    both = build("replay+kl+lisa", {"replay": {"strength": 0.5}, "lisa": {"task_steps": 1, "align_steps": 1}})
    assert isinstance(both, Several) and list(both.parts) == ["replay", "kl", "lisa"]
    both.prepare(probes)
    assert list(both.fixed) == ["1.reference"]
    scatter(probes)
    single = KL()
    single.prepare(ToyProbes(make()))
    wanted = 0.5 * probes.answer_loss(probes.draw(1)) + single.loss(probes, 1)
    torch.testing.assert_close(both.loss(probes, 1), wanted)
    gradients = probes.gradients(task_loss(probes))
    both.edit(probes, 1, gradients)  # a guard step: nothing of the task is left
    same(gradients, probes.gradients(probes.answer_loss(probes.draw(1))))
    assert both.log().keys() == {"replay.penalty", "kl.kl", "lisa.guard"}
    assert all(key.startswith("2.") for key in both.moving) and "2.guard" in both.moving


class Watching(Regulariser):
    """Sees the task's gradient every other step."""

    def wants(self, step):
        return step % 2 == 1

    def observe(self, probes, step, task):
        self.moving["seen"] = self.moving.get("seen", torch.tensor(0)) + 1


def test_several_shows_the_task_to_those_that_ask():
    probes = ToyProbes(make())
    both = Several({"a": Watching(), "b": Regulariser()})
    assert both.loss(probes, 0) is None and not both.wants(0) and both.wants(1)
    train(both, probes, steps=5)
    assert {key: int(t) for key, t in both.moving.items()} == {"0.seen": 2}


def test_several_hands_the_alignment_to_those_that_need_it():
    probes = ToyProbes(make())
    both = build("replay+asft+safe-lora")
    assert both.needs == ("unaligned",) and both.alignment is None
    with pytest.raises(ConfigError, match="asft needs the model"):
        both.prepare(probes)
    both.alignment = directions(probes)
    assert both.alignment is both.parts["asft"].alignment is both.parts["safe-lora"].alignment
    both.prepare(probes)
    assert all(key.startswith("1.") for key in both.fixed)


@pytest.mark.parametrize("how", ["assigned", "updated"])
@pytest.mark.parametrize(
    "name", ["replay", "kl", "ewc", "l2sp", "safegrad", "lisa", "asft", "lisa+kl+safegrad"]
)
def test_a_resumed_run_goes_on_exactly(name, how):
    regulariser, probes = prepared(name)
    whole = train(regulariser, probes, steps=14)
    logged = regulariser.log()
    regulariser, probes = prepared(name)
    first = train(regulariser, probes, steps=9)
    fixed = {key: t.clone() for key, t in regulariser.fixed.items()}
    moving = {key: t.clone() for key, t in regulariser.moving.items()}
    assert all(t.is_contiguous() for t in (*fixed.values(), *moving.values()))
    again = TERMS[name]() if name in TERMS else build(name)
    if how == "assigned":
        again.fixed, again.moving = fixed, moving
    else:
        again.fixed.update(fixed)
        again.moving.update(moving)
    second = train(again, probes, steps=5, first=9)
    for found, wanted in zip(first + second, whole, strict=True):
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert again.log() == logged


# factors


def test_only_plain_lora_layers_are_a_product_of_two_factors():
    lora, dora, full = (ToyProbes(make(kind)) for kind in ("lora", "dora", "full"))
    for module in lora.modules().values():
        left, right = factors.pair(module)
        torch.testing.assert_close(left @ right, dense(module))
    assert all(factors.pair(m) is None for m in [*dora.modules().values(), *full.modules().values()])


# registry


def test_every_method_can_be_built():
    expected = ["plain", "replay", "kl", "ewc", "l2sp", "safegrad", "lisa", "asft", "heads", "heads-random"]
    assert list(METHODS) == [*expected, *LADDER, "interpolation", "safe-lora"]
    assert set(registry._RUNGS) == set(LADDER)
    for name, known in METHODS.items():
        built = build(name)
        assert type(built) is known.regulariser
        assert "\n" not in known.summary and 10 < len(known.summary) <= 80
        for field in known.regulariser.Settings.model_fields.values():
            assert field.description
    assert {n for n, m in METHODS.items() if m.posthoc} == {"interpolation", "safe-lora"}
    assert {n for n, m in METHODS.items() if m.needs} == {"asft", "safe-lora"}
    assert type(build("plain")) is Regulariser


def test_rungs_keep_their_settings_under_options():
    built = build("ssr-random", {"ssr-random": {"strength": 5}})
    assert (built.settings.space, built.settings.strength) == ("random", 5)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("fwsr", {}, "unknown method 'fwsr'(.|\n)*did you mean fwssr"),
        ("qqqq", {}, "unknown method 'qqqq'(.|\n)*methods are plain, replay"),
        ("fwssr+", {}, "unknown method ''"),
        ("replay+replay", {}, "names 'replay' twice"),
        ("replay", {"kl": {}}, "options for 'kl', which is no part of method 'replay'(.|\n)*under replay"),
        ("replay", {"replay": {"strenght": 2}}, "no option 'strenght'(.|\n)*write 'strength'"),
        ("plain", {"plain": {"strength": 2}}, "no option 'strength'(.|\n)*options are none"),
        ("replay", {"replay": {"strength": -1}}, "strength is -1: (.|\n)*greater than or equal to 0"),
        ("lisa", {"lisa": {"rho": "much"}}, "rho is 'much'(.|\n)*correct 'rho'"),
        ("fwssr", {"fwssr": {"depths": [2.0]}}, "depths must lie in"),
    ],
)
def test_what_cannot_be_built_is_explained(text, options, said):
    with pytest.raises(ConfigError, match=said):
        build(text, options)


def test_other_packages_add_methods(monkeypatch):
    def entry(name, value):
        return SimpleNamespace(name=name, value="their.package:thing", load=lambda: value)

    def listed(*entries):
        monkeypatch.setattr(registry, "entry_points", lambda group: list(entries))
        methods.cache_clear()

    try:
        listed(
            entry("watching", Watching),
            entry("gentle", registry.Method(KL, "a gentle hold", {"strength": 0.1})),
        )
        assert method("watching").summary == "Sees the task's gradient every other step."
        assert build("gentle").settings.strength == 0.1
        assert list(build("watching+replay").parts) == ["watching", "replay"]
        for bad in (entry("kl", Watching), entry("a+b", Watching), entry("thing", 3)):
            listed(bad)
            with pytest.raises(ConfigError, match="entry point"):
                build("plain")
    finally:
        methods.cache_clear()
