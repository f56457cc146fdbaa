"""The step for people: it makes the queue, holds the pipeline until they have decided it, and puts decisions into rows.

steps/adjudicate/decisions.jsonl   the log of decisions, as they were when the rows were made

The rows follow from what stands in the store, so the step is made again when somebody decides, or takes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkeel.curation.config import AdjudicateConfig, CurateConfig
from guardkeel.curation.jury.pooling import DAWID_SKENE, JURY
from guardkeel.curation.mapping import Strictness
from guardkeel.curation.steps.base import Context, Done, Step, Watch
from guardkeel.errors import EvidenceError
from guardkeel.records import value_digest

if TYPE_CHECKING:
    from guardkeel.curation.adjudication.calibration import Known
    from guardkeel.curation.adjudication.queue import Queue
    from guardkeel.curation.adjudication.resolving import Outcome
    from guardkeel.curation.adjudication.store import Store

FILE, DECISIONS = "adjudication.sqlite", "decisions.jsonl"


class Adjudicate(Step):
    """See the module's text."""

    name = "adjudicate"

    def inputs(self, config: CurateConfig, watch: Watch) -> dict[str, Any]:
        """See Step: not where the file lies, nor for how long items are leased."""
        from guardkeel.curation.adjudication import needs_serve

        needs_serve()
        table = _table(config).model_dump(mode="json", exclude={"file", "lease", "show_votes"})
        return {"table": table, "seed": config.seed, "strictness": strictness(config)}

    def decided(self, config: CurateConfig, out: Path) -> dict[str, Any]:
        """What people have decided so far: the rows follow from that too."""
        path = decisions_file(config, out)
        if not path.exists():
            return {"decisions": value_digest([])}
        store = _open(path, create=False)
        try:
            return {"decisions": store.digest()}
        finally:
            store.close()

    def digest(self, inputs: dict[str, Any], before: Sequence[Done]) -> str:
        """See Step: the queue follows from the jury's calibration items too."""
        jury = [d.digest for d in before if d.step == "jury"]
        return value_digest([super().digest(inputs, before), jury])

    def run(self, context: Context) -> None:
        """See Step; raises EvidenceError while items wait for people, unless the table says to go on."""
        store = _open(decisions_file(context.config, context.out), create=True)
        try:
            self._run(context, store)
        finally:
            store.close()

    def _run(self, context: Context, store: Store) -> None:
        from guardkeel.curation.adjudication.calibration import calibrate
        from guardkeel.curation.adjudication.decisions import write_decisions
        from guardkeel.curation.adjudication.folding import fold
        from guardkeel.curation.adjudication.queue import make_queue

        config, reading = _table(context.config), strictness(context.config)
        jurors = _jurors(context)
        calibration = calibrate(_known(context, jurors))
        queue = make_queue(
            context.rows("adjudicate: queue"),
            config,
            jurors=jurors,
            calibration=calibration,
            seed=context.config.seed,
        )
        store.load(queue.items, config.people, reading)
        outcomes = store.outcomes(config.people, reading)
        waiting = sum(_waits(outcomes.get(i.key)) for i in queue.items)
        if waiting and config.unfinished == "hold":
            raise EvidenceError(
                f"adjudicate: {waiting:,} of {len(queue.items):,} items wait for people",
                remedy=f"guardkeel curate adjudicate {context.out}, and repeat this command when they are decided; "
                'or set adjudicate.unfinished = "go-on"',
            )
        counts: Counter[str] = Counter({"items": len(queue.items), "items not decided": waiting})
        asked = {i.key: i.audit for i in queue.items}

        def rows() -> Iterator[bytes]:
            for row in context.rows("adjudicate: fold"):
                made = fold(row, config, outcomes, asked, reading, counts)
                if made is None:
                    context.reject(id=row.id, reason="adjudicate: no decision came of it")
                else:
                    yield made.line()

        context.write(rows())
        write_decisions(context.folder / DECISIONS, store.records())
        context.counts = dict(counts)
        context.results = _results(context, store, queue, outcomes, calibration.items)


def strictness(config: CurateConfig) -> Strictness:
    """How "Needs Caution" is read: as [map] says."""
    return config.map.strictness if config.map else "strict"


def decisions_file(config: CurateConfig, out: Path) -> Path:
    """Where decisions are kept."""
    table = _table(config)
    return Path(table.file) if table.file else out / FILE


def _table(config: CurateConfig) -> AdjudicateConfig:
    assert config.adjudicate is not None
    return config.adjudicate


def _open(path: Path, *, create: bool) -> Store:
    from guardkeel.curation.adjudication.store import Store

    return Store(path, create=create)


def _waits(found: Outcome | None) -> bool:
    return found is None or found.open


def _jurors(context: Context) -> list[str]:
    """The names of the jury's jurors; none where there was no jury."""
    jury = next((done for done, _ in context.before if done.step == JURY), None)
    return list(jury.results["jurors"]) if jury else []


def _known(context: Context, jurors: Sequence[str]) -> Iterator[Known]:
    """Sides whose label people gave: of calibration suites, and of rows that the jury judged too.

    Not what is decided here: the queue would change with every decision, and might never end.
    """
    from guardkeel.curation.adjudication.calibration import Known
    from guardkeel.curation.adjudication.queue import votes_of

    yield from _by_people(context)
    for row in context.rows("adjudicate: calibrate"):
        for side, given in row.labels.items():
            if given.label is not None and given.source.startswith("human") and DAWID_SKENE in given.scores:
                yield Known(side, votes_of(given, jurors), given.label)


def _by_people(context: Context) -> Iterator[Known]:
    """The jury's calibration suites, with the votes that it kept; nobody is asked."""
    from guardkeel.curation.adjudication.calibration import Known
    from guardkeel.curation.jury.asking import verdicts
    from guardkeel.curation.jury.cache import VoteCache
    from guardkeel.curation.jury.items import chunks
    from guardkeel.curation.jury.jurors import open_jurors
    from guardkeel.curation.steps.jury import calibration_items

    table = context.config.jury
    if table is None or not table.calibration:
        return
    config = context.config
    jurors = open_jurors(
        table.juror, offline=config.offline, watch=context.watch, engine=config.engine_settings()
    )
    with VoteCache(Path(table.cache) if table.cache else context.out / "jury.sqlite") as cache:
        for chunk in chunks(calibration_items(context.config, table, context.watch)):
            items = [one for one, *_ in chunk]
            said = [(juror, verdicts(juror, items, cache)) for juror in jurors]
            for one, truth, _, _ in chunk:
                votes = tuple(juror.vote(found[one.key]) for juror, found in said if one.key in found)
                yield Known(one.judgement.side, votes, truth)  # type: ignore[arg-type]  # a label, by its suite


def _results(
    context: Context,
    store: Store,
    queue: Queue,
    outcomes: dict[str, Outcome],
    calibrated: Any,
) -> dict[str, Any]:
    from guardkeel.curation.adjudication import quality

    config = _table(context.config)
    audits = {i.key: i.audit for i in queue.items}
    sizes = quality.population(queue)
    people = quality.annotators(store.standing())
    complete = not any(_waits(outcomes.get(i.key)) for i in queue.items if not i.audit)
    notes = []
    if not complete:
        notes.append(
            "Contested items are decided from the most informative on, and not all of them are: shares over all items "
            "lean on those that were."
        )
    if any(p.not_blind for p in people):
        notes.append("Some labels were given with the jurors' votes in sight.")
    found = quality.AdjudicationResults(
        population=sizes,
        queued=len(queue.items),
        decided=sum(not _waits(outcomes.get(i.key)) for i in queue.items),
        people=config.people,
        unsure=config.unsure,
        audit=config.audit,
        calibrated={f"{name}, {side}": n for (name, side), n in calibrated.items()},
        reasons=quality.reasons(queue),
        annotators=people,
        agreement=quality.between_people(
            store.said(), config.people, strictness(context.config), seed=context.config.seed
        ),
        skills=quality.jurors_against_people(store.votes(list(audits)), outcomes, audits, sizes),
        complete=complete,
        notes=notes,
    )
    return found.model_dump(mode="json")
