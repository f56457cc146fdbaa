"""Guards in vLLM without a server: `vllm.LLM` in this process answers what its server would answer.

A family's request is written once, in completions.py and classify.py, and read there. Here the body of a request
becomes a call of vLLM, and what that returns the body of an answer:

    /v1/completions   LLM.generate([{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens, …))
    /classify         LLM.classify([{"prompt_token_ids": ids}]) of an LLM with runner="pooling"

Prompts are the ids that the guard reads in process. Verdict tokens are asked for by id where SamplingParams knows
`logprob_token_ids`; then P(unsafe) is exact up to vLLM's arithmetic. Before that it is bounded by the 20 likeliest
tokens (`max_logprobs`), see logprobs.py. Log-probabilities are those of the raw logits, vLLM's `logprobs_mode`
"raw_logprobs". Written against vLLM 0.11 to 0.22 (vllm/entrypoints/llm.py, sampling_params.py, outputs.py).

No activations are shown: geometry is of the engines that run the model themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError, ModelError, RunError
from guardkeel.guards.base import Family
from guardkeel.guards.guard_policy import GuardPolicy, read_policy
from guardkeel.guards.load import (
    GuardSettings,
    base_path,
    describe,
    guard_path,
    guard_settings,
    unknown_family,
)
from guardkeel.guards.registry import family_named
from guardkeel.guards.remote.api import Api
from guardkeel.guards.remote.classify import Classify
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.completions import Completions, answer_tokens
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.remote.guard import RemoteGuard
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import read_json
from guardkeel.models.loading import load_tokenizer, task_of
from guardkeel.resources import Progress, parse

BATCH = 1024
"""Items in one batch: what a killed run has to judge again. vLLM makes its own batches of them."""
LEAST = -9999.0
"""Stands for a log-probability of −∞, as in vLLM's server."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM makes room for."""


class InProcess:
    """Answers requests as a server would: stands where a guard's Client and its Session stand."""

    def __init__(self, llm: Any, vllm: Any, *, labels: tuple[str, ...] = (), lora: Any = None) -> None:
        self._llm, self._vllm, self._labels, self._lora = llm, vllm, labels, lora
        self._named = hasattr(vllm.SamplingParams, "logprob_token_ids")

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[InProcess]:
        """See Client."""
        yield self

    async def ask(self, body: dict[str, Any]) -> Any:
        """See Session. Raises Failed where vLLM would not take an input, RunError where it broke."""
        try:
            return self._classified(body) if "input" in body else self._completed(body)
        except ValueError as e:  # its own validation, such as an input that is too long
            raise Failed(f"vLLM refused the input ({type(e).__name__})", refused=True) from e
        except Exception as e:
            raise RunError(
                f"vLLM: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:400],
                remedy="see what vLLM printed; then repeat the command: it goes on where it stopped",
            ) from e

    def succeeded(self) -> None:
        """See Session."""

    def failed(self, failure: Failed) -> None:
        """See Session: an input that is refused says nothing of the next."""

    def _completed(self, body: dict[str, Any]) -> dict[str, Any]:
        named = body.get("logprob_token_ids") if self._named else None
        shown = {"logprob_token_ids": named} if named else {"logprobs": body.get("logprobs")}
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=body["max_tokens"], **shown)
        found = self._llm.generate(_prompts(body["prompt"]), params, use_tqdm=False, lora_request=self._lora)
        return {"choices": [_choice(i, request.outputs[0]) for i, request in enumerate(found)]}

    def _classified(self, body: dict[str, Any]) -> dict[str, Any]:
        found = self._llm.classify(_prompts(body["input"]), use_tqdm=False, lora_request=self._lora)
        rows = [[float(p) for p in request.outputs.probs] for request in found]
        return {
            "data": [
                {"index": i, "probs": row, "label": self._label(row), "num_classes": len(row)}
                for i, row in enumerate(rows)
            ]
        }

    def _label(self, row: list[float]) -> str:
        best = max(range(len(row)), key=row.__getitem__)
        return self._labels[best] if best < len(self._labels) else ""


def _prompts(value: Any) -> list[dict[str, Any]]:
    """Token ids of one input or of several, as vLLM's TokensPrompt."""
    rows = [value] if isinstance(value[0], int) else value
    return [{"prompt_token_ids": list(ids)} for ids in rows]


def _choice(index: int, output: Any) -> dict[str, Any]:
    """A CompletionOutput as a choice of /v1/completions, with tokens written as ids."""
    choice = {"index": index, "text": output.text, "finish_reason": output.finish_reason, "logprobs": None}
    if output.logprobs is not None:
        tops = [
            {f"token_id:{i}": max(LEAST, float(entry.logprob)) for i, entry in place.items()}
            for place in output.logprobs
        ]
        tokens = [f"token_id:{i}" for i in list(output.token_ids)[: len(tops)]]
        choice["logprobs"] = {
            "tokens": tokens,
            "token_logprobs": [top[token] for top, token in zip(tops, tokens, strict=True)],
            "top_logprobs": tops,
        }
    return choice


def load_offline(
    reference: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    policy: GuardPolicy | str | Path | None = None,
    family: str | None = None,
    threshold: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_tokens: int | None = None,
    token_budget: int | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> RemoteGuard:
    """A checkpoint or an adapter, run by vLLM in this process; the arguments are those of load_checkpoint.

    `arguments` go to vllm.LLM, over ours. vLLM chooses the device and its batches itself: `device` and `token_budget`
    say nothing.

    Raises:
        ConfigError: vLLM is not installed, or the guard is of a kind whose verdicts would be others in it.
        ModelError: vLLM cannot load the model.
    """
    path = guard_path(reference, progress=progress, offline=offline)
    below = base_path(path, progress, offline) if is_adapter(path) else path
    said, model = guard_settings(path, below), read_json(below / "config.json", "")
    policy = read_policy(policy) if isinstance(policy, str | Path) else policy
    tokenizer = load_tokenizer(below)
    grammar: Family | None = None
    if task_of(model, below) == "classifier":
        config, limit = _classifier(reference, below, model, tokenizer, said, max_tokens)
        api: Api = Classify(config, tokenizer)
        runner = {"runner": "pooling", "max_model_len": limit}
    else:
        encoder, _ = describe(path, reference, family=family)
        if encoder is None:
            raise unknown_family(reference)
        grammar = encoder.family if policy is None else family_named(encoder.family.name).under(policy)
        longest = int(model.get("max_position_embeddings") or 0) or (max_tokens or 2048)
        limit = min(max_tokens or 2048, longest)
        config = _config("completions", reference, below, family=grammar.name, max_tokens=limit, exact=True)
        api = Completions(config, grammar, tokenizer)
        runner = {"max_model_len": min(longest, limit + answer_tokens(config, grammar))}
    vllm = _vllm()
    given = {"model": str(below), "dtype": dtype, "seed": 0, **runner, **_room(path), **(arguments or {})}
    try:
        llm = vllm.LLM(**given)
    except Exception as e:
        raise ModelError(
            f"{reference}: vLLM cannot load it: {str(e).splitlines()[0] if str(e) else type(e).__name__}"[
                :400
            ],
            remedy="see what vLLM printed, and its list of supported models; or take --engine local or ray",
        ) from e
    lora = vllm.lora.request.LoRARequest("guard", 1, str(path)) if is_adapter(path) else None
    at = threshold if threshold is not None else (said.threshold if said.threshold is not None else 0.5)
    return RemoteGuard(
        config.model_copy(update={"threshold": at}),
        api,
        name=said.name or Path(parse(reference).name).name,
        family=grammar,
        facts={
            "dtype": str(given["dtype"]),
            "engine": "vllm",
            "vllm": str(getattr(vllm, "__version__", "")),
            "max_tokens": limit,
            "policy": None if policy is None else policy.model_dump(mode="json"),
            "arguments": {
                k: v for k, v in (arguments or {}).items() if isinstance(v, str | int | float | bool)
            },
            "offsets": dict(said.offsets or {}),
        },
        client=InProcess(llm, vllm, labels=config.labels, lora=lora),
        batch=BATCH,
        offsets=said.offsets or {},
    )


def _config(api: Any, reference: str, below: Path, **values: Any) -> RemoteConfig:
    """The request's side of it; no address is ever asked."""
    return RemoteConfig(
        url="http://localhost",
        api=api,
        model=reference,
        tokenizer=str(below),
        inputs=BATCH,
        concurrency=1,
        **values,
    )


def _classifier(
    reference: str, below: Path, model: dict[str, Any], tokenizer: Any, said: GuardSettings, most: int | None
) -> tuple[RemoteConfig, int]:
    if int(model.get("type_vocab_size") or 0) > 1:
        raise ConfigError(
            f"{reference}: this classifier tells a question from its answer by segment ids, which vLLM is not given",
            remedy="take --engine local or ray",
        )
    limits = (model.get("max_position_embeddings"), tokenizer.model_max_length)
    limit = min([most or 512, *(int(n) for n in limits if n and n > 0)])
    names = {int(i): str(name) for i, name in (model.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
    config = _config(
        "classify",
        reference,
        below,
        labels=tuple(names[i] for i in sorted(names)),
        unsafe_labels=tuple(said.unsafe_labels or ()),
        multi_label=model.get("problem_type") == "multi_label_classification",
        max_tokens=limit,
    )
    return config, limit


def _room(path: Path) -> dict[str, Any]:
    """What vLLM must be told before an adapter can be put on."""
    if not is_adapter(path):
        return {}
    rank = int(read_json(path / "adapter_config.json", "").get("r") or RANKS[0])
    return {"enable_lora": True, "max_lora_rank": next((r for r in RANKS if r >= rank), rank)}


def _vllm() -> Any:
    try:
        import vllm
        import vllm.lora.request
    except ImportError as e:
        raise ConfigError(
            "engine 'vllm' needs vLLM", remedy="pip install 'guardkeel[vllm]' on a machine that vLLM supports"
        ) from e
    return vllm
