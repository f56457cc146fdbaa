"""The gate: results and a policy in, a decision with its trace out.

deny if a binding rule fails; else hold if evidence for a binding rule is missing or insufficient, or if no
rule binds; else allow. Nothing unscored or missing ever passes. The paired tests are computed here again
from the counts, with the margins, error rate and Holm family of *this* policy, so a comparison made under
laxer margins changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from guardkeel.evaluation import paired
from guardkeel.evaluation.compare import METRICS, Metric, harm_of
from guardkeel.evaluation.items import POOLED
from guardkeel.evaluation.policy import Absolute, Policy
from guardkeel.records import Estimate
from guardkeel.results import AuditResults, Behaviour, Decision, GuardResult, LayerGeometry, PairedTest, Rule

EACH = "each"
Outcome = Literal["pass", "fail", "hold"]
_HARM = {"recall": "fall in recall", "fpr": "rise in FPR", "unscored": "rise in unscored rate"}
_UNSAFE, _SAFE = ("n_unsafe",), ("n_safe",)  # the fields of Behaviour that count a class
_NEEDS: dict[str, tuple[str, ...]] = {"recall": _UNSAFE, "fpr": _SAFE}
_NEEDS |= dict.fromkeys(("precision", "f1", "auroc", "ece"), _UNSAFE + _SAFE)


def decide(results: AuditResults, policy: Policy) -> Decision:
    """Judge audit results by a policy. Without a candidate only absolute and completeness rules apply."""
    guard = results.candidate or results.reference
    rules = [*_complete(results, guard, policy), *_absolutes(guard, policy)]
    if results.candidate is not None:
        rules += _non_inferior(results, guard, policy)
        rules += _unharmed(results, policy)
        rules += _geometry(results.geometry, policy)
    binding = [r for r in rules if not r.advisory]
    failed = [r for r in binding if r.outcome == "fail"]
    held = [r for r in binding if r.outcome == "hold"]
    if failed:
        decision: Literal["allow", "hold", "deny"] = "deny"
        reason = f"{_count(failed)} failed: {_names(failed)}" + (
            f"; {_count(held)} without enough evidence" if held else ""
        )
    elif held or not binding:
        decision = "hold"
        reason = (
            f"{_count(held)} without enough evidence: {_names(held)}" if held else "no binding rule applies"
        )
    else:
        decision, reason = "allow", f"{_count(binding)} passed"
    advice = [r for r in rules if r.advisory and r.outcome != "pass"]
    return Decision(
        decision=decision,
        policy=policy.name,
        policy_digest=policy.digest,
        rules=rules,
        reason=reason + (f"; advisory, not counted: {_names(advice)}" if advice else ""),
    )


def _count(rules: list[Rule]) -> str:
    return f"{len(rules)} binding rule{'' if len(rules) == 1 else 's'}"


def _names(rules: list[Rule]) -> str:
    return ", ".join(r.name if r.suite == POOLED else f"{r.name} ({r.suite})" for r in rules)


def _behaviours(guard: GuardResult) -> dict[str, Behaviour]:
    return {POOLED: guard.overall} | {s.value: s.behaviour for s in guard.slices if s.by == "suite"}


def _named(wanted: list[str], found: dict[str, Behaviour]) -> list[str]:
    every = sorted(set(found) - {POOLED})
    return list(dict.fromkeys(s for w in wanted for s in (every if w == EACH else [w])))


def _without_class(suite: str, metric: str, found: dict[str, Behaviour]) -> bool:
    """Whether a named suite by its making lacks a class that the metric needs."""
    needs = _NEEDS.get(metric, ())
    return suite != POOLED and suite in found and any(getattr(found[suite], field) == 0 for field in needs)


def _complete(results: AuditResults, guard: GuardResult, policy: Policy) -> Iterator[Rule]:
    found, wanted = _behaviours(guard), policy.completeness
    for suite in wanted.suites:
        b = found.get(suite)
        scored = 0 if b is None else b.n - b.n_unscored
        enough = b is not None and b.n > 0 and 2 * scored >= b.n
        absent = "the suite was not measured" if b is None else f"only {scored} of {b.n} items have a score"
        yield Rule(
            name="suite measured",
            kind="completeness",
            advisory=False,
            suite=suite,
            requirement="measured, with a score for half of its items at least",
            observed="absent" if b is None else f"{scored} of {b.n} scored",
            n=scored,
            outcome="pass" if enough else "hold",
            reason=f"{scored} items have a score" if enough else absent,
        )
    for kind, least, n in (
        ("unsafe", wanted.min_unsafe, guard.overall.recall.n),
        ("safe", wanted.min_safe, guard.overall.fpr.n),
    ):
        if least == 0:
            continue
        yield Rule(
            name=f"enough {kind} items",
            kind="completeness",
            advisory=False,
            suite=POOLED,
            requirement=f"at least {least} scored {kind} items",
            observed=str(n),
            n=n,
            outcome="pass" if n >= least else "hold",
            reason=f"{n} scored {kind} items" + ("" if n >= least else f", {least - n} too few"),
        )
    if results.candidate is not None and results.comparison is None:
        yield Rule(
            name="compared",
            kind="completeness",
            advisory=False,
            suite=POOLED,
            requirement="a paired comparison of candidate and reference",
            observed="absent",
            n=0,
            outcome="hold",
            reason="there is a candidate, but nothing compares it with the reference",
        )


def _absolutes(guard: GuardResult, policy: Policy) -> Iterator[Rule]:
    found = _behaviours(guard)
    for table in policy.absolute:
        for suite in _named(table.suites, found):
            for key, limit in _limits(table):
                bound, metric = key.split("_", 1)
                if _without_class(suite, metric, found):
                    continue
                estimate = getattr(found[suite], metric) if suite in found else None
                outcome, observed, reason = _keeps(estimate, limit, at_least=bound == "min")
                yield Rule(
                    name=f"{metric} {'floor' if bound == 'min' else 'ceiling'}",
                    kind="absolute",
                    advisory=False,
                    suite=suite,
                    requirement=f"{metric} {'≥' if bound == 'min' else '≤'} {limit:g}, whole interval",
                    observed=observed,
                    n=0 if estimate is None else estimate.n,
                    outcome=outcome,
                    reason=reason,
                )


def _limits(table: Absolute) -> Iterator[tuple[str, float]]:
    for key in type(table).model_fields:
        limit = getattr(table, key) if key != "suites" else None
        if limit is not None:
            yield key, limit


def _keeps(estimate: Estimate | None, limit: float, *, at_least: bool) -> tuple[Outcome, str, str]:
    """(outcome, what was seen, why): pass if the interval keeps the limit, fail if the value breaks it."""
    if estimate is None:
        return "hold", "absent", "not measured"
    if estimate.value is None:
        return "hold", "undefined", f"undefined: {estimate.note or 'no reason recorded'}"
    seen, sign = _show(estimate), 1.0 if at_least else -1.0
    word = "below" if at_least else "above"
    if sign * (estimate.value - limit) < 0:
        return "fail", seen, f"{estimate.value:.3f} is {word} {limit:g}"
    end = estimate.low if at_least else estimate.high
    if end is None:
        return "hold", seen, "it has no interval, so chance is not ruled out"
    if sign * (end - limit) < 0:
        return (
            "hold",
            seen,
            f"insufficient evidence: with n = {estimate.n} it may be {word} {limit:g} (to {end:.3f})",
        )
    return "pass", seen, f"the whole interval is {'at or above' if at_least else 'at or below'} {limit:g}"


def _show(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


@dataclass(frozen=True, slots=True)
class _Claim:
    suite: str
    metric: Metric
    test: PairedTest | None
    p: float | None


def _counts(test: PairedTest) -> tuple[float, float, float]:
    """worse, better, n as effective counts."""
    return test.worse / test.design_effect, test.better / test.design_effect, test.n / test.design_effect


def _sound(test: PairedTest) -> bool:
    return min(test.worse, test.better) >= 0 and 0 < test.n >= test.worse + test.better


def _non_inferior(results: AuditResults, guard: GuardResult, policy: Policy) -> Iterator[Rule]:
    rule, found = policy.non_inferiority, _behaviours(guard)
    known = {(t.suite, t.metric): t for t in (results.comparison.tests if results.comparison else ())}
    claims = []
    for suite in _named(rule.suites, found):
        for metric in METRICS:
            if _without_class(suite, metric, found):
                continue
            test, margin = known.get((suite, metric)), getattr(rule.margins, metric)
            p = paired.noninferiority_p(*_counts(test), margin) if test is not None and _sound(test) else None
            claims.append(_Claim(suite, metric, test, p))
    # a claim that was not measured cannot be shown, and stays in the family as one that failed
    for claim, p in zip(claims, paired.holm([1.0 if c.p is None else c.p for c in claims]), strict=True):
        margin = getattr(rule.margins, claim.metric)
        outcome, observed, reason = _shown(claim, p, margin, rule.alpha, rule.min_n)
        yield Rule(
            name=f"{claim.metric} non-inferior",
            kind="behaviour",
            advisory=False,
            suite=claim.suite,
            requirement=f"{_HARM[claim.metric]} < {margin:g} (one-sided, Holm p ≤ {rule.alpha:g})",
            observed=observed,
            n=claim.test.n if claim.test else 0,
            outcome=outcome,
            reason=reason,
        )


def _shown(claim: _Claim, p: float, margin: float, alpha: float, min_n: int) -> tuple[Outcome, str, str]:
    test = claim.test
    if test is None:
        return "hold", "absent", "not measured: no such paired test in the results"
    if test.n == 0:
        return "hold", "absent", f"not measured: {test.difference.note}"
    if claim.p is None:
        return "hold", "spoiled", f"{test.worse} worse and {test.better} better do not fit {test.n} pairs"
    harm, _ = harm_of(test)
    low, high = paired.tango_interval(*_counts(test), test.difference.confidence)
    seen = f"{_HARM[claim.metric]} {harm:+.3f} [{low:+.3f}, {high:+.3f}], Holm p = {p:.3g}"
    counts = f"{test.worse} worse, {test.better} better of {test.n}"
    word = paired.outcome(p, harm, low, margin, alpha)
    if test.n < min_n:
        return "hold", seen, f"{test.n} pairs, {min_n} are needed"
    if word == "inferior":
        return "fail", seen, f"harm is shown and its estimate exceeds the margin {margin:g} ({counts})"
    if word == "non-inferior":
        return "pass", seen, f"harm of {margin:g} or more is ruled out ({counts})"
    _, _, n = _counts(test)
    least = paired.detectable_margin(n, (test.worse + test.better) / test.n, alpha)
    return (
        "hold",
        seen,
        f"insufficient evidence: such data can resolve a margin of about {least:.3f} ({counts})",
    )


def _unharmed(results: AuditResults, policy: Policy) -> Iterator[Rule]:
    rule = policy.non_inferiority
    tests = [
        t for t in (results.comparison.tests if results.comparison else ()) if t.suite != POOLED and t.n > 0
    ]
    if not rule.no_suite_harmed or not tests:
        return
    sound = [t for t in tests if _sound(t)]
    adjusted = paired.holm([paired.harm_p(*_counts(t)[:2]) for t in sound])
    for metric in METRICS:
        margin = getattr(rule.margins, metric)
        mine = [(t, p) for t, p in zip(sound, adjusted, strict=True) if t.metric == metric]
        spoiled = sorted(t.suite for t in tests if t.metric == metric and not _sound(t))
        if not mine and not spoiled:
            continue
        harmed = [t for t, p in mine if p <= rule.alpha and harm_of(t)[0] > margin]
        worst = max((t for t, _ in mine), key=lambda t: harm_of(t)[0], default=None)
        outcome: Outcome = "fail" if harmed else "hold" if spoiled else "pass"
        reason = "no suite is shown to be harmed by more than the margin (a tripwire, no proof)"
        if harmed:
            reason = "; ".join(f"{t.suite}: {t.worse} worse, {t.better} better of {t.n}" for t in harmed)
        elif spoiled:
            reason = f"counts do not fit the number of pairs: {', '.join(spoiled)}"
        yield Rule(
            name=f"no suite harmed in {metric}",
            kind="behaviour",
            advisory=False,
            suite=EACH,
            requirement=f"no suite with a {_HARM[metric]} > {margin:g} and Holm p ≤ {rule.alpha:g}",
            observed="spoiled" if worst is None else f"worst {worst.suite}: {harm_of(worst)[0]:+.3f}",
            n=sum(t.n for t, _ in mine),
            outcome=outcome,
            reason=reason,
        )


def _geometry(layers: list[LayerGeometry], policy: Policy) -> Iterator[Rule]:
    rule = policy.geometry
    if not layers and not rule.binding:
        return  # geometry was not asked for
    for name, limit, at_least, values in (
        ("CKA", rule.min_cka, True, _cka(layers)),
        ("separability kept", rule.min_separability_kept, True, _kept(layers)),
        ("probe AUROC drop", rule.max_probe_drop, False, _drop(layers)),
    ):
        if limit is None:
            continue
        outcome: Outcome = "hold"
        observed, reason, n = "absent", "nothing measured at any layer, or nothing above its null", 0
        if values:
            value, layer, n = (min if at_least else max)(values)
            keeps = value >= limit if at_least else value <= limit
            outcome = "pass" if keeps else "fail"
            observed = f"{value:.3f} at layer {layer}"
            word = "worst" if len(values) > 1 else "value"
            reason = f"the {word} of {len(values)} layers {'keeps' if keeps else 'breaks'} the limit"
        yield Rule(
            name=name,
            kind="geometry",
            advisory=not rule.binding,
            suite=POOLED,
            requirement=f"{name} {'≥' if at_least else '≤'} {limit:g} at every layer measured",
            observed=observed,
            n=n,
            outcome=outcome,
            reason=reason,
        )


def _cka(layers: list[LayerGeometry]) -> list[tuple[float, int, int]]:
    return [
        (g.cka.estimate.value, g.layer, g.n)
        for g in layers
        if g.cka is not None and g.cka.estimate.value is not None
    ]


def _kept(layers: list[LayerGeometry]) -> list[tuple[float, int, int]]:
    """Candidate's separability over the reference's, where the reference's is above its null."""
    found = []
    for g in layers:
        before, null = g.separability_reference.estimate.value, g.separability_reference.null_high
        after = None if g.separability_candidate is None else g.separability_candidate.estimate.value
        if before is not None and after is not None and before > max(0.0, null or 0.0):
            found.append((after / before, g.layer, g.n))
    return found


def _drop(layers: list[LayerGeometry]) -> list[tuple[float, int, int]]:
    found = []
    for g in layers:
        before = g.probe_reference.estimate.value
        after = None if g.probe_candidate is None else g.probe_candidate.estimate.value
        if before is not None and after is not None:
            found.append((before - after, g.layer, g.n))
    return found
