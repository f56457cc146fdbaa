"""Audit a guard before and after a change, from Python.

    python examples/audit_your_guard.py                                       a toy guard, offline, in seconds
    python examples/audit_your_guard.py REFERENCE CANDIDATE OUT SUITE …       your own

REFERENCE and CANDIDATE are what the command line takes: a folder, hub:org/name@revision, keel-135m, or, for
the candidate, a LoRA adapter on the reference. OUT is the run directory. SUITE is a suite's name, a JSONL
file or a card. The exit code is the gate's: 0 allow, 1 deny, 3 hold.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guardkeel import audit
from guardkeel.report import write_report
from guardkeel.results import AuditResults

EXIT = {"allow": 0, "deny": 1, "hold": 3}


def compare(reference: str, candidate: str, out: Path, suites: Sequence[str]) -> AuditResults:
    """Judge the suites with both guards; the run directory and its report are written to `out`."""
    results: AuditResults = audit(reference, candidate, suites=list(suites), out=out)
    write_report(out)
    return results


def tell(results: AuditResults) -> int:
    """Print what changed and what the gate says; return its exit code."""
    assert results.comparison is not None and results.decision is not None
    for test in results.comparison.tests:
        change = test.difference
        if test.suite == "*" and change.value is not None:
            interval = "" if change.low is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
            rates = f"{test.reference:.3f} → {test.candidate:.3f}"
            print(f"{test.metric:9} {rates}  {change.value:+.3f}{interval}  {test.outcome}")
    print(f"gate: {results.decision.decision}: {results.decision.reason}")
    return EXIT[results.decision.decision]


def main(arguments: Sequence[str]) -> int:
    """Audit what the arguments name, or the toy guard."""
    if len(arguments) >= 4:
        reference, candidate, out, *suites = arguments
        return tell(compare(reference, candidate, Path(out), suites))
    if arguments:
        sys.exit(__doc__)
    sys.path.insert(0, str(Path(__file__).parent))
    from toy import make

    with tempfile.TemporaryDirectory() as folder:
        toy = make(folder)
        names = [str(toy / name) for name in ("guard", "tuned", "run", "mine.jsonl")]
        return tell(compare(names[0], names[1], Path(names[2]), names[3:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
