"""`/v1/completions` (vLLM, SGLang, llama.cpp, OpenAI): the family writes the prompt, the server goes on.

Request: {model, prompt, max_tokens, temperature, logprobs}. With a tokenizer here the prompt is sent as token ids:
what the guard reads is then the same as in process, and long messages are shortened. Without one it is text, and the
server is told not to put another beginning-of-sequence token before it (`add_special_tokens`, which vLLM knows).
Answer: {choices: [{index, text, finish_reason, logprobs: {tokens, token_logprobs, top_logprobs}}]}.

With `exact` the request names the tokens with which verdicts begin (`logprob_token_ids`). vLLM then shows those and the
one that was written in place of the likeliest, so that P(unsafe) is what it is in process. A server that does not know
the key shows the likeliest as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Family, Judgement, Verdict
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.remote.api import Asked, cleaned, disarmer, entries
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.remote.logprobs import Reader, positions

ANSWER_TOKENS = 128
"""Longest answer that is asked for: openings, verdict and category names."""
FREE_TOKENS = 512
"""The same for families that write free text first."""
MOST_IDS = 128
"""Most tokens that vLLM lets a request name in `logprob_token_ids`."""


def answer_tokens(config: RemoteConfig, family: Family) -> int:
    """How many tokens the server may generate."""
    free = not all(family.blanks(side) for side in family.sides)
    said: int = getattr(family, "answer_tokens", FREE_TOKENS if free else ANSWER_TOKENS)
    return config.max_new_tokens or said


class Completions:
    """See Api."""

    def __init__(self, config: RemoteConfig, family: Family, tokenizer: Any = None) -> None:
        self._config, self._family = config, family
        self._reader = Reader(family, tokenizer)
        self._encoder = (
            Encoder(family, tokenizer, max_tokens=config.max_tokens or 2048) if tokenizer else None
        )
        self._clean = disarmer(tokenizer)
        self._verdicts: dict[Side, set[int]] = {}
        if self._encoder is None:
            for side in family.sides:
                self._text(Conversation.of("a", None if side == "prompt" else "b"), side)

    def prepare(self, item: Judgement) -> Asked:
        """See Api: token ids, or text."""
        if self._encoder is not None:
            encoded = self._encoder.encode(item)
            # What the guard writes before its verdict it is to write by itself: else it left its grammar.
            own = len(encoded.ids) - encoded.opened
            return Asked(encoded.ids[:own], item.side, encoded.dropped)
        if item.side not in self._family.sides:
            raise ConfigError(
                f"family {self._family.name!r} does not judge the {item.side} side",
                remedy=f"it judges {', '.join(self._family.sides)}",
            )
        return Asked(self._text(cleaned(item.conversation, self._clean), item.side), item.side)

    def body(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """See Api."""
        config = self._config
        prompts = [a.value for a in asked]
        body: dict[str, Any] = {
            "model": config.model,
            "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "max_tokens": answer_tokens(config, self._family),
            "temperature": 0,
        }
        if config.top_logprobs:
            body["logprobs"] = config.top_logprobs
        if self._encoder is None:
            body["add_special_tokens"] = False
        elif config.exact and config.top_logprobs:
            named = sorted(set[int]().union(*(self._verdict_ids(a.side, self._encoder) for a in asked)))
            if 0 < len(named) <= MOST_IDS:
                body["logprob_token_ids"] = named
        return body | config.extra

    def _verdict_ids(self, side: Side, encoder: Encoder) -> set[int]:
        """Tokens with which verdicts begin, whatever was answered to the blanks before."""
        if side not in self._verdicts:
            form = encoder.form(side)
            filled = product(*(blank.answers for blank in form.blanks[:-1])) if form.blanks else ()
            steps = [form.step(answers) for answers in filled]
            self._verdicts[side] = {i for step in steps for i in (*step.unsafe, *step.safe)}
        return self._verdicts[side]

    def read(self, answer: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """See Api."""
        verdicts = []
        for choice, one in zip(entries(answer, "choices", len(asked)), asked, strict=True):
            text = choice.get("text")
            if not isinstance(text, str):
                raise Failed("the answer has no text")
            cut = choice.get("finish_reason") == "length"
            verdicts.append(self._reader.read(text, positions(choice.get("logprobs")), one.side, cut=cut))
        return verdicts

    def _text(self, conversation: Conversation, side: Any) -> str:
        try:
            return self._family.render(conversation, side, None).text
        except (ModelError, AttributeError, TypeError) as e:
            raise ConfigError(
                f"family {self._family.name!r} cannot write its prompt without a tokenizer",
                remedy='add tokenizer = "…", a folder or reference that has the guard\'s own',
            ) from e
