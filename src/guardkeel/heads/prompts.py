"""What a sweep asks: token ids up to the place whose next token is looked at.

For a guard that is the verdict position; for a chat model the first token of its reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardkeel.errors import ConfigError, DataError

if TYPE_CHECKING:
    from guardkeel.guards.base import Judgement
    from guardkeel.guards.causal import CausalGuard


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids under the id that names them in results; the next token is the one in question.

    `unsafe` and `safe` are the tokens with which a guard's answers begin there; empty for a chat model.
    """

    id: str
    ids: tuple[int, ...]
    unsafe: tuple[int, ...] = ()
    safe: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"prompt {self.id!r} is empty", remedy="leave it out, or give it a text")


def guard_prompts(guard: CausalGuard, items: Sequence[Judgement]) -> list[Prompt]:
    """Items as the guard reads them, through its own template, up to its verdict.

    That is the first blank of the family's form. Families with several blanks (WildGuard's three lines) answer
    others between their first and their verdict: theirs is the place of the first.

    Raises:
        DataError: there are no items, or one cannot be judged (its side is not the family's, it does not fit).
        ConfigError: the guard is no causal model, or its family writes free text and has no such place.
    """
    from guardkeel.guards.encoding import Encoder

    if not hasattr(guard, "grammar"):
        raise ConfigError(
            f"guard {guard.name!r} is no causal language model: it has no verdict position",
            remedy="give a guard that writes its verdict",
        )
    encoder = Encoder(guard.grammar, guard.tokenizer, max_tokens=guard.max_tokens)
    prompts = []
    for item in items:
        try:
            encoded = encoder.encode(item)
        except ConfigError as e:
            raise DataError(f"item {item.id!r}: {e.problem}", remedy="leave it out") from e
        form = encoder.form(item.side)
        if not form.blanks:
            raise ConfigError(
                f"family {guard.family!r} writes free text: its verdict has no place of its own",
                remedy="give token ids (`token_prompts`) or a family with a form",
            )
        step = form.step(())
        prompts.append(Prompt(item.id, tuple(encoded.ids), step.unsafe, step.safe))
    return checked(prompts)


def chat_prompts(
    tokenizer: Any,
    messages: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    ids: Sequence[str] = (),
    system: str = "",
) -> list[Prompt]:
    """Messages to a plain chat model through its chat template, up to the beginning of its reply.

    A tokenizer without a chat template takes texts as they are. Special-token strings in texts are broken, so that
    no text can pose as the template.

    Args:
        tokenizer: the model's own.
        messages: texts of a user, or whole conversations as [{"role", "content"}, …].
        ids: names of the prompts; by default their numbers.
        system: a system turn to put before texts.

    Raises:
        DataError: there are none, one is empty, or ids are too few.
    """
    from guardkeel.guards.disarm import Disarmer

    names = ids or [str(i) for i in range(len(messages))]
    if len(names) != len(messages):
        raise DataError(f"{len(messages)} messages, {len(names)} ids", remedy="give one id a message")
    clean = Disarmer(tokenizer)
    prompts = []
    for name, message in zip(names, messages, strict=True):
        turns = (
            [{"role": "user", "content": message}] if isinstance(message, str) else [dict(m) for m in message]
        )
        if not any(t.get("content", "").strip() for t in turns):
            raise DataError(f"prompt {name!r} is empty", remedy="leave it out, or give it a text")
        if system and isinstance(message, str):
            turns.insert(0, {"role": "system", "content": system})
        turns = [{**t, "content": clean(t["content"])} for t in turns]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            row = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            row = tokenizer("\n".join(t["content"] for t in turns))["input_ids"]
        prompts.append(Prompt(name, tuple(row)))
    return checked(prompts)


def token_prompts(rows: Sequence[Sequence[int]], ids: Sequence[str] = ()) -> list[Prompt]:
    """Token ids as they are.

    Raises:
        DataError: there are none, one is empty, or ids are too few.
    """
    names = ids or [str(i) for i in range(len(rows))]
    if len(names) != len(rows):
        raise DataError(f"{len(rows)} prompts, {len(names)} ids", remedy="give one id a prompt")
    return checked([Prompt(name, tuple(map(int, row))) for name, row in zip(names, rows, strict=True)])


def checked(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts; raises DataError where there are none."""
    if not prompts:
        raise DataError("there are no prompts", remedy="give at least one")
    return list(prompts)
