"""What a run is recorded under, and what an import gives: records, and notes for whoever imported it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from guardkeel.dossier.kinds import EvalSpec, PromptSet, Record, Result, UsedSet
from guardkeel.dossier.kinds.base import plain_id
from guardkeel.dossier.state import State
from guardkeel.errors import DataError
from guardkeel.records import Estimate
from guardkeel.results import Behaviour

DIRECTIONS = {"fpr": "lower", "ece": "lower", "unscored": "lower"}
METRICS = ("recall", "fpr", "precision", "f1", "auroc", "auprc", "ece", "unscored")


@dataclass(frozen=True)
class Under:
    """What a run is recorded under: ids of registered records, and what its files cannot say."""

    spec: str
    evaluator: str
    model: str
    judge: str = ""
    id: str = ""
    elicitation: str = ""


@dataclass
class Imported:
    """Records in the order in which they go in, the run first; and what should be told."""

    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def moment_of(text: object, where: str) -> datetime:
    """A time from ISO text or seconds since 1970; without an offset it is taken as UTC."""
    try:
        if isinstance(text, int | float):
            return datetime.fromtimestamp(text, UTC)
        found = datetime.fromisoformat(str(text))
    except (ValueError, OverflowError, OSError) as e:
        raise DataError(
            f"{where}: {text!r:.60} is no time", remedy="take the file as the tool wrote it"
        ) from e
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def results(run: str, behaviour: Behaviour, part: str, rows: str) -> list[Result]:
    """The results of a behaviour on a slice."""
    return [
        result(run, metric, part, getattr(behaviour, metric), unscored=behaviour.n_unscored, rows=rows)
        for metric in METRICS
    ]


def result(
    run: str,
    metric: str,
    part: str,
    estimate: Estimate,
    *,
    unscored: int = 0,
    rows: str = "",
    lower: bool = False,
) -> Result:
    """One result from an estimate."""
    down = lower or DIRECTIONS.get(metric) == "lower"
    return Result(
        id=plain_id(f"{run}/{part}/{metric}"),
        run=run,
        metric=metric,
        slice=part,
        direction="lower" if down else "higher",
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        confidence=estimate.confidence,
        n=estimate.n,
        n_unscored=unscored,
        why="" if estimate.value is not None else estimate.note or "undefined, and the run does not say why",
        rows=rows,
    )


def used_sets(state: State, spec: EvalSpec, found: Sequence[tuple[str, str, str, int, str]]) -> Imported:
    """Prompt sets of a run from (name, version, digest, n, licence), registering what is new where that does no harm.

    For development a set that nobody registered is taken in as not held out. For assurance, red teams and outsiders
    somebody has to have said what it is: the error says how.
    """
    made = Imported()
    for name, version, digest, n, licence in found:
        known = [s.record for s in state.all if isinstance(s.record, PromptSet) and s.record.id == name]
        if all(k.digest != digest for k in known):
            if spec.form != "development":
                raise DataError(
                    f"prompt-set {name!r} {version} ({digest[:12]}…) is not registered, and eval-spec {spec.id!r} is "
                    f"of form {spec.form}",
                    remedy=f'register it first:\n[[prompt-set]]\nid = "{name}"\nversion = "{version}"\n'
                    f'digest = "{digest}"\nn = {n}\nheld_out = true  # or false, if development has seen it',
                )
            made.records.append(PromptSet(id=name, version=version, digest=digest, n=n, licence=licence))
            made.notes.append(f"prompt-set {name} {version} was new: registered as not held out")
    return made


def as_used(found: Sequence[tuple[str, str, str, int, str]]) -> list[UsedSet]:
    """The same as a run holds them."""
    return [UsedSet(id=name, version=version, digest=digest) for name, version, digest, _, _ in found]
