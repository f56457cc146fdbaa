"""Extras: the same sums as reading every conversation alone and adding up, however they are measured."""

import copy
import json

import pytest
import torch

from guard_doubles import make_adapter
from guardkeel.errors import ConfigError, DataError, ModelError, RunError
from guardkeel.fusion.extras import KINDS, chosen, measure, measured, open_extras
from guardkeel.fusion.growing import Growing, metadata
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.registry import methods
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.load import with_adapter
from guardkeel.models.headers import read_header
from guardkeel.tuning.probes import plain_name
from small_tunes import Brief, rows
from trained_guards import suite_file


@pytest.fixture
def guard_of(tiny_loaded):
    """guard_of(architecture) → a guard on a copy of its model, which reads small batches."""

    def make(architecture):
        model, tokenizer = tiny_loaded(architecture)
        model = copy.deepcopy(model)
        if architecture == "bert":
            return ClassifierGuard(model, tokenizer, name="tiny", token_budget=120)
        return CausalGuard(model, tokenizer, Brief(), name="tiny", max_tokens=1024, token_budget=400)

    return make


JUDGED = [t.judgement for t in rows(9, 4)]


def brute_force(guard, judgements):
    """Every conversation by itself, without padding or a shared prefix; all inputs in float64."""
    inputs, handles = {}, []
    for path, module in guard.model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".lora_" not in path and ".layer" in path:
            name = f"{plain_name(path)}.weight"
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, i, name=name: inputs.setdefault(name, []).append(i[0].double().flatten(0, -2))
                )
            )
    with torch.no_grad():
        for judgement in judgements:
            if isinstance(guard, ClassifierGuard):
                ids = [i for i, _ in guard.encode(judgement)[0]]
            else:
                ids = Encoder(guard.grammar, guard.tokenizer, max_tokens=1024).encode(judgement).ids
            guard.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(each) for name, each in inputs.items()}


def check(guard, path, kind):
    seen, extras = brute_force(guard, JUDGED), open_extras({kind: path})
    assert extras.names(kind) == seen.keys() and len(seen) > 5
    for name, x in seen.items():
        expected = 2 / len(x) * x.T @ x if kind == "safe-hessian" else x.square().sum(0).sqrt()
        found = extras(name)[kind]
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert torch.allclose(found.double(), expected, rtol=2e-4, atol=1e-4 * float(expected.abs().max())), (
            name
        )
        weight = dict(guard.model.named_parameters()).get(name)
        assert weight is None or found.shape[-1] == weight.shape[1]
    assert int(metadata(path)["tokens"]) == len(x)
    assert extras("lm_head.weight") == {}
    extras.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert"])
def test_sums_are_those_of_every_conversation_alone(guard_of, tmp_path, architecture, kind):
    guard = guard_of(architecture)
    check(guard, measure(guard, JUDGED, tmp_path / "e.safetensors", kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_measured_at_its_base_layers(guard_of, tiny_folder, tmp_path, kind):
    guard = guard_of("llama")
    plain = measure(guard, JUDGED, tmp_path / "plain.safetensors", kind).read_bytes()
    folder = make_adapter(guard.model, tmp_path / "adapter", base=tiny_folder("llama"))
    with with_adapter(guard, folder):
        path = measure(guard, JUDGED, tmp_path / "e.safetensors", kind)
        check(guard, path, kind)
    assert path.read_bytes() != plain


def test_several_passes_write_the_same_bytes(guard_of, tmp_path):
    guard, said = guard_of("llama"), set()
    one = measure(guard, JUDGED, tmp_path / "one.safetensors", "safe-hessian").read_bytes()
    two = measure(
        guard,
        JUDGED,
        tmp_path / "two.safetensors",
        "safe-hessian",
        memory=5 * 4 * 32 * 32,
        watch=lambda what, done, total: said.add(what),
    )
    assert two.read_bytes() == one
    assert len(said) > 2 and f"safe-hessian, pass 1 of {len(said)}" in said
    with pytest.raises(RunError, match="alone takes"):
        measure(guard, JUDGED, tmp_path / "three.safetensors", "safe-hessian", memory=4000)


def test_a_killed_measurement_goes_on_after_its_last_pass(guard_of, tmp_path):
    guard, few = guard_of("llama"), 5 * 4 * 32 * 32
    whole = measure(guard, JUDGED, tmp_path / "a" / "h.safetensors", "safe-hessian", memory=few).read_bytes()
    path, seen = tmp_path / "b" / "h.safetensors", []

    def kill(what, done, total):
        if ", pass 3" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(guard, JUDGED, path, "safe-hessian", memory=few, watch=kill)
    assert not path.exists()
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(part.read_bytes() + b"half of a pass")
    measure(
        guard, JUDGED, path, "safe-hessian", memory=few, watch=lambda what, done, total: seen.append(what)
    )
    assert not any(", pass 1" in what or ", pass 2" in what for what in seen)
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_finished_file_is_left_alone(guard_of, tmp_path):
    guard, ran = guard_of("bert"), []
    path = measure(guard, JUDGED, tmp_path / "n.safetensors", "harmful-norms")
    measure(guard, JUDGED, path, "harmful-norms", watch=lambda *said: ran.append(said))
    assert not ran
    with pytest.raises(ConfigError, match="another guard or other data"):
        measure(guard, JUDGED[:-1], path, "harmful-norms")
    with pytest.raises(ConfigError, match="another guard or other data"):
        measure(guard, JUDGED, path, "harmful-norms", inputs={"guard": "tuned"})


def test_methods_take_what_was_measured(guard_of, tmp_path):
    guard = guard_of("llama")
    files = {kind: measure(guard, JUDGED, tmp_path / f"{kind}.safetensors", kind) for kind in KINDS}
    extras = open_extras(files)
    name = "model.layers.0.mlp.down_proj.weight"
    reference = dict(guard.model.named_parameters())[name].detach()
    candidate = reference + 0.01 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    for method in ("safe-delta", "antidote"):
        fused = methods()[method]().fuse(Tensors(name, reference, (candidate,), extras=extras(name)))
        assert fused.isfinite().all() and not torch.equal(fused, candidate)


def test_harmful_norms_look_at_unsafe_conversations():
    targets = rows(6, 1)
    assert len(chosen("safe-hessian", targets)) == 6
    assert [j.id for j in chosen("harmful-norms", targets)] == [
        t.judgement.id for t in targets if t.label == "unsafe"
    ]
    with pytest.raises(DataError, match="labelled unsafe"):
        chosen("harmful-norms", rows(3, 1, labels=("safe",)))


def test_by_reference(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    data = [str(suite_file(tmp_path / "rows.jsonl", 12))]
    said = measured(
        "harmful-norms", str(tiny_folder("bert")), data, tmp_path / "n.safetensors", most=8, dtype="float32"
    )
    assert said["conversations"] == 4 and said["tensors"] == len(read_header(tmp_path / "n.safetensors"))
    with pytest.raises(ConfigError, match="unknown extra 'mask'"):
        measured("mask", str(tiny_folder("bert")), data, tmp_path / "m.safetensors")


def test_what_cannot_be_read_is_named(guard_of, tmp_path):
    guard = guard_of("bert")
    with pytest.raises(DataError, match=f"conversation '{JUDGED[0].id}'"):
        guard.max_tokens = 2
        measure(
            ClassifierGuard(guard.model, guard.tokenizer, name="t", max_tokens=2),
            JUDGED,
            tmp_path / "e",
            KINDS[0],
        )
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(ModelError, match=r"cut\.safetensors"):
        open_extras({"safe-hessian": tmp_path / "cut.safetensors"})


def test_a_growing_file_is_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "g.safetensors"
    file = Growing(path, {"a": (2, 3), "b": (1,)}, {"what": "ünsafe"})
    file.add({"a": torch.arange(6.0).view(2, 3).T.contiguous().T})
    again = Growing(path, {"a": (2, 3), "b": (1,)}, {"what": "ünsafe"})
    assert again.held == {"a"}
    assert Growing(tmp_path / "other.safetensors", {"a": (2, 3)}, {}).held == set()
    again.add({"b": torch.tensor([7.0])})
    again.finish()
    loaded = load_file(path)
    assert loaded["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["b"].tolist() == [7]
    assert metadata(path) == {"what": "ünsafe"}
    note = tmp_path / ".h.safetensors.json"
    note.write_text(json.dumps({"digest": 3}))
    assert Growing(tmp_path / "h.safetensors", {"a": (1,)}, {}).held == set()
