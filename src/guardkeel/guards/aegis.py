"""Aegis 1.0 guards (arXiv:2404.05993): Llama Guard 1 with NVIDIA's policy of thirteen categories, O1…O13.

nvidia/Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0 and …-Permissive-1.0 are adapters of LlamaGuard-7b. The
defensive one was trained to take "Needs Caution" (O13) for unsafe, the permissive one for safe; its policy ends at
O12. Here the strictness of a policy decides which is shown: under a permissive one, "O13" is an unknown code.

The base checkpoint's chat template has Meta's policy in it and is never used. The prompt is that of the model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.llama_guard import LlamaGuard1, published

CAUTION = "Needs Caution"


class Aegis(LlamaGuard1):
    """The defensive guard. Its categories have the names of the home taxonomy."""

    name = "aegis"
    card_names: Mapping[str, str] = {}
    templated = False
    strict = True

    def __init__(self) -> None:
        super().__init__("aegis")
        if not self.strict:
            self._take(self._policy[:-1])

    def under(self, policy: GuardPolicy) -> Self:
        """See Family: other categories, or else its own with "Needs Caution" (strict) or without."""
        if policy.categories:
            return self._under(policy.categories, policy.name)
        own = [c for c in published("aegis") if policy.strictness == "strict" or c.name != CAUTION]
        return self._under(own, policy.name)


class AegisPermissive(Aegis):
    """The permissive guard."""

    name = "aegis-permissive"
    strict = False
