"""Whole runs of mask learning: what is written, resumed and refused, and masks of an adapter's factors."""

import copy
import json
import shutil

import pytest
import torch
import typer
from test_fusion_somf_learn import TOUCHED, changes_of, fused_of
from typer.testing import CliRunner

from guard_doubles import make_adapter
from guardkeel.cli import fuse, fuse_learn
from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion.somf.changes import dense_changes, factor_changes
from guardkeel.fusion.somf.config import MaskConfig
from guardkeel.fusion.somf.export import MASK, describe, masked_adapter, write_mask
from guardkeel.fusion.somf.files import read_tensors
from guardkeel.fusion.somf.learn import STATE
from guardkeel.fusion.somf.mask import exported
from guardkeel.fusion.somf.run import mask, plan, run
from guardkeel.fusion.sources import open_source
from guardkeel.models.loading import load_model
from trained_guards import suite_file

# --- whole runs


@pytest.fixture
def folders(tmp_path, tiny_folder, monkeypatch):
    """(safe classifier, damaged one, labelled rows), as files."""
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    safe = tiny_folder("bert")
    model = load_model(safe, "float32", "cpu")
    with torch.no_grad():
        for name, change in changes_of(model).items():
            dict(model.named_parameters())[name].add_(change.each[0])
    hurt = shutil.copytree(safe, tmp_path / "hurt")
    model.save_pretrained(hurt)
    return safe, hurt, suite_file(tmp_path / "rows.jsonl", 30)


def test_a_run_writes_a_mask_and_what_it_does(folders, tmp_path):
    safe, hurt, data = folders
    asked = {"reference": str(safe), "guard_data": [str(data)], "steps": 3, "batch": 4, "draws": 2, "measured": 8,
             "granularity": "row", "task_data": [str(data)], "task_weight": 0.5, "kl_weight": 0.1}  # fmt: skip
    results = mask(str(hurt), out=tmp_path / "run", **asked)
    masks, said = read_tensors(tmp_path / "run" / MASK)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["verb"] == "fuse mask" and record["inputs"]["candidate 1"] != record["inputs"]["reference"]
    assert all(name.endswith(TOUCHED) for name in masks) and len(masks) == results.weights
    assert results.masks == sum(m.numel() for m in masks.values()) < results.values
    assert 0 < results.density < 1 and results.objective.draws.draws == 2
    assert said["granularity"] == "row" and json.loads(said["inputs"]) == record["inputs"]
    assert results.options == {"merge": "task-arithmetic", "rescale": True}
    assert results.diagnostics.whole.shares[0] == pytest.approx(1, abs=0.1)
    assert not any((tmp_path / "run" / f).exists() for f in (STATE, "reference.safetensors", "plan.json"))
    again = mask(str(hurt), out=tmp_path / "again", **asked)
    assert (tmp_path / "again" / MASK).read_bytes() == (tmp_path / "run" / MASK).read_bytes()
    assert again.objective == results.objective
    with pytest.raises(ConfigError, match="finished run"):
        mask(str(hurt), out=tmp_path / "run", **asked)


def test_a_run_killed_while_learning_is_resumed(folders, tmp_path):
    safe, hurt, data = folders
    config = MaskConfig(
        reference=str(safe), candidates=[str(hurt)], guard_data=[str(data)], steps=5, batch=4, every=2, draws=0,
        kl_weight=0.1, measured=4,
    )  # fmt: skip

    def kill(what, done, total):
        if what == "learn masks" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", watch=kill)
    assert (tmp_path / "run" / "reference.safetensors").exists()
    with pytest.raises(ConfigError, match="unfinished run"):
        run(config.model_copy(update={"seed": 1}), tmp_path / "run")
    seen = []
    run(config, tmp_path / "run", watch=lambda what, done, total: seen.append((what, done)))
    assert [s for s in seen if s[0] == "learn masks"] == [("learn masks", n) for n in (3, 4, 5)]
    assert not any(what == "ask the reference" for what, _ in seen)
    run(config, tmp_path / "straight")
    assert (tmp_path / "run" / MASK).read_bytes() == (tmp_path / "straight" / MASK).read_bytes()


def test_the_plan_counts_what_is_there(folders):
    safe, hurt, _ = folders
    planned = plan(MaskConfig(reference=str(safe), candidates=[str(hurt)], granularity="tensor"))
    with open_source(safe) as source:
        floats = [s for s in source.specs.values() if s.floating]
        assert (planned.masks, planned.weights) == (len(floats), len(floats))
        assert planned.change_bytes == 4 * sum(s.values for s in floats)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "dpo"}, "preference pairs"),
        ({"space": "factors", "candidates": ["a", "b"]}, "one candidate"),
        ({"granularity": "tensor", "rescale": "tensor"}, "always 1"),
        ({"task_weight": 1.0}, "task_data"),
        ({"objective": "dpo", "pairs": ["p"], "kl_weight": 1.0}, "kl_weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        MaskConfig(**{"candidates": ["a"]} | options)


# --- adapters


def test_factors_are_masked_as_they_will_be_written(tiny_loaded, tiny_folder, tmp_path):
    model, _ = tiny_loaded("llama")
    adapter = make_adapter(model, tmp_path / "adapter", base=tiny_folder("llama"), use_rslora=True)
    with open_source(adapter) as candidate, open_source(tiny_folder("llama")) as reference:
        factors, dense = factor_changes(reference, candidate), dense_changes(reference, [candidate])
    assert factors.keys() == dense.keys()
    for name, change in factors.items():
        assert torch.allclose(change.deltas()[0], dense[name].deltas()[0], atol=1e-5)
    fused = fused_of(copy.deepcopy(model), factors, granularity="element")
    for logits in fused.logits.each.values():
        logits.data.normal_()
    draw = exported("expectation", 0.5)
    write_mask(tmp_path / MASK, fused, draw, describe(fused, draw, 0.5), {"space": "factors"})
    made = masked_adapter(adapter, tmp_path / MASK, tmp_path / "masked")
    with open_source(made) as candidate:
        for name, weight in fused.weights(draw).items():
            assert torch.allclose(candidate.read(name), weight, atol=1e-5)
    with pytest.raises(ConfigError, match="is there already"):
        masked_adapter(adapter, tmp_path / MASK, tmp_path / "masked")
    write_mask(tmp_path / "dense", fused, draw, describe(fused, draw, 0.5), {"space": "delta"})
    with pytest.raises(ConfigError, match="no mask of the factors"):
        masked_adapter(adapter, tmp_path / "dense", tmp_path / "other")


def test_what_two_factors_do_not_say_is_refused(tiny_loaded, tiny_folder, tmp_path):
    model, base = tiny_loaded("llama")[0], tiny_folder("llama")
    dora = make_adapter(model, tmp_path / "dora", base=base, use_dora=True)
    plain = make_adapter(model, tmp_path / "plain", base=base)
    with open_source(base) as whole, open_source(tiny_folder("llama", seed=1)) as other:
        with open_source(dora) as candidate, pytest.raises(ConfigError, match="more than two factors"):
            factor_changes(whole, candidate)
        with pytest.raises(ConfigError, match="no LoRA adapter"):
            factor_changes(whole, other)
        with open_source(plain) as candidate, pytest.raises(ConfigError, match="is not the reference"):
            factor_changes(other, candidate)


def test_a_run_over_factors_writes_the_masked_adapter(tiny_folder, tiny_loaded, tmp_path):
    base, data = (
        shutil.copytree(tiny_folder("llama"), tmp_path / "base"),
        suite_file(tmp_path / "rows.jsonl", 8),
    )
    adapter = make_adapter(tiny_loaded("llama")[0], tmp_path / "adapter", base="base")
    results = mask(
        str(adapter), out=tmp_path / "runs" / "mask", reference=str(base), family="keel", guard_data=[str(data)],
        steps=1, space="factors", draws=0, batch=2, measured=2, max_tokens=1024,
    )  # fmt: skip
    assert results.options == {} and results.masks == results.values  # element by element
    with open_source(tmp_path / "runs" / "mask" / "fused") as fused, open_source(adapter) as before:
        assert fused.base == base.resolve()
        name = next(iter(fused.lora.pairs))
        assert not torch.equal(fused.read(name), before.read(name))


def test_from_the_command_line_to_the_fused_guard(folders, tmp_path, monkeypatch):
    """fuse mask, then fuse with what it says: the weights are θ_safe + δ ⊙ m / mean(m)."""
    safe, hurt, data = folders
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    fuse.register(app)

    def said(*words):
        found = CliRunner().invoke(app, ["fuse", *words])
        assert found.exit_code == 0, found.output
        return found.output

    options = ["-r", str(safe), "-g", str(data), "--steps", "2", "--batch", "4", "--granularity", "row"]
    assert "masks" in said("mask", str(hurt), *options, "--dry-run")
    output = said("mask", str(hurt), *options, "--set", "draws=1", "--set", "measured=4", "-o", "m")
    told = output[output.index("fuse with ") + len("fuse with ") :].split()
    assert told[:4] == ["--method", "somf", "--extra", "mask=m/mask.safetensors"]
    said(str(hurt), "-r", str(safe), *told, "--dtype", "float32", "-o", "f")
    masks, _ = read_tensors(tmp_path / "m" / MASK)
    with open_source(safe) as a, open_source(hurt) as b, open_source(tmp_path / "f" / "fused") as c:
        for name in a.specs:
            start, end, made = (source.read(name).float() for source in (a, b, c))
            change = end - start
            if name in masks:
                change = change * masks[name] / masks[name].mean()
            assert torch.allclose(made, start + change, atol=1e-5), name


def test_extras_from_the_command_line(folders, tmp_path, monkeypatch):
    safe, _, data = folders
    app = typer.Typer()
    fuse_learn.register(app)
    path = tmp_path / "n.safetensors"
    words = ["measure", "harmful-norms", str(safe), "-g", str(data), "--most", "6", "-o", str(path)]
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["conversations"] == 3 and said["file"] == str(path) and path.is_file()


def test_candidates_that_do_not_fit_are_refused(tiny_folder):
    with open_source(tiny_folder("llama")) as one, open_source(tiny_folder("bert")) as other:
        with pytest.raises(ModelError, match="it has no tensor"):
            dense_changes(one, [other])
        with pytest.raises(ModelError, match="same weights"):
            dense_changes(one, [one])
