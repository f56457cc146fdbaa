"""The safety monitor beside real (tiny) trainings."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from guard_doubles import outspoken
from guardkeel.conversation import Conversation, Example
from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.keel import Keel
from guardkeel.guards.prefix import left_padded
from guardkeel.tuning.monitor import REFERENCE, SafetyMonitor, numbers, read_points
from guardkeel.tuning.points import POINTS
from trained_guards import WORDS

NAN = float("nan")


# The guard says safe or unsafe by the sign of one logit; trained on "safe", it soon says nothing else.


def suite_items(count=48):
    rng = random.Random(3)
    made = []
    for i in range(count):
        label = "unsafe" if i % 2 else "safe"
        example = Example(f"e{i}", Conversation.of(" ".join(rng.sample(WORDS, 6))), {"prompt": label})
        judgement = Judgement(f"words/e{i}#prompt", example.conversation, "prompt")
        made.append(SuiteItem(judgement, "words", "prompt", label, "calibrate", example))
    return made


@pytest.fixture
def guard(tiny_loaded):
    """A guard in training: LoRA with dropout, so that the course of random numbers matters."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_loaded("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bare = outspoken(model, tokenizer)
        config = LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM")
        tuned = get_peft_model(bare, config)
    made = CausalGuard(tuned, tokenizer, Keel(), name="tiny", max_tokens=1024)
    scores = [v.unsafe for v in made.score([i.judgement for i in suite_items()])]
    made.threshold = float(
        np.median([s for s in scores if s is not None])
    )  # knows nothing: flags half of each label
    return made


def lessons(guard, answer):
    encoder = Encoder(guard.grammar, guard.tokenizer, max_tokens=1024)
    ids = guard.tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [(encoder.encode(i.judgement).ids, ids) for i in suite_items(12)]


def collate(rows):
    ids, mask = left_padded([prompt + answer for prompt, answer in rows], 0, "cpu")
    labels = torch.full_like(ids, -100)
    labels[:, -len(rows[0][1]) :] = torch.tensor([answer for _, answer in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer(guard, folder, callbacks, *, steps, rate=1e-3, answer="safe", reports=()):
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=rate,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    made = Trainer(
        guard.model,
        args,
        train_dataset=lessons(guard, answer),
        data_collator=collate,
        callbacks=[*reports, *callbacks],
    )
    for callback in callbacks:
        if isinstance(callback, SafetyMonitor):
            callback.trainer = made
    return made


def watch(guard, folder, **options):
    return SafetyMonitor(guard, suite_items(), folder, **{"every": 2, "layers": (1, 2), "rank": 4} | options)


def test_training_is_the_same_bits_with_and_without(guard, tmp_path):
    other = copy.deepcopy(guard)
    frozen = [g.model.get_submodule("base_model.model.model.layers.0") for g in (guard, other)]

    class Modes(TrainerCallback):
        """One block stays in evaluation mode: the monitor must not wake it up."""

        def __init__(self, block):
            self.block, self.seen = block, []

        def on_step_begin(self, args, state, control, **kwargs):
            self.block.eval()

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.seen.append([m.training for m in model.modules()])

    def run(which, folder, *callbacks):
        random.seed(1)
        np.random.seed(1)
        modes = Modes(frozen[which is other])
        made = trainer(which, folder, [*callbacks, modes], steps=3)
        made.train()
        states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
        moments = [
            {k: v.tolist() for k, v in state.items()}
            for state in made.optimizer.state_dict()["state"].values()
        ]
        return states, moments, modes.seen

    def draw(done, total):
        random.random()
        np.random.rand()
        torch.rand(1)

    monitor = watch(guard, tmp_path / "with", on_progress=draw)
    watched = run(guard, tmp_path / "with", monitor)
    assert [p.step for p in monitor.points] == [0, 2, 3]
    assert watched == run(other, tmp_path / "without")
    bare = other.model.state_dict()
    assert all(torch.equal(value, bare[key]) for key, value in guard.model.state_dict().items())
    assert any(mode for mode in watched[2][-1])


class Reports(TrainerCallback):
    """What a reporting callback (TensorBoard, trackio, W&B) gets: it stands before all others."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


def test_numbers_reach_what_reports(guard, tmp_path):
    reports, monitor = Reports(), watch(guard, tmp_path)
    trainer(guard, tmp_path, [monitor], steps=4, reports=[reports]).train()
    safety = {step: logs for step, logs in reports.logs if "safety/fpr" in logs}
    assert list(safety) == [0, 2, 4]
    for p in monitor.points:
        assert numbers(p).items() <= safety[p.step].items()
    keys = {"recall", "fpr", "auroc", "unscored", "recall_recalibrated", "cka_last", "drift_inside_last"}
    assert {f"safety/{k}" for k in keys} <= set(safety[4])
    assert [step for step, logs in reports.logs if "loss" in logs] == [
        1,
        2,
        3,
        4,
    ]  # the Trainer's own are all there


def test_the_tripwire_stops_and_knows_where_to_go_back(guard, tmp_path):
    told, bars = [], []
    options = {"recalibrate": False, "every": 1, "on_point": told.append}
    monitor = watch(guard, tmp_path, on_progress=lambda done, total: bars.append((done, total)), **options)
    made = trainer(guard, tmp_path, [monitor], steps=40, rate=3e-3)
    made.train()
    assert monitor.tripped is not None and monitor.tripped is monitor.points[-1]
    assert monitor.tripped.step == made.state.global_step < 40
    assert monitor.tripped.recall.value < monitor.reference.recall.value - 0.05
    assert monitor.last_good < monitor.tripped.step
    assert monitor.good in monitor.points and monitor.good.inside(0.05)
    assert told == monitor.points == read_points(tmp_path)
    assert bars[-1] == (48, 48)
    saved = sorted(int(p.name.partition("-")[2]) for p in tmp_path.glob("checkpoint-*"))
    assert saved == [p.step for p in monitor.points[1:]]

    again = watch(guard, tmp_path, **options)
    again.begin(monitor.tripped.step)
    assert again.tripped == monitor.tripped and again.last_good == monitor.last_good
    control = made.control
    control.should_training_stop = False
    again.on_train_begin(made.args, made.state, control)
    assert control.should_training_stop  # a tripped run does not go on
    assert watch(guard, tmp_path, **options | {"margin": None}).tripped is None


def test_a_moved_threshold_alone_does_not_trip(guard, tmp_path):
    """The same training: what fell was the operating point, which recalibration wins back."""
    monitor = watch(guard, tmp_path, layers=())
    trainer(guard, tmp_path, [monitor], steps=3, rate=3e-3).train()
    assert [p.step for p in monitor.points] == [0, 2, 3]
    last = monitor.points[-1]
    assert (last.recall.value, last.fpr.value) == (0, 0)
    assert last.recall_recalibrated.value > 0.5
    assert monitor.tripped is None and monitor.last_good == 3
    assert last.geometry == ()


def test_a_resumed_run_makes_the_same_points(guard, tmp_path):
    first = copy.deepcopy(guard)
    whole = watch(guard, tmp_path / "whole", margin=None)
    trainer(guard, tmp_path / "whole", [whole], steps=4).train()
    assert whole.last_good == 4

    def plain(points):
        return [p.model_dump() | {"seconds": 0} for p in points]

    home = tmp_path / "cut"
    trainer(first, home, [watch(first, home, margin=None)], steps=3).train()  # looks at 2 and 3
    with (home / POINTS).open("a") as out:
        out.write('{"step": 4, "n"')  # and is killed while it writes
    resumed = watch(first, home, margin=None)
    with torch.no_grad():  # θ₀ is gone: the resumed run must not need it
        for name, weight in first.model.named_parameters():
            if "lora" in name:
                weight.fill_(0.3)
    trainer(first, home, [resumed], steps=4).train(resume_from_checkpoint=str(home / "checkpoint-2"))
    assert [p.step for p in resumed.points] == [0, 2, 4]
    assert plain([resumed.look(4)]) == plain(whole.points[-1:])  # a look by hand is written nowhere
    assert plain(resumed.points) == plain(whole.points) == plain(read_points(home))


def test_a_run_is_resumed_only_from_its_own(guard, tmp_path):
    with pytest.raises(RuntimeError, match="call begin first"):
        watch(guard, tmp_path).look(1)
    watch(guard, tmp_path).begin()
    with pytest.raises(ConfigError, match=r"layers \[1, 2\], this run has \[2\]"):
        watch(guard, tmp_path, layers=(2,)).begin(4)
    with pytest.raises(ConfigError, match="made with items"):
        SafetyMonitor(guard, suite_items(20), tmp_path, every=2, layers=(1, 2)).begin(4)
    (tmp_path / POINTS).unlink()
    with pytest.raises(DataError, match="reference's point is missing"):
        watch(guard, tmp_path).begin(4)
    (tmp_path / REFERENCE).write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        watch(guard, tmp_path).begin(4)
    assert not [p for p in Path(tmp_path).iterdir() if p.suffix == ".part"]


def test_a_model_of_nan_trips(guard, tmp_path):
    monitor = watch(guard, tmp_path)
    monitor.begin()
    made = trainer(guard, tmp_path, [monitor], steps=4)
    with torch.no_grad():
        guard.model.get_input_embeddings().weight.fill_(NAN)
    made.train()
    (last,) = monitor.points[1:]
    assert (last.unscored.value, last.recall.value, last.fpr.value) == (1, None, None)
    assert last.worse > 0 and last.better == 0
    assert last is monitor.tripped and monitor.last_good == 0
    assert made.state.global_step == 2
    assert all(p.cka.value is None for p in last.geometry)
    assert "NaN" not in (tmp_path / POINTS).read_text()
    assert json.loads((tmp_path / POINTS).read_text().splitlines()[-1])["unscored"]["value"] == 1


def test_a_reference_without_verdicts_is_refused(guard, tmp_path):
    with torch.no_grad():
        guard.model.get_input_embeddings().weight.fill_(NAN)
    with pytest.raises(ModelError, match="no verdict on any of the 24 unsafe items"):
        watch(guard, tmp_path).begin()
    assert not (tmp_path / REFERENCE).exists()
    monitor = watch(guard, tmp_path, margin=None)
    monitor.begin()
    assert monitor.reference.unscored.value == 1 and monitor.tripped is None


def test_what_makes_no_sense_is_refused(guard, tmp_path):
    unsafe = [i for i in suite_items() if i.label == "unsafe"]
    safe = [i for i in suite_items() if i.label == "safe"]
    with pytest.raises(DataError, match="24 unsafe of 24"):
        SafetyMonitor(guard, unsafe, tmp_path, every=1)
    with pytest.raises(DataError, match="0 unsafe of 24"):
        SafetyMonitor(guard, safe, tmp_path, every=1, recalibrate=False)
    SafetyMonitor(guard, unsafe, tmp_path, every=1, recalibrate=False)
    for wrong in ({"every": 0}, {"margin": 1.5}, {"layers": (0,)}, {"layers": (3,)}):
        with pytest.raises(ConfigError):
            watch(guard, tmp_path, **wrong)
