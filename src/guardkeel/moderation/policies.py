"""What is flagged, as data that can be changed while the service runs: strictness, thresholds, categories of one's own.

    name = "support"
    strictness = "strict"              # or "permissive"
    threshold = 0.4                    # default: where the learner's costs put it
    permissive_threshold = 0.7
    unscored = "closed"                # or "open", or "error"

    [[categories]]
    name = "Profanity"
    flag = "strict"                    # flagged under the strict policy alone; or "always", "never"

    [[categories]]                     # one of one's own: other names' gathered, and words that decide by themselves
    name = "Account takeover"
    includes = ["Fraud/Deception"]
    words = ["reset ... password*"]

Scores. With P the ensemble's P(unsafe), w the weights of the experts who were heard, and m_c the weight of those who
name category c, the score of c is P · m_c / max m: the category that most weight stands behind has P itself. Experts
that flag and name nothing stand behind "" (no category). A category is flagged from its threshold on, "" from the
policy's, and an item where any is. So a category that is never flagged cannot hide another, nor experts that name none.
Words of a category of one's own give it the score 1.

Unscored is a third thing: `closed` treats it as flagged, `open` as allowed, `error` answers with an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Judgement
from guardkeel.guards.rules import Rule, RuleGuard, RuleList
from guardkeel.taxonomy import home

Strictness = Literal["strict", "permissive"]
Unscored = Literal["closed", "open", "error"]
NAMELESS = ""
_ONE_LINE = r"^[^\x00-\x1f\x7f]{1,100}$"


class CategoryRule(BaseModel):
    """What is done about one category, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_ONE_LINE, description="a name that experts use, or one of your own")
    description: str = Field(default="", max_length=2000, description="for people")
    flag: Literal["always", "strict", "never"] = Field(
        default="always", description="always, under the strict policy alone, or never"
    )
    threshold: float | None = Field(default=None, ge=0, le=1, description="default: the policy's")
    permissive_threshold: float | None = Field(
        default=None, ge=0, le=1, description="default: half-way from threshold to 1, or the policy's"
    )
    includes: tuple[str, ...] = Field(
        default=(), max_length=100, description="names of experts that count as this one"
    )
    words: tuple[str, ...] = Field(default=(), max_length=500, description="as in a rule list")
    patterns: tuple[str, ...] = Field(default=(), max_length=100, description="as in a rule list")
    openai: tuple[str, ...] | None = Field(
        default=None, max_length=13, description="keys of OpenAI's schema that it counts as"
    )


class Policy(BaseModel):
    """What is flagged. Frozen: a change makes another one."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    name: str = Field(
        default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="what answers call it"
    )
    strictness: Strictness = Field(default="strict", description="strict or permissive")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which strict flags; default: by the costs"
    )
    permissive_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="from which permissive flags; default: half-way from strict's to 1",
    )
    unscored: Unscored = Field(default="closed", description="closed, open or error")
    categories: tuple[CategoryRule, ...] = Field(
        default=(), max_length=200, description="what is done about single ones"
    )

    @field_validator("categories")
    @classmethod
    def _distinct(cls, rules: tuple[CategoryRule, ...]) -> tuple[CategoryRule, ...]:
        names = [home(r.name) for r in rules]
        if len(set(names)) < len(names):
            raise ValueError("a category is there twice")
        taken = [home(i) for r in rules for i in r.includes]
        if len(set(taken)) < len(taken) or set(taken) & set(names):
            raise ValueError("a name is included twice, or has a rule of its own")
        return rules

    @model_validator(mode="after")
    def _usable(self) -> Self:
        from guardkeel.moderation.openai_schema import KEYS

        for rule in self.categories:
            unknown = next((k for k in rule.openai or () if k not in KEYS), None)
            if unknown is not None:
                raise ValueError(f"{rule.name}: OpenAI's schema has no key {unknown!r}")
        try:
            _ = self._words
        except ConfigError as e:
            raise ValueError(e.problem) from None
        return self

    @cached_property
    def _rules(self) -> dict[str, CategoryRule]:
        return {home(r.name): r for r in self.categories}

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names of experts → the category that gathers them."""
        return {home(i): home(r.name) for r in self.categories for i in r.includes}

    @cached_property
    def _words(self) -> RuleGuard | None:
        rules = tuple(
            Rule(category=r.name, words=r.words, patterns=r.patterns)
            for r in self.categories
            if r.words or r.patterns
        )
        return RuleGuard(RuleList(kind="rules", max_chars=1_000_000, rules=rules)) if rules else None

    def rule(self, category: str) -> CategoryRule | None:
        """What is said of a category."""
        return self._rules.get(category)

    def threshold_at(self, by_costs: float) -> float:
        """P(unsafe) from which an item is flagged; `by_costs` where the policy leaves it open."""
        strict = by_costs if self.threshold is None else self.threshold
        if self.strictness == "strict":
            return strict
        return (1 + strict) / 2 if self.permissive_threshold is None else self.permissive_threshold

    def matched(self, conversation: Conversation, side: Side) -> tuple[str, ...]:
        """Categories of the policy's own words that the text has."""
        if self._words is None:
            return ()
        return self._words.judge(Judgement("", conversation, side)).categories


@dataclass(frozen=True, slots=True)
class Said:
    """What one expert who was heard said: its weight, whether it flags by itself, and the names it gave."""

    weight: float
    flags: bool
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """One category of one item; the name "" gathers what no expert named."""

    name: str
    score: float
    flagged: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Flagged or not, and by what."""

    flagged: bool
    threshold: float
    categories: tuple[CategoryScore, ...]


def decide(
    policy: Policy, unsafe: float, said: Sequence[Said], by_costs: float, matched: Sequence[str] = ()
) -> Decision:
    """The decision on a scored item.

    Args:
        policy: the policy in force.
        unsafe: P(unsafe) of the ensemble.
        said: by the experts who were heard.
        by_costs: the threshold of the learner's costs.
        matched: categories of the policy's own words.
    """
    general = policy.threshold_at(by_costs)
    scores = dict(_scores(policy, unsafe, said)) | dict.fromkeys(matched, 1.0)
    found = []
    for name, score in sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])):
        at = threshold_of(policy, name, general)
        found.append(CategoryScore(name, score, at is not None and score >= at))
    return Decision(any(c.flagged for c in found), general, tuple(found))


def _scores(policy: Policy, unsafe: float, said: Sequence[Said]) -> Mapping[str, float]:
    mass: dict[str, float] = {}
    for one in said:
        names = dict.fromkeys(_gathered(policy, home(c)) for c in one.categories)
        for name in names or ([NAMELESS] if one.flags else []):
            mass[name] = mass.get(name, 0.0) + one.weight
    most = max(mass.values(), default=0.0)
    if most <= 0:
        return {NAMELESS: unsafe}
    return {name: unsafe * m / most for name, m in mass.items()}


def _gathered(policy: Policy, name: str) -> str:
    return policy._names.get(name, name)


def threshold_of(policy: Policy, name: str, general: float) -> float | None:
    """From which score a category is flagged; None: from none."""
    rule = policy.rule(name)
    if rule is None:
        return general
    permissive = policy.strictness == "permissive"
    if rule.flag == "never" or (rule.flag == "strict" and permissive):
        return None
    own = rule.permissive_threshold if permissive else rule.threshold
    if own is None and permissive and rule.threshold is not None:
        own = (1 + rule.threshold) / 2
    return general if own is None else own
