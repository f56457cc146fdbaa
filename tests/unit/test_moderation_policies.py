"""Decisions worked out by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from guardkeel.conversation import Conversation
from guardkeel.moderation.answers import openai_keys
from guardkeel.moderation.openai_schema import CROSSWALK, KEYS, result
from guardkeel.moderation.policies import Policy, Said, decide
from guardkeel.taxonomy import AEGIS2


def scores(decision):
    return {c.name: (round(c.score, 6), c.flagged) for c in decision.categories}


def test_top_category_has_the_whole_probability():
    said = [Said(0.6, True, ("Violence",)), Said(0.3, True, ("Violence", "Threat")), Said(0.1, False, ())]
    found = decide(Policy(), 0.8, said, 0.5)
    assert scores(found) == {"Violence": (0.8, True), "Threat": (round(0.8 * 0.3 / 0.9, 6), False)}
    assert found.flagged


def test_names_of_other_taxonomies_are_one_category():
    said = [Said(0.5, True, ("Violent Crimes",)), Said(0.5, True, ("Violence",))]
    assert scores(decide(Policy(), 0.9, said, 0.5)) == {"Violence": (0.9, True)}


def test_nothing_named_goes_by_the_policy_alone():
    assert scores(decide(Policy(), 0.5, [Said(1.0, True, ())], 0.5)) == {"": (0.5, True)}
    assert not decide(Policy(), 0.49, [Said(1.0, False, ())], 0.5).flagged
    assert not decide(Policy(threshold=0.6), 0.5, [Said(1.0, True, ())], 0.5).flagged


def test_costs_set_the_threshold_where_the_policy_does_not():
    assert decide(Policy(), 0.2, [Said(1.0, True, ())], 0.1).flagged
    assert not decide(Policy(threshold=0.3), 0.2, [Said(1.0, True, ())], 0.1).flagged


def test_flip_to_permissive():
    strict = Policy(threshold=0.4)
    permissive = strict.model_copy(update={"strictness": "permissive"})
    assert decide(strict, 0.5, [Said(1.0, True, ())], 0.5).flagged
    assert not decide(permissive, 0.69, [Said(1.0, True, ())], 0.5).flagged
    assert decide(permissive, 0.7, [Said(1.0, True, ())], 0.5).flagged  # half-way from 0.4 to 1


def test_a_category_that_is_never_flagged_hides_no_expert_who_names_none():
    policy = Policy(categories=[{"name": "Profanity", "flag": "never"}])
    alone = [Said(1.0, True, ("Profanity",))]
    assert not decide(policy, 0.99, alone, 0.5).flagged
    heavy = [Said(0.1, True, ("Profanity",)), Said(0.9, True, ())]
    assert scores(decide(policy, 0.95, heavy, 0.5))[""] == (0.95, True)
    other = [Said(0.6, True, ("Profanity",)), Said(0.4, True, ("Violence",))]
    assert decide(policy, 0.9, other, 0.5).flagged


def test_strict_only_category():
    rules = [{"name": "Profanity", "flag": "strict"}]
    said = [Said(1.0, True, ("Profanity",))]
    assert decide(Policy(categories=rules), 0.9, said, 0.5).flagged
    assert not decide(Policy(categories=rules, strictness="permissive"), 0.9, said, 0.5).flagged


def test_category_thresholds_go_over_the_policys():
    policy = Policy(categories=[{"name": "Threat", "threshold": 0.2}])
    assert decide(policy, 0.25, [Said(1.0, False, ("Threat",))], 0.5).flagged
    permissive = policy.model_copy(update={"strictness": "permissive"})
    assert not decide(permissive, 0.59, [Said(1.0, True, ("Threat",))], 0.5).flagged  # 0.6 = (1 + 0.2) / 2
    assert decide(permissive, 0.61, [Said(1.0, True, ("Threat",))], 0.5).flagged


def test_custom_category_gathers_names_and_has_words_of_its_own():
    policy = Policy(
        categories=[
            {
                "name": "Account takeover",
                "includes": ["Fraud/Deception"],
                "words": ["reset ... password"],
                "openai": ["illicit"],
            }
        ]
    )
    said = [Said(1.0, True, ("Fraud/Deception",))]
    assert scores(decide(policy, 0.7, said, 0.5)) == {"Account takeover": (0.7, True)}
    matched = policy.matched(Conversation.of("How do I RESET my boss's password?"), "prompt")
    assert matched == ("Account takeover",)
    assert decide(policy, 0.1, [Said(1.0, False, ())], 0.5, matched).flagged
    assert openai_keys(policy, "Account takeover") == ("illicit",)
    assert policy.matched(Conversation.of("hello"), "prompt") == ()


def test_included_name_cannot_have_a_rule_of_its_own():
    with pytest.raises(ValidationError, match="included twice"):
        Policy(categories=[{"name": "A", "includes": ["Threat"]}, {"name": "Threat"}])


def test_openai_schema_has_its_thirteen_keys():
    empty = result(False, ())
    assert len(KEYS) == 13
    for part in ("categories", "category_scores", "category_applied_input_types"):
        assert tuple(empty[part]) == KEYS
    assert set(CROSSWALK) <= {*AEGIS2, *KEYS}
    assert all(set(keys) <= set(KEYS) for keys in CROSSWALK.values())
    found = result(
        True, [(("harassment", "harassment/threatening"), 0.8, True), (("harassment",), 0.3, False)]
    )
    assert found["categories"]["harassment"] and found["category_scores"]["harassment"] == 0.8
