"""Probes: which are drawn, what is seen of them, and that nothing is seen twice or too late."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ConfigError, DataError
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.models.tiny import CAUSAL, CLASSIFIERS
from guardkeel.tuning.learner import training
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.probes import GuardProbes, guard_probes
from small_tunes import BriefEveryToken, bench

SHARING, WHOLE = "llama", "gemma3"  # with a shared policy, and without


def hidden_of(guard, judged, layers):
    found = {}
    for batch in guard.batches(judged, layers=layers):
        found.update((i, batch.hidden[:, k]) for k, i in enumerate(batch.indices))
    return np.stack([found[i] for i in range(len(judged))], axis=1)


def close(a, b, tolerance=1e-4):
    scale = b.detach().abs().max()
    return torch.allclose(a, b, atol=tolerance * float(scale) + 1e-9)


class Runs:
    """Counts the forwards of a model by their number of rows; the policy alone is one row."""

    def __init__(self, model, layer=1):
        self.rows = []
        self._handle = blocks(model)[layer - 1].register_forward_hook(
            lambda module, inputs, output: self.rows.append(
                (output[0] if isinstance(output, tuple) else output).shape[0]
            )
        )

    def take(self):
        taken, self.rows = self.rows, []
        return taken


@pytest.fixture
def made(tiny_loaded):
    """made(architecture, **options of bench), every token a verdict."""
    return lambda architecture, **options: bench(
        tiny_loaded(architecture), **{"family": BriefEveryToken(), "moved": 0.2} | options
    )


# --- which are drawn


def only_labels(model, unsafe, safe, **options):
    lessons = [Lesson(str(i), [1], label="unsafe" if i < unsafe else "safe") for i in range(unsafe + safe)]
    return GuardProbes(model, None, lessons, **options)


@settings(max_examples=60, deadline=None)
@given(
    unsafe=st.integers(1, 7),
    safe=st.integers(1, 7),
    batch=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_every_probe_comes_once_before_any_comes_twice(tiny_loaded, unsafe, safe, batch, seed):
    model = tiny_loaded("llama")[0]
    probes = only_labels(model, unsafe, safe, batch=batch, seed=seed)
    drawn = [probes.draw(step) for step in range(12)]
    sides = {True: [], False: []}
    for step, picks in enumerate(drawn):
        flagged = [bool(probes.unsafe[i]) for i in picks]
        assert len(picks) == batch
        # the odd one of an odd batch alternates
        assert flagged.count(True) - batch // 2 == (step % 2 if batch % 2 else 0)
        for pick, flag in zip(picks, flagged, strict=True):
            sides[flag].append(pick)
    for flag, count in ((True, unsafe), (False, safe)):
        epochs = [sides[flag][i : i + count] for i in range(0, len(sides[flag]), count)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


def test_draws_follow_from_seed_and_step_alone(tiny_loaded):
    model = tiny_loaded("llama")[0]
    one, two, other = (only_labels(model, 9, 9, batch=4, seed=s) for s in (0, 0, 1))
    forwards = [one.draw(step) for step in range(20)]
    assert [two.draw(step) for step in reversed(range(20))][::-1] == forwards  # no state
    assert [other.draw(step) for step in range(20)] != forwards
    assert forwards[:4] != forwards[5:9]  # epochs are shuffled anew
    generator = torch.get_rng_state()
    one.draw(3)
    assert torch.equal(torch.get_rng_state(), generator)


def test_chunks_hold_every_probe_once_near_ones_together(made):
    probes = made(SHARING, anchors=21).probes
    chunks = probes.chunks()
    lengths = [len(probes.lessons[i].prompt_ids) for chunk in chunks for i in chunk]
    assert sorted(i for chunk in chunks for i in chunk) == list(range(21))
    assert lengths == sorted(lengths)
    assert max(map(len, chunks)) <= 8


@pytest.mark.parametrize("label", ["unsafe", "safe"])
def test_one_label_is_not_enough(tiny_loaded, label):
    lessons = [Lesson(str(i), [1], label=label) for i in range(3)]
    with pytest.raises(DataError, match=rf"both labels, got {3 * (label == 'unsafe')} unsafe of 3") as error:
        GuardProbes(tiny_loaded("llama")[0], None, lessons)
    assert "--guard-data" in error.value.remedy


# --- what is seen


@pytest.mark.parametrize("architecture", [*CAUSAL, *CLASSIFIERS])
def test_states_and_verdicts_are_those_of_the_guard(architecture, made):
    b = made(architecture)
    probes, everything = b.probes, list(range(8))
    expected = hidden_of(b.guard, [t.judgement for t in b.anchors], (1, 2))
    b.model.eval()
    seen = probes.look(everything, layers=(1, 2))
    for k, layer in enumerate((1, 2)):
        assert seen.hidden[layer].dtype == torch.float32
        assert close(seen.hidden[layer], torch.tensor(expected[k])), layer
    chances = [v.unsafe for v in b.guard.score([t.judgement for t in b.anchors])]
    assert seen.verdict[:, 1].exp().tolist() == pytest.approx(chances, abs=1e-5)
    assert torch.allclose(seen.verdict.logsumexp(-1), torch.zeros(8), atol=1e-5)
    assert seen.logits.shape[0] == 8 and seen.logits.requires_grad
    assert probes.unsafe.tolist() == [t.label == "unsafe" for t in b.anchors]
    stopped = probes.look(everything, layers=(1, 2), logits=False)
    assert stopped.verdict is None and stopped.logits is None
    for layer in (1, 2):
        assert close(stopped.hidden[layer], seen.hidden[layer], 1e-5), layer
    assert not probes.look([0], layers=(), logits=False).hidden


def test_states_of_decoder_classifiers_are_those_of_the_last_real_token(tiny_loaded):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny_loaded("llama")[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, id2label={0: "safe", 1: "unsafe"}, pad_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    b = bench((LlamaForSequenceClassification(config), tokenizer), moved=0.2)
    assert isinstance(b.guard, ClassifierGuard) and b.guard.causal
    expected = hidden_of(b.guard, [t.judgement for t in b.anchors], (1, 2))
    for logits in (True, False):
        seen = b.probes.look(range(8), layers=(1, 2), logits=logits)
        for k, layer in enumerate((1, 2)):
            assert close(seen.hidden[layer], torch.tensor(expected[k])), layer


def test_sharing_the_policy_changes_neither_states_nor_gradients(made):
    """Gradients flow through the keys and values of the policy."""
    found = []
    for share in (True, False):
        b = made(SHARING, share=share)
        assert bool(b.teacher.encoder.prefix_ids) is share
        seen = b.probes.look([0, 3], layers=(1, 2))
        loss = b.probes.answer_loss([1, 2])
        found.append(
            (seen, loss, b.probes.gradients(loss), b.probes.gradients(seen.hidden[2].square().sum()))
        )
    (a, loss, *grads), (b, other, *others) = found
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    assert all(close(a.hidden[layer], b.hidden[layer]) for layer in (1, 2))
    assert close(a.logits, b.logits)
    for ours, theirs in zip(grads, others, strict=True):
        for name, gradient in theirs.items():
            assert gradient.any() and close(ours[name], gradient, 1e-3), name


def test_a_stopped_forward_stops(made):
    b = made(SHARING)
    first, second = Runs(b.model, 1), Runs(b.model, 2)
    with torch.no_grad():
        b.probes.look([0, 1], layers=(1,), logits=False)
        assert first.take() == [1, 2] and second.take() == [1]  # the policy runs whole, the probes do not
        b.probes.look([0, 1], layers=(1,))
        assert first.take() == second.take() == [1, 2]
        b.probes.look([0, 1], layers=(2, 1), logits=False)
        assert first.take() == second.take() == [1, 2]


@pytest.mark.parametrize("architecture", [SHARING, WHOLE, *CLASSIFIERS])
def test_gradients_by_the_hidden_state_are_differences(architecture, made):
    """∂log P(unsafe)/∂h at every watched layer, against a hook that moves h where the verdict is given."""
    probes = made(architecture).probes
    probes.model.eval()
    picks = [0, 3, 5]
    seen = probes.look(picks, layers=(1, 2))
    slopes = torch.autograd.grad(seen.verdict[:, 1].sum(), [seen.hidden[1], seen.hidden[2]])
    _, at = probes._batch(picks, answers=False)
    generator = torch.Generator().manual_seed(1)
    for layer, slope in zip((1, 2), slopes, strict=True):
        way = torch.randn(slope.shape, generator=generator)
        way /= way.norm(dim=1, keepdim=True)
        values = []
        for size in (1e-2, -1e-2):

            def move(module, inputs, output, size=size, way=way):
                states = output[0] if isinstance(output, tuple) else output
                if states.shape[0] == len(picks):  # not the shared policy
                    states = states.clone()
                    states[torch.arange(len(picks)), at] += size * way
                return (states, *output[1:]) if isinstance(output, tuple) else states

            handle = blocks(probes.model)[layer - 1].register_forward_hook(move)
            with torch.no_grad():
                values.append(probes.look(picks).verdict[:, 1].double())
            handle.remove()
        differences = (values[0] - values[1]) / 2e-2
        expected = (slope * way).sum(1)
        assert expected.abs().max() > 1e-3
        assert torch.allclose(differences.float(), expected, atol=0.02 * float(expected.abs().max())), layer


def test_watching_does_not_change_the_loss_or_its_gradient(made):
    b = made(SHARING)
    plain = b.probes.gradients(b.probes.answer_loss([0, 1]))
    with b.probes.step():
        b.probes.look([0, 1], layers=(1, 2))
        watched = b.probes.gradients(b.probes.answer_loss([0, 1]))
    assert all(close(watched[name], plain[name], 1e-5) for name in plain)


@pytest.mark.parametrize("architecture", [SHARING, WHOLE, "bert"])
def test_the_answer_loss_is_the_learners(architecture, made):
    b = made(architecture)
    b.model.eval()
    picks = [4, 1, 6]
    batch = b.teacher.collate([b.probes.lessons[i] for i in picks])
    expected = b.teacher.loss(b.model, batch, b.teacher.prefix(b.model))
    assert b.probes.answer_loss(picks).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_is_dropped_out_of_a_look_in_training(made):
    """Classifiers train with dropout; a look that had some would see movement where there is none."""
    b = made("bert")
    dropouts = [m for m in b.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert dropouts
    b.model.eval()
    still = b.probes.look([0, 1], layers=(1, 2))
    b.model.train()
    noisy = b.probes.look([0, 1], layers=(1, 2))
    assert not close(noisy.hidden[2], still.hidden[2], 1e-2)
    with b.probes.step():
        seen = b.probes.look([0, 1], layers=(1, 2))
        loss, again = b.probes.answer_loss([0, 1]), b.probes.look([0, 1], layers=(2,), logits=False)
    assert torch.equal(seen.hidden[2], still.hidden[2]) and torch.equal(again.hidden[2], still.hidden[2])
    assert loss.isfinite()
    assert all(m.p for m in dropouts)  # the task has its dropout back
    with training(b.model):  # and guardkeel's own trainings have none
        assert torch.equal(b.probes.look([0, 1], layers=(1, 2)).hidden[2], still.hidden[2])
    assert all(m.p for m in dropouts)


@pytest.mark.parametrize("share", [True, False])
def test_a_look_is_the_same_in_a_model_with_activation_checkpointing(made, share):
    """With it a model keeps no keys and values: the policy would be lost without a word."""
    b = made(SHARING, share=share)
    b.model.train()
    still = b.probes.look([0, 1], layers=(1, 2))
    expected = b.probes.gradients(b.probes.answer_loss([0, 1]))
    b.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with b.probes.step():
        seen = b.probes.look([0, 1], layers=(1, 2))
        part = b.probes.look([0, 1], layers=(1,), logits=False)
        b.probes.gradients(seen.verdict.sum() + part.hidden[1].sum())  # through what is watched
        found = b.probes.gradients(b.probes.answer_loss([0, 1]))
    assert torch.equal(seen.hidden[2], still.hidden[2]) and torch.equal(seen.logits, still.logits)
    assert all(close(found[name], expected[name], 1e-5) for name in expected)
    if share:
        with pytest.raises(ConfigError, match="checkpointing cannot share the policy") as error:
            b.teacher.prefix(b.model)  # the task's own batches still recompute
        assert "share=False" in error.value.remedy


# --- what is kept within a step


def test_a_draw_is_run_once_a_step(made):
    b = made(SHARING)
    runs, probes = Runs(b.model), b.probes
    with probes.step():
        one = probes.look([0, 1], layers=(2,))
        probes.look([0, 1])
        assert runs.take() == [1, 2]  # the policy and the draw
        probes.answer_loss([0, 1])
        assert runs.take() == [2]  # the draw again, with its answers
        probes.answer_loss([0, 1])
        probes.look([0, 1], layers=(2,))
        assert runs.take() == []
        two = probes.look([0, 1], layers=(1, 2))
        assert runs.take() == [2]  # another layer, another run
        probes.look([0, 1], layers=(2,))
        probes.look([1, 0])
        assert runs.take() == [2]
        assert close(one.hidden[2], two.hidden[2])
        probes.look([0, 1], layers=(1,), logits=False)
        assert runs.take() == [2]  # a stopped run is cheap and is not kept
    probes.look([0, 1])
    assert runs.take() == [1, 2]


def test_terms_that_look_differently_far_share_one_run(made):
    b = made(SHARING)
    runs, probes = Runs(b.model), b.probes
    probes.looks = "answers"
    with probes.step():
        part = probes.look([0, 1], layers=(2,), logits=False)
        probes.look([0, 1])
        probes.answer_loss([0, 1])
        assert runs.take() == [1, 2]
    probes.looks = "hidden"
    assert close(part.hidden[2], probes.look([0, 1], layers=(2,), logits=False).hidden[2])


@pytest.mark.parametrize(
    ("looks", "first", "then"), [("hidden", [1, 2], [2]), ("verdict", [1, 2], [2]), ("answers", [1, 2], [])]
)
def test_a_draw_is_run_as_far_as_some_term_needs_it(made, looks, first, then):
    """Terms that look at it one after the other then share one run."""
    b = made(SHARING)
    runs, b.probes.looks = Runs(b.model), looks
    with b.probes.step():
        b.probes.look([0, 1], layers=(1, 2), logits=False)
        assert runs.take() == first
        seen = b.probes.look([0, 1], layers=(1, 2))
        assert runs.take() == ([2] if looks == "hidden" else [])
        b.probes.answer_loss([0, 1])
        assert runs.take() == then
    assert seen.verdict is not None


@pytest.mark.parametrize("architecture", [SHARING, WHOLE, "bert"])
def test_a_frozen_look_shows_the_same(made, architecture):
    """Weights get no gradient there; what they are is seen as ever, and so are slopes by hidden states."""
    b = made(architecture)
    b.model.train()
    names = list(b.probes.parameters())
    with b.probes.step():
        open_ = b.probes.look([0, 1], layers=(1, 2))
        watched = [open_.hidden[1], open_.hidden[2]]
        slopes = torch.autograd.grad(open_.verdict[:, 1].sum(), watched, retain_graph=True)
        runs = Runs(b.model)
        with b.probes.frozen():
            assert not b.probes.parameters()
            runs.take()  # the policy, once for all looks
            seen = b.probes.look([0, 1], layers=(1, 2))
            found = torch.autograd.grad(seen.verdict[:, 1].sum(), [seen.hidden[1], seen.hidden[2]])
            part = b.probes.look([2, 3], layers=(1,), logits=False)
            assert runs.take() == [2, 2]
        assert list(b.probes.parameters()) == names
        again = b.probes.look([0, 1], layers=(1, 2))
        gradients = b.probes.gradients(again.verdict.square().sum())
    assert any(gradient.any() for gradient in gradients.values())
    assert all(close(a, e, 1e-4) for a, e in zip(found, slopes, strict=True))
    assert close(seen.hidden[2], open_.hidden[2], 1e-5) and close(seen.verdict, open_.verdict, 1e-4)
    assert not part.hidden[1].requires_grad
    with pytest.raises(RuntimeError, match="stop"), b.probes.frozen():
        raise RuntimeError("stop")
    assert list(b.probes.parameters()) == names


@pytest.mark.parametrize("architecture", [SHARING, WHOLE, "bert"])
def test_probes_for_a_trainer_of_ones_own(made, architecture):
    b = made(architecture)
    probes = guard_probes(b.guard, b.anchors, batch=3, seed=4, max_tokens=1024)
    assert (probes.model, probes.batch, probes.seed, len(probes)) == (b.model, 3, 4, 8)
    assert bool(getattr(probes.learner, "sharing", False)) is (architecture == SHARING)
    b.model.eval()
    seen, expected = probes.look([0, 3], layers=(1,)), b.probes.look([0, 3], layers=(1,))
    assert close(seen.hidden[1], expected.hidden[1]) and close(seen.verdict, expected.verdict)


def test_the_policy_of_the_task_is_used(made):
    b = made(SHARING)
    runs, prefix = Runs(b.model), b.teacher.prefix(b.model)
    runs.take()
    with b.probes.step(prefix):
        loss = b.probes.answer_loss([0, 1])
        b.probes.look([2, 3], layers=(1,), logits=False)
    assert runs.take() == [2, 2]
    keys = [k for k, _ in prefix]
    assert all(g is not None and g.any() for g in torch.autograd.grad(loss, keys))


def test_what_is_kept_does_not_outlive_the_step(made):
    b = made(SHARING)
    with b.probes.step():
        before = b.probes.look([0, 1], layers=(2,))
    with torch.no_grad():
        for p in b.probes.parameters().values():
            p.add_(0.1)
    with b.probes.step():
        after = b.probes.look([0, 1], layers=(2,))
    fresh = b.probes.look([0, 1], layers=(2,))
    assert not close(after.hidden[2], before.hidden[2], 1e-2)
    assert close(after.hidden[2], fresh.hidden[2], 1e-6) and close(after.logits, fresh.logits, 1e-6)
    with pytest.raises(RuntimeError, match="stop"), b.probes.step():
        b.probes.look([0, 1])
        raise RuntimeError("stop")
    runs = Runs(b.model)
    b.probes.look([0, 1])
    assert runs.take() == [1, 2]


def test_a_look_without_gradients_serves_no_one_who_wants_them(made):
    b = made(SHARING)
    with b.probes.step():
        with torch.no_grad():
            b.probes.look([0, 1], layers=(2,))
        seen = b.probes.look([0, 1], layers=(2,))
        assert seen.hidden[2].requires_grad
        found = b.probes.gradients(b.probes.answer_loss([0, 1]))
    plain = b.probes.gradients(b.probes.answer_loss([0, 1]))
    assert all(close(found[name], plain[name], 1e-5) for name in plain)  # through the policy too


# --- parameters


def test_gradients_touch_nothing(made):
    b = made(SHARING)
    names = list(b.probes.parameters())
    assert names == sorted(n for n, p in b.model.named_parameters() if p.requires_grad)
    assert all("lora_" in n for n in names)
    with b.probes.step():
        loss = b.probes.answer_loss([0, 1])
        one, two = b.probes.gradients(loss), b.probes.gradients(loss)  # the graph is kept
        low = b.probes.gradients(b.probes.look([0, 1], layers=(1,), logits=False).hidden[1].sum())
    assert list(one) == names and all(torch.equal(one[n], two[n]) for n in names)
    assert all(p.grad is None for p in b.model.parameters())
    assert any(low[n].any() for n in names if ".layers.0." in n)
    assert not any(low[n].any() for n in names if ".layers.1." in n)  # zeros, not None


@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
def test_modules_are_named_as_in_the_checkpoint(made, tiny_folder, adapter):
    b = made("llama", adapter=adapter, moved=0)
    modules = b.probes.modules()
    with safe_open(tiny_folder("llama") / "model.safetensors", "pt") as held:
        stored = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118 - it is no dict
    assert len([n for n in modules if ".layers." in n]) == 14
    for name, module in modules.items():
        base = getattr(module, "base_layer", module)
        assert torch.equal(base.weight.detach(), stored[f"{name}.weight"]), name
    assert all(hasattr(m, "lora_A") for m in modules.values()) is (adapter != "full")


def test_hooks_are_gone_afterwards(made):
    b = made(SHARING)

    def hooks():
        return [len(block._forward_hooks) for block in blocks(b.model)]

    before = hooks()
    b.probes.look([0, 1], layers=(1, 2))
    b.probes.look([0, 1], layers=(1, 2), logits=False)
    broken = copy.copy(b.probes)
    broken.learner = None
    with pytest.raises(AttributeError):
        broken.look([0, 1], layers=(1, 2))
    assert hooks() == before
