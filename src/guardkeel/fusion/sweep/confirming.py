"""The chosen point as a guard of its own, judged on `test` items beside the guards that it repairs.

fused/              the written checkpoint or adapter, with its operating point in guardkeel.json
audit/              an ordinary audit, reference against fused/
damaged/<name>/     the same of each candidate

The reference is asked once for all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.conversation import Side
from guardkeel.errors import DataError
from guardkeel.evaluation.audit import Known, Source, Watch, audit_guards, score_reference
from guardkeel.evaluation.intervals import undefined
from guardkeel.evaluation.items import POOLED
from guardkeel.evaluation.policy import Policy, load_policy
from guardkeel.evaluation.runs import read_audit
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.evaluation.suites import Suite
from guardkeel.fusion.sweep.candidates import Candidate
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.results import Answer, Audited, Confirmation, Point, SuiteVerdict
from guardkeel.guards.base import Guard
from guardkeel.guards.embedded import SETTINGS
from guardkeel.guards.load import base_path, load_checkpoint
from guardkeel.guards.offsets import Offsets, offsets_to, shifted
from guardkeel.guards.pair import pair
from guardkeel.models.adapters import adapter_base, is_adapter
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import Estimate
from guardkeel.results import AuditResults, PairedTest

FUSED, AUDIT, DAMAGED, _REFERENCE = "fused", "audit", "damaged", "reference"

Write = Callable[[Path, Mapping[str, Any]], None]
"""Writes the chosen point and its guardkeel.json to a folder that is not there yet, all of it or nothing."""


@dataclass(frozen=True)
class Confirming:
    """What confirming needs to know of the sweep."""

    config: SweepConfig
    folder: Path
    path: Path
    suites: Sequence[Suite]
    candidates: Sequence[Candidate]
    shipped: Mapping[str, Any]
    """guardkeel.json of the reference, with what it leaves to be told: family, threshold, offsets, …"""
    command: Sequence[str]
    watch: Watch

    def run(self, point: Point, write: Write) -> Confirmation:
        """Write the point, audit it and the candidates, and compare; what is there from before is taken up."""
        before: Offsets = self.shipped.get("offsets", {})
        threshold, offsets = self._operating(point, self.shipped["threshold"], before)
        fused = self._written(point, threshold, offsets, write)
        settings = AuditSettings(
            limit=self.config.limit, geometry=self.config.geometry, seed=self.config.seed
        )
        policy = load_policy(self.config.policy)
        known: list[Known] = []

        def audited(name: str, where: str, reference: str, path: Path) -> tuple[Audited, AuditResults]:
            folder = self.folder / where
            if not (folder / "run.json").is_file():
                known[:] = known or [self._reference(settings)]
                self._audit(folder, reference, path, known[0], settings, policy)
            found = read_audit(folder)
            return _told(name, where, found), found

        repaired = audited(point.name, AUDIT, str(fused), fused)
        damaged = [audited(c.name, f"{DAMAGED}/{c.name}", c.reference, c.path) for c in self.candidates]
        shutil.rmtree(self.folder / _REFERENCE, ignore_errors=True)
        verdicts = _verdicts(repaired[1], {told.name: found for told, found in damaged}, self.config.margin)
        more = {side: offset - before.get(side, 0.0) for side, offset in offsets.items()}
        return Confirmation(
            checkpoint=FUSED,
            kind="adapter" if is_adapter(fused) else "checkpoint",
            threshold=threshold,
            offsets=offsets,
            moved=(threshold, offsets) != (self.shipped["threshold"], dict(before)),
            as_swept=_as_swept(self.folder / AUDIT, self.folder / "points" / point.id, more),
            margin=self.config.margin,
            suites=verdicts,
            verdict=overall(verdicts),
            repaired=repaired[0],
            damaged=[told for told, _ in damaged],
        )

    def _operating(self, point: Point, threshold: float, before: Offsets) -> tuple[float, dict[Side, float]]:
        offsets = dict(before)
        if self.config.recalibrate and point.moved is not None:
            threshold = point.moved
            for side, more in offsets_to(threshold, point.sides).items():
                offsets[side] = offsets.get(side, 0.0) + more
        return threshold, offsets

    def _written(self, point: Point, threshold: float, offsets: Mapping[Side, float], write: Write) -> Path:
        folder = self.folder / FUSED
        said = dict(self.shipped) | {
            "name": self.folder.resolve().name,
            "threshold": threshold,
            "offsets": dict(offsets),
            "provenance": {
                "reference": checkpoint_digest(self.path),
                "point": point.id,
                "method": point.method,
                "settings": point.settings,
                "written as": "adapter" if self.config.adapter else "checkpoint",
            },
        }
        if _read(folder / SETTINGS) != said:  # none yet, or another point's
            for stale in (folder, self.folder / AUDIT):
                shutil.rmtree(stale, ignore_errors=True)
            write(folder, said)
        return folder

    def _reference(self, settings: AuditSettings) -> Known:
        guard = load_checkpoint(self.config.reference, progress=self.watch, **self.config.guard_options())
        return score_reference(
            guard,
            self.suites,
            self.folder / _REFERENCE,
            source=self._source(self.config.reference, self.path),
            settings=settings,
            watch=self.watch,
        )

    def _audit(
        self, folder: Path, against: str, path: Path, known: Known, settings: AuditSettings, policy: Policy
    ) -> None:
        options = self.config.guard_options()
        offline = options.pop("offline")

        def judged() -> Iterator[tuple[str, Guard]]:
            both = pair(self.config.reference, against, progress=self.watch, offline=offline, **options)
            return ((role, guard) for role, guard in both if role == "candidate")

        audit_guards(
            judged(),
            self.suites,
            folder,
            sources={
                "reference": self._source(self.config.reference, self.path),
                "candidate": self._source(against, path),
            },
            settings=settings,
            policy=policy,
            options=options,
            known={"reference": known},
            command=self.command,
            watch=lambda what, done, total: self.watch(f"{what} ({folder.name})", done, total),
        )

    def _source(self, reference: str, path: Path) -> Source:
        on = (
            base_path(path, self.watch, self.config.offline)
            if is_adapter(path) and adapter_base(path)
            else None
        )
        base = "" if on is None else checkpoint_digest(on)
        return Source(reference=reference, digest=checkpoint_digest(path), base=base)


def outcome(change: Estimate, margin: float) -> Answer | None:
    """Non-inferior: all of the 95% interval above −margin. Inferior: all below 0 and the value beyond the margin."""
    if change.value is None or change.low is None or change.high is None:
        return None
    if change.low > -margin:
        return "non-inferior"
    return "inferior" if change.high < 0 and change.value < -margin else "insufficient evidence"


def overall(verdicts: Sequence[SuiteVerdict]) -> Answer:
    """One word for all suites. Each must be shown, so no p-value is corrected (an intersection–union test)."""
    found = [v.outcome for v in verdicts if v.suite != POOLED and v.n > 0]
    if "inferior" in found:
        return "inferior"
    return "non-inferior" if found and set(found) == {"non-inferior"} else "insufficient evidence"


def _verdicts(
    repaired: AuditResults, damaged: Mapping[str, AuditResults], margin: float
) -> list[SuiteVerdict]:
    def tests(results: AuditResults) -> dict[str, PairedTest]:
        assert results.comparison is not None
        return {t.suite: t for t in results.comparison.tests if t.metric == "recall"}

    others = {name: tests(found) for name, found in damaged.items()}
    return [
        SuiteVerdict(
            suite=suite,
            n=test.n,
            reference=test.reference,
            repaired=test.candidate,
            change=test.difference,
            outcome=outcome(test.difference, margin),
            damaged={name: found[suite].candidate for name, found in others.items()},
            damaged_change={name: found[suite].difference for name, found in others.items()},
        )
        for suite, test in tests(repaired).items()
    ]


def _told(name: str, folder: str, results: AuditResults) -> Audited:
    comparison, decision = results.comparison, results.decision
    if comparison is None or decision is None or results.candidate is None:
        raise DataError(
            f"{folder}: an audit without a comparison", remedy="delete the folder and repeat the command"
        )
    change = {t.metric: t.difference for t in comparison.tests if t.suite == POOLED}
    matched = [r.recall_recalibrated for r in comparison.recalibration if r.suite == POOLED]
    return Audited(
        name=name,
        folder=folder,
        decision=decision.decision,
        reason=decision.reason,
        fpr_change=change["fpr"],
        unscored_change=change["unscored"],
        recall_matched=matched[0] if matched else undefined("no calibrate items"),
        auroc=results.candidate.overall.auroc,
    )


def _as_swept(audit: Path, point: Path, more: Mapping[Side, float]) -> float | None:
    """The largest difference of P(unsafe) on items that both scored; the sweep's under the offsets that were added."""
    swept = {row["id"]: row["unsafe"] for row in _lines(point / "verdicts.jsonl")}
    sides = {row["id"]: row["side"] for row in _lines(audit / "items.jsonl")}
    differences = [
        abs(shifted(swept[row["id"]], more.get(sides[row["id"]], 0.0)) - row["unsafe"])
        for row in _lines(audit / "candidate.jsonl")
        if row["unsafe"] is not None and swept.get(row["id"]) is not None
    ]
    return max(differences, default=None)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
