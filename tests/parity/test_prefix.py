"""Sharing the policy prefix, and batching, must not show in the results."""

import pytest
import torch

from guard_doubles import EveryToken, items
from guardkeel.conversation import Conversation
from guardkeel.guards import decoding
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.llama_guard import LlamaGuard3
from guardkeel.guards.prefix import encode_prefix, forward, left_padded, reusable
from guardkeel.guards.prefix_attention import supported
from guardkeel.models.tiny import CAUSAL

SLIDING = {"mistral", "gemma2", "gemma3"}


class EveryTokenLlamaGuard(LlamaGuard3):
    name = "every-token-llama-guard"
    blanks = EveryToken.blanks


def guard(loaded, family=None, **options):
    model, tokenizer = loaded
    return CausalGuard(model, tokenizer, family or EveryToken(), name="tiny", **options)


def scores(verdicts):
    assert all(v.unsafe is not None for v in verdicts), {v.unscored for v in verdicts}
    return torch.tensor([v.unsafe for v in verdicts], dtype=torch.float64)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_shared_prefix_gives_the_plain_results(architecture, tiny_loaded):
    loaded = tiny_loaded(architecture)
    shared, plain = guard(loaded), guard(loaded, share_prefix=False)
    assert shared.share_prefix == (architecture not in SLIDING)
    a, b = shared.score(items()), plain.score(items())
    assert (scores(a) - scores(b)).abs().max() < 1e-5
    assert scores(a).std() > 1e-4  # the texts do tell
    assert [v.categories for v in a] == [v.categories for v in b]
    assert any(v.categories for v in a)


def test_a_family_whose_prefix_differs_by_side_is_shared_side_by_side(tiny_loaded):
    loaded = tiny_loaded("llama")
    shared, plain = (guard(loaded, EveryTokenLlamaGuard(), share_prefix=s) for s in (True, False))
    assert (scores(shared.score(items())) - scores(plain.score(items()))).abs().max() < 1e-5
    widths = []
    hook = shared.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: widths.append(tuple(inputs[0].shape))
    )
    shared.score(items(("hi",)), categories=False)
    hook.remove()
    # Prompts, then responses and trajectories: the policy once each, then rows without it.
    assert [rows for rows, _ in widths] == [1, 1, 1, 2]
    assert min(widths[0][1], widths[2][1]) > 100
    encoder = Encoder(LlamaGuard3(), loaded[1], max_tokens=2048).share(items(("hi",))[:1])
    assert len(encoder.prefix_ids) > 100


@pytest.mark.parametrize(("architecture", "share"), [("llama", True), ("llama", False), ("gemma3", False)])
def test_a_verdict_does_not_depend_on_its_batch(architecture, share, tiny_loaded):
    loaded = tiny_loaded(architecture)
    judged = items()[::2]
    alone = [guard(loaded, share_prefix=share).score([item])[0] for item in judged]
    for budget in (1, 4096):
        together = guard(loaded, share_prefix=share, token_budget=budget).score(judged)
        assert (scores(together) - scores(alone)).abs().max() < 1e-5
        assert [v.categories for v in together] == [v.categories for v in alone]
    backwards = guard(loaded, share_prefix=share).score(judged[::-1])[::-1]
    assert (scores(backwards) - scores(alone)).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "granite", "qwen2", "qwen3"])
def test_bf16_with_a_shared_prefix_errs_no_more_than_plain_bf16(architecture, tiny_loaded):
    exact = scores(guard(tiny_loaded(architecture), share_prefix=False).score(items()))
    loaded = tiny_loaded(architecture, "bfloat16")
    shared = (scores(guard(loaded).score(items())) - exact).abs()
    plain = (scores(guard(loaded, share_prefix=False).score(items())) - exact).abs()
    assert plain.mean() > 0  # bf16 does round
    assert shared.mean() <= 1.25 * plain.mean()


@pytest.mark.parametrize("architecture", ["llama", "granite", "qwen2", "qwen3"])
def test_logits_after_a_shared_prefix(architecture, tiny_loaded):
    model, tokenizer = tiny_loaded(architecture)
    encoder = Encoder(EveryToken(), tokenizer).share(items())
    rows = [encoder.encode(item).ids for item in items()]
    ids, mask = left_padded(rows, encoder.pad_id, "cpu")
    with torch.no_grad():
        prefix = encode_prefix(model, encoder.prefix_ids)
        shared = forward(model, prefix, ids, mask, keep=3).logits
        for i, row in enumerate(rows):
            plain = model(torch.tensor([encoder.prefix_ids + row])).logits[0, -3:]
            assert torch.allclose(shared[i], plain, atol=1e-4), i


PIECES = ([[5], [9, 8, 7], [4, 4]] * 2, [[11], [12], [13]] * 2)


@pytest.mark.parametrize("architecture", ["llama", "granite", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_two_parts_is_attention(architecture, dtype, tiny_loaded, monkeypatch):
    """Piece by piece, ragged, rows left out and doubled: as with the prefix copied into every row."""
    model, tokenizer = tiny_loaded(architecture, dtype)
    encoder = Encoder(EveryToken(), tokenizer).share(items())
    rows = [encoder.encode(item).ids for item in items()][:6]
    chosen = torch.tensor([0, 2, 2, 5, 4, 1])
    found = {}
    for apart in (True, False):
        monkeypatch.setattr(decoding, "supported", lambda model, apart=apart: apart)
        with torch.inference_mode():
            state = decoding.Decoding(model, encode_prefix(model, encoder.prefix_ids), more=True)
            found[apart] = [state.feed(rows, keep=2)]
            state.select(chosen)
            found[apart] += [state.feed(piece, keep=1) for piece in PIECES]
        assert model.config._attn_implementation == "sdpa"
    for parts, joined in zip(found[True], found[False], strict=True):
        assert torch.allclose(parts, joined, atol=1e-4 if dtype == "float32" else 0.3)


def test_attention_in_two_parts_is_used_where_it_can_be(tiny_loaded):
    model, _ = tiny_loaded("llama")
    with torch.inference_mode():
        assert supported(model)
    assert not supported(model)  # gradients would be lost
    with torch.inference_mode():
        model.config._attn_implementation = "eager"
        assert not supported(model)
        model.config._attn_implementation = "sdpa"


@pytest.mark.parametrize("architecture", CAUSAL)
def test_which_models_may_share(architecture, tiny_loaded):
    assert reusable(tiny_loaded(architecture)[0].config) == (architecture not in SLIDING)


def test_a_family_that_begins_otherwise_for_one_item_is_run_without_sharing(tiny_loaded):
    class Moody(EveryToken):
        """Its prefix changes with the message, which the sample of a run need not show."""

        def render(self, conversation, side, tokenizer):
            found = super().render(conversation, side, tokenizer)
            if "odd" in conversation.text:
                found = type(found)("<|im_start|>system\nodd<|im_end|>\n", found.body, found.suffix)
            return found

    loaded = tiny_loaded("llama")
    judged = [Judgement(str(i), Conversation.of(f"text {i}"), "prompt") for i in range(70)]
    judged[33] = Judgement("odd", Conversation.of("an odd one"), "prompt")
    found = guard(loaded, Moody()).score(judged, categories=False)
    plain = guard(loaded, Moody(), share_prefix=False).score(judged, categories=False)
    assert (scores(found) - scores(plain)).abs().max() < 1e-5
