"""Trainings from end to end on tiny models: learned, calibrated, measured, resumed, and read back as guards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from guard_sets import WORDS, policy_file, records, topic_records, write
from guardkeel.cli import train_guard as verb
from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.base import Judgement
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory
from guardkeel.guards.load import load_guard
from guardkeel.models.tiny import make_tiny
from guardkeel.records import file_digest, read_record
from guardkeel.tuning.guard_training.config import read_config
from guardkeel.tuning.guard_training.estimate import estimate
from guardkeel.tuning.guard_training.measuring import scores_of
from guardkeel.tuning.guard_training.opening import opened
from guardkeel.tuning.guard_training.preparing import prepared
from guardkeel.tuning.guard_training.run import run, train_guard
from guardkeel.tuning.guard_training.teaching import taught
from guardkeel.tuning.log import read_log
from small_tunes import settle
from trained_guards import suite_file


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with bases, a curated set and its policy; the cache is there too."""
    settle()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("train")
    for name in ("qwen3", "bert", "gemma3"):
        make_tiny(name, folder / name, layers=1, labels=("LABEL_0", "LABEL_1"))
    make_tiny("bert", folder / "judge", layers=1)
    write(folder / "set/dataset/data/rows.jsonl", [*records(80), *topic_records(12)])
    write(folder / "larger/data/rows.jsonl", [*records(160), *topic_records(12)])
    policy_file(folder / "policy.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(folder / "cache"))
        patch.setenv("GUARDKEEL_OFFLINE", "1")
        yield folder


def given(place, base="qwen3", **options):
    """A small configuration."""
    policy = {"policy": str(place / "policy.toml")} if base in ("qwen3", "gemma3") else {}
    return {
        "base": str(place / base), "data": [str(place / "set")], "steps": 2, "batch": 8, "test_items": 12, "rank": 2,
        "max_tokens": 1024, "variants": 2, "monitor_items": 0, "every": 2, "dtype": "float32", "device": "cpu",
    } | policy | options  # fmt: skip


def weights(folder: Path) -> str:
    """A digest of the adapter that was learned."""
    return file_digest(folder / "guard" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def learned(place):
    """A guard that has learned something: the folder of its run, and its results."""
    out = place / "learned"
    options = given(
        place,
        adapter="full",
        steps=18,
        batch=16,
        learning_rate=4e-3,
        every=100,
        monitor_items=8,
        test_items=60,
    )
    data = str(place / "larger")
    results = train_guard(
        options.pop("base"), data, out=out, **{k: v for k, v in options.items() if k != "data"}
    )
    return out, results


def test_a_language_model_becomes_a_guard(place, learned):
    out, results = learned
    assert results.task == "causal" and results.family == "keel-policy" and results.steps == 18
    assert results.test.n_unscored == 0 and results.test.n > 20
    assert {(s.by, s.value) for s in results.slices} >= {
        ("source", "human"),
        ("source", "jury"),
        ("side", "response"),
    }
    assert results.topics.n == 4 and results.calibration.safe >= 20
    assert all(rate <= 0.05 for rate in results.calibration.flagged.values())
    record = read_record(out)
    assert record.verb == "train-guard" and set(record.inputs) == {"base", f"data {place / 'larger'}"}
    losses = [row["loss"] for row in read_log(out)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) * 0.6
    assert not list(out.glob("checkpoint-*")) and len(results.monitor) == 2
    card = (out / "guard" / "README.md").read_text()
    assert "| prompt | human |" in card and "- Ships" in card and str(place) not in card


def test_it_loads_as_what_it_is_and_reads_other_policies(learned):
    out, results = learned
    guard = load_guard(str(out / "guard"), device="cpu", dtype="float32")
    assert guard.grammar.categories == tuple(WORDS) and guard.threshold == results.calibration.threshold
    asked = [Judgement(str(n), records_conversation(n), "prompt") for n in range(8)]
    own = scores_of(guard, asked)
    given_ = GuardPolicy(name="seas", categories=(PolicyCategory(name="Seas"),))
    assert not np.allclose(own, scores_of(guard, asked, given_))
    assert np.array_equal(own, scores_of(guard, asked))  # it has its own policy back


def records_conversation(n):
    """A prompt of the toy."""
    from guardkeel.conversation import Conversation

    return Conversation.from_messages(records(20, seed=5)[n]["messages"][:1])


def test_a_killed_run_ends_as_one_that_was_not(place, tmp_path):
    config = read_config(None, given(place, steps=4))
    whole = run(config, tmp_path / "whole")

    def killed(what, done, total):
        if what == "train the guard" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed", watch=killed)
    assert [p.name for p in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(ConfigError, match="unfinished run"):
        run(config.model_copy(update={"seed": 1}), tmp_path / "killed")
    resumed = run(config, tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert [r["loss"] for r in read_log(tmp_path / "killed")] == [
        r["loss"] for r in read_log(tmp_path / "whole")
    ]
    assert resumed.calibration == whole.calibration


def test_a_shared_policy_changes_no_loss(place):
    config = read_config(None, given(place, steps=12))
    ready = prepared(config, lambda *a: None)
    guard = opened(ready.place, config, ready.policy, lambda *a: None)
    learner, syllabus, plan, _ = taught(ready, guard, config, lambda *a: None)
    assert sum(plan.shared) >= 3 and len({plan.lessons[b[0]].policy for b in plan.batches}) > 2
    for batch in [b for b, shared in zip(plan.batches, plan.shared, strict=True) if shared][:3]:
        lessons = [syllabus[n] for n in batch]
        with torch.no_grad(), learner.under(lessons[0].key):
            prefix = learner.prefix(guard.model)
            assert prefix is not None
            together = learner.row_losses(guard.model, learner.collate(lessons), prefix)
        alone = []
        for n in batch:
            syllabus._keys[n] = key = (syllabus._keys[n][0], "")
            syllabus._samples[key] = []
            lesson = syllabus[n]
            with torch.no_grad():
                alone.append(learner.row_losses(guard.model, learner.collate([lesson]), None)[0])
        assert torch.allclose(together, torch.stack(alone), atol=1e-4)


def test_categories_that_were_held_out_are_measured_when_they_are_given(place, tmp_path):
    results = run(read_config(None, given(place, hold_out=["Poems"])), tmp_path / "out")
    novel = results.novel
    assert novel.categories == ["Poems"] and set(novel.by_category) == {"Poems"} == set(novel.alone)
    kept = json.loads((tmp_path / "out/guard/guardkeel.json").read_text())["policy"]["categories"]
    assert [c["name"] for c in kept] == ["Ships", "Banks"]
    counts = read_record(tmp_path / "out").counts
    assert counts["items of categories that are held out"] > 0
    assert "never learned" in (tmp_path / "out/guard/README.md").read_text()


def test_a_guard_keeps_what_it_knows_with_a_method(place, learned, tmp_path):
    base = str(learned[0] / "guard")
    anchors = str(suite_file(tmp_path / "anchors.jsonl", 80))
    options = {"method": "fwssr+kl", "guard_data": [anchors], "guard_items": 8, "steps": 2}
    results = run(
        read_config(None, given(place) | {"base": base, "policy": None} | options), tmp_path / "kept"
    )
    assert results.method == "fwssr+kl" and results.steps == 2
    log = read_log(tmp_path / "kept")
    assert any("kl" in key for row in log for key in row)
    with pytest.raises(ConfigError, match="is no guard of this family"):
        run(read_config(None, given(place, method="kl")), tmp_path / "none")


def test_classifiers_with_and_without_a_head_of_their_own(place, tmp_path):
    options = {"class_weights": "balanced", "steps": 1}
    results = run(read_config(None, given(place, "judge", **options)), tmp_path / "judge")
    assert results.task == "classifier" and (tmp_path / "judge/guard/adapter_config.json").exists()
    run(read_config(None, given(place, "bert", steps=1)), tmp_path / "bert")
    guard = load_guard(str(tmp_path / "bert/guard"), device="cpu")
    assert [guard.labels[i] for i in guard.unsafe] == ["unsafe"] and len(guard.labels) == 2
    counts = read_record(tmp_path / "bert").counts
    assert counts["topic-following items, for the guard reads no policy"] == 8
    with pytest.raises(ConfigError, match="hold_out"):
        run(read_config(None, given(place, "bert", hold_out=["Ships"])), tmp_path / "no")
    with pytest.raises(ConfigError, match="shown no policy"):
        run(read_config(None, given(place, "bert", policy=str(place / "policy.toml"))), tmp_path / "no")


def test_sliding_windows_and_a_language_model_as_a_classifier(place, tmp_path):
    assert run(read_config(None, given(place, "gemma3", steps=1)), tmp_path / "gemma").steps == 1
    made = run(
        read_config(None, given(place, "gemma3", kind="classifier", policy=None, steps=1)), tmp_path / "head"
    )
    assert made.task == "classifier" and load_guard(str(tmp_path / "head/guard"), device="cpu").causal


def test_a_family_with_fixed_categories_is_taught_without_varying_them(place, tmp_path):
    results = run(read_config(None, given(place, family="keel", policy=None, steps=1)), tmp_path / "keel")
    assert results.family == "keel" and results.policies == 1 and "not varied" in results.notes[0]
    assert "policy" not in json.loads((tmp_path / "keel/guard/guardkeel.json").read_text())


def test_what_is_not_finite_stops_the_run(place, tmp_path):
    with pytest.raises(RunError, match="step"):
        run(read_config(None, given(place, learning_rate=1e30, steps=6, adapter="full")), tmp_path / "out")


def test_long_items_are_counted_and_shortened_or_left_out(place, tmp_path):
    long = records(24, seed=3)
    for row in long[:2]:
        row["split"], row["messages"][0]["content"] = "fit", row["messages"][0]["content"] + " content" * 1200
    data = str(write(tmp_path / "long.jsonl", long))
    found = {}
    for way in ("shorten", "leave-out"):
        config = read_config(None, given(place, too_long=way) | {"data": [data]})
        plan = estimate(config)
        found[way] = plan.left_out, plan.epoch_items
    assert found["shorten"][0]["items over 1024 tokens, which were shortened"] >= 2
    assert found["leave-out"][1] < found["shorten"][1]
    tight = given(place, max_tokens=64) | {"data": [data]}  # the policy alone is longer than that
    with pytest.raises(ConfigError, match="even with its messages shortened"):
        estimate(read_config(None, tight))


def test_the_command(place, tmp_path):
    app = typer.Typer()
    verb.register(app)
    app.command("other")(lambda: None)
    options = [
        f"--set={k}={json.dumps(v)}" for k, v in given(place).items() if k not in ("base", "data", "policy")
    ]
    call = [
        "train-guard",
        "-d",
        str(place / "set"),
        "-b",
        str(place / "qwen3"),
        "--policy",
        str(place / "policy.toml"),
    ]
    call += [*options, "--source-weight", "human=2", "--source-weight", "jury=0.5"]
    planned = CliRunner().invoke(app, [*call, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert plan["steps"] == 2 and plan["labels"]["unsafe, by human"] > 0 and not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "too few" in done.stdout and "audit" in done.stdout
    assert read_record(tmp_path / "out").config["source_weights"] == {"human": 2.0, "jury": 0.5}
    bad = CliRunner().invoke(app, ["train-guard", "-d", "x", "--source-weight", "human"])
    assert bad.exit_code == 2
