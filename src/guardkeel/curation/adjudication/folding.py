"""Decisions into rows: a label by people, with all that was said before beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from guardkeel.conversation import Side
from guardkeel.curation.adjudication.queue import sides_of
from guardkeel.curation.adjudication.resolving import Outcome
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.curation.jury.pooling import JURY
from guardkeel.curation.mapping import CAUTION, Strictness
from guardkeel.curation.rows import DISAGREEMENT, Row, SideLabel, Vote

HUMAN = "human"
Unresolved = Literal["unlabelled", "jury", "drop"]


def fold(
    row: Row,
    config: AdjudicateConfig,
    outcomes: Mapping[str, Outcome],
    asked: Mapping[str, bool],
    strictness: Strictness,
    counts: Counter[str],
) -> Row | None:
    """A row with the decisions on its sides; None where it is to be left out.

    Args:
        row: as the jury left it.
        config: [adjudicate].
        outcomes: what people made of items, by key.
        asked: the items of the queue: whether they are asked about for audit alone. A side that is not among them keeps
            its label, and so does one that is, for audit, and that nobody has decided.
        strictness: how "Needs Caution" is read.
        counts: added to.
    """
    labels, said = dict(row.labels), list[str]()
    decided: dict[Side, Outcome] = {}
    for one, given in sides_of(row, config):
        side, found = one.judgement.side, outcomes.get(one.key)
        if found is not None and not found.open:
            labels[side] = made = decision(given, found, strictness)
            decided[side] = found
            said.append(f"adjudicate: {side} by {', '.join(s.by for s in found.said)}")
            _count(counts, given, made, found)
            if made.label is None and config.unresolved != "unlabelled":
                if config.unresolved == "drop":
                    counts["rows left out"] += 1
                    return None
                labels[side] = replace(made, label=given.label, source=given.source) if given else made
        elif one.key in asked and not asked[one.key]:
            counts["sides not decided"] += 1
            if config.unresolved == "drop":
                counts["rows left out"] += 1
                return None
            if config.unresolved == "unlabelled" and given is not None:
                labels[side] = replace(given, label=None, votes=kept(given))
                said.append(f"adjudicate: {side} is not decided")
    if not said:
        return row
    made_row = replace(row, labels=labels, history=(*row.history, *said))
    return replace(made_row, categories=_categories(made_row, decided))


def decision(given: SideLabel | None, found: Outcome, strictness: Strictness) -> SideLabel:
    """The label of a decided side. Its votes are those of before, what the jury made of them, and what people said.

    Its source names the people who said it: "human:ann", "human:ann,bob"; where they contradict each other and no
    label came of it, it is a disagreement. Jurors' scores stay.
    """
    votes = [*(kept(given) if given else ())]
    for one in found.said:
        named = (CAUTION, *one.categories) if one.choice == "caution" else one.categories
        reason = one.note or ("cannot tell" if one.choice == "unclear" else "")
        label = one.label(strictness)
        votes.append(Vote(f"{HUMAN}:{one.by}", label, categories=tuple(dict.fromkeys(named)), reason=reason))
    if found.label is not None:
        source = f"{HUMAN}:{','.join(found.by)}"
    else:
        source = DISAGREEMENT if found.contested else f"{HUMAN}:{','.join(s.by for s in found.said)}"
    return SideLabel(found.label, source, tuple(votes), given.scores if given else {})


def kept(given: SideLabel) -> tuple[Vote, ...]:
    """The votes of a label with the label itself as one more, by its source: "jury" for the jury's."""
    if given.label is None:
        return given.votes
    scores = given.scores.get("dawid-skene") if given.source == JURY else None
    return (*given.votes, Vote(given.source, given.label, scores))


def _categories(row: Row, decided: Mapping[Side, Outcome]) -> tuple[str, ...]:
    """What people named, and what was named before for sides that they did not decide; all that, if they named none."""
    unsafe = {side for side, given in row.labels.items() if given.label == "unsafe"}
    if not unsafe and decided:
        return ()
    named = [name for side, found in decided.items() if side in unsafe for name in found.categories]
    before = row.categories if unsafe - set(decided) or not named else ()
    return tuple(dict.fromkeys((*before, *named)))


def _count(counts: Counter[str], given: SideLabel | None, made: SideLabel, found: Outcome) -> None:
    counts["sides decided"] += 1
    counts["people contradict each other"] += found.contested
    counts["people could not tell"] += made.label is None
    if given is not None and given.label is not None and made.label is not None:
        counts["labels changed"] += given.label != made.label
    elif made.label is not None:
        counts["labels given where there was none"] += 1
