"""Any regulariser in any Trainer, checkpoints that are whole, and a stop at the first number that is not finite."""

import json
import math

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from guardkeel.errors import ConfigError, RunError
from guardkeel.tuning.keeper import DONE, FIXED, MOVING, Keeper, acts, last_checkpoint
from guardkeel.tuning.lessons import Lesson
from guardkeel.tuning.regularisers.base import Regulariser
from guardkeel.tuning.regularisers.registry import build
from small_tunes import bench, trainer

ROWS, PROMPT, ANSWER = 6, 7, 3  # all of one length: the mean over tokens is then the mean over rows
EAGER = {"fwssr-adaptive": {"every": 1, "refresh": 1}}


@pytest.fixture
def made(tiny_loaded):
    """A bench that learns made-up token ids."""
    b = bench(tiny_loaded("llama"))
    b.lessons = [
        Lesson(str(i), [30 + 5 * i + j for j in range(PROMPT)], [60 + 2 * i + j for j in range(ANSWER)])
        for i in range(ROWS)
    ]
    return b


def dataset(b):
    return [
        {
            "input_ids": lesson.prompt_ids + lesson.answer_ids,
            "labels": [-100] * PROMPT + lesson.answer_ids,
            "attention_mask": [1] * (PROMPT + ANSWER),
        }
        for lesson in b.lessons
    ]


class Every(TrainerCallback):
    """Asks for a checkpoint every so many steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step % self.steps == 0


def anyones(b, folder, keeper, *, steps=3, callbacks=(), **options):
    """Somebody's own training script: a plain Trainer with the callback."""
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=ROWS, learning_rate=5e-3,
        weight_decay=0.0, optim="adamw_torch", lr_scheduler_type="constant", use_cpu=True, report_to="none",
        disable_tqdm=True, **{"save_strategy": "no", "max_grad_norm": 0.0} | options,
    )  # fmt: skip
    return Trainer(b.model, args, train_dataset=dataset(b), callbacks=[keeper, *callbacks])


# --- one step, both ways


@pytest.mark.parametrize("method", ["plain", "fwssr-adaptive", "replay", "kl", "l2sp", "safegrad", "lisa"])
def test_the_callback_makes_the_step_of_the_fused_trainer(made, tiny_loaded, tmp_path, method):
    options = {method: EAGER[method]} if method in EAGER else {}
    if method == "lisa":
        options = {"lisa": {"task_steps": 1, "align_steps": 1}}
    run = trainer(made, tmp_path / "fused", method, options, steps=3, batch=ROWS, max_norm=0.0)
    run.train()
    other = bench(tiny_loaded("llama"))
    other.lessons = made.lessons
    keeper = Keeper(build(method, options), other.probes)
    anyones(other, tmp_path / "plain", keeper).train()
    ours, theirs = made.trained(), other.trained()
    start = bench(tiny_loaded("llama")).trained()
    gone = math.sqrt(sum(float((theirs[n] - start[n]).square().sum()) for n in start))
    apart = math.sqrt(sum(float((ours[n] - theirs[n]).square().sum()) for n in start))
    assert gone > 0.01
    assert apart < 0.01 * gone
    assert keeper.norm == pytest.approx(run.keeper.norm, rel=1e-3)
    for key, value in keeper.regulariser.moving.items():
        assert torch.allclose(value.float(), run.regulariser.moving[key].float(), rtol=1e-2, atol=1e-4), key


def test_with_a_method_the_step_is_another(made, tiny_loaded, tmp_path):
    """So that the test above can fail."""
    anyones(made, tmp_path / "a", Keeper(build("replay"), made.probes)).train()
    other = bench(tiny_loaded("llama"))
    other.lessons = made.lessons
    anyones(other, tmp_path / "b", Keeper(Regulariser(), None)).train()
    assert not any(torch.allclose(p, other.trained()[n]) for n, p in made.trained().items() if p.any())


def test_accumulated_batches_get_the_term_once(made, tiny_loaded, tmp_path):
    """A term of the step, not of each of its batches."""
    other = bench(tiny_loaded("llama"))
    other.lessons = made.lessons
    # a stiff pull away from θ₀ = where it begins, so that the term is all there is to see
    for b, batch, parts in ((made, ROWS, 1), (other, ROWS // 2, 2)):
        b.lessons = [b.lessons[0]] * ROWS
        run = trainer(b, tmp_path / str(parts), "replay", {"replay": {"strength": 3}}, steps=3,
                      batch=batch, accumulation=parts, max_norm=0.0)  # fmt: skip
        run.train()
    ours, theirs = made.trained(), other.trained()
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-4) for n in ours)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", ["replay", "safegrad"])
def test_the_whole_step_is_clipped(made, tmp_path, fused, method):
    options = {method: {"strength": 100.0}}
    if fused:
        run = trainer(made, tmp_path, method, options, steps=1, batch=ROWS, max_norm=0.1)
        keeper = run.keeper
    else:
        keeper = Keeper(build(method, options), made.probes)
        run = anyones(made, tmp_path, keeper, steps=1, max_grad_norm=0.1)
    run.train()
    assert keeper.norm == pytest.approx(0.1, rel=1e-3)


# --- TRL


def test_in_trls_trainer(made, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(dataset(made))
    keeper = Keeper(build("fwssr-adaptive+replay", EAGER), made.probes)
    args = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=ROWS, learning_rate=5e-3,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True}, max_length=None,
    )  # fmt: skip
    assert args.gradient_checkpointing  # TRL's default, which must not cost the probes their policy
    before = made.trained()
    run = trl.SFTTrainer(
        model=made.model,
        args=args,
        train_dataset=rows,
        processing_class=made.guard.tokenizer,
        callbacks=[keeper],
    )
    run.train()
    assert keeper.regulariser.log()["fwssr-adaptive.penalty"] > 0
    assert math.isfinite(keeper.norm) and keeper.norm > 0
    assert any(not torch.equal(p, before[n]) for n, p in made.trained().items())


# --- what is refused


def test_a_method_needs_guard_data(made):
    with pytest.raises(ConfigError, match="method 'replay' needs guard data") as error:
        Keeper(build("replay"), None)
    assert "--guard-data" in error.value.remedy
    for idle in ("plain", "interpolation", "safe-lora", "plain+interpolation"):
        assert not acts(build(idle))
        Keeper(build(idle), None)
    assert acts(build("replay+interpolation")) and acts(build("ssr-noop"))


def test_fp16_is_refused(made, tmp_path):
    keeper = Keeper(build("replay"), made.probes)
    run = anyones(made, tmp_path, keeper)
    run.args.fp16 = True
    with pytest.raises(ConfigError, match="fp16") as error:
        keeper.on_train_begin(run.args, run.state, run.control, model=made.model)
    assert "bf16" in error.value.remedy


# --- the first number that is not finite


class Break(TrainerCallback):
    """Makes the weights, or a gradient, not finite before a step."""

    def __init__(self, model, step, gradient=False):
        self.weight = next(p for n, p in model.named_parameters() if "down_proj.lora_B" in n)
        self.step, self.gradient = step, gradient
        self.bad = False
        if gradient:
            self.weight.register_hook(lambda g: torch.full_like(g, torch.inf) if self.bad else g)

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.bad = state.global_step + 1 == self.step
        if self.bad and not self.gradient:
            with torch.no_grad():
                self.weight[0, 0] = torch.nan


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", ["plain", "replay"])
def test_a_number_that_is_not_finite_stops_the_run(made, tmp_path, fused, gradient, method):
    breaks, saves = Break(made.model, 4, gradient), Every(2)
    if fused:
        run = trainer(made, tmp_path, method, steps=6, batch=ROWS, callbacks=[saves, breaks])
    else:
        probes = made.probes if method != "plain" else None
        run = anyones(
            made, tmp_path, Keeper(build(method), probes), steps=6, callbacks=[saves, breaks], max_grad_norm=1.0,
            logging_nan_inf_filter=False,
        )  # fmt: skip
    with pytest.raises(RunError) as error:
        run.train()
    what = "loss nan" if fused and not gradient else "gradient norm (nan|inf)"
    assert error.match(rf"step 4: {what}; the last good checkpoint is {tmp_path / 'checkpoint-2'}")
    assert "lower the learning rate" in error.value.remedy
    assert run.state.global_step == 3
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    if gradient:  # the step that would have spread it was not made
        assert all(torch.equal(p, breaks.kept[n]) for n, p in made.trained().items())


def test_without_a_checkpoint_the_error_says_so(made, tmp_path):
    run = trainer(made, tmp_path, steps=2, batch=ROWS, callbacks=[Break(made.model, 1)])
    with pytest.raises(RunError, match="step 1: loss nan; no checkpoint was written yet; lower --every"):
        run.train()


# --- checkpoints


def test_a_checkpoint_is_whole_when_its_mark_is_there(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, whole in ((2, True), (10, True), (30, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / DONE).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by name


def test_the_latest_and_the_good_one_are_kept(made, tmp_path):
    kept = []

    class Note(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            kept.append(sorted(int(p.name[11:]) for p in tmp_path.glob("checkpoint-*")))

    run = trainer(made, tmp_path, "lisa", steps=5, batch=ROWS, callbacks=[Every(1), Note()])
    run.keeper.keep = lambda: 2 if run.state.global_step >= 2 else 0
    run.train()
    assert kept == [[1], [2], [2, 3], [2, 4], [2, 5]]
    for step in (2, 5):
        assert json.loads((tmp_path / f"checkpoint-{step}" / DONE).read_text()) == {"step": step}
        assert (tmp_path / f"checkpoint-{step}" / MOVING).is_file()


def test_in_anyones_trainer_their_checkpoints_are_theirs(made, tmp_path):
    run = anyones(
        made, tmp_path, Keeper(build("lisa"), made.probes), steps=4, save_strategy="steps", save_steps=1
    )
    run.train()
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in range(1, 5)}


@pytest.mark.parametrize("method", ["plain", "fwssr-adaptive", "lisa", "ewc+replay"])
def test_a_resumed_training_goes_on_exactly(made, tiny_loaded, tmp_path, method):
    options = {method: EAGER[method]} if method in EAGER else {}
    run = trainer(made, tmp_path, method, options, steps=5, batch=ROWS // 2, callbacks=[Every(3)])
    run.train()
    fixed = (tmp_path / FIXED).read_bytes() if method != "plain" else None
    again = bench(tiny_loaded("llama"))
    again.lessons = made.lessons
    other = trainer(again, tmp_path, method, options, steps=5, batch=ROWS // 2)
    prepared = []
    other.regulariser.prepare = prepared.append  # θ₀ is gone: it must not be looked at again
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not prepared
    assert all(torch.equal(p, made.trained()[n]) for n, p in again.trained().items())
    for state in ("fixed", "moving"):
        ours, theirs = getattr(other.regulariser, state), getattr(run.regulariser, state)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert fixed is None or (tmp_path / FIXED).read_bytes() == fixed
    assert other.facts() == run.facts()


def test_anyones_resumed_training_goes_on_exactly(made, tiny_loaded, tmp_path):
    run = anyones(
        made, tmp_path, Keeper(build("fwssr-adaptive", EAGER), made.probes), steps=4, save_strategy="steps",
        save_steps=2,
    )  # fmt: skip
    run.train()
    again = bench(tiny_loaded("llama"))
    again.lessons = made.lessons
    anyones(again, tmp_path, Keeper(build("fwssr-adaptive", EAGER), again.probes), steps=4).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert all(torch.equal(p, made.trained()[n]) for n, p in again.trained().items())
