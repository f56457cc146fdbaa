"""guardkeel tune: runs, plans, JSON, resuming, the audit behind it, and what stops it with exit code 2."""

import io
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from guardkeel.conversation import write_jsonl
from guardkeel.guards import load
from guardkeel.records import read_record
from guardkeel.tuning.config import DEFAULT_METHOD
from guardkeel.tuning.estimate import TunePlan
from guardkeel.tuning.log import StepLog, read_log
from guardkeel.tuning.regularisers.registry import METHODS
from guardkeel.tuning.results import TuneResults
from trained_guards import examples

STEPS = 4
POLICY = """
[non_inferiority]
min_n = 20
[non_inferiority.margins]
recall = 0.2
fpr = 0.2
unscored = 0.2
[completeness]
min_unsafe = 20
min_safe = 20
"""


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Harmless rows to learn."""
    path = tmp_path_factory.mktemp("data") / "bank.jsonl"
    write_jsonl(path, examples(40, 51, labels=("safe",)))
    return path


@pytest.fixture
def words(harbour, bank):
    """A small fine-tune of the trained guard, as words of a command."""
    suite = str(harbour.suite)
    return [
        *("tune", harbour.guard, "--data", bank, "--guard-data", suite, "--monitor", suite, "--steps", STEPS),
        *("--lr", "1e-2", "--batch", "4", "--every", "2", "--dtype", "float32", "--device", "cpu"),
        *("--set", "max_tokens=1024", "--set", "guard_items=16", "--set", "monitor_items=40"),
    ]


def only_run(home="."):
    """The one run directory under runs/."""
    (folder,) = (Path(home) / "runs").iterdir()
    return folder


def test_a_run_from_end_to_end(cli, words, harbour):
    found = cli(*words)
    assert found.code == 0, found.err
    folder = only_run()
    assert folder.name.startswith("tune-guard-")
    record = read_record(folder)
    results = TuneResults.model_validate(record.results)
    assert (record.verb, results.method, results.steps) == ("tune", DEFAULT_METHOD, STEPS)
    assert record.command[:2] == ["guardkeel", "tune"] and record.config["learning_rate"] == 1e-2

    looks = [line for line in found.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in looks] == ["0", "2", "4"] and all("recall" in line for line in looks)
    assert "fine-tune" in found.err and "4/4" in found.err

    first, last = results.monitor[0], results.monitor[-1]
    (recall,) = [line for line in found.out.splitlines() if line.startswith("unsafe recall")]
    shown = [first["recall"], last["recall"], last["recall_recalibrated"]]
    assert recall.split()[2:] == [f"{e['value']:.3f}" for e in shown]
    assert f"loss {results.before.loss:.3f} → {results.after.loss:.3f}" in found.out
    assert f"on {results.after.n} rows kept aside" in found.out
    assert f"threshold  {results.threshold_before:.3f} → {results.threshold:.3f}" in found.out
    assert f"guardkeel audit {harbour.guard} --against {folder / 'tuned'}" in found.out

    guard = load.load_guard(str(folder / "tuned"), dtype="float32", device="cpu")
    assert guard.threshold == results.threshold and guard.family == "keel"


def test_json_is_all_of_stdout(cli, words, tmp_path):
    found = cli(*words, "--json", "--out", tmp_path / "run", "--method", "plain", "--no-recalibrate")
    assert found.code == 0, found.err
    assert found.json["run"] == str(tmp_path / "run")
    results = TuneResults.model_validate(found.json["results"])
    assert results.method == "plain" and results.threshold == results.threshold_before
    assert (Path(found.json["tuned"]) / "adapter_model.safetensors").is_file()
    assert "recall" not in found.err


def test_a_dry_run_knows_what_the_run_would_do_and_does_nothing(cli, words, tmp_path, monkeypatch):
    out = tmp_path / "run"
    real = TuneResults.model_validate(cli(*words, "--out", out, "--json").json["results"])
    counts = read_record(out).counts

    def never(*args, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_model", never)
    before = sorted(tmp_path.rglob("*"))
    found = cli(*words, "--dry-run", "--json")
    assert found.code == 0, found.err
    plan = TunePlan.model_validate(found.json)
    assert (plan.steps, plan.trained, plan.looks) == (real.steps, real.trained, len(real.monitor))
    assert (plan.rows, plan.kept_aside) == (counts["task rows"], counts["rows kept aside"])
    assert (plan.guard_data, plan.monitor_items) == (counts["guard data"], counts["monitor items"])
    assert plan.memory > 0 and plan.seconds > 0 and plan.passes == pytest.approx(STEPS * 4 / plan.rows)
    people = cli(*words, "--dry-run")
    assert f"{STEPS} steps" in people.out and "nothing was run" in people.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("adapter", "more"), [("full", 1), ("dora", 1), ("lora", 0)])
def test_a_plan_of_every_adapter(cli, words, harbour, adapter, more):
    plain = cli(*words, "--dry-run", "--json", "--method", "plain").json
    plan = cli(*words, "--dry-run", "--json", "--method", "plain", "--adapter", adapter).json
    assert (plan["trained"] > plain["trained"]) == bool(more)
    assert (plan["trained"] == plan["parameters"]) == (adapter == "full")


def test_methods_are_listed(cli):
    found = cli("tune", "--list-methods")
    assert found.code == 0
    listed = {line.split()[0]: line for line in found.out.splitlines() if line}
    for name, method in METHODS.items():
        assert method.summary in listed[name]
        assert ("(default)" in listed[name]) == (name == DEFAULT_METHOD)
    names = [m["name"] for m in cli("tune", "--list-methods", "--json").json]
    assert names[: len(METHODS)] == list(METHODS)


WRONG = {
    "method": (["--method", "fwsr"], "unknown method 'fwsr'", "fwssr"),
    "method twice": (["--method", "kl+kl"], "names 'kl' twice", ""),
    "option": (
        ["-m", "fwssr-adaptive", "--set", "options.fwssr-adaptive.strenght=2"],
        "no option 'strenght'",
        "write 'strength'",
    ),
    "options of another": (
        ["-m", "fwssr-adaptive", "--set", "options.kl.strength=2"],
        "no part of method",
        "fwssr-adaptive",
    ),
    "adapter": (["--adapter", "loha"], "adapter = 'loha'", "guardkeel tune --help"),
    "key": (["--set", "leraning_rate=1"], "unknown key 'leraning_rate'", "learning_rate"),
    "repair of a full fine-tune": (
        ["-m", "interpolation", "--adapter", "full"],
        "repairs the updates",
        "lora",
    ),
    "repair of DoRA": (["-m", "safe-lora", "--adapter", "dora"], "repairs the updates", "lora"),
    "AsFT with DoRA": (["-m", "asft", "--adapter", "dora"], "updates of DoRA", "lora or full"),
    "unaligned": (["-m", "replay+asft"], "the model that it was made from", "--unaligned"),
    "float16": (["--dtype", "float16"], "too coarse to train in", "bfloat16"),
    "report_to": (["--report-to", "nowhere"], "'nowhere'", "install it"),
    "first layer": (["--set", "first_layer=9"], "nothing would be trained", "choose 0 to 1"),
    "room": (["--set", "max_tokens=64"], "needs more than max_tokens=64", "raise max_tokens"),
    "source": (["--source", "moon"], "has the source 'moon'", "written here"),
    "monitor": (["--monitor", "nothing.jsonl"], "nothing.jsonl", ""),
    "guard": (None, "nowhere", ""),
}


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_said_at_once(cli, words, name, dry):
    more, problem, remedy = WRONG[name]
    chosen = [words[0], "nowhere", *words[2:]] if more is None else [*words, *more]
    found = cli(*chosen, *(["--dry-run"] if dry else []))
    assert found.code == 2
    assert problem in found.err and remedy in found.err, found.err
    assert "Traceback" not in found.err and "step 0" not in found.err


def test_data_errors(cli, words, tmp_path):
    def said(*lines):
        data = tmp_path / "odd.jsonl"
        data.write_text("\n".join(lines))
        found = cli(*words[:2], "--data", data, *words[4:], "--dry-run")
        assert found.code == 2
        return found.err

    row = {"id": "1", "messages": [{"role": "user", "content": "hello"}], "labels": {"prompt": "safe"}}
    assert "odd.jsonl" in said("{")
    assert "odd.jsonl" in said(json.dumps(row | {"labels": {"prompt": "fine"}}))
    assert "neither a guard conversation nor an instruction" in said(json.dumps({"id": "1", "text": "hello"}))
    assert "an instruction" in said(json.dumps(row), json.dumps({"id": "2", "prompt": "a", "response": "b"}))


def test_usage(cli, words):
    nothing = cli("tune")
    assert nothing.code == 2 and "--data" in nothing.err
    lonely = cli(*words, "--suite", "advbench")
    assert lonely.code == 2 and "--audit" in lonely.err


def test_an_adapter_is_to_be_merged_first(cli, words, harbour):
    for dry in ([], ["--dry-run"]):
        found = cli("tune", harbour.forgetful, *words[2:], *dry)
        assert found.code == 2 and "merge it into its base first" in found.err


def test_configuration_file_options_and_changes(cli, words, harbour, bank, tmp_path):
    file = tmp_path / "tune.toml"
    suite = str(harbour.suite)
    file.write_text(
        f'guard = "{harbour.guard}"\ndata = ["{bank}"]\nguard_data = ["{suite}"]\nmonitor = ["{suite}"]\n'
        'steps = 9\nmax_tokens = 1024\nmethod = "kl"\n[options.kl]\nstrength = 3.0\n'
    )
    plan = cli("tune", "--config", file, "--dry-run", "--json").json
    assert (plan["steps"], plan["method"]) == (9, "kl")
    plan = cli("tune", "--config", file, "--steps", 8, "--set", "steps=7", "--dry-run", "--json").json
    assert plan["steps"] == 7
    assert (
        "keel-135m" not in cli("tune", "--config", file, "--dry-run").err
    )  # the file's guard, not the default


class Stop:
    """Interrupts a run after a step, once."""

    def __init__(self, monkeypatch, step):
        real = StepLog.on_step_end

        def stopping(log, args, state, control, **kwargs):
            real(log, args, state, control, **kwargs)
            if self.armed and state.global_step == step:
                self.armed = False
                raise KeyboardInterrupt

        self.armed = True
        monkeypatch.setattr(StepLog, "on_step_end", stopping)


def test_an_interrupted_run_goes_on(cli, words, monkeypatch, tmp_path):
    whole = cli(*words, "--out", tmp_path / "whole", "--json").json["results"]
    stop = Stop(monkeypatch, 3)
    stopped = cli(*words)
    assert stopped.code == 130 and not stop.armed
    assert stopped.err.strip().endswith("interrupted; repeat the same command to go on from here")
    folder = only_run()
    assert (folder / "checkpoint-2").is_dir() and not (folder / "run.json").exists()
    again = cli(*words, "--json")
    assert again.code == 0, again.err
    assert again.json["run"] == str(folder) == str(only_run())
    assert [row["step"] for row in read_log(folder)] == [1, 2, 3, 4]
    timeless = {"step_seconds", "peak_memory", "monitor"}
    found = again.json["results"]
    assert {k: v for k, v in found.items() if k not in timeless} == {
        k: v for k, v in whole.items() if k not in timeless
    }
    tensors = "tuned/adapter_model.safetensors"
    assert (folder / tensors).read_bytes() == (tmp_path / "whole" / tensors).read_bytes()
    assert not list(folder.glob("checkpoint-*"))


def test_the_audit_behind_it_gives_its_exit_code(cli, words, harbour, tmp_path):
    policy = tmp_path / "gate.toml"
    policy.write_text(POLICY)
    audit = ["--audit", "--suite", harbour.suite, "--policy", policy]
    # The guard goes all the way back to where it was.
    back = ["-m", "interpolation", "--set", "options.interpolation.alpha=0", "--no-recalibrate"]
    kept = cli(*words, *back, *audit, "--out", tmp_path / "kept")
    assert kept.code == 0, kept.err
    assert "ALLOW" in kept.out and str(tmp_path / "kept" / "audit" / "report.html") in kept.out
    assert (tmp_path / "kept" / "audit" / "report.html").is_file()
    told = tmp_path / "told.jsonl"  # that ships are harmless
    rows = [replace(e, labels=dict.fromkeys(e.labels, "safe"), categories=()) for e in examples(40, 2)]
    write_jsonl(told, rows)
    plain = ["--data", told, "-m", "plain", "--no-recalibrate", "--steps", 15, "--json"]
    lost = cli(*words[:2], *words[4:], *plain, *audit, "--out", tmp_path / "lost")
    assert lost.code == 1
    assert lost.json["audit"]["results"]["decision"]["decision"] == "deny"
    assert cli("gate", lost.json["audit"]["run"], "--policy", policy).code == 1


def test_an_audit_that_was_interrupted_does_not_cost_the_fine_tune(cli, words, harbour, monkeypatch):
    from guardkeel.cli import tune

    audit = ["--audit", "--suite", harbour.suite]
    real = tune.run_audit

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run_audit", interrupted)
    assert cli(*words, *audit).code == 130
    folder = only_run()
    before = (folder / "run.json").stat().st_mtime_ns
    monkeypatch.setattr(tune, "run_audit", real)
    found = cli(*words, *audit, "--json")
    assert found.json["run"] == str(folder) == str(only_run())
    assert (folder / "run.json").stat().st_mtime_ns == before
    assert found.json["results"] == read_record(folder).results
    assert (folder / "audit" / "run.json").is_file()


def test_a_policy_that_cannot_be_used_stops_before_the_fine_tune(cli, words, harbour, tmp_path):
    (tmp_path / "bad.toml").write_text("[gate]\n")
    found = cli(*words, "--audit", "--suite", harbour.suite, "--policy", tmp_path / "bad.toml")
    assert found.code == 2 and "unknown key 'gate'" in found.err and not Path("runs").exists()


def test_what_is_audited_is_not_learned(harbour, tmp_path, monkeypatch):
    """A suite that is learned and audited: not one test item of the audit is among what the fine-tune reads."""
    from guardkeel.evaluation.selection import select
    from guardkeel.evaluation.suites import load_suite
    from guardkeel.tuning.config import TuneConfig
    from guardkeel.tuning.gather import gather_beside

    other = tmp_path / "other.jsonl"
    write_jsonl(other, [*examples(60, 7), *examples(60, 99)])  # the first are texts of the harbour's suite
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    suite = str(harbour.suite)
    config = TuneConfig(data=[suite], guard_data=[str(other)], monitor=[suite, str(other)])
    rows = gather_beside(config, [suite], lambda *told: None)
    tested = {i.example.conversation.text for i in select([load_suite(suite)]) if i.split == "test"}
    read = [*rows.task, *rows.aside, *rows.guard, *rows.monitor]
    texts = {r.judgement.conversation.text for r in read}
    assert tested and texts and not tested & texts


def test_looks_stand_above_a_live_bar(words, harbour, bank, monkeypatch, tmp_path):
    from guardkeel.cli.tune import run
    from guardkeel.tuning.config import TuneConfig

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    suite = str(harbour.suite)
    config = TuneConfig(
        guard=str(harbour.guard), data=[str(bank)], guard_data=[suite], monitor=[suite], method="plain",
        steps=1, max_tokens=1024, monitor_items=40, dtype="float32", device="cpu", offline=True,
    )  # fmt: skip
    run(config, tmp_path / "run")
    shown = screen.getvalue()
    assert "\x1b[2Kstep 0  recall" in shown and "\x1b[2Kstep 1  recall" in shown  # each after a cleared line


def test_the_example_for_any_trainer_runs(tmp_path, harbour, bank, monkeypatch, capsys):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "keep_any_trainer.py"))
    script["main"]([str(harbour.guard), str(harbour.suite), str(bank), str(tmp_path / "kept")])
    assert "penalty" in capsys.readouterr().out
    kept = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    assert any(t.abs().max() > 0 for name, t in kept.items() if "lora_B" in name)
