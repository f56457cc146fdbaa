"""From targets and instructions to lessons: the token ids that a guard reads and those that it learns to say.

Guard conversations are rendered by the guard's own family, instructions by the checkpoint's own chat template. In
both, nothing in a message can pose as the template, and what does not fit is shortened inside messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from guardkeel.conversation import Conversation, Label, Side, Turn
from guardkeel.errors import ConfigError, DataError
from guardkeel.guards.disarm import Disarmer
from guardkeel.guards.encoding import Encoder, NotSharedError
from guardkeel.guards.shorten import Shortener
from guardkeel.tuning.targets import Instruction, Target

if TYPE_CHECKING:
    from guardkeel.guards.classifier import ClassifierGuard

_REMEDY = (
    "tune on guard conversations (rows with labels), or on a checkpoint with a chat template for answers"
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One thing to learn.

    `answer_ids` come after `prompt_ids`, end token included; a classifier learns `label` instead and has `segments`
    beside its ids where the model takes them. `shared` says that the prompt begins after the prefix that all guard
    lessons share. `dropped` and `cut` count the tokens left out of messages and at the end of the answer to fit.
    """

    id: str
    prompt_ids: list[int]
    answer_ids: list[int] = field(default_factory=list)
    label: Label | None = None
    side: Side = "prompt"
    weight: float = 1.0
    shared: bool = False
    segments: list[int] = field(default_factory=list)
    dropped: int = 0
    cut: int = 0

    @property
    def verdict(self) -> bool:
        """Whether the answer begins with a verdict, so that its first token is worth most."""
        return self.label is not None

    def asked(self) -> Lesson:
        """The lesson without its answer."""
        return replace(self, answer_ids=[])


def guard_lessons(
    items: Sequence[Target], encoder: Encoder, tokenizer: Any, strict: bool = True
) -> list[Lesson]:
    """The lessons of a causal guard. Prompts begin after the encoder's shared prefix, if it has one.

    Unless it is `strict`, items that do not fit are left out.

    Raises:
        ConfigError: an item does not fit, its verdict cannot be taught, or the tokenizer has no end token.
        NotSharedError: an item does not begin with the shared prefix.
    """
    end = _end(tokenizer)
    shared = bool(encoder.prefix_ids)
    lessons = []
    for t in items:
        try:
            encoded = encoder.encode(t.judgement)
        except NotSharedError:
            raise
        except ConfigError as e:
            if not strict:
                continue
            raise ConfigError(f"item {t.judgement.id!r}: {e.problem}", remedy=e.remedy) from e
        form = encoder.form(t.judgement.side)
        form.only()
        said = form.after(encoder.family.answer(t.label, t.categories, t.judgement.side))
        lessons.append(
            Lesson(
                id=t.judgement.id,
                prompt_ids=encoded.ids,
                answer_ids=[*said, end],
                label=t.label,
                side=t.judgement.side,
                weight=t.weight,
                shared=shared,
                dropped=encoded.dropped,
            )
        )
    return lessons


def classifier_lessons(items: Sequence[Target], guard: ClassifierGuard) -> list[Lesson]:
    """The lessons of a classifier; raises DataError for an item that it cannot read."""
    lessons = []
    for t in items:
        encoded = guard.encode(t.judgement)
        if isinstance(encoded, str):
            raise DataError(f"item {t.judgement.id!r}: {encoded}", remedy="repair or drop the row")
        pairs, dropped = encoded
        ids, segments = (list(column) for column in zip(*pairs, strict=True))
        lessons.append(
            Lesson(
                t.judgement.id,
                ids,
                label=t.label,
                side=t.judgement.side,
                weight=t.weight,
                segments=segments,
                dropped=dropped,
            )
        )
    return lessons


def instruction_lessons(examples: Sequence[Instruction], tokenizer: Any, max_tokens: int) -> list[Lesson]:
    """The lessons of instruction data, rendered by the checkpoint's chat template.

    An answer that does not fit beside its prompt is cut at its end, but never below half of `max_tokens`; then the
    longest message before it is shortened in its middle.

    Raises:
        ConfigError: there is no chat template, or it cannot show an example; an example does not fit.
    """
    chat = _Chat(tokenizer, max_tokens)
    lessons = []
    for example in examples:
        try:
            lessons.append(chat.lesson(example))
        except ConfigError as e:
            raise ConfigError(f"instruction {example.id!r}: {e.problem}", remedy=e.remedy) from e
    return lessons


class _Chat:
    """Conversations → ids of what comes before the last turn, ids of that turn."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        template = getattr(tokenizer, "chat_template", None) or ""
        if isinstance(template, dict):
            template = template.get("default", "")
        if not template:
            raise ConfigError(
                "the checkpoint has no chat template to render instructions with", remedy=_REMEDY
            )
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._tools = "tool_calls" in template
        self._disarm = Disarmer(tokenizer)
        self._shortener = Shortener(tokenizer, max_tokens)

    def lesson(self, example: Instruction) -> Lesson:
        """See instruction_lessons."""
        turns = [self._disarmed(t) for t in example.conversation.turns]
        prompt, answer = self._ids(turns)
        said = answer[: max(self.max_tokens // 2, self.max_tokens - len(prompt))]
        dropped = 0
        if len(prompt) + len(said) > self.max_tokens:

            def encode(contents: list[str]) -> list[int]:
                short = [replace(t, content=c) for t, c in zip(turns, contents, strict=False)]
                return self._ids([*short, turns[-1]])[0]

            contents = [t.content for t in turns[:-1]]
            prompt, dropped = self._shortener.fit(contents, encode, self.max_tokens - len(said))
        return Lesson(example.id, prompt, said, dropped=dropped, cut=len(answer) - len(said))

    def _ids(self, turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Together they are the ids of the whole text; a token across the border belongs to the answer."""
        prompt, answer, end = self._texts(turns)
        before = _tokenise(self.tokenizer, prompt)
        whole = _tokenise(self.tokenizer, prompt + answer) + end
        shared = _agree(before, whole)
        return whole[:shared], whole[shared:]

    def _texts(self, turns: list[Turn]) -> tuple[str, str, list[int]]:
        """What the template writes before the last turn, what it writes for it, and the end token if it has none."""
        messages = [self._message(t) for t in turns]
        whole = self._render(messages)
        prompt = self._render(messages[:-1], asking=True)
        goes_on = whole.startswith(prompt)
        if not goes_on:  # some templates open a thought for the model, which answers lack
            goes_on = whole.startswith(self._render(messages[:-1]))
            prompt = whole[: _agree(prompt, whole)]
        answer = whole[len(prompt) :].rstrip()
        if not goes_on or messages[-1]["content"].strip() not in answer:
            raise ConfigError(
                "the chat template does not go on from the messages to the assistant's answer", remedy=_REMEDY
            )
        ends = [m.end() for m in self._disarm.added.finditer(answer)] if self._disarm.added else []
        return prompt, answer, [] if len(answer) in ends else [_end(self.tokenizer)]

    def _render(self, messages: list[dict[str, Any]], *, asking: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
            )
        except (TemplateError, TypeError, AttributeError) as e:
            roles = ", ".join(m["role"] for m in messages)
            raise ConfigError(
                f"the chat template cannot render messages of {roles:.80} ({e})",
                remedy="leave out the roles that this checkpoint's template does not take",
            ) from e

    def _message(self, turn: Turn) -> dict[str, Any]:
        """A turn as templates want it: tool arguments as objects, or calls as text where they know of none."""
        if turn.tool_calls and not self._tools:
            return {"role": turn.role, "content": Conversation((turn,)).text}
        message = Conversation((turn,)).to_messages()[0]
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = _object(call["function"]["arguments"])
        return message

    def _disarmed(self, turn: Turn) -> Turn:
        clean = self._disarm
        calls = (
            replace(c, name=clean(c.name), arguments=clean(c.arguments), id=clean(c.id))
            for c in turn.tool_calls
        )
        return replace(
            turn,
            content=clean(turn.content),
            tool_calls=tuple(calls),
            name=clean(turn.name),
            tool_call_id=clean(turn.tool_call_id),
        )


def _object(text: str) -> Any:
    """A tool call's arguments as an object, or as they are where they are none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _agree(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _end(tokenizer: Any) -> int:
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            "the tokenizer has no end token, so a guard could not learn where an answer ends",
            remedy="set eos_token in the checkpoint's tokenizer_config.json",
        )
    return end
