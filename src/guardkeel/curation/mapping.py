"""Category names of other taxonomies → Aegis 2.0; labels of a whole dialogue → labels of its sides.

Names are matched by their letters and digits alone, in any case: "Controlled /Regulated substances" is
"Controlled/Regulated Substances". Two names of Aegis 2.0 are kept although they name no harm: "Needs Caution", by
which a set can be read strictly (it counts as unsafe) or permissively (as safe), and "Other".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Literal

from guardkeel.conversation import Label, Side
from guardkeel.curation.rows import Row, SideLabel, Vote
from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites import registry
from guardkeel.taxonomy import AEGIS2, CROSSWALK

CAUTION = "Needs Caution"
OTHER = "Other"
HOME = (*AEGIS2, CAUTION, OTHER)

Strictness = Literal["strict", "permissive"]

OPENAI_API: dict[str, str | list[str]] = {
    "hate": "Hate/Identity Hate",
    "hate/threatening": ["Hate/Identity Hate", "Threat"],
    "harassment": "Harassment",
    "harassment/threatening": ["Harassment", "Threat"],
    "illicit": "Illegal Activity",
    "illicit/violent": ["Illegal Activity", "Violence"],
    "self-harm": "Suicide and Self Harm",
    "self-harm/intent": "Suicide and Self Harm",
    "self-harm/instructions": "Suicide and Self Harm",
    "sexual": "Sexual",
    "sexual/minors": "Sexual (minor)",
    "violence": "Violence",
    "violence/graphic": "Violence",
}
"""Names of OpenAI's moderation endpoint, against which the codes of its released set are of the card's table."""

_CARDS = {
    "aegis": "",
    "llama-guard": "",
    "ailuminate": "ailuminate-demo",
    "openai": "openai-moderation",
    "beavertails": "beavertails",
    "safe-rlhf": "safe-rlhf@2024",
    "wildguard": "wildguardtest",
    "harmbench": "harmbench",
    "jailbreakbench": "jailbreakbench",
}
TAXONOMIES = tuple(_CARDS)
"""Taxonomies by name; those whose names need no table are all in `guardkeel.taxonomy`."""


def taxonomy_table(name: str) -> Mapping[str, tuple[str, ...]]:
    """What each name of a taxonomy stands for, as its suite's card says; raises ConfigError for an unknown one."""
    if name not in _CARDS:
        raise ConfigError(f"unknown taxonomy {name!r}", remedy=f"known are {', '.join(TAXONOMIES)}")
    return _table(name)


@cache
def _table(name: str) -> Mapping[str, tuple[str, ...]]:
    full, _, copy = _CARDS[name].partition("@")
    given: dict[str, str | list[str]] = dict(OPENAI_API) if name == "openai" else {}
    if full:
        card = registry.find(full)
        mapping = (card.copied(copy) if copy else card).mapping
        given |= mapping.category_map if mapping else {}
    return {k: (v,) if isinstance(v, str) else tuple(v) for k, v in given.items()}


def home_names(names: Iterable[str], table: Mapping[str, tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The home names of some names, once each, in order; a name without a home stays, "Safe" goes.

    `table` goes before the names that all taxonomies share; a key of it that is "*" stands for all names that have
    no home, and an empty target leaves a name out.
    """
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_home(name.strip(), table or {})))
    return tuple(found)


def _home(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if not name or name.casefold() in ("safe", "none"):
        return ()
    if name in table:
        return table[name]
    known = _known().get(_key(name))
    return (known,) if known else table.get("*", (name,))


@cache
def _known() -> dict[str, str]:
    names = {**CROSSWALK, **{n: n for n in HOME}}
    return {_key(name): target for name, target in names.items()}


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def homeless(row: Row) -> tuple[str, ...]:
    """The categories of a row that are no names of Aegis 2.0."""
    return tuple(c for c in row.categories if c not in HOME)


def relabelled(row: Row, strictness: Strictness) -> Row:
    """The row as a strict or a permissive reader has it.

    Strict: as it is, "Needs Caution" being unsafe. Permissive: an unsafe side for which nothing but "Needs Caution"
    was named is safe. Where judges named categories themselves, their votes are read so and counted again, and a tie
    is null; else the row's own categories decide.
    """
    if strictness == "strict":
        return row
    labels = {side: _permissive(given, row.categories) for side, given in row.labels.items()}
    return replace(row, labels=labels)


def _permissive(given: SideLabel, categories: tuple[str, ...]) -> SideLabel:
    if any(CAUTION in vote.categories for vote in given.votes):
        votes = tuple(_milder(vote) for vote in given.votes)
        return SideLabel(majority(votes), given.source, votes)
    if given.label == "unsafe" and categories == (CAUTION,):
        return replace(given, label="safe")
    return given


def _milder(vote: Vote) -> Vote:
    return replace(vote, label="safe") if vote.label == "unsafe" and vote.categories == (CAUTION,) else vote


def majority(votes: Iterable[Vote], quorum: int = 1) -> Label | None:
    """What more than half of the votes that are no abstentions say; None for a tie, or fewer than `quorum` of them."""
    labels = [v.label for v in votes if v.label is not None]
    unsafe = labels.count("unsafe")
    if len(labels) < max(1, quorum) or 2 * unsafe == len(labels):
        return None
    return "unsafe" if 2 * unsafe > len(labels) else "safe"


def from_dialogue(row: Row) -> Row:
    """Labels of the sides from a label of the whole dialogue, as Aegis 2.0 was made (arXiv:2501.09004, section 3).

    Its annotators judged dialogues. Their label is the prompt's; a dialogue that is safe has a safe response; of an
    unsafe one the response's label is unknown, and a jury's to find. Labels that a side has already stay.
    """
    whole = row.labels.get("trajectory")
    if whole is None or whole.label is None:
        return row
    roles = {turn.role for turn in row.conversation.turns}
    made: dict[Side, SideLabel] = {}
    source = f"{whole.source}, of the dialogue"
    if "user" in roles and row.label("prompt") is None:
        made["prompt"] = replace(whole, source=source)
    if "assistant" in roles and whole.label == "safe" and row.label("response") is None:
        made["response"] = replace(whole, source=source)
    return replace(row, labels={**row.labels, **made}) if made else row
