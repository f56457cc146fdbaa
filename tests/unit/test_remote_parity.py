"""A model behind a server gives the verdicts that it gives in process: the same ids in, the same probabilities out."""

import copy
import json

import numpy as np
import pytest
import torch

from guard_doubles import items
from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.keel import Keel
from guardkeel.guards.remote import load_remote
from remote_server import Server, classified

LONG = Judgement("long", Conversation.of("The ships sail on the sea. " * 400), "prompt")


def decided(model, tokenizer, strength=3.0):
    """A copy whose verdict is the sign of one logit x, the other verdict having -x and all other tokens 0."""
    model = copy.deepcopy(model)
    safe, unsafe = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("safe", "unsafe"))
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        row = head[unsafe] * strength
        head.zero_()
        head[unsafe], head[safe] = row, -row
    return model


def served(model, tokenizer):
    """What vLLM's /v1/completions does with token ids: greedy decoding and the likeliest tokens of each step."""

    def answer(request):
        body = request["body"]
        ids, tops, tokens, own = list(body["prompt"]), [], [], []
        for _ in range(min(body["max_tokens"], 2)):
            with torch.inference_mode():
                logs = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            best = int(logs.argmax())
            named = [int(i) for i in logs.topk(min(body["logprobs"], len(logs))).indices]
            name = (
                (lambda i: f"token_id:{i}") if body.get("return_tokens_as_token_ids") else _decoded(tokenizer)
            )
            tops.append({name(i): float(logs[i]) for i in dict.fromkeys([best, *named])})
            tokens.append(name(best))
            own.append(float(logs[best]))
            ids.append(best)
        text = tokenizer.decode(ids[len(body["prompt"]) :], skip_special_tokens=True)
        logprobs = {"tokens": tokens, "token_logprobs": own, "top_logprobs": tops, "text_offset": []}
        return {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}]}

    return answer


def _decoded(tokenizer):
    return lambda i: tokenizer.decode([i])


def opened(server, path, **values):
    values = {"url": server.url, "model": "m", "timeout": 60, "concurrency": 2} | values
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if k != "extra"))
    if "extra" in values:
        path.write_text(path.read_text() + f"extra = {{{values['extra']}}}\n")
    return load_remote(path)


@pytest.mark.parametrize("extra", ["", "return_tokens_as_token_ids = true"])
def test_a_causal_guard(tiny_loaded, tiny_folder, tmp_path, extra):
    model, tokenizer = tiny_loaded("llama")
    model = decided(model, tokenizer)
    asked = [*items()[:12], LONG]
    here = CausalGuard(model, tokenizer, Keel(), name="here", max_tokens=1200).score(asked, categories=False)
    options = {
        "api": "completions",
        "family": "keel",
        "tokenizer": str(tiny_folder("llama")),
        "max_tokens": 1200,
    }
    with Server(served(model, tokenizer)) as server:
        guard = opened(server, tmp_path / "g.toml", **options, top_logprobs=len(tokenizer), extra=extra)
        there = guard.score(asked)
        few = opened(server, tmp_path / "g.toml", **options, top_logprobs=20, extra=extra).score(asked)
    chances = np.array([v.unsafe for v in here])
    assert {v.unsafe >= 0.5 for v in here} == {True, False}  # both verdicts are there
    np.testing.assert_allclose([v.unsafe for v in there], chances, atol=1e-5)
    assert [v.dropped for v in there] == [v.dropped for v in here] and there[-1].dropped > 0
    # With twenty tokens shown the other verdict is not among them: no certainty is made up.
    bounded = np.array([v.unsafe for v in few])
    assert ((bounded >= 0.5) == (chances >= 0.5)).all()
    assert (np.abs(bounded - 0.5) <= np.abs(chances - 0.5) + 1e-6).all()


def test_a_classifier(tiny_loaded, tiny_folder, tmp_path):
    model, tokenizer = tiny_loaded("deberta-v2")
    asked = [*[j for j in items() if j.conversation.text.strip()][:12], LONG]
    here = ClassifierGuard(model, tokenizer, name="here", max_tokens=128).score(asked)

    def answer(request):
        ids = torch.tensor([request["body"]["input"]])
        with torch.inference_mode():
            return classified(model(ids).logits[0].softmax(-1).tolist(), labels=("safe", "unsafe"))

    with Server(answer) as server:
        folder = str(tiny_folder("deberta-v2"))
        options = {"api": "classify", "labels": ["safe", "unsafe"], "tokenizer": folder, "max_tokens": 128}
        there = opened(server, tmp_path / "g.toml", **options).score(asked)
    np.testing.assert_allclose([v.unsafe for v in there], [v.unsafe for v in here], atol=1e-5)
    assert [v.dropped for v in there] == [v.dropped for v in here] and there[-1].dropped > 0
