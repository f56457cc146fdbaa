from __future__ import annotations

from pathlib import Path

import pytest

from guardkeel.records import Estimate, read_record
from guardkeel.report import words
from guardkeel.results import AuditResults, Behaviour, Decision, Rule
from run_directories import write_run


def results_of(directory: Path, **options: object) -> AuditResults:
    return AuditResults.model_validate(
        read_record(write_run(directory, items=200, layers=0, **options)).results
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> AuditResults:
    return results_of(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0%"),
        (1.0, "100%"),
        (0.4153, "41.5%"),
        (0.5, "50.0%"),
        (0.0001, "<0.1%"),
        (0.9999, ">99.9%"),
    ],
)
def test_percent(value: float | None, text: str) -> None:
    assert words.percent(value) == text


def test_numbers() -> None:
    assert [words.points(v) for v in (-0.5253, 0.012, 0.0, -0.00001, None)] == [
        "−52.5",
        "+1.2",
        "0.0",
        "0.0",
        "–",
    ]
    assert [words.decimal(v) for v in (0.98866, -0.1, None)] == ["0.989", "−0.100", "–"]
    assert [words.change(v) for v in (-0.14566, 0.0, None)] == ["−0.146", "0.000", "–"]
    assert [words.probability(v) for v in (0.0001, 0.0314, 1.0, None)] == ["<0.001", "0.031", "1.000", "–"]
    assert [words.seconds(v) for v in (2.14, 277.0, 7322.0)] == ["2.1 s", "4 min 37 s", "2 h 2 min"]
    assert [words.plural(n, "rule") for n in (1, 2)] == ["1 rule", "2 rules"]
    assert words.plural(1200, "rule lacks", "rules lack") == "1,200 rules lack"
    assert [words.suite_name(s) for s in ("*", "each", "mine")] == ["all suites", "each suite", "mine"]


def part(value: float | None, low: float | None = None) -> Estimate:
    return Estimate(
        value=value, low=low, high=None if low is None else 1.0, n=10, note="" if value is not None else "why"
    )


@pytest.mark.parametrize(
    ("operating", "ranking", "said"),
    [
        (part(None), part(0.1), "Not measured: why."),
        (part(-0.1, -0.2), part(0.1, 0.0), "No recall was lost"),
        (part(0.1, -0.1), part(0.2, -0.1), "Not clear"),
        (
            part(0.1, 0.05),
            part(-0.02, -0.1),
            "All of it is operating point: a new threshold would win back 10.0 points",
        ),
        (part(-0.1, -0.2), part(0.3, 0.1), "All of it is ranking"),
        (part(0.1, 0.05), part(0.3, 0.2), "Mostly ranking"),
        (part(0.3, 0.2), part(0.1, 0.05), "Mostly operating point"),
        (part(0.2, 0.1), part(0.2, 0.1), "Both"),
    ],
)
def test_how_lost_recall_divides(operating: Estimate, ranking: Estimate, said: str) -> None:
    assert words.recall_split(operating, ranking).startswith(said)


def test_headline_of_a_collapse(results: AuditResults) -> None:
    test = next(t for t in results.comparison.tests if (t.suite, t.metric) == ("*", "recall"))  # type: ignore[union-attr]
    said = words.headline(results)
    assert (said.answer, said.lead) == ("DENY", "Do not ship the changed guard.")
    assert words.percent(test.candidate) in said.sentence
    assert words.percent(test.reference) in said.sentence
    assert said.why.startswith("Rule “recall non-inferior” failed: harm is shown")
    assert "lack" in said.why or "held" not in said.why


def rule(outcome: str, name: str = "x", *, advisory: bool = False, suite: str = "*") -> Rule:
    return Rule.model_validate(
        {
            "name": name,
            "kind": "absolute",
            "advisory": advisory,
            "suite": suite,
            "requirement": "r",
            "observed": "o",
            "n": 1,
            "outcome": outcome,
            "reason": "because",
        }
    )


def decided(
    results: AuditResults, decision: str | None, rules: list[Rule], *, candidate: bool = True
) -> words.Headline:
    given = (
        Decision.model_validate(
            {
                "decision": decision,
                "policy": "p",
                "policy_digest": "d",
                "rules": rules,
                "reason": "as written",
            }
        )
        if decision
        else None
    )
    changed: dict[str, object] = {"decision": given} | (
        {} if candidate else {"candidate": None, "comparison": None}
    )
    return words.headline(results.model_copy(update=changed))


def test_headlines_of_every_decision(results: AuditResults) -> None:
    fine = decided(results, "allow", [rule("pass")])
    assert (fine.answer, fine.why) == ("ALLOW", "As written.")
    assert "within the policy’s margins" in fine.lead
    held = decided(results, "hold", [rule("hold", suite="mine"), rule("hold"), rule("fail", advisory=True)])
    assert held.why == "Rule “x” on mine held: because. 1 other rule held too."
    assert decided(results, "hold", []).why == "As written."
    denied = decided(results, "deny", [rule("fail"), rule("fail"), rule("hold")])
    assert denied.why == "Rule “x” failed: because. 1 other rule failed too; 1 rule lacks evidence."
    for decision, start in (
        ("allow", "This guard meets"),
        ("hold", "Not yet"),
        ("deny", "Do not ship this guard:"),
    ):
        assert decided(results, decision, [], candidate=False).lead.startswith(start)
    alone = decided(results, None, [], candidate=False)
    assert (alone.answer, alone.lead) == ("NO DECISION", "How this guard behaves today.")
    assert alone.why == "No gate was applied to this run, so nothing was decided."


def test_headlines_without_a_decision_follow_the_tests(results: AuditResults) -> None:
    comparison = results.comparison
    assert comparison is not None

    def lead(outcome: str) -> str:
        tests = [t.model_copy(update={"outcome": outcome}) for t in comparison.tests]
        changed = {"decision": None, "comparison": comparison.model_copy(update={"tests": tests})}
        return words.headline(results.model_copy(update=changed)).lead

    assert lead("inferior") == "The changed guard is worse than the original."
    assert lead("non-inferior").startswith("No harm beyond the margins")
    assert lead("insufficient evidence").startswith("The evidence does not settle")
    bare = results.model_copy(update={"decision": None, "comparison": None})
    assert words.headline(bare).lead == "Two guards, measured side by side."
    overall = results.candidate.overall  # type: ignore[union-attr]
    assert words.before_after(bare, "auroc") == (results.reference.overall.auroc.value, overall.auroc.value)


def test_what_could_not_be_measured_is_said(results: AuditResults) -> None:
    def without(b: Behaviour) -> Behaviour:
        return b.model_copy(update={"recall": part(None), "fpr": part(None)})

    reference = results.reference.model_copy(update={"overall": without(results.reference.overall)})
    alone = results.model_copy(update={"reference": reference, "candidate": None, "comparison": None})
    assert words.headline(alone).sentence == (
        "How many unsafe messages it catches is unknown and how many safe ones it flags is unknown."
    )
    both = results.model_copy(update={"reference": reference, "comparison": None})
    assert (
        words.headline(both).sentence == "Neither recall nor false alarms could be measured on both guards."
    )
