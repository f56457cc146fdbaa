"""Which weights are trained, and that what is saved is what was trained, whole or not at all."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards import load
from guardkeel.guards.load import load_guard, with_adapter
from guardkeel.models.loading import load_model
from guardkeel.models.tiny import make_tiny
from guardkeel.tuning import weights
from guardkeel.tuning.alignment import alignment
from guardkeel.tuning.probes import trained_modules
from guardkeel.tuning.weights import save, trainable
from small_tunes import BriefEveryToken, bench, scatter

FAMILY = "brief-every-token"


@pytest.fixture(autouse=True)
def _families(monkeypatch, tmp_path):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "family_named", lambda name: BriefEveryToken())


def made(model, **options):
    given = {"adapter": "lora", "rank": 2, "alpha": 4, "first_layer": 0, "seed": 0, "task": "causal"}
    return trainable(copy.deepcopy(model), **given | options)


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def scores(guard, b):
    found = [v.unsafe for v in guard.score([t.judgement for t in b.anchors])]
    assert None not in found
    return found


def files(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


# --- what is trained


@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_begins_at_nothing(tiny_loaded, adapter, dtype):
    model, tokenizer = tiny_loaded("llama", dtype)
    ids = torch.tensor([tokenizer("Is this message safe or unsafe?")["input_ids"]])
    tuned = made(model, adapter=adapter).eval()
    assert all(p.dtype == torch.float32 for p in trained(tuned).values())
    with torch.no_grad():
        before, after = model(ids).logits.float(), tuned(ids).logits.float()
    if adapter == "lora" or dtype == "float32":
        assert torch.allclose(after, before, atol=1e-4)
    assert all(p.requires_grad for p in tuned.parameters()) is (adapter == "full")


def test_seeds(tiny_loaded):
    model = tiny_loaded("llama")[0]
    a, b, c = (trained(made(model, seed=s)) for s in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a) and not all(torch.equal(a[n], c[n]) for n in a)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_blocks_before_the_first_stay_as_they_are(tiny_loaded, adapter):
    names = trained(made(tiny_loaded("llama")[0], adapter=adapter, first_layer=1))
    assert names and not any(".layers.0." in n or "embed_tokens" in n for n in names)
    assert any(".layers.1." in n for n in names)
    with pytest.raises(ConfigError, match="first_layer is 2, the model has 2 blocks"):
        made(tiny_loaded("llama")[0], adapter=adapter, first_layer=2)


def test_a_classifiers_head_is_trained_too(tiny_loaded):
    names = trained(made(tiny_loaded("bert")[0], task="classifier"))
    assert any("classifier" in n for n in names) and any("lora_A" in n for n in names)


# --- what is saved


@pytest.fixture
def tuned(tiny_loaded):
    """tuned(architecture, adapter) → a bench whose weights have moved."""

    def make(architecture="llama", adapter="lora"):
        return bench(tiny_loaded(architecture), adapter=adapter, family=BriefEveryToken(), moved=0.3)

    return make


@pytest.mark.parametrize(
    ("architecture", "adapter"), [("llama", "lora"), ("llama", "dora"), ("gemma3", "lora"), ("bert", "lora")]
)
def test_an_adapter_scores_as_the_model_in_memory(tuned, tiny_folder, tmp_path, architecture, adapter):
    b, base = tuned(architecture, adapter), tiny_folder(architecture)
    live = scores(b.guard, b)
    save(b.model, tmp_path / "tuned", base=str(base), settings={"family": b.guard.family, "threshold": 0.3})
    options = {"dtype": "float32", "device": "cpu"}
    plain = load_guard(str(base), family=None if architecture == "bert" else FAMILY, **options)
    before = scores(plain, b)
    with with_adapter(plain, tmp_path / "tuned") as guard:
        assert scores(guard, b) == live != before
        assert guard.threshold == 0.3
    alone = load_guard(str(tmp_path / "tuned"), **options)
    assert scores(alone, b) == live and (alone.threshold, alone.family) == (0.3, b.guard.family)
    config = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert"])
def test_a_full_checkpoint_is_a_guard_of_its_own(tuned, tiny_folder, tmp_path, architecture):
    b, base = tuned(architecture, "full"), tiny_folder(architecture)
    settings = {
        "family": b.guard.family,
        "name": "mine",
        "threshold": 0.25,
        "provenance": {"method": "plain"},
    }
    save(b.model, tmp_path / "tuned", base="unused", beside=base, settings=settings)
    alone = load_guard(str(tmp_path / "tuned"), dtype="float32", device="cpu")
    assert scores(alone, b) == scores(b.guard, b)
    assert (alone.name, alone.threshold) == ("mine", 0.25)
    assert json.loads((tmp_path / "tuned" / "guardkeel.json").read_text()) == settings
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tuned" / file).read_bytes() == (base / file).read_bytes()
    assert not any(f.name.startswith("adapter") for f in (tmp_path / "tuned").iterdir())


def test_weights_can_be_rounded(tuned, tmp_path):
    b = tuned()
    save(b.model, tmp_path / "tuned", base="x", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    live = {n.replace(".default", ""): p for n, p in trained(b.model).items()}
    assert stored.keys() == live.keys()
    assert all(torch.equal(t, live[n].to(torch.bfloat16)) for n, t in stored.items())
    assert set(files(tmp_path / "tuned")) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_all_of_it_or_nothing(tuned, tiny_folder, tmp_path, monkeypatch, adapter):
    b = tuned(adapter=adapter)
    given = {"base": "first", "beside": tiny_folder("llama"), "settings": {"name": "first"}}
    save(b.model, tmp_path / "runs" / "tuned", **given)
    before = files(tmp_path / "runs" / "tuned")
    scatter(b.model, 0.1)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_json", full)
        for name in ("tuned", "new"):
            with pytest.raises(OSError, match="No space left"):
                save(b.model, tmp_path / "runs" / name, **given | {"settings": {"name": "second"}})
    assert files(tmp_path / "runs" / "tuned") == before
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["tuned"]  # nothing half-written beside it
    save(b.model, tmp_path / "runs" / "tuned", **given | {"settings": {"name": "second"}})
    after = files(tmp_path / "runs" / "tuned")
    assert json.loads(after["guardkeel.json"]) == {"name": "second"}
    changed = {n for n in before if after[n] != before[n]}
    assert changed == {"guardkeel.json", f"{'adapter_' if adapter == 'lora' else ''}model.safetensors"}
    assert (tmp_path / "runs" / "tuned").stat().st_mode & 0o777 == 0o755


# --- the alignment direction


@pytest.fixture
def pair(tiny_folder, tmp_path):
    """(a guard's folder, that of the model it was made from)."""
    return tiny_folder("llama"), make_tiny("llama", tmp_path / "before", seed=1)


def test_alignment_is_what_was_changed(pair, tiny_loaded):
    after, before = (load_model(p, "float32", "cpu").state_dict() for p in pair)
    for adapter in ("lora", "full"):
        modules = trained_modules(made(tiny_loaded("llama")[0], adapter=adapter))
        found = alignment(*pair, list(modules))
        assert found.keys() == modules.keys()
        for name, v in found.items():
            base = getattr(modules[name], "base_layer", modules[name])
            assert v.shape == base.weight.shape == (base.out_features, base.in_features)
            assert v.dtype == torch.bfloat16
            exact = after[f"{name}.weight"] - before[f"{name}.weight"]
            assert exact.any() and torch.equal(v, exact.to(torch.bfloat16))


def test_alignment_reads_shards(pair, tmp_path):
    guard, before = pair
    whole = load_file(before / "model.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(whole)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: whole[n] for n in part}, shards / f"model-0000{i + 1}-of-00002.safetensors")
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    a, b = alignment(guard, before, modules), alignment(guard, shards, modules)
    assert all(torch.equal(a[m], b[m]) for m in modules)


def test_alignment_with_another_model_is_refused(pair, tmp_path):
    guard, before = pair
    with pytest.raises(
        ModelError, match=rf"{guard}: no tensor 'model\.layers\.7\.mlp\.up_proj\.weight'"
    ) as error:
        alignment(guard, before, ["model.layers.7.mlp.up_proj"])
    assert "--unaligned" in error.value.remedy
    held = load_file(before / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"] = held["model.layers.0.mlp.up_proj.weight"][:5].clone()
    save_file(held, before / "model.safetensors")
    with pytest.raises(ModelError, match=r"has shape \(5, 32\), the guard \(64, 32\)"):
        alignment(guard, before, ["model.layers.0.mlp.up_proj"])
