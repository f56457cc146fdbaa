"""A multi-image run of a tiny model: judged, taught and judged again; killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

import torch
from safetensors.torch import load_file

from guardkeel.errors import DataError
from guardkeel.vision.lessons import seeing_lessons
from guardkeel.vision.llava import build_llava
from guardkeel.vision.mis.building import build_items
from guardkeel.vision.mis.config import read_config
from guardkeel.vision.mis.items import read_mis
from guardkeel.vision.mis.labels import lessons_of
from guardkeel.vision.mis.run import _loaded, mis, read_mis_run, run
from guardkeel.vision.shape import VisionShape
from small_tunes import settle


@pytest.fixture(scope="module")
def given(tiny_folder, tmp_path_factory):
    settle()
    shape = VisionShape(size=16, patch=8, width=16, layers=1, heads=2)
    start = build_llava(str(tiny_folder("llama")), tmp_path_factory.mktemp("mis") / "start", shape=shape)
    return {
        "start": str(start), "pairs": 4, "general": 4, "test_pairs": 2, "size": 32, "steps": 4, "every": 2, "batch": 2,
        "reply_tokens": 8, "reply_batch": 3, "device": "cpu", "keep": "float32", "language_rate": 2e-3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def taught(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("cot") / "run"
    return out, mis(**given, out=out)


def test_what_a_run_leaves(taught):
    out, results = taught
    assert read_mis_run(out)[1] == results
    assert not set(results.learned) & set(results.held_out)
    for tiers in (results.before, results.after):
        assert set(tiers) == {"easy", "hard"}
        for tier in tiers.values():
            assert tier.outcomes.n == tier.twins.n == tier.accuracy.n == 2
            assert sum(tier.outcomes.percentages().values()) == pytest.approx(100)
    for when in ("before", "after"):
        rows = [json.loads(line) for line in (out / f"replies-{when}.jsonl").open()]
        assert len(rows) == 8
        assert all(row["reply"] is not None for row in rows)
    assert len(read_mis(out / "items", check=True)) == 8
    assert (out / "tuned" / "preprocessor_config.json").is_file()
    assert not list(out.glob("checkpoint-*"))


def test_without_labels_nothing_is_taught(given, tmp_path):
    results = mis(**given | {"labels": "none"}, out=tmp_path / "run")
    assert results.after == {}
    assert not (tmp_path / "run" / "tuned").exists()
    with pytest.raises(DataError, match="not of 'vision adapt'"):
        from guardkeel.vision.adapt.results import read_adaptation

        read_adaptation(tmp_path / "run")


def test_with_lora_the_blocks_linear_layers_are_taught(given, taught, tmp_path):
    options = {"adapter": "lora", "rank": 2, "dtype": "float32"}
    results = mis(**given | options, out=tmp_path / "run")
    assert results.before == taught[1].before
    start = load_file(Path(given["start"]) / "model.safetensors")
    ours = load_file(tmp_path / "run" / "tuned" / "model.safetensors")
    changed = {name for name in start if not torch.equal(ours[name], start[name])}
    assert {n for n in changed if "language" in n} <= {n for n in start if "proj" in n}
    assert any("self_attn" in n for n in changed)


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("what", "at"), [("ask (replies-before)", 3), ("teach (cot)", 3), ("ask (replies-after)", 6)]
)
def test_a_run_that_was_killed_ends_as_one_that_was_not(what, at, given, taught, tmp_path):
    def stopping(said, done, total):
        if said == what and done >= at:
            raise _Stop

    config = read_config(None, given)
    with pytest.raises(_Stop):
        run(config, tmp_path / "run", watch=stopping)
    replies = tmp_path / "run" / "replies-before.jsonl"
    if what.endswith("after)"):
        with (tmp_path / "run" / "replies-after.jsonl").open("a") as out:
            out.write('{"tier": "easy", "id": "cut sho')
    assert run(config, tmp_path / "run").after == taught[1].after
    assert replies.read_text() == (taught[0] / "replies-before.jsonl").read_text()
    ours, theirs = (load_file(f / "tuned" / "model.safetensors") for f in (tmp_path / "run", taught[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_lessons_of_several_pictures_are_one_batch(given):
    from guardkeel.tuning.learner import IGNORED, CausalLearner
    from guardkeel.tuning.targets import Instruction
    from guardkeel.vision.pairs import pair

    guard = _loaded(read_config(None, given), Path(given["start"]))
    one = pair(0, size=32)
    taught = [*lessons_of(build_items(1, size=32)), Instruction(one.id, one.conversation())]
    lessons = seeing_lessons(taught, guard.tokenizer, guard.sight)
    batch = CausalLearner(guard).collate(lessons)
    shown = (batch["ids"] >= guard.sight.first).sum(1).tolist()
    assert shown == [8, 8, 4]
    answers = [guard.tokenizer.decode(row[row != IGNORED]) for row in batch["targets"]]
    for text, lesson in zip(answers, taught, strict=True):
        assert lesson.conversation.turns[-1].content in text
    with torch.no_grad():
        together = CausalLearner(guard).row_losses(guard.model, batch, None)
        alone = [
            CausalLearner(guard).loss(guard.model, CausalLearner(guard).collate([le]), None) for le in lessons
        ]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    guard.sight.close()
