"""Pictures shown by ids give what transformers gives for pixels; what is kept gives what is computed anew."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

import torch

from guard_doubles import EveryToken
from guardkeel.conversation import Conversation, Turn
from guardkeel.guards.base import Judgement
from guardkeel.guards.prefix import left_padded
from guardkeel.guards.vision import SeeingEncoder, VisionGuard, placed
from guardkeel.models.eyes import eyes_of
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.sight import Sight
from guardkeel.models.tiny_vision import VISION, make_tiny_vision
from guardkeel.pictures import open_picture
from guardkeel.vision.pairs import pair

KINDS = list(VISION)
PICTURES = tuple(pair(i, size=40 + 7 * i).image for i in range(4))


@pytest.fixture(scope="module", params=KINDS)
def seeing(request, tmp_path_factory):
    folder = make_tiny_vision(request.param, tmp_path_factory.mktemp(request.param))
    model, tokenizer = load_model(folder, "float32", "cpu", images=True), load_tokenizer(folder)
    return model, tokenizer, eyes_of(model, tokenizer, folder)


def questions(most):
    one = Conversation.of("What is this?", images=PICTURES[:1])
    two = Conversation.of("What do these two show together?", images=PICTURES[1:3])
    turns = (
        Turn("user", "Look.", images=PICTURES[:1]),
        Turn("assistant", "Yes."),
        Turn("user", "And?", images=PICTURES[3:]),
    )
    several = [two, Conversation(turns)] if most is None else []
    asked = [one, Conversation.of("Please write a poem about the sea."), *several]
    return [Judgement(str(i), c, "prompt") for i, c in enumerate(asked)]


def theirs(model, eyes, row, images):
    """The model's own way: one row, its picture tokens, and the pixels of its pictures."""
    ids = torch.tensor([row])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    prepared = [eyes.prepare(open_picture(i).pixels) for i in images]
    kind = model.config.model_type
    for name in prepared[0].inputs if prepared else ():
        parts = [p.inputs[name] for p in prepared]
        inputs[name] = torch.cat(parts, dim=1 if kind in ("idefics3", "smolvlm") else 0)
    if prepared and kind == "qwen2_vl":
        inputs["mm_token_type_ids"] = (ids == eyes.token_id).int()
    if prepared and kind == "mllama":
        mask = torch.zeros(1, len(row), 1, prepared[0].grid[1], dtype=torch.long)
        mask[:, row.index(eyes.token_id) :, :, : prepared[0].grid[0]] = 1
        inputs["cross_attention_mask"] = mask
    if kind == "qwen2_vl":
        model.model.rope_deltas = None
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


def test_ids_give_what_pixels_give(seeing):
    model, tokenizer, eyes = seeing
    with Sight(model, eyes) as sight:
        encoder = SeeingEncoder(EveryToken(), tokenizer, sight)
        items = questions(eyes.most)
        rows = [encoder.encode(item).ids for item in items]
        ids, mask = left_padded(rows, encoder.pad_id, "cpu")
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            ours = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    for item, row, logits in zip(items, rows, ours, strict=True):
        plain = [eyes.token_id if i >= sight.first else i for i in row]
        wanted = theirs(model, eyes, plain, item.conversation.images)
        assert torch.allclose(logits, wanted, atol=2e-5), (logits - wanted).abs().max()
    assert not torch.allclose(ours[0], ours[1], atol=1e-2)


def test_a_picture_matters(seeing):
    model, tokenizer, eyes = seeing
    with Sight(model, eyes) as sight:
        guard = VisionGuard(model, tokenizer, EveryToken(), sight, name="tiny")
        asked = [
            Judgement(str(i), Conversation.of("What is this?", images=[p]), "prompt")
            for i, p in enumerate(PICTURES)
        ]
        found = [v.unsafe for v in guard.score(asked, categories=False)]
    assert len(set(found)) == len(found)


def test_what_is_kept_gives_what_is_computed_anew(seeing):
    model, tokenizer, eyes = seeing
    texts = ("What is this?", "How many are there?", "Which bar is the tallest?", "Is it safe?")
    asked = [
        Judgement(f"{i}/{t}", Conversation.of(t, images=[p]), "prompt")
        for i, p in enumerate(PICTURES)
        for t in texts
    ]
    found = {}
    for room in (1 << 30, 0):
        with Sight(model, eyes, room=room) as sight:
            guard = VisionGuard(
                model, tokenizer, EveryToken(), sight, name="tiny", share_pictures=False, token_budget=1
            )
            found[room] = guard.score(asked, categories=False), sight.computed
    assert found[1 << 30][0] == found[0][0]
    assert found[1 << 30][1] == len(PICTURES)
    assert found[0][1] == len(asked)


def test_sharing_the_policy_changes_nothing(seeing):
    model, tokenizer, eyes = seeing
    with Sight(model, eyes) as sight:
        found = []
        for share in (True, False):
            guard = VisionGuard(model, tokenizer, EveryToken(), sight, name="tiny", share_prefix=share)
            found.append([v.unsafe for v in guard.score(questions(eyes.most), categories=False)])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_questions_on_one_picture_share_its_keys_and_values(seeing):
    model, tokenizer, eyes = seeing
    pictures = [PICTURES[:1], PICTURES[1:3] if eyes.most is None else PICTURES[1:2], PICTURES[3:]]
    asked = [
        Judgement(f"{i}/{q}", Conversation.of("What is this? " * (q + 1), images=images), "prompt")
        for i, images in enumerate(pictures)
        for q in range(4 if i < 2 else 2)
    ]
    with Sight(model, eyes) as sight:
        shared, apart = (
            VisionGuard(model, tokenizer, EveryToken(), sight, name="tiny", share_pictures=share)
            for share in (True, False)
        )
        found = [v.unsafe for v in shared.score(asked, categories=False)]
        wanted = [v.unsafe for v in apart.score(asked, categories=False)]
        common = SeeingEncoder(EveryToken(), tokenizer, sight).share(asked[:4]).prefix_ids
        places = sight.show(PICTURES[0]).ids
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len(shared._groups(asked)) == (3 if eyes.goes_on and shared.share_prefix else 1)
    most = len(places) if eyes.goes_on else 0
    assert len(set(places) & set(common)) in (most, most - 1)


def test_features_go_when_the_vision_part_changes(seeing):
    model, _, eyes = seeing
    with Sight(model, eyes) as sight, torch.no_grad():
        shown = sight.show(PICTURES[0])
        before = sight.features(shown).clone()
        assert sight.features(shown) is sight.features(shown)
        weight = max(sight._weights, key=lambda p: p.numel())
        weight.mul_(1.5)
        changed = sight.features(shown)
        weight.div_(1.5)
    assert not torch.allclose(before, changed)
    assert sight.computed == 2


def test_ids_are_placed_in_order(seeing):
    model, tokenizer, eyes = seeing
    with Sight(model, eyes) as sight:
        first, second = sight.show(PICTURES[0]), sight.show(PICTURES[1])
        text = f"a {first.text} b {second.text} c"
        ids = placed(tokenizer(text, add_special_tokens=False)["input_ids"], [first, second], sight)
        shown = [i for i in ids if i >= sight.first]
    assert shown == [*first.ids, *second.ids]
