"""Rows that are written: refusals of unsafe prompts, and topic-following rows under rules of their own.

A writer is asked nothing twice: every text is in `OUT/synthesis.sqlite` (or `synthesis.cache`) as soon as it arrived.
Rows keep the group of the row that they were made from, so that the split, which comes after, keeps them together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guardkeel.curation.config import CurateConfig, JurorConfig, RefusalsConfig, SynthesisConfig, TopicsConfig
from guardkeel.curation.jury.asking import ask, verdicts
from guardkeel.curation.jury.cost import CostEstimate, Meter
from guardkeel.curation.jury.items import chunks, item
from guardkeel.curation.jury.jurors import open_jurors
from guardkeel.curation.rows import Row, Vote
from guardkeel.curation.steps.base import Context, Step, Watch
from guardkeel.curation.synthesis.dialogues import asked_for, dialogue_from, rows_of, written_dialogue
from guardkeel.curation.synthesis.refusals import asked_of, order, refused, wants_refusal, way_of
from guardkeel.curation.synthesis.templates import Pool, template_rows
from guardkeel.curation.synthesis.writing import Question, TextCache, Writer, estimate, open_writer, write
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites.readers import read_rows
from guardkeel.records import file_digest

REFUSAL_TOKENS, DIALOGUE_TOKENS = 80.0, 600.0
"""Guesses of what an answer has, before any is known."""


class Synthesis(Step):
    """See the module's text."""

    name = "synthesis"

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: who writes, not what it costs; what is recorded; who checks replies."""
        table = _table(config)
        said = table.model_dump(mode="json", exclude={"price", "budget", "currency", "cache"})
        found: dict[str, Any] = {"table": said, "seed": config.seed}
        for name in ("refusals", "topics"):
            part: RefusalsConfig | TopicsConfig | None = getattr(table, name)
            if part is None:
                continue
            if part.writer:
                found[f"{name} writer"] = open_writer(part.writer, table.price, config.offline).identity
            if part.recorded:
                found[f"{name} recorded"] = file_digest(_file(part.recorded))
        if table.refusals and table.refusals.check:
            found["check"] = _checker(table, config, watch).identity
        return found

    def run(self, context: Context) -> None:
        """See Step."""
        config, table = context.config, _table(context.config)
        seed = config.seed
        chosen, pool = _chosen(context, table, seed)
        path = Path(table.cache) if table.cache else context.out / "synthesis.sqlite"
        meter = Meter(table.budget, table.currency, of="synthesis")
        counts: Counter[str] = Counter()
        with TextCache(path) as cache:
            jobs = _jobs(table, config, chosen, seed)
            estimates = [estimate(w, asked, cache, guess) for w, asked, guess in jobs]
            _accept(context, table, estimates)
            replies = _replies(context, table, cache, meter, chosen, counts)
            votes = _checked(context, table, cache, replies)
            topics = _topics(context, table, cache, meter, pool, counts, seed)
            context.write(_lines(context, replies, votes, topics, counts))
        context.counts = {k: n for k, n in counts.items() if n}
        context.results = {
            "estimates": [{"writer": e.juror, "asked": e.to_ask, "known": e.known} for e in estimates],
            "spent": meter.spent,
            "requests": meter.requests,
            "tokens": meter.tokens,
            "currency": table.currency,
        }


Reply = tuple[Row, str, str, str]
"""A row, the reply to its prompt, who wrote it, in which way."""


def _table(config: CurateConfig) -> SynthesisConfig:
    assert config.synthesis is not None
    return config.synthesis


def _file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", remedy="give the file of recorded texts")
    return path


def _checker(table: SynthesisConfig, config: CurateConfig, watch: Watch) -> Any:
    assert table.refusals is not None
    check = JurorConfig(guard=table.refusals.check)
    return open_jurors([check], offline=config.offline, watch=watch, engine=config.engine_settings())[0]


def _chosen(context: Context, table: SynthesisConfig, seed: int) -> tuple[list[Row], Pool]:
    """The rows to be refused, and those whose prompts templates may use."""
    part, topics = table.refusals, table.topics
    pool = Pool(topics.templates if topics else 0, seed)
    wanted: list[tuple[bytes, Row]] = []
    most = part.count if part else 0
    for row in context.rows("synthesis: choose"):
        if part is not None and wants_refusal(row):
            wanted.append((order(row.id, seed), row))
            if most is not None and len(wanted) > 2 * max(most, 1000):
                wanted = sorted(wanted, key=lambda w: w[0])[:most]
        if topics is not None and topics.templates:
            pool.add(row)
    return [row for _, row in sorted(wanted, key=lambda w: w[0])[:most]], pool


def _jobs(
    table: SynthesisConfig, config: CurateConfig, chosen: Sequence[Row], seed: int
) -> list[tuple[Writer, list[Question], float]]:
    """Who is asked what, and the guessed size of an answer."""
    found = []
    if table.refusals and table.refusals.writer:
        writer = open_writer(table.refusals.writer, table.price, config.offline)
        asked = [asked_of(row, way_of(row.id, table.refusals.ways)) for row in chosen]
        found.append((writer, asked, REFUSAL_TOKENS))
    if table.topics and table.topics.writer:
        writer = open_writer(table.topics.writer, table.price, config.offline)
        found.append((writer, asked_for(table.topics.dialogues, seed), DIALOGUE_TOKENS))
    return found


def _accept(context: Context, table: SynthesisConfig, estimates: Sequence[CostEstimate]) -> None:
    """Nobody is asked for money beyond the budget; without one, the caller decides."""
    for e in estimates:
        money = "" if e.money is None else f", about {e.money:.2f} {table.currency}"
        context.watch(f"synthesis: {e.to_ask:,} texts to ask {e.juror} for{money}", 0, e.to_ask)
    total = sum(e.money or 0.0 for e in estimates)
    if table.budget is None and total:
        try:
            context.on_cost(estimates, table.currency)
        except ConfigError as e:
            raise ConfigError(
                f"the synthesis would cost about {total:.2f} {table.currency}, and it has no budget of its own",
                remedy="set synthesis.budget, or say --yes",
            ) from e
    if table.budget is not None and total > table.budget:
        raise ConfigError(
            f"the synthesis would cost about {total:.2f} {table.currency}, more than its budget of {table.budget:.2f}",
            remedy="raise synthesis.budget, or ask for less",
        )


def _replies(
    context: Context,
    table: SynthesisConfig,
    cache: TextCache,
    meter: Meter,
    chosen: Sequence[Row],
    counts: Counter[str],
) -> list[Reply]:
    """The replies that there are; what failed is counted and rejected with its reason."""
    part = table.refusals
    if part is None:
        return []
    found: list[Reply] = []
    if part.recorded:
        found += _recorded(part, chosen, counts)
    if part.writer:
        writer = open_writer(part.writer, table.price, context.config.offline)
        there = {row.id for row, *_ in found}
        todo = [row for row in chosen if row.id not in there]
        asked = [asked_of(row, way_of(row.id, part.ways)) for row in todo]
        failed = write(
            writer, asked, cache, meter, watch=lambda n: context.watch("synthesis: refusals", n, len(todo))
        )
        for row, one in zip(todo, asked, strict=True):
            written = cache.text(writer.identity, one.key)
            if written is None or not written.text:
                why = failed.get(one.key, "the writer gave no text")
                counts["refusals that failed"] += 1
                context.reject(id=f"{row.id}~refusal", reason=why)
                continue
            counts["refusals that were cut short"] += written.cut
            found.append((row, written.text, writer.source, way_of(row.id, part.ways)))
    return found


def _recorded(part: RefusalsConfig, chosen: Sequence[Row], counts: Counter[str]) -> Iterator[Reply]:
    """Replies of a file: {"id": the row's, "text": …, "model": …}."""
    path, rows = _file(part.recorded), {row.id: row for row in chosen}
    for raw in read_rows(path):
        text, of = raw.fields.get("text"), raw.fields.get("id")
        if not isinstance(text, str) or not text.strip() or of is None:
            raise DataError(f"{raw.where}: no id and text", remedy='write {"id": "logs/7", "text": "…"}')
        row = rows.pop(str(of), None)
        if row is None:
            counts["recorded replies to no row"] += 1
            continue
        model = str(raw.fields.get("model") or path.name.split(".")[0])
        yield row, text.strip(), f"synthesis:{model}", "recorded"


def _checked(
    context: Context, table: SynthesisConfig, cache: TextCache, replies: Sequence[Reply]
) -> dict[str, Vote]:
    """What the checking guard says of each reply, by its row's id; nothing where nobody checks."""
    if table.refusals is None or not table.refusals.check or not replies:
        return {}
    juror = _checker(table, context.config, context.watch)
    found: dict[str, Vote] = {}
    for some in chunks(replies):
        made = [refused(row, text, by, way) for row, text, by, way in some]
        items = [item(f"{m.id}#response", m.conversation, "response") for m in made]
        unanswered = ask([juror], items, cache, Meter())
        said = verdicts(juror, items, cache)
        for (row, *_), one in zip(some, items, strict=True):
            verdict = said.get(one.key) or unanswered[juror.name, one.key]
            found[row.id] = juror.vote(verdict)
        context.watch("synthesis: check refusals", len(found), len(replies))
    juror.close()
    return found


def _topics(
    context: Context,
    table: SynthesisConfig,
    cache: TextCache,
    meter: Meter,
    pool: Pool,
    counts: Counter[str],
    seed: int,
) -> Iterator[Row]:
    """Topic-following rows from all that there is; what was written is asked for at once, and not row by row."""
    part = table.topics
    if part is None:
        return iter(())
    rows: list[Row] = []
    if part.templates:
        rows += template_rows(part.templates, pool, seed, part.kinds)
    if part.recorded:
        path = _file(part.recorded)
        for raw in read_rows(path):
            try:
                made = dialogue_from(raw.fields)
            except DataError as e:
                raise DataError(f"{raw.where}: {e.problem}", remedy=e.remedy) from e
            model = str(raw.fields.get("model") or path.name.split(".")[0])
            name = f"topics/{path.name.split('.')[0]}-{raw.number}"
            origin = f"{path.name}: {raw.number}"
            rows += rows_of(made, name, f"synthesis:{model}", origin=origin, licence=part.licence)
    if part.writer:
        writer = open_writer(part.writer, table.price, context.config.offline)
        asked = asked_for(part.dialogues, seed)
        failed = write(
            writer, asked, cache, meter, watch=lambda n: context.watch("synthesis: dialogues", n, len(asked))
        )
        for n, one in enumerate(asked):
            written = cache.text(writer.identity, one.key)
            name = f"topics/written-{n}"
            try:
                if written is None:
                    raise DataError(failed.get(one.key, "the writer gave no text"))
                rows += rows_of(
                    written_dialogue(written.text),
                    name,
                    writer.source,
                    origin=writer.name,
                    licence=part.licence,
                )
            except (DataError, ConfigError) as e:
                counts["dialogues that failed"] += 1
                context.reject(id=name, reason=e.problem)
    return iter(rows)


def _lines(
    context: Context,
    replies: Sequence[Reply],
    votes: dict[str, Vote],
    topics: Iterator[Row],
    counts: Counter[str],
) -> Iterator[bytes]:
    """All rows, each followed by its refusal, and topic-following rows at the end."""
    by_row = {row.id: (text, source, way) for row, text, source, way in replies}
    for row in context.rows("synthesis: write"):
        yield row.line()
        if row.id not in by_row:
            continue
        text, source, way = by_row[row.id]
        vote = votes.get(row.id)
        if vote is not None and vote.label != "safe":
            said = "unsafe" if vote.label else f"unknown ({vote.reason})"
            counts["refusals that the check does not find safe"] += 1
            context.reject(id=f"{row.id}~refusal", reason=f"{vote.by} finds the reply {said}")
            continue
        counts["refusals"] += 1
        yield refused(row, text, source, way, (vote,) if vote else ()).line()
    for row in topics:
        counts["topic-following rows"] += 1
        counts["topic-following rows off topic"] += row.label("prompt") == "unsafe"
        yield row.line()
