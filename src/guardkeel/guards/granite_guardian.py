"""Granite Guardian 3.0–3.3 (arXiv:2412.07724, ibm-granite/granite-guardian-3.*): one risk at a time, yes or no.

The prompt is the checkpoint's own chat template, which reads the risk from `guardian_config` and whose message is
judged from the role of the last one. Without the template there is no telling which of its versions a checkpoint
was trained with, so it is asked for.

| | risk | writes |
|---|---|---|
| 3.0, 3.1 | `risk_name`, or a name and `risk_definition` | `Yes` or `No` |
| 3.2 | the same | the same, and `<confidence> High </confidence>` or `Low` on the next line |
| 3.3 | `criteria_id` or `custom_criteria`; `think` | `<think>`, `</think>`, `<score> yes </score>` |

Without thinking (the default) 3.3 leaves the think block empty, and its form is fixed; with it the text is
generated and read. P(unsafe) comes from the two verdict tokens; the confidence that 3.2 adds is not used.

Templates of 3.0 and 3.1 take one exchange, and three messages as a tool call: of a longer conversation they are
given the last exchange. 3.2 and 3.3 see all of it. Messages can write neither the role names of the templates at
the beginning of a line nor their tags ("<start_of_conversation>" and the like); roles of 3.3 are special tokens.

The risk is "harm" unless a policy with one category says otherwise: a published risk by its name, or any name with
a description. Risks of retrieval and tool calls (groundedness, relevance, function calls) are no safety verdicts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

from guardkeel.conversation import SIDES, Conversation, Label, Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Blank, Rendered, Verdict
from guardkeel.guards.chat_template import ChatTemplate, template_text
from guardkeel.guards.exchange import exchange, last_exchange, speaker
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.markers import breaker, without_markers

RISKS = (
    "harm",
    "social_bias",
    "jailbreak",
    "violence",
    "profanity",
    "sexual_content",
    "unethical_behavior",
    "harm_engagement",  # since 3.2
)
_NO_SAFETY = ("groundedness", "answer_relevance", "context_relevance", "function_call", "evasiveness")

_unmarked = breaker(
    r"</?(?:start|end)_of_(?:turn|conversation|risk_definition)>",
    speaker("User Message", "Assistant Message"),
)
_THOUGHT = r"(?:<think>(?:(?!</?think>).)*</think>)?"
_SCORED = re.compile(rf"{_THOUGHT}\s*<score>\s*(yes|no)\s*</score>", re.DOTALL)
_ANSWERED = re.compile(r"(Yes|No)(?:\s*<confidence>\s*(?:High|Low)\s*</confidence>)?")


class _Guardian(ABC):
    """What all versions share: the risk, and the template that is told of it."""

    name: str
    sides: tuple[Side, ...] = SIDES
    _words: Mapping[Label, str]
    _grammar: re.Pattern[str]
    _setting: str  # the template's name for the risk
    _many_turns: str  # stands in templates that show a whole conversation

    def __init__(self, risk: str = "harm", definition: str = "", category: str = "") -> None:
        """Ask about a published risk, or one of one's own by its definition.

        `category` is what an unsafe verdict is then called; "harm" has no name to give.
        """
        self.risk, self.definition = risk, definition
        self.categories: tuple[str, ...] = (category,) if category else ()

    def under(self, policy: GuardPolicy) -> Self:
        """See Family: one category, which is the risk."""
        if not policy.categories:
            return self
        where = f"policy {policy.name!r}"
        if len(policy.categories) > 1:
            raise ConfigError(
                f"{where}: Granite Guardian is asked about one risk at a time, not {len(policy.categories)}",
                remedy="write one policy file for each category, or leave [[categories]] out for general harm",
            )
        category = policy.categories[0]
        risk = re.sub(r"[\s-]+", "_", category.name.strip().lower())
        if risk in _NO_SAFETY:
            raise ConfigError(
                f"{where}: {category.name!r} is not a safety verdict", remedy=f"risks are {', '.join(RISKS)}"
            )
        if risk in RISKS and category.description:
            raise ConfigError(
                f"{where}: {category.name!r} is a risk that the checkpoint defines itself",
                remedy="leave its description out, or give the category another name",
            )
        if risk not in RISKS and not category.description:
            raise ConfigError(
                f"{where}: {category.name!r} is none of the published risks and has no description",
                remedy=f"describe it, or take one of {', '.join(RISKS)}",
            )
        return self._asking(risk if risk in RISKS else category.name, category.description, category.name)

    def _asking(self, risk: str, definition: str, category: str) -> Self:
        return type(self)(risk, definition, category)

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """See Family. Raises ModelError for a checkpoint whose chat template is not the published one."""
        template = template_text(tokenizer)
        if self._setting not in template:
            raise ModelError(
                f"the chat template of this checkpoint is not that of {self.name}: it has no {self._setting!r}",
                remedy="take the published checkpoint's chat template, and the family of its version "
                "(granite-guardian-3 for 3.0 to 3.2, granite-guardian-3.3)",
            )
        told = without_markers(conversation, _unmarked)
        if self._many_turns in template:
            texts = exchange(told, side)
        else:
            request, response = last_exchange(told, side)
            texts = [request] if side == "prompt" else [request, response]
        chat = ChatTemplate(tokenizer, options=self._options(), opening="User Message: ")
        rendered = chat.render(texts)
        if rendered is None:
            raise ModelError(
                "the chat template of this checkpoint changes its own words with the messages",
                remedy="take the published checkpoint's chat template",
            )
        return rendered

    def answer(self, label: Label, categories: Sequence[str] = (), side: Side = "prompt") -> str:
        """See Family: one word, whatever the category."""
        return self._words[label]

    def parse(self, output: str, side: Side = "prompt") -> Verdict:
        """See Family."""
        found = self._grammar.fullmatch(output.strip())
        if not found:
            return Verdict(unsafe=None, unscored=f"output outside the grammar: {output!r:.60}")
        if found[1].lower() == "yes":
            return Verdict(unsafe=1.0, categories=self.categories)
        return Verdict(unsafe=0.0)

    @abstractmethod
    def blanks(self, side: Side) -> tuple[Blank, ...]:
        """See Family."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """What the template is told of the risk."""


class GraniteGuardian3(_Guardian):
    """Granite Guardian 3.0, 3.1 and 3.2."""

    name = "granite-guardian-3"
    _words: Mapping[Label, str] = {"safe": "No", "unsafe": "Yes"}
    _grammar = _ANSWERED
    _setting = "risk_name"
    _many_turns = "start_of_conversation"

    def blanks(self, side: Side) -> tuple[Blank, ...]:
        """See Family: one word."""
        return (Blank(safe=("No",), unsafe=("Yes",)),)

    def _options(self) -> dict[str, Any]:
        own = {"risk_definition": self.definition} if self.definition else {}
        return {"guardian_config": {"risk_name": self.risk, **own}}


class GraniteGuardian33(_Guardian):
    """Granite Guardian 3.3, thinking or not."""

    name = "granite-guardian-3.3"
    _words: Mapping[Label, str] = {"safe": " no </score>", "unsafe": " yes </score>"}
    _grammar = _SCORED
    _setting = "criteria_id"
    _many_turns = ""
    answer_tokens = 2048  # thoughts and score, as in the published examples

    def __init__(
        self, risk: str = "harm", definition: str = "", category: str = "", *, think: bool = False
    ) -> None:
        """See above; with `think` the guard writes down its reasons first."""
        super().__init__(risk, definition, category)
        self.think = think
        if think:
            self.name = "granite-guardian-3.3-think"

    def blanks(self, side: Side) -> tuple[Blank, ...]:
        """See Family: the score after an empty think block; none where the guard thinks."""
        return () if self.think else (Blank("<think>\n</think>\n<score>", safe=(" no",), unsafe=(" yes",)),)

    def _asking(self, risk: str, definition: str, category: str) -> Self:
        return type(self)(risk, definition, category, think=self.think)

    def _options(self) -> dict[str, Any]:
        asked = {"custom_criteria": self.definition} if self.definition else {"criteria_id": self.risk}
        return {"guardian_config": asked, "think": self.think}
