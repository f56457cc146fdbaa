"""Learning masks: exact gradients, exact resumption, objectives against their formulas, and that it finds damage."""

import copy
import json

import pytest
import torch
from torch.func import functional_call

from guardkeel.conversation import Conversation
from guardkeel.errors import ConfigError, ModelError, RunError
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.merging import Merging
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.randomness import generator
from guardkeel.fusion.somf.changes import Dense
from guardkeel.fusion.somf.export import MASK, describe, distances, options, write_mask
from guardkeel.fusion.somf.files import read_tensors
from guardkeel.fusion.somf.fused import Fused, Logits
from guardkeel.fusion.somf.learn import LOG, STATE, Learning, Term, learn, value
from guardkeel.fusion.somf.mask import drawn, exported, middle
from guardkeel.fusion.somf.objectives import Preferences, over, verdict_objective
from guardkeel.fusion.somf.pairs import Pair, pair_lessons
from guardkeel.fusion.somf.plan import LARGE, MaskPlan
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.tuning.learner import CausalLearner
from guardkeel.tuning.targets import Instruction, Target
from small_tunes import Brief, rows

TOUCHED = ("attention.self.query.weight", "attention.self.query.bias", "intermediate.dense.weight")


@pytest.fixture
def bert(tiny_loaded):
    return confident(*tiny_loaded("bert"))


def confident(model, tokenizer):
    """A classifier that is sure of itself, and rows labelled as it labels them: nothing is as safe as it is."""
    guard = ClassifierGuard(copy.deepcopy(model), tokenizer, name="tiny")
    judged = [t.judgement for t in rows(24, 3)]
    head = guard.model.classifier
    with torch.no_grad():
        said = torch.tensor([v.unsafe for v in guard.score(judged)]).logit()
        head.bias[1] -= said.median()
        for p in head.parameters():
            p *= 5 / said.std()
    return guard, [
        Target(j, "unsafe" if v.unsafe >= 0.5 else "safe")
        for j, v in zip(judged, guard.score(judged), strict=True)
    ]


def changes_of(model, *, count=1, seed=0, size=0.3, names=TOUCHED):
    """Random changes of some tensors, in each of `count` candidates."""
    rng = torch.Generator().manual_seed(seed)
    weights = dict(model.named_parameters())
    chosen = [n for n in weights if n.endswith(names)]
    return {
        n: Dense(n, tuple(size * torch.randn(weights[n].shape, generator=rng) for _ in range(count)))
        for n in chosen
    }


def fused_of(model, changes, *, how=None, seed=0, **options):
    return Fused(model, changes, Logits(changes.values(), **options), how or Merging(), seed)


# --- the fused model and its gradient


@pytest.mark.parametrize(
    ("granularity", "rescale", "how", "count"),
    [
        ("element", "tensor", "task-arithmetic", 1),
        ("row", "tensor", "task-arithmetic", 2),
        ("row", "model", "ties", 2),
        ("tensor", "model", "dare", 2),
        ("tensor", "none", "average", 2),
        ("element", "none", "ties", 3),
    ],
)
def test_the_gradient_is_that_of_finite_differences(bert, granularity, rescale, how, count):
    guard, _ = bert
    model = guard.model.double()
    changes = {
        n: Dense(n, tuple(d.double() for d in c.each)) for n, c in changes_of(model, count=count).items()
    }
    fused = fused_of(model, changes, how=Merging(merge=how), seed=4, granularity=granularity, rescale=rescale)
    torch.manual_seed(1)
    for name, logits in fused.logits.each.items():
        fused.logits.each[name] = torch.randn(logits.shape, dtype=torch.float64).requires_grad_()
    ids = torch.randint(20, 200, (3, 9))
    draw = drawn(0, 5, 0.5)

    def objective(model):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum()

    weights = fused.weights(draw)
    objective(fused.with_weights(weights)).backward()
    fused.backward(weights, draw)
    for name, logits in fused.logits.each.items():
        way = torch.randn(logits.shape, dtype=torch.float64)
        seen = []
        for step in (1e-6, -1e-6):  # so small that TIES keeps the same elements
            with torch.no_grad():
                logits += step * way
                seen.append(float(objective(fused.at(draw))))
                logits -= step * way
        slope = (seen[0] - seen[1]) / 2e-6
        assert float((logits.grad * way).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3), name


def test_it_is_the_chain_rule_of_one_graph(bert):
    """The two parts of a step give the gradient that one graph from logits to objective gives."""
    guard, _ = bert
    fused = fused_of(guard.model, changes_of(guard.model), granularity="row")
    ids, draw = torch.randint(20, 200, (3, 9)), drawn(0, 0, 0.5)
    weights = fused.weights(draw)
    fused.with_weights(weights)(input_ids=ids).logits.square().sum().backward()
    fused.backward(weights, draw)
    ours = {name: logits.grad.clone() for name, logits in fused.logits.each.items()}
    safe, one = dict(guard.model.named_parameters()), torch.ones(())
    for logits in fused.logits.each.values():
        logits.grad = None
    whole = {name: safe[name] + fused.change(name, draw, one) for name in fused.changes}
    functional_call(guard.model, whole, kwargs={"input_ids": ids}).logits.square().sum().backward()
    for name, logits in fused.logits.each.items():
        assert torch.allclose(ours[name], logits.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("rescale", ["tensor", "model", "none"])
@pytest.mark.parametrize("how", ["task-arithmetic", "ties", "dare", "average"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_is_written_fuses_to_what_was_learned(bert, tmp_path, granularity, rescale, how, count):
    if granularity == rescale == "tensor":
        with pytest.raises(ValueError, match="always 1"):
            Logits([], granularity=granularity, rescale=rescale)
        return
    guard, _ = bert
    fused = fused_of(
        guard.model,
        changes_of(guard.model, count=count),
        how=Merging(merge=how),
        seed=9,
        granularity=granularity,
        rescale=rescale,
    )
    for logits in fused.logits.each.values():
        logits.data.normal_()
    draw = exported("expectation", 0.5)
    write_mask(tmp_path / MASK, fused, draw, describe(fused, draw, 0.5), {})
    masks, said = read_tensors(tmp_path / MASK)
    somf = methods()["somf"]
    method = somf(somf.Settings(**json.loads(said["options"])))
    ours, safe = fused.weights(draw), dict(guard.model.named_parameters())
    for name, change in fused.changes.items():
        each = tuple(safe[name].detach() + d for d in change.deltas())
        made = method.fuse(
            Tensors(name, safe[name].detach(), each, extras={"mask": masks[name]}), generator(9, name)
        )
        assert torch.allclose(ours[name], made, atol=1e-5), name
    assert json.loads(said["means"]).keys() == masks.keys()


def test_the_safe_model_is_never_written_to(bert):
    guard, own = bert
    before = {n: p.clone() for n, p in guard.model.named_parameters()}
    fused = fused_of(guard.model, changes_of(guard.model), granularity="row")
    objective = verdict_objective(guard, own)
    loss = objective.losses(fused.at(middle(0.5)), [0, 1])
    assert not torch.allclose(loss, objective.losses(guard.model, [0, 1]))  # something was put in its place
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in guard.model.named_parameters())


def test_bf16_forward_keeps_masks_in_float32(tiny_loaded):
    model, tokenizer = tiny_loaded("bert", "bfloat16")
    guard = ClassifierGuard(copy.deepcopy(model), tokenizer, name="tiny")
    fused = fused_of(guard.model, changes_of(guard.model), granularity="row")
    weights = fused.weights(middle(0.5))
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    verdict_objective(guard, rows(4, 1)).losses(fused.with_weights(weights), [0, 1]).mean().backward()
    fused.backward(weights, middle(0.5))
    grads = [t.grad for t in fused.logits.each.values()]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads) and any(g.any() for g in grads)


def test_a_weight_that_the_model_does_not_have_is_named(bert):
    guard, _ = bert
    with pytest.raises(ModelError, match=r"'elsewhere\.weight'"):
        fused_of(guard.model, {"elsewhere.weight": Dense("elsewhere.weight", (torch.ones(2, 2),))})


# --- that it finds the damage


@pytest.mark.parametrize(
    ("granularity", "rescale"), [("tensor", "none"), ("tensor", "model"), ("row", "tensor")]
)
def test_learned_masks_beat_a_uniform_one_of_equal_density(bert, tmp_path, granularity, rescale):
    """Half of the changed tensors (or of the rows) hold damage, the other half next to nothing."""
    guard, own = bert
    changes, bad = {}, {}
    torch.manual_seed(0)
    names = [n for n, p in guard.model.named_parameters() if p.ndim == 2 and "encoder" in n]
    for i, name in enumerate(names):
        weight = dict(guard.model.named_parameters())[name]
        if granularity == "row":
            hurt = (torch.arange(weight.shape[0]) % 2 == 0)[:, None].expand(weight.shape)
        else:
            hurt = torch.full(weight.shape, i % 2 == 0)
        changes[name] = Dense(name, (torch.where(hurt, 0.1, 0.004) * torch.randn(weight.shape),))
        bad[name] = hurt
    fused = fused_of(guard.model, changes, granularity=granularity, rescale=rescale)
    terms = [Term("verdict", verdict_objective(guard, own))]
    learn(fused, terms, Learning(steps=30, learning_rate=0.2, batch=8, every=50), tmp_path)
    draw = exported("expectation", 0.5)
    density = float(fused.logits.density(draw))
    uniform = fused.at(lambda name, logits: torch.full_like(logits, density))
    safe, learned, even = (value(m, terms, 24) for m in (guard.model, fused.at(draw), uniform))
    assert learned - safe < 0.8 * (even - safe)
    with torch.no_grad():
        kept = [(fused.logits.mask(n, draw).expand(bad[n].shape), bad[n]) for n in names]
    on_bad, on_good = (torch.cat([m[b if side else ~b] for m, b in kept]).mean() for side in (True, False))
    assert on_bad < on_good - 0.05


# --- resumption


def test_a_killed_run_goes_on_as_if_it_had_not_been(bert, tmp_path):
    guard, own = bert

    def made():
        return fused_of(guard.model, changes_of(guard.model), granularity="element")

    terms = [Term("verdict", verdict_objective(guard, own))]
    how = Learning(steps=7, learning_rate=0.05, batch=4, every=2, seed=3)
    straight, killed = made(), made()
    learn(straight, terms, how, tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path, digest="d")

    def kill(step):
        if step == 5:
            raise KeyboardInterrupt

    (tmp_path / "b").mkdir()
    with pytest.raises(KeyboardInterrupt):
        learn(killed, terms, how, tmp_path / "b", digest="d", watch=kill)
    seen = []
    learn(fresh := made(), terms, how, tmp_path / "b", digest="d", watch=seen.append)
    assert seen == [5, 6, 7]  # from the state after step 4
    for name, logits in straight.logits.each.items():
        assert torch.equal(logits, fresh.logits.each[name])
    logs = [(tmp_path / f / LOG).read_text() for f in "ab"]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 7
    with pytest.raises(ConfigError, match="other guards, data or settings"):
        learn(made(), terms, how, tmp_path / "b", digest="another")


def test_what_is_not_finite_ends_the_run(bert, tmp_path):
    guard, own = bert
    changes = {n: Dense(n, (torch.full_like(c.each[0], 1e38),)) for n, c in changes_of(guard.model).items()}
    terms = [Term("verdict", verdict_objective(guard, own))]
    with pytest.raises(RunError, match="step 1: the objective is"):
        learn(fused_of(guard.model, changes), terms, Learning(steps=1), tmp_path)
    assert not (tmp_path / STATE).exists()


# --- objectives


@pytest.fixture
def llama(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    return CausalGuard(copy.deepcopy(model), tokenizer, Brief(), name="tiny", max_tokens=1024)


def test_dpo_against_its_formula(llama):
    answers = [("No.", "It is two x. Yes."), ("safe safe", "the sea and the ships")]
    pairs = [
        Pair(*(Instruction(f"{i}", Conversation.of("Please write a poem.", a)) for a in both))
        for i, both in enumerate(answers)
    ]
    teacher = CausalLearner(llama, max_tokens=1024)
    chosen, rejected = pair_lessons(pairs, llama.tokenizer, 1024)
    objective = Preferences(teacher, chosen, rejected, beta=0.3)
    objective.prepare(llama.model)
    with torch.no_grad():
        assert torch.allclose(objective.losses(llama.model, [0, 1]), torch.tensor(2.0).log(), atol=1e-6)

    def chance(model, lesson):
        ids = torch.tensor([lesson.prompt_ids + lesson.answer_ids])
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return sum(float(logs[-len(lesson.answer_ids) + k, t]) for k, t in enumerate(lesson.answer_ids))

    changes = changes_of(llama.model, names=("q_proj.weight", "down_proj.weight"))
    model = fused_of(llama.model, changes, granularity="row").at(middle(0.5))
    with torch.no_grad():
        losses = objective.losses(model, [0, 1])
        for i, (good, poor) in enumerate(zip(chosen, rejected, strict=True)):
            gains = [chance(model, x) - chance(llama.model, x) for x in (good, poor)]
            assert float(objective.reference["chances"][i, 0]) == pytest.approx(
                chance(llama.model, good), rel=1e-4
            )
            expected = torch.nn.functional.softplus(torch.tensor(-0.3 * (gains[0] - gains[1])))
            assert float(losses[i]) == pytest.approx(float(expected), rel=1e-3)


def test_the_verdict_loss_is_the_learners_and_its_kl_that_of_the_verdicts(llama):
    asked = rows(6, 5)
    plain = verdict_objective(llama, asked)
    drawn_to = verdict_objective(llama, asked, kl_weight=2.0)
    drawn_to.prepare(llama.model)
    everything = list(range(6))
    with torch.no_grad():
        batch = plain.learner.collate(plain.lessons)
        expected = plain.learner.row_losses(llama.model, batch, plain.learner.prefix(llama.model))
        assert torch.allclose(plain.losses(llama.model, everything), expected, atol=1e-5)
        assert torch.allclose(
            drawn_to.losses(llama.model, everything), expected, atol=1e-5
        )  # no KL to itself
        model = fused_of(llama.model, changes_of(llama.model, names=("v_proj.weight",))).at(middle(0.5))
        more = drawn_to.losses(model, everything) - plain.losses(model, everything)
    verdicts = {}
    for who, thing in (("safe", llama.model), ("fused", model)):
        with torch.no_grad():
            ids = [torch.tensor([plain.learner.encoder.prefix_ids + x.prompt_ids]) for x in plain.lessons]
            verdicts[who] = torch.cat([plain.learner.verdict(thing(input_ids=i).logits[:, -1]) for i in ids])
    kl = (verdicts["safe"].exp() * (verdicts["safe"] - verdicts["fused"])).sum(-1)
    assert torch.allclose(more, 2 * kl, rtol=1e-2, atol=1e-5) and bool((more > 0).all())


def test_over_takes_every_row_once():
    seen = []
    found = over(19, lambda some: torch.tensor([float(i) for i in some]), seen.append)
    assert found.tolist() == list(range(19)) and seen[-1] == 19


# --- memory


def sizes(masks, free=10**12, **more):
    return MaskPlan(
        granularity="element", space="delta", candidates=1, weights=1, values=masks, masks=masks,
        mask_bytes=16 * masks, change_bytes=4 * masks, model_bytes=2 * masks, work_bytes=0, dtype="bfloat16",
        device="cpu", free=free, **more,
    )  # fmt: skip


def test_large_masks_are_refused_with_the_arithmetic():
    seven = sizes(6_738_415_616)
    with pytest.raises(RunError, match=r"6,738,415,616 masks × 16 bytes .* = 107\.8 GB") as error:
        seven.check()
    assert "granularity = row" in error.value.remedy
    seven.check(force=True)
    sizes(LARGE // 16).check()
    with pytest.raises(RunError, match="are free on cpu"):
        sizes(1000, free=1000).check()


# --- how far it is from the reference


def test_distance_to_the_safe_model(bert):
    guard, _ = bert
    fused = fused_of(guard.model, changes_of(guard.model), granularity="row", rescale="none")
    for logits in fused.logits.each.values():
        logits.data.fill_(-20)
    assert distances(fused, exported("median", 0.5)).whole.shares[0] < 1e-6
    for logits in fused.logits.each.values():
        logits.data.fill_(0)
    found = distances(fused, exported("median", 0.5)).whole
    assert found.shares[0] == pytest.approx(0.5, abs=1e-4) and found.cosines[0] == pytest.approx(1, abs=1e-4)
    assert options(fused, middle(0.5)) == {"merge": "task-arithmetic", "rescale": False}
