"""A whole fine-tune: what is learned, what is kept, what is written down, and what stops it."""

import json
import math
import tomllib
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from guardkeel.conversation import write_jsonl
from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.keel import Keel
from guardkeel.guards.load import load_guard, with_adapter
from guardkeel.models.tiny import ARCHITECTURES, CLASSIFIERS, make_tiny
from guardkeel.records import read_record
from guardkeel.tuning.config import TuneConfig, read_config
from guardkeel.tuning.gather import gather
from guardkeel.tuning.learned import measure
from guardkeel.tuning.log import read_log
from guardkeel.tuning.monitor import SafetyMonitor
from guardkeel.tuning.points import read_points
from guardkeel.tuning.regularisers.registry import METHODS
from guardkeel.tuning.results import TuneResults
from guardkeel.tuning.run import run, tune
from small_tunes import bench, settle, trainer
from trained_guards import examples

SWAPPED = {"safe": "unsafe", "unsafe": "safe"}


@pytest.fixture(scope="module")
def place(harbour, tmp_path_factory):
    """A folder with data for all tests."""
    settle()
    folder = tmp_path_factory.mktemp("tune")
    write_jsonl(folder / "bank.jsonl", examples(60, 31, labels=("safe",)))
    write_jsonl(folder / "anchor.jsonl", examples(20, 33))
    write_jsonl(folder / "watch.jsonl", examples(160, 34))
    rows = [
        replace(e, labels={side: SWAPPED[label] for side, label in e.labels.items()}, categories=())
        for e in examples(60, 32)
    ]
    write_jsonl(folder / "reversed.jsonl", rows)
    with (folder / "ask.jsonl").open("w") as out:
        for i in range(40):
            out.write(json.dumps({"instruction": f"what is {i} squared", "output": "it is two x"}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        yield folder


@pytest.fixture(scope="module")
def tuned(place, harbour):
    """tuned(folder, **options) tunes the harbour's guard on harmless messages for a few steps."""

    def go(folder, **options):
        given = {
            "guard": str(harbour.guard), "data": str(place / "bank.jsonl"), "method": "plain",
            "guard_data": [str(place / "anchor.jsonl")], "monitor": [str(place / "watch.jsonl")],
            "monitor_items": 24, "steps": 4, "every": 2, "batch": 4, "learning_rate": 5e-3,
            "max_tokens": 1024, "device": "cpu", "dtype": "float32",
        }  # fmt: skip
        return tune(out=folder, **given | options)

    return go


@pytest.fixture(scope="module")
def first(tuned, tmp_path_factory):
    """(folder, results) of a run under FW-SSR with replay."""
    folder = tmp_path_factory.mktemp("first") / "bank"
    options = {"fwssr-adaptive": {"every": 1, "refresh": 2, "rank": 8}}
    return folder, tuned(folder, method="fwssr-adaptive+replay", options=options)


def judgements(place):
    return [i.judgement for i in load_suite(place / "watch.jsonl").items("test")[:20]]


def scores(guard, judged):
    found = [v.unsafe for v in guard.score(judged)]
    assert None not in found
    return found


# --- what is written down


def test_a_run_directory(first, harbour, place):
    folder, results = first
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "config.toml", "log.jsonl", "monitor.jsonl", "monitor-reference.safetensors",
        "regulariser.safetensors", "tuned",
    }  # fmt: skip
    record = read_record(folder)
    assert record.verb == "tune" and record.started_at <= record.finished_at
    assert TuneResults.model_validate(record.results) == results
    assert {"guard", "rows", f"data {place / 'bank.jsonl'}"} < set(record.inputs)
    assert all(len(digest) == 64 for digest in record.inputs.values())
    assert record.counts == {
        "task rows": 65, "rows kept aside": 7, "guard data": record.counts["guard data"], "monitor items": 24,
        "left out as repeated": record.counts["left out as repeated"], "steps": 4,
    }  # fmt: skip
    assert record.timings["total"] > record.timings["steps"] > 0
    config = TuneConfig.model_validate(record.config)
    assert TuneConfig.model_validate(tomllib.loads((folder / "config.toml").read_text())) == config
    assert config.guard == str(harbour.guard) and config.data == [str(place / "bank.jsonl")]


def test_a_line_a_step(first):
    rows = read_log(first[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {"seconds", "loss", "norm", "rate", "fwssr-adaptive.lambda", "fwssr-adaptive.conflict",
                "fwssr-adaptive.penalty", "fwssr-adaptive.fisher_top", "replay.penalty"} <= set(row)  # fmt: skip
        assert all(math.isfinite(value) for value in row.values())
        assert 0 < row["norm"] <= 1.0 + 1e-4 and row["rate"] == 5e-3
    assert rows[0]["fwssr-adaptive.penalty"] < 1e-9 < rows[1]["fwssr-adaptive.penalty"]  # nothing moved at θ₀
    assert len({row["fwssr-adaptive.lambda"] for row in rows}) == 4


def test_a_point_a_look(first):
    folder, results = first
    points = read_points(folder)
    assert [p.step for p in points] == [0, 2, 4]
    assert [p.model_dump(mode="json") for p in points] == results.monitor
    assert points[0].recall.value == 1 and points[0].fall == 0 and points[0].geometry


def test_what_was_learned_is_measured_before_and_after(first, harbour, place):
    folder, results = first
    assert results.method == "fwssr-adaptive+replay" and results.steps == 4 and results.stopped == ""
    assert results.before.n == results.after.n == 7
    assert results.after.loss < results.before.loss
    assert results.trained > 0 and results.step_seconds > 0 and results.peak_memory > 10**8
    config = TuneConfig.model_validate(read_record(folder).config)
    aside = gather(config, lambda *told: None).aside
    guard = load_guard(str(harbour.guard), dtype="float32", device="cpu")
    b = bench((guard.model, guard.tokenizer), family=Keel(), task=list(aside))
    again = measure(b.model, b.teacher, b.lessons, guard.threshold)
    assert again.loss == pytest.approx(results.before.loss, rel=1e-4)
    said = [v >= guard.threshold for v in scores(guard, [t.judgement for t in aside])]
    assert (
        results.before.accuracy
        == sum(s == (t.label == "unsafe") for s, t in zip(said, aside, strict=True)) / 7
    )


def test_the_threshold_moves_to_where_false_alarms_are_the_references(first, tuned, tmp_path):
    folder, results = first
    assert results.threshold == read_points(folder)[-1].threshold
    assert results.threshold_before == 0.5 != results.threshold
    assert results.after_shipped is not None
    still = tuned(tmp_path / "run", recalibrate=False)
    assert still.threshold == still.threshold_before == 0.5 and still.after_shipped is None
    blind = tuned(tmp_path / "other", monitor=[])
    assert blind.threshold == 0.5 and blind.monitor == []
    assert blind.notes == ["the threshold was not moved: there are no monitor items"]
    assert not (tmp_path / "other" / "monitor.jsonl").exists()
    a, b = (
        (tmp_path / name / "tuned" / "adapter_model.safetensors").read_bytes() for name in ("run", "other")
    )
    assert a == b  # looking changes nothing


def test_each_side_has_false_alarms_as_before(tuned, harbour, place, tmp_path):
    rows = examples(1100, 35, labels=("safe", "safe", "unsafe"))
    replies = [replace(e, labels={"response": e.labels["response"]}) for e in rows if "response" in e.labels]
    asked = [e for e in rows[:200] if "response" not in e.labels]
    write_jsonl(tmp_path / "sides.jsonl", [*replies, *asked])
    options = {"monitor": [str(tmp_path / "sides.jsonl")], "monitor_items": 600}
    results = tuned(tmp_path / "run", **options)
    [before, *_, after] = read_points(tmp_path / "run")
    assert set(after.sides) == {"prompt", "response"} and before.sides != after.sides
    config = TuneConfig.model_validate(read_record(tmp_path / "run").config)
    safe = [i.judgement for i in gather(config, lambda *told: None).monitor if i.label == "safe"]
    guard = load_guard(str(harbour.guard), dtype="float32", device="cpu")
    alarms = [p >= 0.5 for p in scores(guard, safe)]
    with with_adapter(guard, tmp_path / "run" / "tuned") as changed:
        assert changed.offsets == results.offsets != {} and changed.threshold == results.threshold
        now = [p >= changed.threshold for p in scores(changed, safe)]
    assert guard.offsets == {}
    for side in ("prompt", "response"):
        of = [i for i, j in enumerate(safe) if j.side == side]
        assert len(of) >= 20
        assert sum(now[i] for i in of) <= sum(alarms[i] for i in of)


def test_the_tuned_guard_is_a_guard(first, harbour, place, tmp_path, monkeypatch):
    folder, results = first
    judged = judgements(place)
    plain = load_guard(str(harbour.guard), dtype="float32", device="cpu")
    before = scores(plain, judged)
    with with_adapter(plain, folder / "tuned") as guard:
        after = scores(guard, judged)
        assert (guard.threshold, guard.name, guard.family) == (results.threshold, "bank", "keel")
    monkeypatch.chdir(tmp_path)
    alone = load_guard(str(folder / "tuned"), dtype="float32", device="cpu")
    assert scores(alone, judged) == after != before
    provenance = json.loads((folder / "tuned" / "guardkeel.json").read_text())["provenance"]
    assert provenance["method"] == "fwssr-adaptive+replay"
    assert provenance["guard"] == read_record(folder).inputs["guard"]


def test_an_adapter_on_a_relative_folder_is_found_from_elsewhere(
    tuned, harbour, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(harbour.guard.parent)
    tuned(tmp_path / "run", guard=harbour.guard.name, monitor=[], steps=1)
    monkeypatch.chdir(tmp_path)
    assert load_guard(str(tmp_path / "run" / "tuned")).name == "run"


def test_checkpoints_can_be_kept(tuned, tmp_path):
    tuned(tmp_path / "run", keep_checkpoints=True)
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4"}


def test_steps_follow_from_epochs(tuned, tmp_path):
    results = tuned(tmp_path / "run", monitor=[], steps=None, epochs=0.5, batch=5, accumulation=2)
    assert results.steps == round(0.5 * 65 / 10) == len(read_log(tmp_path / "run"))


def test_whoever_has_the_data_may_give_them(harbour, place, tmp_path):
    given = {
        "guard": str(harbour.guard), "data": [str(place / "bank.jsonl")], "guard_data": [], "method": "plain",
        "monitor": [str(place / "watch.jsonl")], "steps": 2, "every": 1, "batch": 4, "max_tokens": 1024,
        "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    config = read_config(None, given)
    found = gather(config, lambda *told: None)
    few = replace(found, task=found.task[:8], monitor=found.monitor[:20])
    told, points = [], []
    results = run(
        config,
        tmp_path / "run",
        gathered=few,
        watch=lambda what, done, total: told.append((what, done, total)),
        on_point=lambda point, reference: points.append((point.step, reference.step)),
    )
    assert read_record(tmp_path / "run").counts["task rows"] == 8
    assert points == [(0, 0), (1, 0), (2, 0)] and len(results.monitor) == 3
    steps = [t for t in told if t[0].startswith("fine-tune")]
    assert steps == [("fine-tune (plain)", 1, 2), ("fine-tune (plain)", 2, 2)]


# --- every kind of guard, of data, of method


@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        *((a, "lora") for a in ARCHITECTURES),
        *((a, k) for a in ("llama", "gemma2", "qwen3") for k in ("dora", "full")),
    ],
)
def test_every_architecture_for_two_steps(tiny_loaded, tmp_path, architecture, adapter):
    settle()
    loaded = tiny_loaded(architecture)
    family = None if architecture in CLASSIFIERS else Keel()
    b = bench(loaded, adapter=adapter, family=family, task=4, anchors=4)
    start = {n: p.detach().clone() for n, p in b.model.named_parameters()}
    options = {"fwssr-adaptive": {"every": 1, "refresh": 1, "rank": 4}}
    # as in a run, nothing is shared where activations are recomputed
    again = architecture == "mistral"  # it shares nothing anyway
    go = trainer(b, tmp_path, "fwssr-adaptive+replay", options, steps=2, batch=2, checkpointing=again)
    go.train()
    rows = [row for row in go.state.log_history if "loss" in row]
    assert len(rows) == 2 and all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["fwssr-adaptive.penalty"] < 1e-8 < rows[1]["fwssr-adaptive.penalty"]
    now = dict(b.model.named_parameters())
    trained = {n for n, p in now.items() if p.requires_grad}
    moved = {n for n in now if not torch.equal(now[n], start[n])}
    assert moved <= trained and len(moved) > 0.8 * len(trained)
    assert trained == set(now) if adapter == "full" else len(trained) < len(now)
    assert b.model.is_gradient_checkpointing is again


POSTHOC = ("interpolation", "safe-lora")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_for_three_steps(tuned, harbour, place, tmp_path, method):
    unaligned = str(make_tiny("llama", tmp_path / "before", seed=1)) if METHODS[method].needs else None
    options = {method: {"heads": ["0-1"]}} if method.startswith("heads") else {}
    results = tuned(
        tmp_path / "run", method=method, monitor=[], steps=3, every=9, unaligned=unaligned, options=options
    )
    assert math.isfinite(results.after.loss) and results.steps == 3
    assert all(math.isfinite(v) for row in read_log(tmp_path / "run") for v in row.values())
    load_guard(str(tmp_path / "run" / "tuned"), dtype="float32")
    repaired = [note for note in results.notes if note.startswith(method)]
    assert len(repaired) == (method in POSTHOC)


def test_a_repair_is_in_what_is_saved(tuned, place, tmp_path):
    from safetensors.torch import load_file

    tuned(tmp_path / "plain", steps=3)
    results = tuned(
        tmp_path / "half", steps=3, method="interpolation", options={"interpolation": {"alpha": 0.25}}
    )
    a, b = (load_file(tmp_path / n / "tuned" / "adapter_model.safetensors") for n in ("plain", "half"))
    for name, whole in a.items():
        assert torch.equal(b[name], 0.25 * whole if "lora_B" in name else whole), name
    assert 'interpolation: {"alpha": 0.25}' in results.notes
    assert [p["step"] for p in results.monitor] == [0, 2, 3]


def test_answers_can_be_learned(tuned, place, tmp_path):
    """Instructions under the checkpoint's chat template, guard data under the guard's."""
    results = tuned(tmp_path / "run", data=str(place / "ask.jsonl"), method="replay", steps=6, batch=8)
    assert results.before.loss > 1.5 * results.after.loss
    assert results.after.accuracy > results.before.accuracy
    assert results.monitor[-1]["recall_recalibrated"]["value"] > 0.8


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_classifier_is_tuned(tuned, place, tmp_path, adapter):
    """Labels of its own, which guardkeel.json explains: the tuned checkpoint must say it too."""
    guard = make_tiny("bert", tmp_path / "guard", labels=("fine", "odd"))
    (guard / "guardkeel.json").write_text(json.dumps({"unsafe_labels": ["odd"], "threshold": 0.4}))
    results = tuned(
        tmp_path / "run", guard=str(guard), method="fwssr-adaptive", adapter=adapter, steps=6, batch=8
    )
    assert results.after.loss < results.before.loss and results.threshold_before == 0.4
    alone = load_guard(str(tmp_path / "run" / "tuned"), dtype="float32")
    assert alone.labels[alone.unsafe[0]] == "odd" and alone.threshold == results.threshold
    judged = judgements(place)
    assert scores(alone, judged) != scores(load_guard(str(guard), dtype="float32"), judged)


@pytest.mark.parametrize("adapter", ["dora", "full"])
def test_other_weights_than_lora_are_saved(tuned, place, tmp_path, adapter):
    results = tuned(tmp_path / "run", adapter=adapter, method="fwssr", learning_rate=1e-3)
    alone = load_guard(str(tmp_path / "run" / "tuned"), dtype="float32", device="cpu")
    assert alone.threshold == results.threshold
    assert (tmp_path / "run" / "tuned" / "tokenizer.json").exists() is (adapter == "full")
    assert results.monitor[-1]["unscored"]["value"] == 0


def test_checkpointing_gives_the_same_guard(tuned, tmp_path):
    """Nothing is shared then, so sums run in another order."""
    a, b = (
        tuned(tmp_path / str(on), method="fwssr-adaptive+replay", monitor=[], checkpointing=on, steps=3)
        for on in (False, True)
    )
    assert a.after.loss == pytest.approx(b.after.loss, rel=1e-2)
    logs = [read_log(tmp_path / str(on)) for on in (False, True)]
    for one, two in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-2)


# --- the tripwire


@pytest.fixture(scope="module")
def collapse(tuned, place, tmp_path_factory):
    """(folder, results, points told) of a run that unlearns what it knew."""
    folder = tmp_path_factory.mktemp("collapse") / "run"
    results = tuned(
        folder, data=str(place / "reversed.jsonl"), steps=20, every=2, batch=8, learning_rate=1e-2,
        tripwire=True, keep_checkpoints=True,
    )  # fmt: skip
    return folder, results


def test_a_collapse_is_stopped_and_rolled_back(collapse, harbour, place):
    folder, results = collapse
    points = {p.step: p for p in read_points(folder)}
    tripped = max(points)
    good = results.steps
    assert 0 < good < tripped < 20
    assert results.stopped.startswith(f"tripwire at step {tripped}: recall fell by")
    assert results.stopped.endswith(f"; back to step {good}")
    assert points[tripped].fall > 0.05 >= points[good].fall
    assert results.threshold == points[good].threshold
    assert len(read_log(folder)) == tripped
    judged = judgements(place)
    plain = load_guard(str(harbour.guard), dtype="float32", device="cpu")
    found = {}
    for name in ("tuned", f"checkpoint-{good}", f"checkpoint-{tripped}"):
        with with_adapter(plain, folder / name) as guard:
            found[name] = scores(guard, judged)
    assert found["tuned"] == found[f"checkpoint-{good}"] != found[f"checkpoint-{tripped}"]
    tuned, checkpoint = (folder / n / "adapter_model.safetensors" for n in ("tuned", f"checkpoint-{good}"))
    assert tuned.read_bytes() == checkpoint.read_bytes()


def test_a_full_fine_tune_is_rolled_back_too(tuned, place, tmp_path):
    results = tuned(
        tmp_path / "run", data=str(place / "reversed.jsonl"), steps=20, every=1, batch=8, learning_rate=1e-3,
        adapter="full", tripwire=True, keep_checkpoints=True,
    )  # fmt: skip
    assert results.stopped and results.steps > 0
    alone = load_guard(str(tmp_path / "run" / "tuned"), dtype="float32", device="cpu")
    point = next(p for p in results.monitor if p["step"] == results.steps)
    items = gather(
        TuneConfig.model_validate(read_record(tmp_path / "run").config), lambda *told: None
    ).monitor
    flagged = [s >= alone.threshold for s in scores(alone, [i.judgement for i in items])]
    unsafe = [f for f, i in zip(flagged, items, strict=True) if i.label == "unsafe"]
    assert sum(unsafe) / len(unsafe) == pytest.approx(point["recall_recalibrated"]["value"])


def test_without_a_tripwire_it_goes_on_to_the_end(tuned, place, tmp_path):
    results = tuned(
        tmp_path / "run", data=str(place / "reversed.jsonl"), steps=8, batch=8, learning_rate=1e-2
    )
    assert results.stopped == "" and results.steps == 8
    assert results.monitor[-1]["fall"] > 0.5
    assert results.threshold == results.monitor[-1]["threshold"]  # the weights' own, whatever they are


def test_when_nothing_was_good_there_is_no_guard(tuned, place, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(
        RunError, match=r"tripwire at step 8.*no checkpoint before it was inside the margin"
    ) as error:
        tuned(folder, data=str(place / "reversed.jsonl"), steps=16, every=8, batch=8, learning_rate=1e-2,
              tripwire=True)  # fmt: skip
    assert "--every" in error.value.remedy
    assert not (folder / "tuned").exists() and not (folder / "run.json").exists()


# --- what is not finite


def test_a_number_that_is_not_finite_ends_the_run(tuned, tmp_path, monkeypatch):
    """A rate that blows up: what is kept is the last good checkpoint, and nothing says that the run is done."""
    from guardkeel.tuning import fitting

    monkeypatch.setattr(fitting, "schedule", lambda step, **options: 1.0 if step < 3 else 1e38)
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"step \d+: (loss|gradient norm) (nan|inf)") as error:
        tuned(folder, steps=8, monitor=[], every=1, method="replay")
    kept = sorted(folder.glob("checkpoint-*"))
    assert str(kept[-1]) in error.value.problem
    assert not (folder / "tuned").exists() and not (folder / "run.json").exists()


# --- what is refused, before anything is written


@pytest.mark.parametrize("method", ["interpolation", "safe-lora", "replay+interpolation"])
@pytest.mark.parametrize("adapter", ["dora", "full"])
def test_repairs_are_for_lora(tuned, tmp_path, method, adapter):
    with pytest.raises(
        ConfigError, match=f"repairs the updates of a LoRA, but adapter is '{adapter}'"
    ) as error:
        tuned(tmp_path / "run", method=method, adapter=adapter)
    assert "set adapter to lora" in error.value.remedy
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_no_guard_to_tune(tuned, harbour, tmp_path):
    with pytest.raises(ConfigError, match=r"is an adapter on .*guard, not a whole checkpoint") as error:
        tuned(tmp_path / "run", guard=str(harbour.forgetful))
    assert "merge it into its base first" in error.value.remedy
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "fwsr"}, ConfigError, "unknown method 'fwsr'"),
        ({"method": "replay", "options": {"replay": {"stength": 1}}}, ConfigError, "no option 'stength'"),
        ({"learning_rat": 1}, ConfigError, "unknown key 'learning_rat'"),
        ({"adapter": "qlora"}, ConfigError, "adapter = 'qlora'"),
        ({"data": "absent.jsonl"}, DataError, "absent"),
        ({"report_to": ["tensorbord"]}, ConfigError, "report_to names 'tensorbord'"),
    ],
)
def test_mistakes_are_named(tuned, tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        tuned(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_methods_that_lack_something_say_so(tuned, tmp_path):
    with pytest.raises(ConfigError, match="compares the guard with the model that it was made from") as error:
        tuned(tmp_path / "a", method="asft")
    assert "--unaligned" in error.value.remedy
    with pytest.raises(DataError, match="guard data need both labels, got 0 unsafe of 0"):
        tuned(tmp_path / "b", method="replay", guard_data=[])
    tuned(tmp_path / "c", guard_data=[], monitor=[], steps=1)  # plain needs none


# --- reporting


def test_reporters_get_loss_lambda_conflict_and_safety(tiny_loaded, tmp_path, place):
    """What `report_to` names hears the Trainer's log."""
    heard = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append((state.global_step, dict(logs)))

    b = bench(tiny_loaded("llama"))
    items = load_suite(place / "watch.jsonl").items("calibrate")[:12]
    monitor = SafetyMonitor(b.guard, items, tmp_path, every=2, layers=(1, 2), margin=None, rank=2)
    options = {"fwssr-adaptive": {"every": 1}}
    go = trainer(b, tmp_path, "fwssr-adaptive", options, steps=3, callbacks=[Reporter(), monitor])
    monitor.trainer = go
    go.train()
    steps = {step: logs for step, logs in heard if "loss" in logs}
    assert set(steps) == {1, 2, 3}
    for logs in steps.values():
        assert {"loss", "grad_norm", "learning_rate", "lambda", "conflict", "penalty", "fisher_top"} <= set(
            logs
        )
    looks = {step: logs for step, logs in heard if any(key.startswith("safety/") for key in logs)}
    assert set(looks) == {0, 2, 3}
    assert "safety/unscored" in looks[2]


def test_tensorboard_gets_them(tuned, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tuned(tmp_path / "run", method="fwssr-adaptive", report_to=["tensorboard"])
    (events,) = (tmp_path / "run").rglob("events.out.tfevents*")
    held = EventAccumulator(str(events.parent))
    held.Reload()
    tags = held.Tags()["scalars"]
    assert {"train/loss", "train/lambda", "train/conflict"} <= set(tags)
    assert any("safety" in tag for tag in tags)
