"""guardkeel fuse: runs, plans, adapters, resuming, the audit behind it, and what stops it with exit code 2."""

import json
import os
import shutil
import signal
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli_tune import POLICY

from guardkeel.errors import ConfigError
from guardkeel.fusion import run as running
from guardkeel.fusion.config import FuseConfig
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.results import FusePlan, FuseResults
from guardkeel.guards.load import load_checkpoint, with_adapter
from guardkeel.models.loading import load_model
from guardkeel.records import RunRecord, read_record, write_record

WEIGHTS = "model.safetensors"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def merged(harbour, tmp_path_factory):
    """The forgetful guard as a whole checkpoint in float32."""
    folder = tmp_path_factory.mktemp("merged") / "forgetful-merged"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        load_model(harbour.forgetful, "float32", "cpu").merge_and_unload().save_pretrained(folder)
    return folder


@pytest.fixture
def fuse(cli, harbour):
    """fuse(*arguments) fuses against the trained guard."""
    return lambda *words: cli("fuse", *words, "--reference", harbour.guard)


def weights(folder):
    return load_file(folder / WEIGHTS)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def alpha(value):
    return "--set", f"options.interpolation.alpha={value}"


def test_a_run_from_end_to_end(fuse, harbour):
    found = fuse(harbour.forgetful, *alpha(0.25))
    assert found.code == 0, found.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("fuse-interpolation-")
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "fused", "run.json"]

    record = read_record(folder)
    results = FuseResults.model_validate(record.results)
    assert (record.verb, results.method, results.output) == ("fuse", "interpolation", "checkpoint")
    assert record.command[:2] == ["guardkeel", "fuse"] and record.seeds == {"seed": 0}
    assert set(record.inputs) == {"reference", "candidate 1", "base of candidate 1"}
    assert record.inputs["reference"] == record.inputs["base of candidate 1"] != record.inputs["candidate 1"]
    config = FuseConfig.model_validate(tomllib.loads((folder / "config.toml").read_text()))
    assert config.model_dump(mode="json") == record.config and config.options["interpolation"] == {
        "alpha": 0.25
    }

    whole = results.diagnostics.whole
    assert whole.shares == [pytest.approx(0.25, rel=1e-4)] and whole.cosines == [pytest.approx(1, abs=1e-4)]
    assert [m.name for m in results.diagnostics.layers] == ["model.layers.0", "model.layers.1"]
    assert results.fused == results.tensors and results.copied == 0 and results.bytes_written > 10**5
    assert "share of forgetful" in found.out and "0.250" in found.out
    assert f"guardkeel audit {harbour.guard} --against {folder / 'fused'}" in found.out

    said = json.loads((folder / "fused" / "guardkeel.json").read_text())
    assert (said["family"], said["name"]) == ("keel", folder.name)
    assert said["provenance"] | {"inputs": 0} == {
        "method": "interpolation",
        "settings": {"alpha": 0.25},
        "seed": 0,
        "inputs": 0,
    }
    guard = load_checkpoint(str(folder / "fused"), dtype="float32", device="cpu")
    assert (guard.family, guard.name, guard.threshold) == ("keel", folder.name, 0.5)


def test_the_ends_are_the_inputs_bit_for_bit(fuse, harbour, merged, tmp_path):
    for share, folder in ((0, harbour.guard), (1, merged)):
        out = tmp_path / f"run{share}"
        assert fuse(merged, *alpha(share), "--out", out).code == 0
        assert same(weights(out / "fused"), weights(folder))
    notes = read_record(tmp_path / "run0").results["notes"]
    assert "the result is the reference itself: nothing of the fine-tuning is left" in notes


def test_an_adapter_is_what_it_is_merged(fuse, harbour, merged, tmp_path):
    words = "--method", "ties", "--set", "options.ties.density=0.3"
    for name, candidate in (("a", harbour.forgetful), ("b", merged)):
        assert fuse(candidate, *words, "--out", tmp_path / name).code == 0
    one, other = weights(tmp_path / "a" / "fused"), weights(tmp_path / "b" / "fused")
    before = weights(harbour.guard)
    assert not same(one, before)
    for name, tensor in one.items():
        change, ours = other[name] - before[name], tensor - before[name]
        assert torch.linalg.vector_norm(ours - change) <= 1e-3 * torch.linalg.vector_norm(change), name


def test_an_adapter_comes_out_as_well(fuse, harbour, merged, tmp_path):
    dense = tmp_path / "dense"
    assert fuse(merged, *alpha(0.5), "--out", dense).code == 0
    for name, candidate in (("small", harbour.forgetful), ("svd", merged)):
        out = tmp_path / name
        found = fuse(candidate, *alpha(0.5), "--output", "adapter", "--tolerance", "0.001", "--out", out)
        assert found.code == 0, found.err
        results = FuseResults.model_validate(read_record(out).results)
        assert results.adapter.error <= 0.001 and results.adapter.whole == []
        assert "modules of rank" in found.out and not (out / "fused" / WEIGHTS).exists()
        assert results.diagnostics.whole.shares == [pytest.approx(0.5, rel=1e-3)]
        after = load_model(out / "fused", "float32", "cpu").merge_and_unload().state_dict()
        expected, before = weights(dense / "fused"), weights(harbour.guard)
        missed = sum(float((after[n] - t).square().sum()) for n, t in expected.items()) ** 0.5
        whole = sum(float((before[n] - t).square().sum()) for n, t in expected.items()) ** 0.5
        assert missed <= (results.adapter.error + 1e-5) * whole
    guard = load_checkpoint(str(harbour.guard), dtype="float32", device="cpu")
    with with_adapter(guard, tmp_path / "svd" / "fused") as repaired:
        assert repaired.name == "svd"


def test_a_fixed_rank_says_what_it_misses(fuse, merged, tmp_path):
    found = fuse(merged, "--output", "adapter", "--rank", "1", "--out", tmp_path / "run", "--json")
    assert found.code == 0, found.err
    results = FuseResults.model_validate(found.json["results"])
    assert {m.rank for m in results.adapter.modules} == {1} and results.adapter.error > 0.05
    assert any("at rank 1 the adapter misses" in note for note in results.notes)


def test_a_change_that_no_small_adapter_holds_is_refused(fuse, merged, tmp_path):
    found = fuse(merged, "--method", "dare", "--output", "adapter", "--out", tmp_path / "run")
    assert found.code == 2 and "their factors would be larger than the weights" in found.err
    assert "--rank" in found.err and not (tmp_path / "run" / "fused").exists()


def test_json_is_all_of_stdout(fuse, harbour, tmp_path):
    found = fuse(harbour.forgetful, "--out", tmp_path / "run", "--no-diagnostics", "--json")
    assert found.json["run"] == str(tmp_path / "run") and found.json["fused"] == str(
        tmp_path / "run" / "fused"
    )
    assert FuseResults.model_validate(found.json["results"]).diagnostics is None
    assert read_record(tmp_path / "run").not_measured == ["diagnostics: switched off"]


@pytest.mark.parametrize("output", ["checkpoint", "adapter"])
def test_a_dry_run_knows_what_the_run_does_and_does_nothing(output, fuse, harbour, tmp_path):
    words = harbour.forgetful, "--output", output, "--shard-size", "100KB"
    real = FuseResults.model_validate(fuse(*words, "--out", tmp_path / "run", "--json").json["results"])
    before = sorted(Path().rglob("*"))
    plan = FusePlan.model_validate(fuse(*words, "--dry-run", "--json").json)
    assert (plan.tensors, plan.fused, plan.bytes_read) == (real.tensors, real.fused, real.bytes_read)
    assert (
        plan.bytes_written == real.bytes_written
        if output == "checkpoint"
        else plan.bytes_written > real.bytes_written
    )
    shards = list((tmp_path / "run" / "fused").glob("*.safetensors"))
    assert plan.shards == len(shards) and (len(shards) > 1) is (output == "checkpoint")
    assert plan.memory > 0 and plan.seconds > 0 and plan.dtype == "float32"
    people = fuse(*words, "--dry-run")
    assert f"{plan.fused} fused" in people.out and "nothing was run" in people.out
    assert sorted(Path().rglob("*")) == before


def test_methods_are_listed(cli):
    found = cli("fuse", "--list-methods")
    assert found.code == 0
    for name, method in methods().items():
        assert f"{name} " in found.out and method.summary in found.out
    assert "needs: --extra mask=FILE" in found.out and "alpha 0.5" in found.out
    told = {m["name"]: m for m in cli("fuse", "--list-methods", "--json").json}
    assert (
        told["interpolation"]["default"]
        and told["resta"]["unaligned"]
        and told["model-stock"]["candidates"][0] == 2
    )


# The words of the command


def test_help_teaches_and_sub_commands_are_there(cli):
    for words in ((), ("merge",)):
        found = cli("fuse", *words, "--help")
        assert found.code == 0 and "--tolerance" in found.out and "fuse sweep" in found.out
    for name in ("sweep", "mask", "measure"):
        found = cli("fuse", name, "--help")
        assert found.code == 0 and f"fuse {name}" in found.out and "--tolerance" not in found.out


def test_everything_may_be_in_a_file(cli, harbour, tmp_path):
    shutil.copytree(harbour.forgetful, "sweep")
    Path("fuse.toml").write_text(
        f'candidates = ["./sweep"]\nreference = "{harbour.guard}"\n[options.interpolation]\nalpha = 0.1\n'
    )
    found = cli("fuse", "--config", "fuse.toml", "--out", tmp_path / "run")
    assert found.code == 0, found.err
    assert "share of sweep" in found.out and "0.100" in found.out
    again = cli("fuse", "./sweep", "--config", "fuse.toml", "--out", tmp_path / "two", *alpha(0.3))
    assert again.code == 0 and "0.300" in again.out


def test_a_run_of_tune_is_a_candidate(fuse, harbour, tmp_path):
    made = tmp_path / "tune-bank"
    shutil.copytree(harbour.forgetful, made / "tuned")
    (made / "config.toml").write_text("")
    (made / "plan.json").write_text("{}")
    found = fuse(made, "--out", tmp_path / "run")
    assert found.code == 2 and f"{made}: an unfinished run\n  remedy: repeat its command" in found.err
    (made / "plan.json").unlink()
    write_record(made, RunRecord(verb="audit", started_at="now"))
    assert "a run of 'audit', which makes no guard" in fuse(made, "--out", tmp_path / "run").err
    write_record(made, RunRecord(verb="tune", started_at="now"))
    assert fuse(made, "--out", tmp_path / "run").code == 0
    again = fuse(tmp_path / "run", "--out", tmp_path / "half", "--json")  # a run of fuse is one as well
    assert again.code == 0, again.err
    change = FuseResults.model_validate(read_record(tmp_path / "run").results).diagnostics.whole.change
    assert again.json["results"]["diagnostics"]["whole"]["change"] == pytest.approx(change / 2, rel=1e-3)


def test_some_tensors_are_left_to_the_reference_or_the_candidate(fuse, harbour, merged, tmp_path):
    before, after = weights(harbour.guard), weights(merged)
    words = merged, "--method", "candidate", "--skip", "*.layers.0.*"
    assert fuse(*words, "--out", tmp_path / "a", "--json").code == 0
    fused = weights(tmp_path / "a" / "fused")
    assert all(torch.equal(t, (before if ".layers.0." in n else after)[n]) for n, t in fused.items())
    found = FuseResults.model_validate(read_record(tmp_path / "a").results)
    layers = {m.name: m.shares for m in found.diagnostics.layers}
    assert layers == {"model.layers.0": [0.0], "model.layers.1": [pytest.approx(1.0)]} and found.copied == 9

    words = merged, "--method", "reference", "--only", "*.layers.0.*", "--rest", "candidate", "--output"
    for output in ("checkpoint", "adapter"):
        out = tmp_path / output
        assert fuse(*words, output, "--tolerance", "1e-4", "--out", out).code == 0
        found = FuseResults.model_validate(read_record(out).results)
        layers = {m.name: m.shares for m in found.diagnostics.layers}
        assert layers == {"model.layers.0": [0.0], "model.layers.1": [pytest.approx(1.0)]}
    fused = weights(tmp_path / "checkpoint" / "fused")
    assert all(torch.equal(t, (before if ".layers.0." in n else after)[n]) for n, t in fused.items())


def test_the_output_may_have_another_dtype(fuse, harbour, tmp_path):
    assert fuse(harbour.forgetful, "--dtype", "bfloat16", "--out", tmp_path / "run").code == 0
    assert {t.dtype for t in weights(tmp_path / "run" / "fused").values()} == {torch.bfloat16}


# Kills


def killed(config, folder, monkeypatch, *, when):
    """A fuse in a process of its own that dies by SIGKILL: at a piece of progress, or before its record."""

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            if when == "record":
                running.write_record = die
            seen = []

            def watch(what, done, total):
                seen.append(what)
                if when != "record" and sum(w.startswith("fuse") for w in seen) == when:
                    die()

            running.run(config, folder, watch=watch)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (folder / "run.json").exists() and (folder / "fused").exists() is (when == "record")


@pytest.mark.parametrize("output", ["checkpoint", "adapter"])
@pytest.mark.parametrize("when", [2, 12, "record"])
def test_a_killed_run_goes_on(output, when, fuse, harbour, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    words = harbour.forgetful, "--method", "dare", "--output", output, "--rank", "2"
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    assert fuse(*words, "--out", whole).code == 0
    given = {"method": "dare", "output": output, "rank": 2}
    config = FuseConfig(candidates=[str(harbour.forgetful)], reference=str(harbour.guard), **given)
    killed(config, broken, monkeypatch, when=when)
    other = fuse(*words, "--seed", "1", "--out", broken)
    assert other.code == 2 and "holds an unfinished run with other guards, data or settings" in other.err
    found = fuse(*words, "--out", broken)
    assert found.code == 0, found.err
    names = sorted(p.name for p in (whole / "fused").iterdir())
    assert names == sorted(p.name for p in (broken / "fused").iterdir())
    for name in names:
        assert (whole / "fused" / name).read_bytes() == (broken / "fused" / name).read_bytes(), name
    results = [FuseResults.model_validate(read_record(f).results) for f in (whole, broken)]
    assert results[0].diagnostics == results[1].diagnostics and results[0].adapter == results[1].adapter
    assert sorted(p.name for p in broken.iterdir()) == ["config.toml", "fused", "run.json"]
    assert fuse(*words, "--out", broken).code == 2  # it is finished


def test_a_run_that_failed_leaves_its_folder_to_the_next(fuse, harbour, merged, tmp_path):
    bad = spoiled(merged, tmp_path / "bad", lambda t: t[Q].view(-1)[5:7].fill_(float("nan")))
    out = tmp_path / "run"
    assert fuse(bad, "--out", out).code == 2
    assert fuse(harbour.forgetful, "--only", "*.layers.0.*", "--out", out).code == 0
    found = FuseResults.model_validate(read_record(out).results).diagnostics
    assert found.layers[0].shares == [pytest.approx(0.5, rel=1e-3)] and found.layers[1].shares == [0.0]


# The audit behind it


def test_the_gate_judges_the_fused_guard(fuse, harbour, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    out = tmp_path / "run"
    words = harbour.forgetful, "--audit", "--suite", harbour.suite, "--policy", policy, "--out", out
    found = fuse(*words, "--method", "candidate")
    assert found.code == 1, found.err
    assert (out / "audit" / "report.html").is_file()
    assert f"run     {out / 'audit'}" in found.out and read_record(out / "audit").verb == "audit"

    stamp = (out / "run.json").stat().st_mtime_ns
    shutil.rmtree(out / "audit")
    again = fuse(*words, "--method", "candidate", "--json")  # the fuse is taken up as it is
    assert again.code == 1 and again.json["audit"]["results"]["decision"]["decision"] == "deny"
    assert (out / "run.json").stat().st_mtime_ns == stamp


def test_words_about_an_audit_need_one(fuse, harbour):
    assert "which --audit asks for" in fuse(harbour.forgetful, "--suite", harbour.suite).err


# What cannot be used


def spoiled(folder, to, change):
    """A copy of a checkpoint whose tensors were changed."""
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    change(tensors)
    save_file(tensors, to / WEIGHTS, metadata={"format": "pt"})
    return to


def cut(tensors):
    tensors[Q] = tensors[Q][:, :-1].clone()


def test_bad_checkpoints_are_refused_by_name_and_leave_nothing(fuse, merged, tmp_path):
    bad = {
        "nan": (
            lambda t: t[Q].view(-1)[5:7].fill_(float("nan")),
            f"tensor '{Q}' has 2 NaN or infinite values",
        ),
        "shape": (cut, f"'{Q}' has shape (32, 31), the reference (32, 32)"),
        "missing": (lambda t: t.pop(Q), f"lacks 1 tensor: '{Q}'"),
    }
    cases = {name: (spoiled(merged, tmp_path / name, change), text) for name, (change, text) in bad.items()}
    short = shutil.copytree(merged, tmp_path / "short")
    (short / WEIGHTS).write_bytes((merged / WEIGHTS).read_bytes()[:-1000])
    cases["short"] = short, "it is cut short"
    pickled = shutil.copytree(merged, tmp_path / "pickled")
    (pickled / WEIGHTS).unlink()
    torch.save(load_file(merged / WEIGHTS), pickled / "pytorch_model.bin")
    cases["pickled"] = pickled, "its weights are pickles (pytorch_model.bin)"
    disguised = shutil.copytree(merged, tmp_path / "disguised")
    torch.save(load_file(merged / WEIGHTS), disguised / WEIGHTS)
    cases["disguised"] = disguised, "a zip archive, as torch.save writes under a safetensors name"
    for name, (folder, text) in cases.items():
        out = tmp_path / "out" / name
        found = fuse(folder, "--out", out)
        assert found.code == 2 and text in found.err and "remedy:" in found.err, (name, found.err)
        assert not list(out.glob("*fused*")) and not (out / "run.json").exists(), name


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--method", "tie"], "unknown fusion method 'tie'\n  remedy: did you mean ties"),
        (["--set", "options.interpolation.alhpa=1"], "has no option 'alhpa'\n  remedy: write 'alpha'"),
        (["--set", "options.tis.density=1"], "unknown fusion method 'tis'"),
        (
            ["--set", "options.interpolation.alpha=2"],
            "'interpolation': alpha is 2: Input should be less than",
        ),
        (["--skip", "*.embd.*"], "skip: no tensor is called '*.embd.*'"),
        (["--skip", "*"], "no tensor is left to fuse"),
        (["--method", "resta"], "resta needs the model that the reference was made from"),
        (["--method", "somf"], "somf needs mask for the tensors"),
        (["--extra", "mask=mask.safetensors"], "interpolation does not read the extra 'mask'"),
        (["--extra", "mask"], "'mask' is not NAME=FILE"),
        (["--method", "model-stock"], "model-stock takes 2 candidates or more, 1"),
        (["--dtype", "int8"], "dtype = 'int8'"),
        (["--set", "alpha=1"], "unknown key 'alpha'"),
        (["--device", "abacus"], "device 'abacus' is not known"),
        (["--config", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(words, text, fuse, harbour, tmp_path):
    found = fuse(harbour.forgetful, *words, "--out", tmp_path / "run")
    assert found.code == 2 and " ".join(text.split()) in " ".join(found.err.split()), found.err
    assert not (tmp_path / "run").exists()


def test_a_candidate_must_be_named(cli):
    found = cli("fuse", "--method", "ties")
    assert found.code == 2 and "name the damaged guard" in found.err


def test_an_adapter_cannot_be_put_on_an_adapter(cli, harbour, merged, tmp_path):
    words = "fuse", merged, "--reference", harbour.forgetful, "--out", tmp_path / "run", "--output", "adapter"
    found = cli(*words)
    assert found.code == 2 and "is an adapter itself, so no adapter can be written on it" in found.err


def test_python_does_the_same(harbour, merged, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    results = running.fuse(str(merged), str(harbour.guard), out=tmp_path / "run", method="candidate")
    assert results.diagnostics.whole.shares == [pytest.approx(1.0)]
    assert same(weights(tmp_path / "run" / "fused"), weights(merged))
    with pytest.raises(ConfigError, match="is not empty, it holds a finished run"):
        running.fuse([str(merged)], str(harbour.guard), out=tmp_path / "run")
