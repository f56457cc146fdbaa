"""A topic's rule as a guard policy, and rows that are judged by it: on topic is safe, off topic is unsafe.

The policy travels with the row, in `extra.policy`, as name and categories of guards/guard_policy.py. Such a row's
labels are true under that policy alone: `guardkeel train-guard` shows it, and nothing else may read the row as if it
were judged by the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence

from guardkeel.conversation import Conversation, Label, Turn
from guardkeel.curation.rows import Row, SideLabel
from guardkeel.guards.guard_policy import GuardPolicy, PolicyCategory
from guardkeel.guards.keel_policy import check_names

OFF = "Off topic"
TOPICS = "topics"
"""The source of rows that come from no other."""


def rule(name: str, *categories: tuple[str, str]) -> GuardPolicy:
    """A policy of categories with their descriptions; raises ConfigError for names that no answer could hold."""
    made = GuardPolicy(
        name=name, categories=tuple(PolicyCategory(name=n, description=d) for n, d in categories)
    )
    check_names(made)
    return made


def judged_row(
    id: str,
    turns: Sequence[Turn],
    policy: GuardPolicy,
    violated: Sequence[str],
    source: str,
    *,
    group: str = "",
    origin: str = "",
    licence: str = "",
    language: str = "en",
    made_from: Row | None = None,
) -> Row:
    """A row whose last user message is judged by a policy of its own.

    Args:
        id: of the row.
        turns: up to the message under judgement.
        policy: what it is judged by.
        violated: names of the policy's categories; none for a safe one.
        source: of the label.
        group: rows of one stay in one split.
        origin, licence, language: of the text.
        made_from: the row whose text it is; then these, the source and the group are that row's.
    """
    label: Label = "unsafe" if violated else "safe"
    of = made_from
    return Row(
        id=id,
        conversation=Conversation(tuple(turns)),
        labels={"prompt": SideLabel(label, source)},
        categories=tuple(violated),
        group=(of.group or of.id) if of else group,
        source=of.source if of else TOPICS,
        origin=of.origin if of else origin,
        licence=of.licence if of else licence,
        language=of.language if of else language,
        redactions=of.redactions if of else {},
        history=(*(of.history if of else ()), f"synthesis: judged by the policy {policy.name!r}"),
        extra={"synthesis": "topic", "policy": policy.model_dump(mode="json", exclude={"strictness"})},
    )
