"""Capturing hidden states only reads, and reads where the verdict is."""

import numpy as np
import pytest
import torch

from guard_doubles import EveryToken, items
from guardkeel.activations.blocks import blocks
from guardkeel.activations.capture import Capture
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.models.tiny import CAUSAL, CLASSIFIERS


def hidden_of(guard, judged, **options):
    found = {}
    for batch in guard.batches(judged, **options):
        found.update((i, batch.hidden[:, k]) for k, i in enumerate(batch.indices))
    return np.stack([found[i] for i in range(len(judged))], axis=1)


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hooks_do_not_change_a_bit(architecture, dtype, tiny_loaded):
    model, tokenizer = tiny_loaded(architecture, dtype)
    ids = torch.tensor([tokenizer("Is this message safe or unsafe?")["input_ids"]])
    with torch.no_grad():
        plain = model(ids).logits
        with Capture(model, (1, 2)) as capture:
            watched = model(ids).logits
            assert capture.take(-1).shape == (2, 1, 32)
    assert torch.equal(plain, watched)
    guard = CausalGuard(model, tokenizer, EveryToken(), name="tiny")
    assert guard.score(items()) == guard.score(items(), layers=(1, 2))


@pytest.mark.parametrize("architecture", CAUSAL)
def test_states_are_those_of_the_verdict_position(architecture, tiny_loaded):
    model, tokenizer = tiny_loaded(architecture)
    guard = CausalGuard(model, tokenizer, EveryToken(), name="tiny")
    judged = items()
    hidden = hidden_of(guard, judged, layers=(1, 2))
    encoder = Encoder(EveryToken(), tokenizer)
    for i, item in enumerate(judged):
        with torch.no_grad():
            out = model(torch.tensor([encoder.encode(item).ids]), output_hidden_states=True)
            last = model.model.norm(torch.tensor(hidden[1, i]))  # the stored last state is after the norm
        assert np.allclose(hidden[0, i], out.hidden_states[1][0, -1], atol=1e-4), item.id
        assert np.allclose(last, out.hidden_states[2][0, -1], atol=1e-4), item.id


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_states_of_classifiers_are_those_of_the_first_token(architecture, tiny_loaded):
    model, tokenizer = tiny_loaded(architecture)
    guard = ClassifierGuard(model, tokenizer, name="tiny")
    judged = items()
    assert guard.score(judged) == guard.score(judged, layers=(1, 2))
    hidden = hidden_of(guard, judged, layers=(1, 2))
    for i, item in enumerate(judged):
        if item.side != "prompt":
            continue
        text = guard._disarm(item.conversation.turns[0].content)
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        for layer in (1, 2):
            assert np.allclose(hidden[layer - 1, i], out.hidden_states[layer][0, 0], atol=1e-4), item.id


def test_states_of_decoder_classifiers_are_those_of_the_last_real_token(tiny_loaded):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tiny_loaded("llama")[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, id2label={0: "safe", 1: "unsafe"}, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    guard = ClassifierGuard(model, tokenizer, name="tiny")
    judged = [
        item for item in items(("hi there", "a longer message than the first")) if item.side == "prompt"
    ]
    verdicts = guard.score(judged)
    hidden = hidden_of(guard, judged, layers=(1,))
    for i, item in enumerate(judged):
        with torch.no_grad():
            out = model(
                torch.tensor([tokenizer(item.conversation.text)["input_ids"]]), output_hidden_states=True
            )
        assert verdicts[i].unsafe == pytest.approx(float(out.logits.softmax(-1)[0, 1]), abs=1e-6)
        assert np.allclose(hidden[0, i], out.hidden_states[1][0, -1], atol=1e-5)


def test_hooks_are_gone_afterwards(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    guard = CausalGuard(model, tokenizer, EveryToken(), name="tiny")

    def hooks():
        return [len(block._forward_hooks) for block in blocks(model)]

    before = hooks()
    run = guard.batches(items(), layers=(1, 2))
    next(run)
    assert hooks() == [n + 1 for n in before]
    assert not torch.is_inference_mode_enabled()  # between batches the caller is as it was
    run.close()
    assert hooks() == before
    with pytest.raises(RuntimeError, match="stop"), Capture(model, (1,)):
        raise RuntimeError("stop")
    assert hooks() == before
