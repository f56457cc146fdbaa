"""A fused change as a LoRA: the best factors and their measured error, loaded by PEFT and by guards."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from guardkeel.errors import ModelError
from guardkeel.fusion import lowrank
from guardkeel.fusion.adapter_output import Parts, assemble, places
from guardkeel.fusion.lowrank import factorised, least_rank, row_basis
from guardkeel.fusion.sources import open_source
from guardkeel.guards.load import load_checkpoint, with_adapter
from guardkeel.models.adapters import attach_adapter
from guardkeel.models.loading import load_model

Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm(tensor):
    return float(torch.linalg.vector_norm(tensor.double()))


# Factors


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_factors_of_a_rank_are_the_best_there_are(shape):
    delta = drawn(*shape)
    values = torch.linalg.svdvals(delta.double())
    found = factorised(delta, rank=5)
    assert (found.up.shape, found.down.shape) == ((shape[0], 5), (5, shape[1]))
    assert found.error == pytest.approx(float(values[5:].norm() / values.norm()), rel=1e-5)
    assert found.error == pytest.approx(norm(delta - found.up @ found.down) / norm(delta), rel=1e-5)


def test_a_tolerance_takes_the_least_rank_that_reaches_it():
    delta = drawn(30, 20)
    values = torch.linalg.svdvals(delta.double())
    tails = [float(values[r:].norm() / values.norm()) for r in range(21)]
    for tolerance in (0.9, 0.5, 0.1):
        found = factorised(delta, tolerance=tolerance)
        assert found.error <= tolerance < tails[found.rank - 1]
    assert factorised(delta, tolerance=0.0).rank == 20
    assert least_rank(torch.tensor([3.0, 2.0, 1.0]), rest=0.0, allowed=1.0) == 2
    assert least_rank(torch.tensor([3.0, 2.0, 1.0]), rest=0.5, allowed=1.0) == 3


def test_known_rows_give_the_same_without_a_whole_decomposition(monkeypatch):
    first, second = drawn(3, 50, seed=1), drawn(5, 50, seed=2)
    delta = drawn(40, 3, seed=3) @ first + drawn(40, 5, seed=4) @ second
    whole = factorised(delta, tolerance=1e-6)
    monkeypatch.setattr(lowrank, "_leading", None)  # would be called for a whole decomposition
    found = factorised(delta, tolerance=1e-6, rows=row_basis([first, second]), rounding=1e-5 * norm(delta))
    assert found.rank == whole.rank == 8 and found.error < 1e-6
    assert torch.allclose(found.up @ found.down, delta, atol=1e-5)


def test_rows_that_do_not_hold_it_are_not_believed():
    delta = drawn(40, 50)
    found = factorised(delta, rank=4, rows=row_basis([drawn(4, 50, seed=9)]), rounding=1e-6)
    assert found.error == pytest.approx(factorised(delta, rank=4).error, rel=1e-5)
    assert row_basis([drawn(50, 50)]) is None and row_basis([]) is None


def test_a_large_matrix_is_decomposed_at_random_and_measured(monkeypatch):
    delta = drawn(120, 6, seed=1) @ drawn(6, 200, seed=2) + 1e-3 * drawn(120, 200, seed=3)
    best = factorised(delta, rank=6)
    monkeypatch.setattr(lowrank, "_LARGE", 64)
    monkeypatch.setattr(lowrank, "_FIRST", 8)
    for asked in ({"rank": 6}, {"tolerance": 0.01}):
        found, again = (
            factorised(delta, generator=torch.Generator().manual_seed(0), **asked) for _ in range(2)
        )
        assert torch.equal(found.up, again.up) and found.rank == 6
        assert found.error == pytest.approx(best.error, rel=0.02)
        assert found.error == pytest.approx(norm(delta - found.up @ found.down) / norm(delta), rel=1e-4)
    assert factorised(drawn(120, 200), tolerance=0.2).error <= 0.2  # of full rank: falls back


def test_the_error_is_that_of_the_factors_as_stored():
    delta = drawn(16, 4) @ drawn(4, 16, seed=1)
    found = factorised(delta, rank=4, dtype=torch.bfloat16)
    assert found.up.dtype == torch.bfloat16 and 1e-4 < found.error < 1e-2
    assert found.error == pytest.approx(norm(delta - found.up.float() @ found.down.float()) / norm(delta))


# Adapters


def fused_with(folder, changes):
    """The stored tensors of a checkpoint before, and after these changes."""
    before = load_file(folder / "model.safetensors")
    return before, {name: t + changes[name] if name in changes else t.clone() for name, t in before.items()}


def low(name, before, rank, seed=0):
    rows, columns = before[name].shape
    return 0.1 * drawn(rows, rank, seed=seed) @ drawn(rank, columns, seed=seed + 1)


def written(folder, before, after, out, *, candidates=(), **options):
    """An adapter of the change, in a folder beside its parts."""
    parts = Parts(out / "parts", places(folder), candidates, **{"rank": None, "tolerance": 1e-5, **options})
    for name in parts.order(before):
        parts.add(name, before[name], after[name])
    return assemble(
        parts,
        out / "fused",
        before.__getitem__,
        base=str(folder),
        task="causal",
        settings={"family": "keel", "threshold": 0.4},
    )


def logits(model):
    ids = torch.arange(40, 80)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


def dense(folder, after, out):
    """The same change as a whole checkpoint, loaded."""
    from safetensors.torch import save_file

    shutil.copytree(folder, out)
    save_file(after, out / "model.safetensors", metadata={"format": "pt"})
    return load_model(out, "float32", "cpu")


def test_an_adapter_is_the_dense_change_in_peft_and_in_guards(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    before = load_file(folder / "model.safetensors")
    ranks = {f"{Q}.weight": 2, f"{UP}.weight": 5, "model.layers.1.self_attn.q_proj.weight": 2}
    before, after = fused_with(folder, {n: low(n, before, r) for n, r in ranks.items()})
    fit = written(folder, before, after, tmp_path)
    assert {m.name + ".weight": m.rank for m in fit.modules} == ranks and fit.whole == []
    assert fit.error <= max(m.error for m in fit.modules) < 1e-5
    said = json.loads((tmp_path / "fused" / "adapter_config.json").read_text())
    assert said["r"] == said["lora_alpha"] == 2 and said["rank_pattern"] == said["alpha_pattern"] == {UP: 5}
    assert said["base_model_name_or_path"] == str(folder)

    base = load_model(folder, "float32", "cpu")
    expected = logits(dense(folder, after, tmp_path / "dense"))
    merged = PeftModel.from_pretrained(base, str(tmp_path / "fused")).merge_and_unload()
    state = merged.state_dict()
    for name, tensor in after.items():
        assert norm(state[name] - tensor) <= 2 * fit.error * norm(tensor - before[name]) + 1e-6 * norm(tensor)
    assert torch.allclose(logits(merged), expected, atol=1e-4)

    guard = load_checkpoint(str(folder), family="keel", dtype="float32", device="cpu")
    plain = logits(guard.model)
    with with_adapter(guard, tmp_path / "fused") as repaired:
        assert repaired.threshold == 0.4
        assert torch.allclose(logits(repaired.model), expected, atol=1e-4)
    assert torch.equal(logits(guard.model), plain)


def test_a_fixed_rank_says_what_it_loses(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    before = load_file(folder / "model.safetensors")
    changes = {f"{Q}.weight": low(f"{Q}.weight", before, 8), f"{UP}.weight": low(f"{UP}.weight", before, 1)}
    before, after = fused_with(folder, changes)
    fit = written(folder, before, after, tmp_path, rank=3)
    errors = {m.name: m.error for m in fit.modules}
    values = torch.linalg.svdvals(after[f"{Q}.weight"].double() - before[f"{Q}.weight"].double())
    assert (
        errors[Q] == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-3) and errors[UP] < 1e-5
    )
    assert all(m.rank == 3 for m in fit.modules)
    lost = errors[Q] * norm(changes[f"{Q}.weight"])
    whole = sum(norm(c) ** 2 for c in changes.values()) ** 0.5
    assert fit.error == pytest.approx(lost / whole, rel=1e-3)

    model = attach_adapter(load_model(folder, "float32", "cpu"), tmp_path / "fused").merge_and_unload()
    missed = sum(norm(model.state_dict()[n] - t) ** 2 for n, t in after.items()) ** 0.5
    assert missed == pytest.approx(fit.error * whole, rel=1e-2)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])  # the second ties its head to the embedding
def test_what_lora_cannot_carry_is_kept_whole(architecture, tiny_folder, tmp_path):
    folder = tiny_folder(architecture)
    before = load_file(folder / "model.safetensors")
    names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"]
    changes = {n: 0.05 * drawn(*before[n].shape) for n in names}
    changes |= {
        f"{UP}.weight": low(f"{UP}.weight", before, 2),
        f"{Q}.weight": 0.1 * drawn(*before[f"{Q}.weight"].shape),
    }
    before, after = fused_with(folder, changes)
    fit = written(folder, before, after, tmp_path)
    modules = {n.removesuffix(".weight") for n in names} | {Q}  # of full rank: factors would be larger
    assert set(fit.whole) == modules | ({"lm_head"} if architecture == "gemma3" else set())
    assert [m.name for m in fit.modules] == [UP] and fit.error < 1e-5
    with open_source(tmp_path / "fused") as again:  # it can be fused with others
        assert all(norm(again.read(n) - t) <= 1e-5 * norm(t) for n, t in after.items())
    expected = logits(dense(folder, after, tmp_path / "dense"))
    base = load_model(folder, "float32", "cpu")
    model = PeftModel.from_pretrained(base, str(tmp_path / "fused"))
    assert torch.allclose(logits(model), expected, atol=1e-4)
    assert torch.allclose(logits(model.merge_and_unload()), expected, atol=1e-4)


def test_a_linear_layer_whose_bias_moved_is_kept_whole(tiny_folder, tmp_path):
    folder = tiny_folder("qwen2")
    before = load_file(folder / "model.safetensors")
    changes = {
        f"{Q}.bias": drawn(*before[f"{Q}.bias"].shape),
        f"{Q}.weight": low(f"{Q}.weight", before, 2),
        f"{UP}.weight": low(f"{UP}.weight", before, 2),
    }
    k = Q.replace("q_proj", "k_proj")
    changes[f"{k}.bias"] = drawn(*before[f"{k}.bias"].shape)  # its weight did not move
    before, after = fused_with(folder, changes)
    fit = written(folder, before, after, tmp_path)
    assert fit.whole == [k, Q] and [m.name for m in fit.modules] == [UP]
    model = attach_adapter(load_model(folder, "float32", "cpu"), tmp_path / "fused")
    assert torch.allclose(logits(model), logits(dense(folder, after, tmp_path / "dense")), atol=1e-4)


def test_rows_of_the_candidates_are_used(tiny_folder, tmp_path, monkeypatch):
    folder = tiny_folder("llama")
    found = []
    for seed, rank in ((1, 2), (2, 4)):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=["q_proj", "up_proj"], init_lora_weights=False
        )
        model = get_peft_model(load_model(folder, "float32", "cpu"), config)
        model.save_pretrained(tmp_path / f"a{seed}")
        found.append(model.merge_and_unload().state_dict())
    before = load_file(folder / "model.safetensors")
    after = {n: t + 0.3 * (found[0][n] - t) + 0.4 * (found[1][n] - t) for n, t in before.items()}
    monkeypatch.setattr(lowrank, "_leading", None)
    fit = written(folder, before, after, tmp_path, candidates=[tmp_path / "a1", tmp_path / "a2", folder])
    assert {m.rank for m in fit.modules} == {6} and len(fit.modules) == 4 and fit.error < 1e-5


def test_parts_go_on_where_they_were(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    before = load_file(folder / "model.safetensors")
    before, after = fused_with(
        folder,
        {n: low(n, before, 2) for n in (f"{Q}.weight", f"{UP}.weight")} | {"model.norm.weight": drawn(32)},
    )
    whole = tmp_path / "whole"
    expected = written(folder, before, after, whole)
    where, broken = places(folder), tmp_path / "broken" / "parts"
    first = Parts(broken, where, [], rank=None, tolerance=1e-5)
    names = first.order(before)
    assert names[-1].endswith("v_proj.weight") and names.index("model.norm.weight") < names.index(
        f"{Q}.weight"
    )
    for name in names[:12]:
        first.add(name, before[name], after[name])
    (broken / ".000012.safetensors.x.part").write_bytes(b"half")  # what a kill leaves
    assert written(folder, before, after, tmp_path / "broken") == expected
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (whole / "fused" / name).read_bytes() == (tmp_path / "broken" / "fused" / name).read_bytes()


def test_rounding_is_no_change(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    before = load_file(folder / "model.safetensors")
    before, after = fused_with(folder, {f"{UP}.weight": low(f"{UP}.weight", before, 2)})
    after["model.norm.weight"] *= 1 + 2e-7
    assert written(folder, before, after, tmp_path).whole == []


def test_what_no_adapter_can_carry_is_refused(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    before, after = fused_with(folder, {})
    with pytest.raises(
        ModelError, match=r"nothing changed: there is no LoRA to write\n  remedy: write a checkpoint"
    ):
        written(folder, before, after, tmp_path / "a")
    before, after = fused_with(folder, {"model.norm.weight": drawn(32)})
    with pytest.raises(ModelError, match=r"only what LoRA cannot carry changed \(model.norm\)"):
        written(folder, before, after, tmp_path / "b")
    assert not list(tmp_path.rglob("adapter_*")) and not (tmp_path / "b" / "fused").exists()
    parts = Parts(tmp_path / "c", places(folder), [], rank=None, tolerance=0.1)
    with pytest.raises(
        ModelError, match=r"'model.gate' changed and is not the tensor of a module.*\n.*--skip"
    ):
        parts.add("model.gate", torch.zeros(3), torch.ones(3))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter cannot be put on an adapter"):
        places(tmp_path / "adapter")
