"""The safety monitor beside GuardTrainer, on a guard that has really learned something."""

from dataclasses import replace

import pytest

from guardkeel.conversation import Example
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_guard
from guardkeel.tuning.learner import learner
from guardkeel.tuning.lessons import guard_lessons
from guardkeel.tuning.monitor import SafetyMonitor, line, read_points
from guardkeel.tuning.targets import targets
from guardkeel.tuning.trainer import GuardTrainer, arguments
from guardkeel.tuning.weights import trainable
from trained_guards import examples

OTHER = {"safe": "unsafe", "unsafe": "safe"}


def items(count=80):
    return [
        SuiteItem(
            Judgement(f"ships/{e.id}#prompt", e.conversation, "prompt"),
            "ships",
            "prompt",
            label,
            "calibrate",
            e,
        )
        for e in examples(count, 9)
        for label in (e.labels["prompt"],)
    ]


def told(example: Example, answer) -> Example:
    labels = {side: answer(label) for side, label in example.labels.items()}
    return replace(example, labels=labels, categories=())


def tune(harbour, folder, answer, *, steps, **options):
    """Train the guard on what `answer` makes of the labels; (trainer, monitor) afterwards."""
    guard = load_guard(str(harbour.guard), device="cpu", dtype="float32")
    guard.model = trainable(
        guard.model, adapter="lora", rank=8, alpha=16, first_layer=0, seed=0, task="causal"
    )
    teacher = learner(guard, max_tokens=1024)
    rows = targets([told(e, answer) for e in examples(60, 2)])
    if teacher.sharing:
        teacher.encoder.share([t.judgement for t in rows])
    monitor = SafetyMonitor(guard, items(), folder, **{"every": 5, "layers": (1, 2), "rank": 4} | options)
    trainer = GuardTrainer(
        guard.model,
        teacher,
        guard_lessons(rows, teacher.encoder, guard.tokenizer),
        args=arguments(folder, steps=steps, batch=8, learning_rate=1e-2),
        callbacks=[monitor],
    )
    monitor.trainer = trainer
    trainer.train()
    return trainer, monitor


@pytest.mark.parametrize(
    ("answer", "recalibrate"),
    [
        pytest.param(lambda label: "safe", False, id="all told safe, at the shipped threshold"),
        pytest.param(OTHER.get, True, id="told the reverse, which no threshold mends"),
    ],
)
def test_a_collapse_trips_and_can_be_rolled_back(harbour, tmp_path, answer, recalibrate):
    trainer, monitor = tune(harbour, tmp_path, answer, steps=40, recalibrate=recalibrate)
    assert monitor.reference.recall.value == 1
    assert monitor.tripped is monitor.points[-1]
    assert monitor.tripped.fall > 0.05 and monitor.tripped.harm_p < 0.05
    assert trainer.state.global_step == monitor.tripped.step < 40
    assert monitor.last_good < monitor.tripped.step
    for p in monitor.points[1:]:
        assert (tmp_path / f"checkpoint-{p.step}" / "adapter_model.safetensors").is_file()
    assert read_points(tmp_path) == monitor.points
    assert line(monitor.tripped, monitor.reference).startswith(f"step {monitor.tripped.step}  recall 0.")
    first, last = monitor.points[0].geometry[-1], monitor.tripped.geometry[-1]
    assert first.cka.value == pytest.approx(1) and first.drift.value == 0
    assert last.drift.value > 0.05 and last.cka.value < 1 - 1e-4
    logged = [row for row in trainer.state.log_history if "safety/recall" in row]
    assert [row["step"] for row in logged] == [p.step for p in monitor.points]


def test_training_on_what_it_knows_goes_through(harbour, tmp_path):
    trainer, monitor = tune(harbour, tmp_path, lambda label: label, steps=5)
    assert monitor.tripped is None and monitor.last_good == trainer.state.global_step == 5
    assert monitor.points[-1].recall_recalibrated.value == 1
