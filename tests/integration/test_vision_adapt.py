"""Adaptations of a tiny guard: what is trained, what is measured, what a kill leaves, and what merging gives back."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

import torch
from safetensors.torch import load_file

from guardkeel.conversation import write_jsonl
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.run import audit
from guardkeel.guards.load import load_checkpoint
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.towers import extract_tower, language_tower
from guardkeel.records import read_record
from guardkeel.tuning.log import read_log
from guardkeel.vision.adapt.config import read_config
from guardkeel.vision.adapt.results import read_adaptation
from guardkeel.vision.adapt.run import adapt, run, taken_up
from guardkeel.vision.language import LowRank
from guardkeel.vision.llava import build_llava
from guardkeel.vision.shape import VisionShape
from small_tunes import settle
from trained_guards import examples

SHAPE = {"size": 32, "patch": 8, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def given(harbour, tmp_path_factory):
    settle()
    folder = tmp_path_factory.mktemp("adapt")
    write_jsonl(folder / "anchor.jsonl", examples(24, 33))
    return {
        "model": str(harbour.guard),
        "vision": SHAPE,
        "captions": 0,
        "pictures": 24,
        "test_pictures": 6,
        "kinds": ["shape"],
        "guard_data": [str(folder / "anchor.jsonl")],
        "suites": [str(harbour.suite)],
        "limit": 24,
        "geometry_items": 20,
        "typographic": 3,
        "steps": 4,
        "batch": 4,
        "looks": 2,
        "language_rate": 2e-3,
        "alphas": [],
        "device": "cpu",
        "keep": "float32",
    }


@pytest.fixture(scope="module")
def plain(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, adapt(**given | {"alphas": [0.0, 0.5, 1.0]}, out=out)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_what_a_run_leaves(plain, given):
    out, results = plain
    assert read_adaptation(out)[1] == results
    assert taken_up(out) == results
    assert [look.step for look in results.looks] == [0, 2, 4]
    assert [row["step"] for row in read_log(out)] == [1, 2, 3, 4]
    assert not list(out.glob("checkpoint-*")) + list(out.glob("plan.json"))
    record = read_record(out)
    assert record.counts == {"pictures": 24, "test pictures": 6, "guard data": 0}
    for look in results.looks:
        assert read_record(out / look.text_audit).verb == "audit"
        images = [json.loads(line) for line in (out / look.image_audit / "items.jsonl").open()]
        assert len(images) == 6
        assert all(row["messages"][0]["content"][0]["type"] == "image_url" for row in images)
        assert look.accuracy.n == 6
        assert [layer.layer for layer in look.layers] == [1, 2]
    with pytest.raises(ConfigError, match="holds a finished run"):
        adapt(**given, out=out)
    with pytest.raises(DataError, match="not of 'vision adapt'"):
        read_adaptation(out / results.looks[0].text_audit)


def test_before_the_first_step_texts_are_judged_as_before(plain):
    _, results = plain
    first, last = results.looks[0], results.looks[-1]
    assert first.text.recall == results.reference.recall
    assert first.text.auroc == results.reference.auroc
    assert all(layer.drift == pytest.approx(0, abs=1e-4) for layer in first.layers)
    assert all(layer.drift > 1e-3 for layer in last.layers)


def test_merging_goes_from_the_guard_as_it_was_to_the_adapted_one(plain):
    _, results = plain
    before, _, after = results.merged
    assert before.text.recall == results.reference.recall
    assert all(layer.drift == pytest.approx(0, abs=1e-4) for layer in before.layers)
    last = results.looks[-1]
    assert after.text.model_dump() == last.text.model_dump()
    assert after.accuracy == last.accuracy
    drifts = [[layer.drift for layer in look.layers] for look in results.merged]
    assert all(a < b < c for a, b, c in zip(*drifts, strict=True))
    assert set(results.front) <= {0.0, 0.5, 1.0}
    assert results.front


def test_the_adapted_model_is_a_guard_that_sees(plain, given, harbour):
    out, _ = plain
    guard = load_checkpoint(str(out / "adapted"), images=True, dtype="float32")
    assert (guard.family, guard.name) == ("keel", "harbour")
    guard.sight.close()
    start, end = tensors(out / "start"), tensors(out / "adapted")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert any("vision" in name for name in changed)
    assert any("language" in name for name in changed)


def test_frozen_language_stays_as_it_was(given, tmp_path):
    results = adapt(**given | {"arm": "freeze-language", "alphas": [0.5]}, out=tmp_path / "run")
    start, end = tensors(tmp_path / "run" / "start"), tensors(tmp_path / "run" / "adapted")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed
    assert not [name for name in changed if "language" in name]
    assert results.looks[-1].text.recall == results.reference.recall
    assert results.merged == []  # there is nothing to merge


@pytest.mark.parametrize("arm", ["safety-sft", "fwssr"])
def test_arms_on_the_text_side_change_what_is_trained(arm, given, plain, tmp_path):
    options = {"options": {"fwssr": {"rank": 4, "refresh": 2}}} if arm == "fwssr" else {}
    results = adapt(**given | {"arm": arm, "looks": 1} | options, out=tmp_path / "run")
    assert results.method == {"safety-sft": "replay", "fwssr": "fwssr"}[arm]
    assert all(row["penalty"] >= 0 for row in read_log(tmp_path / "run"))
    ours, theirs = tensors(tmp_path / "run" / "adapted"), tensors(plain[0] / "adapted")
    first, again = tensors(plain[0] / "start"), tensors(tmp_path / "run" / "start")
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


class _Stop(Exception):
    pass


@pytest.mark.parametrize(("what", "at"), [("adapt (plain)", 3), ("audit texts at step-2", 1)])
def test_a_run_that_was_killed_ends_as_one_that_was_not(what, at, given, plain, tmp_path):
    config = read_config(None, given | {"alphas": [0.0, 0.5, 1.0]})
    seen = []

    def stopping(said, done, total):
        seen.append(said)
        if said == what and done >= at:
            raise _Stop

    with pytest.raises(_Stop):
        run(config, tmp_path / "run", watch=stopping)
    assert not (tmp_path / "run" / "run.json").exists()
    results = run(config, tmp_path / "run")
    out, wanted = plain
    ours, theirs = tensors(tmp_path / "run" / "adapted"), tensors(out / "adapted")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [look.text.recall for look in results.looks] == [look.text.recall for look in wanted.looks]
    assert [row["loss"] for row in read_log(tmp_path / "run")] == [row["loss"] for row in read_log(out)]


def test_another_configuration_is_refused_in_the_folder_of_an_unfinished_run(given, tmp_path):
    def stopping(said, done, total):
        if said.startswith("adapt"):
            raise _Stop

    with pytest.raises(_Stop):
        run(read_config(None, given), tmp_path / "run", watch=stopping)
    with pytest.raises(ConfigError, match="unfinished run with other"):
        run(read_config(None, given | {"seed": 1}), tmp_path / "run")


LORA = {"adapter": "lora", "rank": 4, "language_rate": 2e-2}


@pytest.fixture(scope="module")
def lora(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    return out, adapt(**given | LORA | {"dtype": "float32", "alphas": [0.0, 0.5, 1.0]}, out=out)


def test_lora_trains_the_linear_layers_of_the_language_parts_blocks_and_all_of_the_vision_part(lora):
    out, results = lora
    start, end = tensors(out / "start"), tensors(out / "adapted")
    assert start.keys() == end.keys()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    language = {name for name in changed if "language" in name}
    assert language == {n for n in start if "language" in n and "proj" in n}
    assert {n for n in start if "vision" in n and "proj.weight" in n} <= changed
    first, _, last = results.looks
    assert first.text.recall == results.reference.recall
    assert all(layer.drift > 1e-3 for layer in last.layers)


def test_a_share_of_lora_goes_from_the_guard_as_it_was_to_the_adapted_one(lora):
    _, results = lora
    drifts = [[layer.drift for layer in look.layers] for look in results.merged]
    assert drifts[0] == pytest.approx([0, 0], abs=1e-4)
    assert all(a < b < c for a, b, c in zip(*drifts, strict=True))
    assert results.merged[0].text.recall == results.reference.recall


def test_half_of_loras_change_is_halfway_between_the_weights(lora):
    out, _ = lora
    model = load_model(out / "start", "float32", "cpu", images=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    language = LowRank(model, 4, "float32", 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        with language.share(0.0):
            none = model(input_ids=ids).logits
        with language.share(0.5):
            half = model(input_ids=ids).logits
        language.end()
        for name, p in model.named_parameters():
            p.copy_((before[name] + p) / 2)
        halfway = model(input_ids=ids).logits
    assert torch.allclose(halfway, half, atol=1e-4)
    assert not torch.allclose(halfway, none, atol=1e-2)


def test_lora_over_bfloat16_keeps_in_float32_what_is_trained(given, plain, tmp_path):
    model = load_model(plain[0] / "start", "float32", "cpu", images=True)
    LowRank(model, 4, "bfloat16", 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
    results = adapt(**given | LORA | {"dtype": "bfloat16", "looks": 1, "alphas": [0.5]}, out=tmp_path / "run")
    assert results.looks[0].text.recall == results.reference.recall
    assert {t.dtype for t in tensors(tmp_path / "run" / "adapted").values()} == {torch.float32}


def test_a_chat_model_is_looked_at_by_its_first_words(given, tmp_path):
    results = adapt(**given | {"subject": "chat", "steps": 1, "looks": 1}, out=tmp_path / "run")
    assert results.subject == "chat"
    look = results.looks[0]
    assert look.text.n
    assert look.text.unscored.value > 0  # replies are not on its sides
    assert look.text.auroc.value is not None


def test_the_language_tower_is_audited_against_what_it_was(harbour, tmp_path):
    seeing = build_llava(str(harbour.guard), tmp_path / "llava", shape=VisionShape(**SHAPE))
    settings = {
        "suites": [str(harbour.suite)],
        "limit": 60,
        "dtype": "float32",
        "geometry_items": 20,
        "draws": 19,
    }
    same = audit(str(harbour.guard), str(seeing), out=tmp_path / "same", **settings)
    assert same.candidate.overall.recall == same.reference.overall.recall
    assert all(g.drift.value == pytest.approx(0, abs=1e-4) for g in same.geometry)

    model = load_model(seeing, "float32", "cpu", images=True)
    with torch.no_grad():
        for parameter in language_tower(model).parameters():
            parameter.mul_(0.8)
    extract_tower(model, load_tokenizer(seeing), tmp_path / "tower", {"family": "keel"})
    worse = audit(str(harbour.guard), str(tmp_path / "tower"), out=tmp_path / "worse", **settings)
    assert any(g.drift.value > 0.01 for g in worse.geometry)
