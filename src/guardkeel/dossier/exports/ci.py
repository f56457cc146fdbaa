"""A decision for continuous integration: JUnit XML, SARIF 2.1.0, and Markdown for a step summary.

In JUnit a broken rule is a failure, a held one an error, a waived one is skipped. In SARIF those are error, error and
note, alerts are warnings; passed rules are of kind pass.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import guardkeel
from guardkeel.dossier.kinds import GateDecision, Traced

_LEVELS = {"fail": "error", "hold": "error", "safeguard": "warning", "waived": "note", "advice": "note"}
_SIGNS = {"pass": "✓", "fail": "✗", "hold": "?", "safeguard": "!", "waived": "–", "advice": "i"}


def junit(decision: GateDecision) -> str:
    """JUnit XML: one test case a rule."""
    suites = ElementTree.Element("testsuites")
    count = {o: sum(t.outcome == o for t in decision.trace) for o in _SIGNS}
    suite = ElementTree.SubElement(
        suites,
        "testsuite",
        name=f"guardkeel gate {decision.model}",
        tests=str(len(decision.trace)),
        failures=str(count["fail"]),
        errors=str(count["hold"]),
        skipped=str(count["waived"]),
        timestamp=decision.decided_at.isoformat(timespec="seconds"),
    )
    for traced in decision.trace:
        case = ElementTree.SubElement(suite, "testcase", name=_plain(traced.rule), classname=decision.policy)
        tag = {"fail": "failure", "hold": "error", "waived": "skipped"}.get(traced.outcome)
        if tag:
            told = ElementTree.SubElement(case, tag, message=_plain(traced.reason))
            told.text = _plain(_sentence(traced))
        else:
            ElementTree.SubElement(case, "system-out").text = _plain(_sentence(traced))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, "unicode") + "\n"


def sarif(decision: GateDecision, place: str) -> dict[str, Any]:
    """SARIF: one result a rule. `place` is the file that a reader is sent to, such as the policy's."""
    ids = list(dict.fromkeys(t.rule for t in decision.trace))
    location = {"physicalLocation": {"artifactLocation": {"uri": place}, "region": {"startLine": 1}}}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "guardkeel",
                        "version": guardkeel.__version__,
                        "rules": [
                            {
                                "id": i,
                                "shortDescription": {"text": i},
                                "properties": {"policy": decision.policy},
                            }
                            for i in ids
                        ],
                    }
                },
                "results": [
                    {
                        "ruleId": t.rule,
                        "ruleIndex": ids.index(t.rule),
                        "kind": "pass" if t.outcome == "pass" else "fail",
                        "level": "none" if t.outcome == "pass" else _LEVELS[t.outcome],
                        "message": {"text": _sentence(t)},
                        "locations": [location],
                        "properties": {"outcome": t.outcome, "evidence": t.evidence},
                    }
                    for t in decision.trace
                ],
                "properties": {"outcome": decision.outcome, "model": decision.model, "decision": decision.id},
            }
        ],
    }


def summary(decision: GateDecision) -> str:
    """Markdown: the outcome, and every rule that did not pass."""
    rows = [t for t in decision.trace if t.outcome != "pass"]
    head = f"## Gate: {decision.outcome} – {_cell(decision.model)}\n\n{_cell(decision.reason)}\n"
    passed = f"\n{len(decision.trace) - len(rows)} of {len(decision.trace)} rules passed."
    if not rows:
        return f"{head}{passed}\n"
    table = "\n| | rule | asked | seen | why |\n|---|---|---|---|---|\n"
    for t in rows:
        cells = (_SIGNS[t.outcome], t.rule, t.requirement, t.observed, t.reason)
        table += "| " + " | ".join(map(_cell, cells)) + " |\n"
    return f"{head}{table}{passed}\n"


def _sentence(traced: Traced) -> str:
    return f"{traced.requirement}: {traced.observed}. {traced.reason}"


def _plain(text: str) -> str:
    """Text without what XML does not allow."""
    return "".join(c if c >= " " and c not in "\ufffe\uffff" else " " for c in text)


def _cell(text: str) -> str:
    """Text in a Markdown cell: no markup of it counts."""
    table = {ord(c): f"\\{c}" for c in "\\`*_[]<>|#"} | {10: " ", 13: " "}
    return text.translate(table)
