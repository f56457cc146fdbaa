"""What changed, by tensor, layer and kind: sums against plain formulas, and a journal that outlives a kill."""

import pytest
import torch

from guardkeel.fusion import diagnostics
from guardkeel.fusion.diagnostics import Journal, kind_of, layer_of, measure, summarised
from guardkeel.fusion.methods.base import Tensors

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.layers.10.self_attn.q_proj.weight",
    "model.layers.10.self_attn.q_proj.bias",
    "model.norm.weight",
)


def drawn(name, candidates=2, size=(7, 5), seed=0):
    """A tensor of every model, and one fused."""
    generator = torch.Generator().manual_seed(seed + 100 * NAMES.index(name))
    reference, *others = (torch.randn(size, generator=generator) for _ in range(candidates + 2))
    return Tensors(
        name, reference, tuple(reference + 0.1 * o for o in others[1:])
    ), reference + 0.05 * others[0]


def test_a_tensor_is_measured_by_the_formulas(monkeypatch):
    monkeypatch.setattr(diagnostics, "_CHUNK", 8)  # several chunks, the last one short
    tensors, fused = drawn(NAMES[1])
    (one,) = summarised([measure(tensors, fused)], 2).tensors
    kept, changes = fused - tensors.reference, tensors.deltas
    cosine = torch.nn.functional.cosine_similarity
    assert one.values == 35
    assert one.reference == pytest.approx(float(tensors.reference.norm()), rel=1e-5)
    assert one.change == pytest.approx(float(kept.norm()), rel=1e-5)
    assert one.changes == pytest.approx([float(c.norm()) for c in changes], rel=1e-5)
    assert one.shares == pytest.approx([float(kept.norm() / c.norm()) for c in changes], rel=1e-5)
    assert one.cosines == pytest.approx(
        [float(cosine(kept.flatten(), c.flatten(), dim=0)) for c in changes], abs=1e-5
    )
    assert one.between == pytest.approx(
        [float(cosine(changes[0].flatten(), changes[1].flatten(), dim=0))], abs=1e-5
    )
    assert one.distance == pytest.approx(float(kept.norm() / tensors.reference.norm()), rel=1e-5)


def test_groups_are_their_tensors_laid_end_to_end():
    drawings = {name: drawn(name) for name in NAMES}
    found = summarised([measure(*d) for d in drawings.values()], 2)
    assert [m.name for m in found.layers] == ["model.layers.2", "model.layers.10", "outside"]
    assert [m.name for m in found.kinds] == ["embed_tokens", "norm", "q_proj", "up_proj"]
    inside = [d for name, d in drawings.items() if ".10." in name]
    change = torch.cat([(fused - t.reference).flatten() for t, fused in inside])
    first = torch.cat([t.deltas[0].flatten() for t, _ in inside])
    layer = found.layers[1]
    assert layer.values == change.numel() and layer.change == pytest.approx(float(change.norm()), rel=1e-5)
    assert layer.cosines[0] == pytest.approx(float(change @ first / change.norm() / first.norm()), abs=1e-5)
    assert sum(m.values for m in found.layers) == sum(m.values for m in found.kinds) == found.whole.values
    assert sum(m.change**2 for m in found.layers) == pytest.approx(found.whole.change**2)


def test_the_ends_read_as_what_they_are():
    tensors, _ = drawn(NAMES[0], candidates=1)
    back = summarised([measure(tensors, tensors.reference)], 1)
    assert (back.whole.shares, back.whole.distance, back.whole.cosines) == ([0.0], 0.0, [None])
    kept = summarised([measure(tensors, tensors.candidates[0])], 1).whole
    assert kept.shares == pytest.approx([1.0]) and kept.cosines == pytest.approx([1.0])
    same = Tensors(NAMES[0], tensors.reference, (tensors.reference.clone(),))
    still = summarised([measure(same, tensors.reference)], 1)
    assert still.tensors == [] and still.unchanged == 1 and still.whole.shares == [None]


def test_names_are_read():
    assert layer_of("vision_tower.encoder.layers.3.fc1.weight") == "vision_tower.encoder.layers.3"
    assert layer_of("model.layers.3.mlp.experts.7.w1.weight") == "model.layers.3"
    assert layer_of("lm_head.weight") == "outside"
    assert kind_of("model.layers.3.mlp.experts.7.w1.weight") == "w1"
    assert kind_of("h.0.attn.c_attn.bias") == "c_attn"


def test_a_journal_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "diagnostics.jsonl"
    lines = [measure(*drawn(name)) for name in NAMES[:3]]
    journal = Journal(path)
    journal.add(lines[0])
    journal.add(lines[1])
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    again = Journal(path)
    assert again.lines == {lines[0].name: lines[0]}
    moved = measure(*drawn(NAMES[1], seed=5))
    for line in (lines[1], moved, lines[2]):
        again.add(line)
    assert Journal(path).lines == {NAMES[0]: lines[0], NAMES[1]: moved, NAMES[2]: lines[2]}


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_rounding_leaves_of_a_change(pieces, monkeypatch):
    """A change of a tenth of bfloat16's step is lost but where it happens to cross one; of ten steps hardly any is."""
    monkeypatch.setattr(diagnostics, "_CHUNK", 64)
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(60, 32, generator=generator).bfloat16().float()
    for steps, low, high in ((0.1, 0.0, 0.1), (10.0, 0.98, 1.02)):
        change = (
            steps * 2**-8 * reference.abs() * torch.randn(reference.shape, generator=generator).clamp(-1, 1)
        )
        fused = reference + change
        rows = [(reference[i::pieces], change[i::pieces], fused[i::pieces]) for i in range(pieces)]
        lines = [
            measure(Tensors("w", before, (before + moved,)), after, torch.bfloat16)
            for before, moved, after in rows
        ]
        found = summarised([diagnostics.joined(lines)], 1).whole
        held = (fused.bfloat16().float() - reference).flatten() @ change.flatten() / change.square().sum()
        assert found.rounded == pytest.approx(float(held), abs=1e-3)
        assert low <= found.rounded <= high
    exact = summarised([measure(Tensors("w", reference, (fused,)), fused, torch.float32)], 1).whole
    assert exact.rounded == pytest.approx(1.0, abs=1e-4)
    assert summarised([measure(Tensors("w", reference, (fused,)), fused)], 1).whole.rounded is None
