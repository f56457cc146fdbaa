"""Training through the shared prefix is plain training: same loss, same gradients, in fp32."""

import pytest
import torch

from guard_doubles import TEXTS
from guardkeel.conversation import Conversation
from guardkeel.errors import ModelError
from guardkeel.guards.base import Judgement
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.keel import Keel
from guardkeel.guards.prefix import encode_prefix, reusable
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny import CAUSAL
from guardkeel.tuning.lora import answer_loss
from guardkeel.tuning.targets import Target

ANSWERS = ("safe", "unsafe\nThreat, Harassment", "unsafe\nViolence")


def lessons(tokenizer):
    targets, answers = [], []
    for i, text in enumerate(TEXTS):
        answer = ANSWERS[i % 3]
        judgement = Judgement(str(i), Conversation.of(text), "prompt")
        targets.append(Target(judgement, "safe" if answer == "safe" else "unsafe", weight=1.0 + i / 4))
        answers.append([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
    return targets, answers


def plain_loss(model, encoder, targets, answers, weight):
    """The formula, one example at a time, nothing padded and nothing shared."""
    losses = []
    for target, answer in zip(targets, answers, strict=True):
        ids = encoder.encode(target.judgement).ids + answer
        chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(ids) - len(answer)
        each = torch.stack([-chances[start + k - 1, token] for k, token in enumerate(answer)])
        losses.append(target.weight * (each[0] + weight * each[1:].mean()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_loss_and_gradients(architecture, tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path))
    torch.set_num_threads(1)
    model = load_model(tiny_folder(architecture), "float32", "cpu")
    tokenizer = load_tokenizer(tiny_folder(architecture))
    targets, answers = lessons(tokenizer)
    plain = plain_loss(model, Encoder(Keel(), tokenizer), targets, answers, 0.3)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    encoder = Encoder(Keel(), tokenizer)
    if reusable(model.config):
        encoder.share([t.judgement for t in targets])
        assert len(encoder.prefix_ids) > 100
    shared = answer_loss(model, encoder, targets, answers, 0.3)
    shared.backward()
    assert shared.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, p in model.named_parameters():
        scale = expected[name].abs().max().item()
        assert torch.allclose(p.grad, expected[name], atol=1e-4 * scale + 1e-8), name


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_a_model_of_sliding_windows_is_refused_a_shared_prefix(architecture, tiny_loaded):
    # Its last tokens do not see all of the prefix, so the shared computation would be another one.
    model, _ = tiny_loaded(architecture)
    with pytest.raises(ModelError, match=r"sliding-window.*\n.*without"):
        encode_prefix(model, [1, 2, 3])
