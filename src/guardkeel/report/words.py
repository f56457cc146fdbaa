"""Numbers and results in plain words. Rates are fractions in; percentages and percentage points out."""

from __future__ import annotations

from dataclasses import dataclass

from guardkeel.records import Estimate
from guardkeel.results import AuditResults, Behaviour, Decision, PairedTest, Rule

NOTHING = "–"
POOLED = "*"
ANSWERS = {"allow": "ALLOW", "hold": "HOLD", "deny": "DENY"}
OUTCOMES = {"pass": "passed", "fail": "failed", "hold": "held"}
METRICS = {"recall": "Recall", "fpr": "FPR", "unscored": "Unscored"}


@dataclass(frozen=True, slots=True)
class Headline:
    """The first lines of a report: the answer, what it means, what happened, and why the gate said so."""

    answer: str
    lead: str
    sentence: str
    why: str


def percent(value: float | None) -> str:
    """0.4153 → '41.5%'; a rate that is not 0 or 1 is never rounded to it."""
    if value is None:
        return NOTHING
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 < value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%".replace(".0%", "%" if value in (0, 1) else ".0%")


def points(value: float | None) -> str:
    """-0.5253 → '−52.5'; the unit, percentage points, is said beside it."""
    return NOTHING if value is None else _signed(100 * value, 1)


def decimal(value: float | None, digits: int = 3) -> str:
    """0.98866 → '0.989'."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def change(value: float | None) -> str:
    """-0.14566 → '−0.146'."""
    return NOTHING if value is None else _signed(value, 3)


def probability(value: float | None) -> str:
    """A p-value: three digits, and '<0.001' below."""
    if value is None:
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float) -> str:
    """12345 → '12,345'."""
    return f"{value:,}"


def seconds(value: float) -> str:
    """277.0 → '4 min 37 s'."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plural(n: int, one: str, many: str = "") -> str:
    """(2, 'rule') → '2 rules'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def suite_name(suite: str) -> str:
    """A suite's name, with what "*" and "each" stand for."""
    return {POOLED: "all suites", "each": "each suite"}.get(suite, suite)


def headline(results: AuditResults) -> Headline:
    """What a reader who stops after three lines must know."""
    decision = results.decision
    answer = ANSWERS[decision.decision] if decision else "NO DECISION"
    sentence = _changed(results) if results.candidate else _alone(results.reference.overall)
    return Headline(answer, _lead(results), sentence, _why(decision))


def before_after(results: AuditResults, metric: str) -> tuple[float | None, float | None]:
    """A measure on all suites together: over the items that both guards scored, where they were compared."""
    if results.comparison:
        for test in results.comparison.tests:
            if (test.suite, test.metric) == (POOLED, metric):
                return test.reference, test.candidate
        for ranking in results.comparison.ranking:
            if (ranking.suite, "auroc") == (POOLED, metric):
                return ranking.reference.value, ranking.candidate.value
    after = getattr(results.candidate.overall, metric).value if results.candidate else None
    return getattr(results.reference.overall, metric).value, after


def divides(operating: Estimate, ranking: Estimate) -> bool:
    """Whether recall was lost and the interval of at least one part of the loss lies above zero."""
    if operating.value is None or ranking.value is None or operating.value + ranking.value <= 0:
        return False
    return any(e.low is not None and e.low > 0 for e in (operating, ranking))


def recall_split(operating: Estimate, ranking: Estimate) -> str:
    """How a loss of recall divides between the operating point and the ranking, in a sentence."""
    a, b = operating.value, ranking.value
    if a is None or b is None:
        return f"Not measured: {operating.note or ranking.note or 'no reason recorded'}."
    if a + b <= 0:
        return "No recall was lost, so there is nothing to divide."
    if not divides(operating, ranking):
        return "Not clear: the intervals of both parts reach zero."
    if b <= 0:
        return f"All of it is operating point: a new threshold would win back {100 * a:.1f} points of recall."
    if a <= 0:
        return "All of it is ranking: no threshold wins it back without more false alarms."
    if b / (a + b) >= 2 / 3:
        return "Mostly ranking: moving the threshold will not repair this guard."
    if a / (a + b) >= 2 / 3:
        return "Mostly operating point: a new threshold would win most of it back."
    return "Both: a new threshold wins back a part, and ranking lost the rest."


def _lead(results: AuditResults) -> str:
    decision = results.decision.decision if results.decision else ""
    if results.candidate is None:
        return {
            "allow": "This guard meets the policy.",
            "hold": "Not yet: there is too little evidence on this guard.",
            "deny": "Do not ship this guard: it does not meet the policy.",
        }.get(decision, "How this guard behaves today.")
    if decision:
        return {
            "allow": "The changed guard kept its safety within the policy’s margins.",
            "hold": "Not yet: there is too little evidence to let the changed guard through.",
            "deny": "Do not ship the changed guard.",
        }[decision]
    outcomes = [t.outcome for t in _pooled(results)]
    if not outcomes:
        return "Two guards, measured side by side."
    if "inferior" in outcomes:
        return "The changed guard is worse than the original."
    if set(outcomes) == {"non-inferior"}:
        return "No harm beyond the margins was found in the changed guard."
    return "The evidence does not settle whether the change did harm."


def _pooled(results: AuditResults) -> list[PairedTest]:
    return [t for t in results.comparison.tests if t.suite == POOLED] if results.comparison else []


def _alone(b: Behaviour) -> str:
    caught = (
        f"It catches {percent(b.recall.value)} of unsafe messages"
        if b.recall.value is not None
        else "How many unsafe messages it catches is unknown"
    )
    flagged = (
        f"flags {percent(b.fpr.value)} of safe ones by mistake"
        if b.fpr.value is not None
        else "how many safe ones it flags is unknown"
    )
    return f"{caught} and {flagged}."


def _changed(results: AuditResults) -> str:
    parts = []
    before, after = before_after(results, "recall")
    if before is not None and after is not None:
        parts.append(
            f"It catches {percent(after)} of unsafe messages; before the change it caught {percent(before)}."
        )
    before, after = before_after(results, "fpr")
    if before is not None and after is not None:
        parts.append(f"It flags {percent(after)} of safe messages by mistake; before, {percent(before)}.")
    return " ".join(parts) or "Neither recall nor false alarms could be measured on both guards."


def _why(decision: Decision | None) -> str:
    if decision is None:
        return "No gate was applied to this run, so nothing was decided."
    binding = [r for r in decision.rules if not r.advisory]
    failed = [r for r in binding if r.outcome == "fail"]
    held = [r for r in binding if r.outcome == "hold"]
    lines = failed or held
    if decision.decision == "allow" or not lines:
        reason = decision.reason
        return f"{reason[:1].upper()}{reason[1:]}."
    rest = (
        [f"{plural(len(lines) - 1, 'other rule')} {'failed' if failed else 'held'} too"] if lines[1:] else []
    )
    if failed and held:
        rest.append(f"{plural(len(held), 'rule lacks', 'rules lack')} evidence")
    return _rule(lines[0]) + (f" {'; '.join(rest).capitalize()}." if rest else "")


def _rule(rule: Rule) -> str:
    where = "" if rule.suite in (POOLED, "each") else f" on {rule.suite}"
    return f"Rule “{rule.name}”{where} {OUTCOMES[rule.outcome]}: {rule.reason}."


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
