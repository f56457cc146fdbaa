"""The steps of the pipeline, in order. A step of another kind is a `Step` in its place of STEPS."""

from __future__ import annotations

from guardkeel.curation.steps.adjudicate import Adjudicate
from guardkeel.curation.steps.base import Context, Done, Step
from guardkeel.curation.steps.export import Export
from guardkeel.curation.steps.jury import Jury
from guardkeel.curation.steps.simple import Dedup, Limits, Map, Redact, Sources, Split
from guardkeel.curation.steps.synthesis import Synthesis

STEPS: tuple[Step, ...] = (
    Sources(),
    Limits(),
    Dedup(),
    Redact(),
    Map(),
    Jury(),
    Adjudicate(),
    Synthesis(),
    Split(),
    Export(),
)

__all__ = ["STEPS", "Context", "Done", "Step"]
