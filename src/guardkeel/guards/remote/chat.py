"""`/v1/chat/completions` (OpenAI and everything that speaks it): messages go out, the server's template does the rest.

Request: {model, messages, max_tokens, temperature, logprobs, top_logprobs}. Answer: {choices: [{message: {content},
finish_reason, logprobs: {content: [{token, logprob, top_logprobs: [{token, logprob}]}]}}]}; `logprobs` may be missing.

The messages are those that the family gives to its checkpoint's chat template: the conversation as it is where the
template writes the policy around it (Llama Guard, Granite Guardian, ShieldGemma, Qwen3Guard), the whole prompt as one
message where it does not (NemoGuard). What else the template is given, such as Granite Guardian's risk, goes into
`chat_template_kwargs`, which vLLM and SGLang hand on. A conversation that a template cannot take (system turns, tools)
is sent as user and assistant in turn, see exchange.py. Families that write special tokens of their own (keel,
WildGuard) cannot be asked in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardkeel.conversation import Conversation, Side, Turn
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Family, Judgement, Verdict
from guardkeel.guards.exchange import exchange
from guardkeel.guards.remote.api import Asked, cleaned, disarmer, entries
from guardkeel.guards.remote.client import Failed
from guardkeel.guards.remote.completions import answer_tokens
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.remote.logprobs import Reader, positions


class Chat:
    """See Api. A request's value is (messages, what else the template is given)."""

    def __init__(self, config: RemoteConfig, family: Family) -> None:
        self._config, self._family = config, family
        self._reader, self._clean = Reader(family), disarmer(None)
        for side in family.sides:
            if _heard(family, Conversation.of("a", None if side == "prompt" else "b"), side) is None:
                raise ConfigError(
                    f"family {family.name!r} writes its prompt itself, which a chat server would wrap in a second one",
                    remedy='use api = "completions"',
                )

    def prepare(self, item: Judgement) -> Asked:
        """See Api: messages."""
        if item.side not in self._family.sides:
            raise ConfigError(
                f"family {self._family.name!r} does not judge the {item.side} side",
                remedy=f"it judges {', '.join(self._family.sides)}",
            )
        conversation = cleaned(item.conversation, self._clean)
        heard = _heard(self._family, conversation, item.side)
        if heard is None:
            heard = _heard(self._family, _in_turn(conversation, item.side), item.side)
        if heard is None:
            raise ConfigError(
                "the chat template has no form for such a conversation", remedy='use api = "completions"'
            )
        return Asked(heard, item.side)

    def body(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """See Api."""
        (one,) = asked
        messages, options = one.value
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": messages,
            "max_tokens": answer_tokens(self._config, self._family),
            "temperature": 0,
        }
        if self._config.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self._config.top_logprobs}
        if options:
            body["chat_template_kwargs"] = options
        return body | self._config.extra

    def read(self, answer: Any, asked: Sequence[Asked]) -> list[Verdict]:
        """See Api."""
        (choice,) = entries(answer, "choices", 1)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise Failed("the answer has no text")
        cut = choice.get("finish_reason") == "length"
        return [self._reader.read(text, positions(choice.get("logprobs")), asked[0].side, cut=cut)]


class _AnyTemplate(str):
    """The text of a chat template that has whatever a family looks for in it."""

    def __str__(self) -> str:
        return self

    def __contains__(self, wanted: object) -> bool:
        return True


class _Listener:
    """Stands for the tokenizer of a server and hears what its chat template is given."""

    chat_template = _AnyTemplate("any")

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.text = ""

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, **options: Any
    ) -> str:
        """A text that shows every message once, in a frame that does not change."""
        self.messages, self.options = messages, options
        self.text = "\ue000" + "\ue001".join(str(m["content"]) for m in messages) + "\ue000"
        return self.text


def _heard(
    family: Family, conversation: Conversation, side: Side
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Messages and options for the template; None where the family's prompt is not the template's text of them."""
    listener = _Listener()
    rendered = family.render(conversation, side, listener)
    if not listener.text or rendered.text != listener.text:
        return None
    return listener.messages, listener.options


def _in_turn(conversation: Conversation, side: Side) -> Conversation:
    texts = exchange(conversation, side)
    return Conversation(tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)))
