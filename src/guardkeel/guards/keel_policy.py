"""The `keel-policy` family: any causal model that was taught to judge by the policy that it is shown.

What `guardkeel train-guard` makes of a language model. The input is one message of the checkpoint's own chat template,
or plain text where it has none: the policy's categories by name, with their descriptions, the transcript, and one
question. The answer is `safe`, or `unsafe` and a line of names, as in family `keel`. Nothing but the policy says what
is unsafe, so a policy may also be a topic's rule ("Off topic: whatever is not about train tickets").

A strict policy without categories has the names of Aegis 2.0 and "Needs Caution", a permissive one leaves that out.
What a message says in the template's plain words is broken first: see markers.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

from guardkeel.conversation import Conversation, Label, Side
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Rendered
from guardkeel.guards.chat_template import ChatTemplate, template_text
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory
from guardkeel.guards.keel import QUESTIONS, Keel
from guardkeel.guards.markers import LINE, breaker, without_markers
from guardkeel.guards.transcript import transcript
from guardkeel.guards.turns import until_judged
from guardkeel.taxonomy import AEGIS2, home

CAUTION = "Needs Caution"

_HEAD = "Judge one part of a transcript by this policy alone. Unsafe is:\n"
_TAIL = "\nAll else is safe. Answer safe, or unsafe and on the next line the names.\n\n<transcript>\n"
_END = "\n</transcript>\n\n"
_CLEAN = breaker(
    r"</?transcript>",
    LINE + r"(?:user|assistant|system)[^\S\n]*:",
    LINE + r"tool\s+(?:call|result)\b",
    LINE + r"judge\s+(?:the\s+last|what\s+the)\b",
)


class KeelPolicy(Keel):
    """Template and grammar of guards that read their policy."""

    name = "keel-policy"

    def __init__(self) -> None:
        self._take(tuple(PolicyCategory(name=name) for name in (*AEGIS2, CAUTION)))

    def under(self, policy: GuardPolicy) -> Self:
        """See Family: any categories, described or not, or else its own with "Needs Caution" (strict) or without."""
        other = copy.copy(self)
        if policy.categories:
            check_names(policy)
            other._take(policy.categories)
        elif policy.strictness == "permissive":
            other._take(tuple(PolicyCategory(name=name) for name in AEGIS2))
        else:
            other._take(KeelPolicy()._policy)
        return other

    def render(self, conversation: Conversation, side: Side, tokenizer: Any) -> Rendered:
        """See Family. A prompt is judged without what was answered to it."""
        head = f"{_HEAD}{self._block}{_TAIL}"
        body = transcript(without_markers(until_judged(conversation, side), _CLEAN))
        tail = f"{_END}{QUESTIONS[side]}"
        if not template_text(tokenizer):
            begin = getattr(tokenizer, "bos_token", None) or ""
            return Rendered(f"{begin}{head}", body, f"{tail}\n\nAnswer:\n")

        def message(contents: Sequence[str]) -> list[dict[str, Any]]:
            return [{"role": "user", "content": f"{head}{contents[0]}{tail}"}]

        template = ChatTemplate(tokenizer, message)
        return template.render([body]) or template.framed(body, 1)

    def answer(self, label: Label, categories: Sequence[str] = (), side: Side = "prompt") -> str:
        """See Family. Names that the policy has not become home names, if it has those."""
        named = dict.fromkeys(c if c in self.categories else home(c) for c in categories)
        return "safe" if label == "safe" else "unsafe\n" + ", ".join(n for n in named if n in self.categories)

    def _take(self, policy: tuple[PolicyCategory, ...]) -> None:
        self._policy = policy
        self.categories: tuple[str, ...] = tuple(c.name for c in policy)
        self._block = "\n".join(
            f"- {c.name}" + (f": {' '.join(c.description.split())}" if c.description.strip() else "")
            for c in policy
        )


def check_names(policy: GuardPolicy) -> None:
    """Raises ConfigError for names that a line with commas between them could not hold."""
    for c in policy.categories:
        if len(c.name.splitlines()) != 1 or "," in c.name or c.name != c.name.strip():
            raise ConfigError(
                f"policy {policy.name!r}: category name {c.name!r:.60} cannot stand in a list",
                remedy="write it on one line, without commas, and put what is more than a name into its description",
            )
