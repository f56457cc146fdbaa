"""GuardTrainer without a regulariser is the plain loop, and a regulariser that weighs nothing is none."""

from functools import partial

import pytest
import torch
from transformers import TrainerCallback

from guardkeel.conversation import Conversation, Example
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Judgement
from guardkeel.tuning import lora
from guardkeel.tuning.learner import training
from guardkeel.tuning.lora import LoraSettings
from guardkeel.tuning.monitor import SafetyMonitor
from guardkeel.tuning.order import batches, schedule
from guardkeel.tuning.regularisers.replay import Replay
from small_tunes import bench, rows, trainer

STEPS, BATCH, RATE = 5, 3, 5e-3
pace = partial(schedule, steps=STEPS, warmup=0.4, decay=True)


def order(made):
    lengths = [len(lesson.prompt_ids) + len(lesson.answer_ids) for lesson in made.lessons]
    return batches(lengths, size=BATCH, count=STEPS, seed=0)


def plainly(made, parts=1):
    """The loop written out: forward, backward, clip, AdamW. Returns the losses."""
    weights = [p for p in made.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    losses, picked = [], order(made)
    with training(made.model):
        for step in range(STEPS // parts):
            optimiser.param_groups[0]["lr"] = RATE * pace(step)
            for picks in picked[step * parts : (step + 1) * parts]:
                batch = made.teacher.collate([made.lessons[i] for i in picks])
                prefix = made.teacher.prefix(made.model) if batch["shared"] else None
                loss = made.teacher.loss(made.model, batch, prefix) / parts
                loss.backward()
                losses.append(loss.item() * parts)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            optimiser.zero_grad()
    return losses


class Losses(TrainerCallback):
    """The task's loss of every step, as the run's log has it."""

    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, **kwargs):
        self.found.append(self.trainer.facts()["loss"])


def tuned(loaded, folder, method="plain", options=None, *, callbacks=(), **settings):
    """(bench, losses by step) after a training."""
    made, losses = bench(loaded, task=11, **settings.pop("bench", {})), Losses()
    run = trainer(
        made, folder, method, options, batch=BATCH, learning_rate=RATE, schedule=pace,
        callbacks=[losses, *callbacks], **{"steps": STEPS} | settings,
    )  # fmt: skip
    losses.trainer = run
    run.train()
    return made, losses.found


def same(one, two):
    a, b = one.trained(), two.trained()
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [("llama", "lora"), ("llama", "full"), ("gemma3", "lora"), ("qwen3", "dora"), ("bert", "full")],
)
def test_without_a_regulariser_it_is_the_plain_loop_bit_for_bit(tiny_loaded, tmp_path, architecture, adapter):
    loaded = tiny_loaded(architecture)
    made, losses = tuned(loaded, tmp_path, bench={"adapter": adapter})
    other = bench(loaded, task=11, adapter=adapter)
    before = other.trained()
    assert losses == plainly(other)
    same(made, other)
    moved = [n for n, p in other.trained().items() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) / 3


def test_accumulated_batches_are_the_plain_loops(tiny_loaded, tmp_path):
    made, losses = tuned(tiny_loaded("llama"), tmp_path, steps=2, accumulation=2)
    other = bench(tiny_loaded("llama"), task=11)
    each = plainly(other, parts=2)
    assert losses == [pytest.approx((each[i] + each[i + 1]) / 2) for i in (0, 2)]
    same(made, other)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_it_is_the_slow_obvious_fine_tune_but_for_the_last_bit(
    tiny_loaded, tmp_path, monkeypatch, architecture
):
    """lora.train sums the losses row by row, the trainer in one call: the sums differ in their last bit."""
    loaded = tiny_loaded(architecture)
    made, losses = tuned(loaded, tmp_path)
    other = bench(loaded, task=11)
    # it orders by the length of texts, the trainer by that of tokens
    monkeypatch.setattr(lora, "batches", lambda *args, **options: order(made))
    chosen = LoraSettings(
        steps=STEPS, batch=BATCH, learning_rate=RATE, warmup=0.4, decay=True, max_tokens=1024
    )
    log = lora.train(other.model, other.guard.tokenizer, other.guard.grammar, other.task, chosen)
    assert losses == pytest.approx([step.loss for step in log], rel=1e-4)
    ours, theirs = made.trained(), other.trained()
    # Adam divides by the gradient's size, so that a last bit of a tiny gradient can move a weight visibly
    far = sum(float((ours[n] - theirs[n]).abs().sum()) for n in ours)
    assert far < 1e-3 * sum(float(p.abs().sum()) for p in theirs.values())


OFF = [
    *(("ssr-uniform", "strength"), ("fwssr", "strength"), ("fwssr-adaptive", "strength")),
    *(("fwssr-released-rule", "strength"), ("ssr-random", "strength"), ("ssr-full", "strength")),
    *(("replay", "strength"), ("kl", "strength"), ("ewc", "strength"), ("l2sp", "strength")),
    ("asft", "strength"),
]


@pytest.fixture(scope="module")
def plain(tiny_loaded, tmp_path_factory):
    return tuned(tiny_loaded("llama"), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(("method", "key"), OFF, ids=[m for m, _ in OFF])
def test_weight_zero_is_plain_bit_for_bit(plain, tiny_loaded, tmp_path, method, key):
    made, losses = tuned(tiny_loaded("llama"), tmp_path, method, {method: {key: 0}})
    assert losses == plain[1]
    same(made, plain[0])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ssr-noop", {"ssr-noop": {"strength": 1.0}}),  # the released code: it only logs
        ("fwssr+replay", {"fwssr": {"strength": 0}, "replay": {"strength": 0}}),
        ("interpolation", {}),  # what it does comes afterwards
    ],
)
def test_so_is_what_has_no_effect(plain, tiny_loaded, tmp_path, method, options):
    made, losses = tuned(tiny_loaded("llama"), tmp_path, method, options)
    assert losses == plain[1]
    same(made, plain[0])


@pytest.mark.parametrize("method", ["fwssr", "replay", "kl", "ewc", "l2sp", "safegrad", "lisa"])
def test_with_a_weight_they_are_not(plain, tiny_loaded, tmp_path, method):
    made, losses = tuned(tiny_loaded("llama"), tmp_path, method)
    assert losses[0] == plain[1][0]  # the task's own loss, at θ₀
    assert not all(torch.equal(p, plain[0].trained()[n]) for n, p in made.trained().items())


class Spy(Replay):
    """Keeps what it is shown: the task's gradient, and the step's whole one."""

    watches = True

    def wants(self, step):
        return self.watches

    def observe(self, probes, step, task):
        self.task = {n: g.clone() for n, g in task.items()}

    def edit(self, probes, step, gradients):
        self.whole = {n: g.clone() for n, g in gradients.items()}


@pytest.mark.parametrize("watches", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert"])  # a shared policy, none, a classifier
def test_gradients_are_those_of_task_and_term(tiny_loaded, tmp_path, architecture, parts, watches):
    """The policy's keys and values carry both; the regulariser sees the task's own, whatever it adds itself."""
    made = bench(tiny_loaded(architecture), task=6, moved=0.2)
    run = trainer(made, tmp_path, "replay", steps=1, batch=BATCH, accumulation=parts, max_norm=0.0)
    run.regulariser = run.keeper.regulariser = spy = Spy(run.regulariser.settings)
    spy.watches = watches
    lengths = [len(lesson.prompt_ids) + len(lesson.answer_ids) for lesson in made.lessons]
    with training(made.model):
        losses = []
        for picks in batches(lengths, size=BATCH, count=parts, seed=0):
            batch = made.teacher.collate([made.lessons[i] for i in picks])
            prefix = made.teacher.prefix(made.model) if batch["shared"] else None
            losses.append(made.teacher.loss(made.model, batch, prefix))
        task = made.probes.gradients(torch.stack(losses).mean())
        term = made.probes.gradients(made.probes.answer_loss(made.probes.draw(0)))
    run.train()
    for name, gradient in task.items():
        size = float(gradient.abs().max() + term[name].abs().max())
        assert not watches or torch.allclose(spy.task[name], gradient, atol=1e-4 * size), name
        assert torch.allclose(spy.whole[name], gradient + term[name], atol=1e-4 * size), name


@pytest.mark.parametrize(("architecture", "method"), [("llama", "fwssr-adaptive+replay"), ("bert", "plain")])
def test_a_monitor_changes_no_bit(tiny_loaded, tmp_path, architecture, method):
    found = []
    for watched in (False, True):
        made, callbacks, folder = None, [], tmp_path / str(watched)
        made = bench(tiny_loaded(architecture), task=11)
        if watched:
            monitor = SafetyMonitor(made.guard, items(), folder, every=2, layers=(1, 2), margin=None, rank=2)
            callbacks = [monitor]
        run = trainer(made, folder, method, steps=STEPS, batch=BATCH, callbacks=callbacks)
        if watched:
            monitor.trainer = run
        run.train()
        found.append(made)
    assert [p.step for p in monitor.points] == [0, 2, 4, 5]
    same(*found)


def items():
    made = []
    for t in rows(8, 3):
        example = Example(t.judgement.id, t.judgement.conversation, {"prompt": t.label})
        judgement = Judgement(f"s/{example.id}#prompt", example.conversation, "prompt")
        made.append(SuiteItem(judgement, "s", "prompt", t.label, "calibrate", example))
    return made


def test_instructions_are_learned_beside_probes_that_share_the_policy(tiny_loaded, tmp_path):
    """Their batches have no policy, so the probes compute it themselves."""
    from guardkeel.tuning.lessons import instruction_lessons
    from guardkeel.tuning.targets import Instruction

    made = bench(tiny_loaded("llama"), task=2)
    asked = [Instruction(str(i), Conversation.of(f"what is {i}", f"it is {i}")) for i in range(6)]
    made.lessons = instruction_lessons(asked, made.guard.tokenizer, 1024)
    assert made.probes.lessons[0].shared and not made.lessons[0].shared
    before = made.trained()
    run = trainer(made, tmp_path, "fwssr-adaptive+replay", steps=3, batch=3, learning_rate=RATE)
    run.train()
    assert all(row["loss"] == row["loss"] for row in run.state.log_history if "loss" in row)
    assert any(not torch.equal(p, before[n]) for n, p in made.trained().items())
