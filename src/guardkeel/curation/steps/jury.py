"""The jury's step: estimate, ask, pool, and measure how far the jurors agree and how good each is."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from guardkeel.conversation import Side
from guardkeel.curation.agreement import (
    CODES,
    Agreement,
    Drift,
    Groups,
    Skill,
    Votes,
    agreement,
    agreement_by,
    drift,
    skill,
)
from guardkeel.curation.config import CurateConfig, JuryConfig
from guardkeel.curation.jury.asking import ask, verdicts
from guardkeel.curation.jury.cache import VoteCache
from guardkeel.curation.jury.cost import CostEstimate, Meter, estimate, sent_bytes
from guardkeel.curation.jury.dawid_skene import dawid_skene
from guardkeel.curation.jury.items import CHUNK, ENGINE_CHUNK, Item, chunks, item, items_of
from guardkeel.curation.jury.jurors import Juror, open_jurors
from guardkeel.curation.jury.pooling import DAWID_SKENE, MAJORITY, pooled, with_categories
from guardkeel.curation.rows import Row, Vote
from guardkeel.curation.steps.base import Context, Step, Watch
from guardkeel.errors import RunError
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.base import Verdict


class Confusion(BaseModel):
    """What Dawid–Skene makes of one side: prevalence of unsafe, and each juror's sensitivity and specificity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prevalence: float
    sensitivity: dict[str, float]
    specificity: dict[str, float]
    steps: int
    converged: bool


class JuryResults(BaseModel):
    """What the step found. `skills` is against calibration suites, `against` by who gave the labels of rows."""

    model_config = ConfigDict(extra="forbid")

    jurors: list[str]
    kinds: dict[str, str]
    rule: str
    estimates: list[dict[str, Any]]
    spent: dict[str, float]
    requests: dict[str, int]
    tokens: dict[str, tuple[int, int]]
    currency: str
    overall: Agreement
    by: dict[str, dict[str, Agreement]] = Field(default_factory=dict)
    drift: list[Drift] = Field(default_factory=list)
    skills: list[Skill] = Field(default_factory=list)
    against: list[Skill] = Field(default_factory=list)
    dawid_skene: dict[str, Confusion] = Field(default_factory=dict)


@dataclass
class _Table:
    """Votes of all items in order, and what each is of."""

    jurors: int
    votes: array[int] = field(default_factory=lambda: array("b"))
    group: array[int] = field(default_factory=lambda: array("q"))
    truth: array[int] = field(default_factory=lambda: array("b"))
    side: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)
    label_source: list[str] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)

    def add(
        self, votes: Sequence[Vote], side: Side, source: str, group: str, truth: Any, label_source: str
    ) -> None:
        self.votes.extend(CODES[v.label] for v in votes)
        self.group.append(self.groups.setdefault(group, len(self.groups)))
        self.truth.append(CODES[truth])
        self.side.append(side)
        self.source.append(source)
        self.label_source.append(label_source)

    def matrix(self) -> Votes:
        return np.array(self.votes, dtype=np.int64).reshape(-1, self.jurors)


class Jury(Step):
    """See the module's text."""

    name = "jury"

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: who the jurors are, not what they cost; what the calibration suites hold."""
        table = config.jury
        assert table is not None
        said = table.model_dump(mode="json", exclude={"juror", "budget", "currency", "cache"})
        jurors = open_jurors(
            table.juror, offline=config.offline, watch=watch, engine=config.engine_settings()
        )
        who = [
            [j.name, j.kind, j.identity, c.threshold, c.unsure]
            for j, c in zip(jurors, table.juror, strict=True)
        ]
        suites = [
            load_suite(s, data=config.data_folder, offline=config.offline).digest for s in table.calibration
        ]
        return {"table": said, "jurors": who, "calibration": suites, "seed": config.seed}

    def run(self, context: Context) -> None:
        """See Step."""
        table = context.config.jury
        assert table is not None
        config = context.config
        jurors = open_jurors(
            table.juror, offline=config.offline, watch=context.watch, engine=config.engine_settings()
        )
        cache_path = Path(table.cache) if table.cache else context.out / "jury.sqlite"
        meter = Meter(table.budget, table.currency)
        with VoteCache(cache_path) as cache:
            calibration = list(calibration_items(context.config, table, context.watch))
            planned = plan(context, jurors, cache, [i for i, *_ in calibration])
            context.on_cost(planned, table.currency)
            unanswered = _ask_all(context, table, jurors, cache, meter, [i for i, *_ in calibration])
            reader = _Reader(jurors, cache, unanswered)
            rows = self._table(context, table, reader)
            known = _Table(len(jurors))
            for chunk in chunks(calibration):
                for (one, truth, suite, group), votes in zip(
                    chunk, reader.votes([i for i, *_ in chunk]), strict=True
                ):
                    known.add(votes, one.judgement.side, suite, group, truth, suite)
            posterior, confusions = _fit(rows, known, table.sides, [j.name for j in jurors])
            context.write(self._pooled(context, table, reader, iter(posterior)))
            context.counts["not answered"] = len(unanswered)
            results = _measure(rows, known, jurors, table, context.config.seed)
        results |= {
            "estimates": [asdict(p) for p in planned],
            "spent": meter.spent,
            "requests": meter.requests,
            "tokens": meter.tokens,
            "dawid_skene": confusions,
        }
        context.results = JuryResults.model_validate(results).model_dump(mode="json")

    def _table(self, context: Context, table: JuryConfig, reader: _Reader) -> _Table:
        found = _Table(len(reader.jurors))
        for row, items, votes in reader.rows(context, table, "jury: count"):
            for one, given in zip(items, votes, strict=True):
                side = one.judgement.side
                known = row.labels.get(side)
                found.add(
                    given,
                    side,
                    row.source,
                    row.group or row.id,
                    known.label if known else None,
                    known.source if known else "",
                )
        return found

    def _pooled(
        self, context: Context, table: JuryConfig, reader: _Reader, posterior: Iterator[float]
    ) -> Iterator[bytes]:
        counts: Counter[str] = Counter()
        for row, items, votes in reader.rows(context, table, "jury: pool"):
            labels = dict(row.labels)
            for one, given in zip(items, votes, strict=True):
                side = one.judgement.side
                before = row.labels.get(side)
                made = pooled(
                    given,
                    next(posterior),
                    rule=table.rule,
                    quorum=table.quorum,
                    certainty=table.certainty,
                    before=before,
                )
                labels[side] = made
                fresh = before is None or before.label is None
                counts["sides judged"] += 1
                counts["labels given"] += fresh and made.label is not None
                counts["no label came of it"] += fresh and made.label is None
                counts["votes on a text that was cut"] += any(v.dropped for v in given)
                share, chance = made.scores.get(MAJORITY, 0.5), made.scores.get(DAWID_SKENE, 0.5)
                counts["majority and Dawid-Skene differ"] += (share - 0.5) * (chance - 0.5) < 0
            if items:
                said = f"jury: {', '.join(i.judgement.side for i in items)} judged by {len(reader.jurors)} jurors"
                yield with_categories(replace(row, labels=labels, history=(*row.history, said))).line()
            else:
                yield row.line()
        context.counts |= counts


@dataclass
class _Reader:
    """Votes from what is kept, chunk by chunk."""

    jurors: Sequence[Juror]
    cache: VoteCache
    unanswered: dict[tuple[str, str], Verdict]

    def votes(self, items: Sequence[Item]) -> list[list[Vote]]:
        """The jurors' votes on each item."""
        by_juror = []
        for juror in self.jurors:
            found = verdicts(juror, items, self.cache)
            by_juror.append([juror.vote(self._verdict(juror, i.key, found)) for i in items])
        return [[votes[at] for votes in by_juror] for at in range(len(items))]

    def _verdict(self, juror: Juror, key: str, found: dict[str, Verdict]) -> Verdict:
        verdict = found.get(key) or self.unanswered.get((juror.name, key))
        if verdict is None:
            raise RunError(f"juror {juror.name!r} has not been asked", remedy="repeat the command")
        return verdict

    def rows(
        self, context: Context, table: JuryConfig, what: str
    ) -> Iterator[tuple[Row, list[Item], list[list[Vote]]]]:
        """Rows with their items and votes."""
        for some in chunks(context.rows(what)):
            items = [_items(row, table) for row in some]
            votes = iter(self.votes([i for own in items for i in own]))
            for row, own in zip(some, items, strict=True):
                yield row, own, [next(votes) for _ in own]


def _items(row: Row, table: JuryConfig) -> list[Item]:
    return items_of(row, table.sides, labelled=table.items == "all")


def plan(
    context: Context, jurors: Sequence[Juror], cache: VoteCache, calibration: Sequence[Item] = ()
) -> list[CostEstimate]:
    """What the jury will take. Nothing is asked."""
    table = context.config.jury
    assert table is not None
    items, missing, sent = 0, [0] * len(jurors), [0] * len(jurors)
    seen: set[str] = set()

    def all_items() -> Iterator[Item]:
        yield from calibration
        for row in context.rows("jury: estimate"):
            yield from _items(row, table)

    for chunk in chunks(all_items()):
        items += len(chunk)
        fresh = list({i.key: i for i in chunk if i.key not in seen}.values())
        seen.update(i.key for i in fresh)
        for n, juror in enumerate(jurors):
            if juror.kind == "recorded":
                continue
            known = verdicts(juror, fresh, cache)
            for one in fresh:
                if one.key not in known:
                    missing[n] += 1
                    sent[n] += sent_bytes(juror, one.judgement) if juror.kind == "server" else 0
    return [estimate(j, items, missing[n], sent[n], cache.usage(j.identity)) for n, j in enumerate(jurors)]


def calibration_items(
    config: CurateConfig, table: JuryConfig, watch: Watch
) -> Iterator[tuple[Item, str, str, str]]:
    """Items with their label, suite and group: a draw that depends on the seed alone."""
    for name in table.calibration:
        suite = load_suite(name, data=config.data_folder, offline=config.offline, progress=watch)
        found = suite.items(table.calibration_split, sides=table.sides)
        chosen = Random(f"{config.seed} {suite.name}").sample(found, min(table.calibration_items, len(found)))  # noqa: S311
        for one in sorted(chosen, key=lambda i: i.judgement.id):
            group = f"{suite.name}/{one.example.group or one.example.id}"
            judged = item(one.judgement.id, one.judgement.conversation, one.side)
            yield judged, one.label, suite.card.full_name, group


def _ask_all(
    context: Context,
    table: JuryConfig,
    jurors: Sequence[Juror],
    cache: VoteCache,
    meter: Meter,
    calibration: Sequence[Item],
) -> dict[tuple[str, str], Verdict]:
    """Servers together first; then each guard on this machine by itself, so that one is in memory at a time."""
    unanswered: dict[tuple[str, str], Verdict] = {}
    rounds = [[j for j in jurors if j.kind == "server"], *([j] for j in jurors if j.kind == "local")]
    for some in filter(None, rounds):
        done: Counter[str] = Counter()

        def all_items() -> Iterator[Item]:
            yield from calibration
            for row in context.rows():
                yield from _items(row, table)

        size = CHUNK if context.config.engine == "local" else ENGINE_CHUNK
        for chunk in chunks(all_items(), size):
            begun = Counter(done)

            def tell(juror: Juror, now: int, begun: Counter[str] = begun, done: Counter[str] = done) -> None:
                done[juror.name] = begun[juror.name] + now
                spent = f", {meter.total:.2f} {meter.currency}" if meter.total else ""
                context.watch(
                    f"ask {juror.name}{spent if juror.kind == 'server' else ''}", done[juror.name], None
                )

            unanswered |= ask(some, chunk, cache, meter, watch=tell)
        for juror in some:
            juror.close()
    return unanswered


def _fit(
    rows: _Table, known: _Table, sides: Sequence[Side], names: Sequence[str]
) -> tuple[list[float], dict[str, Confusion]]:
    """Dawid–Skene for each side, with the calibration items' labels as known truth; P(unsafe) of each row item."""
    votes, more = rows.matrix(), known.matrix()
    posterior = np.full(len(votes), 0.5)
    made: dict[str, Confusion] = {}
    for side in sides:
        here = np.array([s == side for s in rows.side], dtype=np.bool_)
        there = np.array([s == side for s in known.side], dtype=np.bool_)
        if not here.any():
            continue
        truth = np.concatenate([np.full(int(here.sum()), -1), np.array(known.truth, dtype=np.int64)[there]])
        fitted = dawid_skene(np.concatenate([votes[here], more[there]]), known=truth)
        posterior[here] = fitted.posterior[: int(here.sum()), 1]
        made[side] = Confusion(
            prevalence=float(fitted.prevalence[1]),
            sensitivity={n: float(fitted.confusion[j, 1, 1]) for j, n in enumerate(names)},
            specificity={n: float(fitted.confusion[j, 0, 0]) for j, n in enumerate(names)},
            steps=len(fitted.likelihood),
            converged=fitted.converged,
        )
    return posterior.tolist(), made


def _measure(
    rows: _Table, known: _Table, jurors: Sequence[Juror], table: JuryConfig, seed: int
) -> dict[str, Any]:
    names = [j.name for j in jurors]
    votes, groups = rows.matrix(), np.array(rows.group, dtype=np.int64)
    slices = {"side": rows.side, "source": rows.source}
    return {
        "jurors": names,
        "kinds": {j.name: j.kind for j in jurors},
        "rule": table.rule,
        "currency": table.currency,
        "overall": agreement(votes, names, groups=groups, seed=seed),
        "by": agreement_by(votes, names, slices, groups=groups, seed=seed),
        "drift": drift(votes, names, size=table.batch) if len(votes) >= 2 * table.batch else [],
        "skills": list(_skills(known, names)),
        "against": list(_skills(rows, names)),
    }


def _skills(table: _Table, names: Sequence[str]) -> Iterator[Skill]:
    """Each juror against the labels that there are, by who gave them."""
    votes, truth = table.matrix(), np.array(table.truth, dtype=np.int64)
    groups: Groups = np.array(table.group, dtype=np.int64)
    sources = np.array(table.label_source, dtype=object)
    for source in sorted({s for s, t in zip(table.label_source, table.truth, strict=True) if t >= 0}):
        at = (sources == source) & (truth >= 0)
        for j, name in enumerate(names):
            assert groups is not None
            yield skill(name, votes[at, j], truth[at], source, groups=groups[at])
