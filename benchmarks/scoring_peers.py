"""Other tools on the guard that scoring.py measures: the same weights, and the same token ids by its chat template.

Each peer is opened on a checkpoint folder and offers one or more ways to judge a list of messages. It is set up as it
sets itself up for Llama Guard: the measured guard has a policy of that length, and answers in the same manner (`safe`,
or `unsafe` and a line of names).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.models.loading import load_tokenizer
from guardkeel.models.quiet import quiet


@dataclass(frozen=True)
class Way:
    """A way to judge messages: True for unsafe, False for safe, None where it gave no verdict.

    `alone` says that it runs them one by one.
    """

    name: str
    judge: Callable[[Sequence[str]], list[bool | None]]
    alone: bool = False


@dataclass(frozen=True)
class Opened:
    """The checkpoint as a peer opens it: folder, name of the number format, device, and messages a batch may hold."""

    folder: Path
    dtype: str
    device: str
    batch: int


def write_checkpoint(guard: CausalGuard, folder: Path) -> None:
    """Write the guard with a chat template that renders one user message as its family does.

    `add_generation_prompt` says nothing to it: tools differ in passing it, and the prompt must not.
    """
    mark = "[[the message]]"
    whole = guard.grammar.render(Conversation.of(mark), "prompt", guard.tokenizer).text
    before, after = whole.split(mark)
    template = f"{{{{ {json.dumps(before)} + messages[0]['content'] + {json.dumps(after)} }}}}"
    with quiet():
        guard.model.save_pretrained(folder)
    own, guard.tokenizer.chat_template = guard.tokenizer.chat_template, template
    try:
        guard.tokenizer.save_pretrained(folder)
    finally:
        guard.tokenizer.chat_template = own


def assert_same_ids(guard: CausalGuard, folder: Path, items: Sequence[Judgement]) -> None:
    """The chat template, rendered at once or as text first, gives each item the ids that the engine gives it."""
    encoder, theirs = Encoder(guard.grammar, guard.tokenizer), load_tokenizer(folder)
    for item, text in zip(items, map(message, items), strict=True):
        ours, said = encoder.encode(item).ids, [{"role": "user", "content": text}]
        for wish in (False, True):
            at_once = theirs.apply_chat_template(said, add_generation_prompt=wish, return_dict=True)
            as_text = theirs.apply_chat_template(said, add_generation_prompt=wish, tokenize=False)
            assert at_once["input_ids"] == ours == theirs(as_text)["input_ids"], (
                f"item {item.id}: other token ids"
            )


def message(item: Judgement) -> str:
    """The text of an item of one turn."""
    (turn,) = item.conversation.turns
    return turn.content


def any_guardrail(at: Opened) -> list[Way]:
    """Its Llama Guard guardrail: one call a message, which is all it offers, and its provider's batched generation.

    Both with the guardrail's own settings (20 new tokens, greedy, padding with id 0). Batches are cut and read here.
    """
    import torch
    from any_guardrail.guardrails.llama_guard import LlamaGuard
    from any_guardrail.providers.huggingface import HuggingFaceProvider

    class Here(LlamaGuard):  # type: ignore[misc]
        # The first gets a list of content parts; every other gets text, which is what our template takes.
        SUPPORTED_MODELS = [LlamaGuard.SUPPORTED_MODELS[0], str(at.folder)]  # noqa: RUF012

    provider = HuggingFaceProvider(device=at.device, torch_dtype=getattr(torch, at.dtype))
    with quiet():
        guardrail = Here(str(at.folder), provider)

    def one_by_one(texts: Sequence[str]) -> list[bool | None]:
        return [not guardrail.validate(text).valid for text in texts]

    def batched(texts: Sequence[str]) -> list[bool | None]:
        found: list[bool | None] = []
        for start in range(0, len(texts), at.batch):
            said = [[{"role": "user", "content": text}] for text in texts[start : start + at.batch]]
            out = provider.generate_chat(
                said,
                max_new_tokens=20,
                chat_template_kwargs={"add_generation_prompt": False},
                generation_kwargs={"pad_token_id": 0},
            )
            found += ["unsafe" in text.lower() for text in out.data["generated_text"]]
        return found

    return [
        Way("any-guardrail, one call a message", one_by_one, alone=True),
        Way(f"any-guardrail's provider, batches of {at.batch}", batched),
    ]


def geh(at: Opened) -> list[Way]:
    """Its `hf` adapter with the arguments of its Llama Guard 3 8B entry, and batches in its pipeline."""
    from guard_eval_harness.config.models import ResolvedModelConfig
    from guard_eval_harness.models.catalog import resolve_catalog
    from guard_eval_harness.models.huggingface import HuggingFaceAdapter
    from guard_eval_harness.schemas import PredictSample

    entry: Any = resolve_catalog("llama-guard-3-8b", backend="hf")
    settings = {"pipeline_batch_size": at.batch, "torch_dtype": at.dtype, "device": at.device}
    adapter = HuggingFaceAdapter(
        ResolvedModelConfig(adapter="hf", model_name=str(at.folder), args={**entry.args, **settings})
    )

    def batched(texts: Sequence[str]) -> list[bool | None]:
        samples = [
            PredictSample(
                id=str(i), dataset="benchmark", split="test", messages=[{"role": "user", "content": text}]
            )
            for i, text in enumerate(texts)
        ]
        with quiet():
            said = {p.sample_id: p.unsafe_label for p in adapter.predict_batch(samples, threshold=0.5)}
        return [said.get(sample.id) for sample in samples]

    return [Way(f"geh's hf adapter, batches of {at.batch}", batched)]


@dataclass(frozen=True)
class Peer:
    """A tool: the module it is known by, how it is installed, and how it is opened."""

    module: str
    install: str
    open: Callable[[Opened], list[Way]]


PEERS = {
    "any-guardrail": Peer("any_guardrail", "pip install 'guardkeel[any-guardrail]'", any_guardrail),
    "geh": Peer("guard_eval_harness", "pip install 'geh[hf]'", geh),
}


def installed(names: Sequence[str]) -> list[str]:
    """Those of the named peers that are here; for each other one, a line that says how to get it."""
    here = []
    for name in names:
        if importlib.util.find_spec(PEERS[name].module) is None:
            print(f"{name}: left out, not installed ({PEERS[name].install})")
        else:
            here.append(name)
    return here
