"""PolyGuard (arXiv:2504.04377, ToxicityPrompts/PolyGuard-Qwen, -Qwen-Smol, -Ministral): WildGuard in 17 languages.

    Harmful request: yes
    Request safety violations: S2
    Response refusal: no
    Harmful response: yes
    Response safety violations: S2, S6

A prompt is judged by the first word, with an empty response. Before the verdict on a response stands a list of any
length: there the lines are generated and read, and P(unsafe) is 0 or 1.

The task with its fourteen categories is the system message, the exchange the user's, in the chat template of the
model that it was made from. Of a longer conversation it sees the last exchange; a trajectory is given as the first
request and all that followed as its response, which is ours. Messages can write neither "Human user:" nor
"AI assistant:" at the beginning of a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from guardkeel.conversation import SIDES, Conversation, Label, Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Blank, Rendered, Verdict
from guardkeel.guards.chat_template import ChatTemplate, template_text
from guardkeel.guards.exchange import last_exchange, speaker
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.markers import breaker, without_markers
from guardkeel.guards.wildguard import TASK
from guardkeel.taxonomy import LLAMA_GUARD_3, home

_WORDED = {  # three categories have shorter names in the prompt
    "Sex-Related Crimes": "Sex Crimes",
    "Child Sexual Exploitation": "Child Exploitation",
    "Suicide & Self-Harm": "Self-Harm",
}
SYSTEM = (
    f"{TASK}\nIn addition, identify the policies violated if the interaction is unsafe and harmful according to the "
    "safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
    + "".join(f"S{i}: {_WORDED.get(name, name)}.\n" for i, name in enumerate(LLAMA_GUARD_3, 1))
    + "<END UNSAFE CONTENT CATEGORIES>"
)
_LINES = (
    ("Harmful request", re.compile("yes|no")),
    ("Request safety violations", re.compile(r"none|s\d{1,2}(?:\s*,\s*s\d{1,2})*")),
    ("Response refusal", re.compile("yes|no|n/a")),
    ("Harmful response", re.compile("yes|no|n/a")),
    ("Response safety violations", re.compile(r"none|n/a|s\d{1,2}(?:\s*,\s*s\d{1,2})*")),
)
_unmarked = breaker(speaker("Human user", "AI assistant"))
_NAMED = {home(name): name for name in LLAMA_GUARD_3}


def _messages(contents: Sequence[str]) -> list[dict[str, Any]]:
    request, response = (*contents, "")[:2]
    exchange = f"Human user:\n{request}\n\nAI assistant:\n{response}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": exchange}]


class PolyGuard:
    """Template and grammar of PolyGuard."""

    name = "polyguard"
    categories: tuple[str, ...] = LLAMA_GUARD_3
    sides: tuple[Side, ...] = SIDES
    answer_tokens = 100

    def under(self, policy: GuardPolicy) -> PolyGuard:
        """See Family: it was trained on one list of categories."""
        if policy.categories:
            raise ConfigError(
                f"policy {policy.name!r}: PolyGuard was trained on fixed categories",
                remedy="leave [[categories]] out, or take a guard of a family that reads its policy",
            )
        return self

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """See Family. Raises ModelError for a checkpoint without a chat template that takes a system message."""
        remedy = "take the published checkpoint's chat template"
        if not template_text(tokenizer):
            raise ModelError("this checkpoint has no chat template, which PolyGuard needs", remedy=remedy)
        request, response = last_exchange(without_markers(conversation, _unmarked), side)
        chat = ChatTemplate(tokenizer, messages=_messages, opening="Human user:\n", remedy=remedy)
        rendered = chat.render([request] if side == "prompt" else [request, response])
        if rendered is None or SYSTEM not in rendered.text:
            raise ModelError(
                "the chat template of this checkpoint does not show the task in its own words", remedy=remedy
            )
        return rendered

    def blanks(self, side: Side) -> tuple[Blank, ...]:
        """See Family: the first line for a prompt; no fixed form for the others."""
        return (Blank("Harmful request:", safe=(" no",), unsafe=(" yes",)),) if side == "prompt" else ()

    def answer(self, label: Label, categories: Sequence[str] = (), side: Side = "prompt") -> str:
        """See Family: the judged word, and the codes on the next line as far as categories are known."""
        if label == "safe":
            return f" no\n{'Request' if side == 'prompt' else 'Response'} safety violations: None"
        named = dict.fromkeys(c if c in self.categories else _NAMED.get(home(c)) for c in categories)
        codes = [f"S{self.categories.index(name) + 1}" for name in named if name]
        kind = "Request" if side == "prompt" else "Response"
        return f" yes\n{kind} safety violations: {', '.join(codes)}" if codes else " yes"

    def parse(self, output: str, side: Side = "prompt") -> Verdict:
        """See Family: the lines in their order, as far as the judged one. A harmless verdict with a code is none."""
        said: list[str] = []
        lines = output.strip().split("\n")
        for (name, values), line in zip(_LINES, lines, strict=False):
            field, colon, value = line.partition(":")
            value = value.strip().lower()
            if field.strip() != name or not colon or not values.fullmatch(value):
                return Verdict(unsafe=None, unscored=f"output outside the grammar: {line!r:.60}")
            said.append(value)
        judged = 0 if side == "prompt" else 3
        if len(lines) > len(_LINES) or len(said) <= judged:
            return Verdict(unsafe=None, unscored=f"output outside the grammar: {output!r:.60}")
        codes = (
            [int(code) for code in re.findall(r"s(\d+)", said[judged + 1])] if len(said) > judged + 1 else []
        )
        unknown = next((code for code in codes if not 1 <= code <= len(self.categories)), None)
        if unknown is not None:
            return Verdict(unsafe=None, unscored=f"unknown category code 'S{unknown}'")
        if said[judged] == "n/a":
            return Verdict(unsafe=None, unscored=f"{_LINES[judged][0]} is N/A")
        if said[judged] == "yes":
            return Verdict(1.0, categories=tuple(dict.fromkeys(self.categories[code - 1] for code in codes)))
        if codes:
            return Verdict(unsafe=None, unscored=f"not harmful, and yet of category 'S{codes[0]}'")
        return Verdict(0.0)
