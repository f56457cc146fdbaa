"""A guard in vLLM gives the verdicts that it gives in process.

vLLM itself runs on few machines. Here a stand-in has its classes, arguments and return types (vLLM 0.22: LLM.generate,
LLM.classify, SamplingParams, RequestOutput, Logprob), and the numbers of a real model.
"""

import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from test_remote_parity import LONG, decided

from guard_doubles import items
from guardkeel.conversation import Conversation
from guardkeel.engines.opening import open_guard
from guardkeel.engines.settings import EngineSettings
from guardkeel.errors import ConfigError, RunError
from guardkeel.evaluation.scoring import score
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_guard
from guardkeel.guards.offsets import shifted

VLLM = EngineSettings(engine="vllm", vllm={"enforce_eager": True})


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class Params:
    """SamplingParams, with its own rules."""

    logprob_token_ids = None

    def __init__(self, *, temperature=1.0, max_tokens=16, logprobs=None, logprob_token_ids=None):
        assert temperature == 0.0 and max_tokens >= 1
        assert logprob_token_ids is None or (logprobs is None and len(logprob_token_ids) <= 128)
        self.max_tokens, self.logprobs, self.logprob_token_ids = max_tokens, logprobs, logprob_token_ids


class OldParams:
    """As it was before it knew logprob_token_ids."""

    def __init__(self, *, temperature=1.0, max_tokens=16, logprobs=None):
        assert temperature == 0.0 and max_tokens >= 1 and logprobs <= 20  # max_logprobs
        self.max_tokens, self.logprobs = max_tokens, logprobs


def stand_in(params=Params):
    """A module `vllm`; `calls` holds what its LLMs were made with and asked."""
    from guardkeel.models.loading import load_model, load_tokenizer

    class LLM:
        def __init__(self, model, dtype="auto", seed=None, runner="auto", max_model_len=None, **more):
            vllm.calls.append({"model": model, "runner": runner, "max_model_len": max_model_len, **more})
            self.model, self.tokenizer = load_model(model, dtype, "cpu"), load_tokenizer(model)
            self.limit = max_model_len

        def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
            return [self.one(p["prompt_token_ids"], sampling_params) for p in prompts]

        def one(self, prompt, wanted):
            if len(prompt) > self.limit:
                raise ValueError("The decoder prompt is longer than the maximum model length")
            ids, places = list(prompt), []
            for _ in range(min(wanted.max_tokens, 2)):
                with torch.inference_mode():
                    logs = self.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                best = int(logs.argmax())
                named = (
                    getattr(wanted, "logprob_token_ids", None) or logs.topk(wanted.logprobs).indices.tolist()
                )
                places.append({i: Logprob(float(logs[i])) for i in dict.fromkeys([best, *named])})
                ids.append(best)
            new = ids[len(prompt) :]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            return SimpleNamespace(
                outputs=[SimpleNamespace(text=text, token_ids=new, logprobs=places, finish_reason="length")]
            )

        def classify(self, prompts, *, use_tqdm=True, lora_request=None):
            with torch.inference_mode():
                rows = [
                    self.model(torch.tensor([p["prompt_token_ids"]])).logits[0].softmax(-1) for p in prompts
                ]
            return [SimpleNamespace(outputs=SimpleNamespace(probs=r.tolist())) for r in rows]

    vllm = ModuleType("vllm")
    vllm.calls, vllm.LLM, vllm.SamplingParams, vllm.__version__ = [], LLM, params, "0.0"
    vllm.lora = ModuleType("vllm.lora")
    vllm.lora.request = ModuleType("vllm.lora.request")
    vllm.lora.request.LoRARequest = lambda *said: said
    return vllm


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    def install(params=Params):
        module = stand_in(params)
        for name, part in (("", module), (".lora", module.lora), (".lora.request", module.lora.request)):
            monkeypatch.setitem(sys.modules, f"vllm{name}", part)
        return module

    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    return install


@pytest.fixture(scope="module")
def keel(tiny_loaded, tmp_path_factory):
    """The folder of a guard that only says safe or unsafe, with a threshold and an offset of its own."""
    model, tokenizer = tiny_loaded("llama")
    folder = tmp_path_factory.mktemp("vllm") / "keel"
    decided(model, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = {"family": "keel", "threshold": 0.4, "offsets": {"prompt": 0.7}, "name": "mine"}
    (folder / "guardkeel.json").write_text(json.dumps(said))
    return folder


ASKED = [*items()[:12], LONG]


def test_a_causal_guard(vllm, keel, tmp_path):
    module = vllm()
    options = {"dtype": "float32", "max_tokens": 1200}
    here = load_guard(str(keel), device="cpu", **options).score(ASKED, categories=False)
    guard = open_guard(VLLM, str(keel), **options)
    assert (guard.name, guard.family, guard.threshold) == ("mine", "keel", 0.4)
    assert module.calls[0]["enforce_eager"] is True and 1200 < module.calls[0]["max_model_len"] <= 2048
    there = score(guard, ASKED, tmp_path / "run", "reference")
    assert {v.unsafe >= 0.5 for v in here} == {True, False}
    np.testing.assert_allclose(there.scores, [v.unsafe for v in here], atol=1e-5)
    assert [v.dropped for v in there.verdicts] == [v.dropped for v in here] and here[-1].dropped > 0
    # What it judged cannot go on in process: its arithmetic is another.
    with pytest.raises(ConfigError, match="holds an unfinished run"):
        score(load_guard(str(keel), device="cpu", **options), ASKED, tmp_path / "run", "reference")


def test_without_names_of_tokens_no_certainty_is_made_up(vllm, keel):
    vllm(OldParams)
    options = {"dtype": "float32", "max_tokens": 1200}

    def raw(guard):  # without the offset
        return np.array(
            [
                shifted(v.unsafe, -0.7 if j.side == "prompt" else 0)
                for j, v in zip(ASKED, guard.score(ASKED), strict=True)
            ]
        )

    chances, bounded = (
        raw(load_guard(str(keel), device="cpu", **options)),
        raw(open_guard(VLLM, str(keel), **options)),
    )
    assert ((bounded >= 0.5) == (chances >= 0.5)).all()
    assert (np.abs(bounded - 0.5) <= np.abs(chances - 0.5) + 1e-6).all()


def test_a_classifier(vllm, tiny_folder):
    module = vllm()
    folder = str(tiny_folder("deberta-v2"))
    asked = [*[j for j in items() if j.conversation.text.strip()][:12], LONG]
    options = {"dtype": "float32", "max_tokens": 128}
    here = load_guard(folder, device="cpu", **options).score(asked)
    there = open_guard(VLLM, folder, **options).score(asked)
    assert module.calls[0]["runner"] == "pooling"
    np.testing.assert_allclose([v.unsafe for v in there], [v.unsafe for v in here], atol=1e-5)
    assert [v.dropped for v in there] == [v.dropped for v in here] and there[-1].dropped > 0


def test_what_it_cannot_do_is_said(vllm, keel, tiny_folder, monkeypatch):
    vllm()
    with pytest.raises(ConfigError, match="segment ids"):
        open_guard(VLLM, str(tiny_folder("bert")))
    short = EngineSettings(engine="vllm", vllm={"max_model_len": 1100})
    two = [Judgement("short", Conversation.of("hi"), "prompt"), LONG]
    verdicts = open_guard(short, str(keel), dtype="float32", max_tokens=1200).score(two)
    assert verdicts[0].unsafe is not None
    assert "refused" in verdicts[1].unscored
    broken = open_guard(VLLM, str(keel), dtype="float32")
    monkeypatch.setattr(broken._client._llm, "generate", lambda *a, **k: 1 / 0)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        broken.score(two)
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="needs vLLM"):
        open_guard(VLLM, str(keel))
