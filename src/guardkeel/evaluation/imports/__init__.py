"""Results of other harnesses: geh, inspect_ai, lm-evaluation-harness and GuardBench, read from the files they write."""

from __future__ import annotations

from guardkeel.evaluation.imports.finding import read_all, read_results
from guardkeel.evaluation.imports.reading import Reading

__all__ = ["Reading", "read_all", "read_results"]
