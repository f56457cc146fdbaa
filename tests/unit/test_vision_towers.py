"""The language tower of models that see: taken out, put back, and worked on as any language model."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

import torch

from guardkeel.errors import ModelError
from guardkeel.fusion.sources import open_source
from guardkeel.guards.load import load_checkpoint
from guardkeel.heads.layout import layout_of
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny import make_tiny
from guardkeel.models.tiny_vision import make_tiny_vision
from guardkeel.models.towers import extract_tower, insert_tower, language_tower, vision_parameters

KINDS = ("llava", "qwen2-vl", "idefics3", "smolvlm")
IDS = torch.arange(20, 80)[None]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny_vision(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def model(folder):
    return load_model(folder, "float32", "cpu", images=True)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_tower_reads_as_the_whole_does(folder, model):
    tower = language_tower(model)
    assert type(tower).__name__ in ("LlamaForCausalLM", "Qwen2ForCausalLM")
    assert torch.allclose(logits(tower), logits(model), atol=1e-5)
    assert torch.equal(logits(load_model(folder, "float32", "cpu")), logits(tower))


def test_what_changes_in_one_changes_in_the_other(model):
    tower = language_tower(model)
    before = logits(model)
    with torch.no_grad():
        max(tower.parameters(), key=lambda p: p.numel()).mul_(1.1)
    assert not torch.allclose(before, logits(model), atol=1e-3)
    assert torch.allclose(logits(tower), logits(model), atol=1e-5)
    shared = {id(p) for p in tower.parameters()}
    assert shared <= {id(p) for p in model.parameters()}
    assert not shared & {id(p) for p in vision_parameters(model).values()}
    assert len(shared) + len(vision_parameters(model)) == len(list(model.parameters()))


def test_out_into_a_folder_and_back(folder, model, tmp_path):
    before = logits(model)
    out = extract_tower(
        model, load_tokenizer(folder), tmp_path / "tower", {"family": "keel", "threshold": 0.4}
    )
    guard = load_checkpoint(str(out), dtype="float32")
    assert (guard.family, guard.threshold) == ("keel", 0.4)
    assert torch.allclose(logits(guard.model), before, atol=1e-5)
    with torch.no_grad():
        for p in guard.model.parameters():
            p.mul_(0.9)
    insert_tower(model, guard.model)
    assert torch.allclose(logits(guard.model), logits(model), atol=1e-5)
    assert not torch.allclose(before, logits(model), atol=1e-2)


def test_what_does_not_fit_is_not_put_in(model, tmp_path):
    other = load_model(make_tiny("llama", tmp_path, layers=3), "float32", "cpu")
    before = logits(model)
    with pytest.raises(ModelError, match="does not fit the language part"):
        insert_tower(model, other)
    assert torch.equal(before, logits(model))


def test_models_whose_tower_is_not_known(tmp_path):
    plain = load_model(make_tiny("llama", tmp_path), "float32", "cpu")
    with pytest.raises(ModelError, match="where its language model is, is not known"):
        language_tower(plain)


def test_heads_find_the_tower(model):
    layout = layout_of(language_tower(model))
    assert (layout.layers, layout.heads, layout.groups) == (2, 4, 2)


def test_towers_are_fused_between(folder, model, tmp_path):
    from guardkeel.fusion.run import fuse

    tokenizer = load_tokenizer(folder)
    extract_tower(model, tokenizer, tmp_path / "before", {"family": "keel"})
    with torch.no_grad():
        for p in language_tower(model).parameters():
            p.add_(0.05 * torch.ones_like(p))
    extract_tower(model, tokenizer, tmp_path / "after", {"family": "keel"})
    fuse(
        reference=str(tmp_path / "before"),
        candidates=[str(tmp_path / "after")],
        out=tmp_path / "fused",
        method="interpolation",
        options={"interpolation": {"alpha": 0.5}},
    )
    with open_source(tmp_path / "before") as a, open_source(tmp_path / "after") as b:
        (made,) = (tmp_path / "fused").rglob("config.json")
        with open_source(made.parent) as c:
            for name in a.specs:
                middle = (a.read(name).float() + b.read(name).float()) / 2
                assert torch.allclose(c.read(name).float(), middle, atol=1e-6)
