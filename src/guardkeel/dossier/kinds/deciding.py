"""Records of decisions: assessments, policies, what the gate said, who approved, what was waived."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from guardkeel.dossier.kinds.base import Digest, Id, Part, Private, Record, Ref, When

Outcome = Literal["allow", "allow-with-safeguards", "staged", "hold", "deny", "roll-back"]
RELEASES: tuple[Outcome, ...] = ("allow", "allow-with-safeguards", "staged")
"""Outcomes under which a model may be used, once approved."""


class Residual(Part):
    """What risk is left in a domain."""

    domain: Id
    risk: Literal["low", "moderate", "high", "critical", "unknown"]
    why: str = ""


class Opinion(Part):
    """What somebody outside thinks. Dissent is kept, and shown beside the decision."""

    who: str
    independent: bool = False
    view: Literal["agree", "dissent", "mixed"]
    text: str = ""


class Assessment(Record):
    """A risk assessment of one fingerprint of a model, with what ends its validity."""

    kind: ClassVar[str] = "assessment"
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    scope: str
    specs: Annotated[list[Id], Ref("eval-spec")] = Field(default_factory=list)
    runs: Annotated[list[Id], Ref("run")] = Field(default_factory=list)
    capabilities: str = ""
    controllability: str = ""
    elicitation: str = ""
    guard_bypass: str = ""
    uncertainty: str = ""
    residual: list[Residual] = Field(default_factory=list)
    opinions: list[Opinion] = Field(default_factory=list)
    expires_at: When
    triggers: list[str] = Field(default=["checkpoint", "adapter", "quantisation", "policy", "threshold"])
    """What ends it before: a change of the fingerprint always does."""


class Policy(Record):
    """A gate policy, whole, as it was when it was registered."""

    kind: ClassVar[str] = "policy"
    digest: Digest
    body: dict[str, Any]
    thresholds: Annotated[list[Id], Ref("threshold")] = Field(default_factory=list)


class Traced(Part):
    """One rule and what became of it, with the records it was read from."""

    rule: str
    outcome: Literal["pass", "fail", "hold", "safeguard", "waived", "advice"]
    requirement: str
    observed: str
    reason: str
    level: Literal["alert", "launch", "critical"] = "launch"
    evidence: list[str] = Field(default_factory=list)
    """kind:id of the records."""


class GateDecision(Record):
    """What the gate said, from what, rule by rule."""

    kind: ClassVar[str] = "gate-decision"
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    policy: Annotated[Id, Ref("policy")]
    policy_digest: Digest
    decided_at: When
    outcome: Outcome
    reason: str
    trace: list[Traced]
    inputs: dict[str, Digest]
    """kind:id → hash of the entry that was read."""
    safeguards: list[str] = Field(default_factory=list)
    rollback_to: Annotated[Id | Literal[""], Ref("model")] = ""


class Approval(Record):
    """Somebody who did not make the model says yes or no to a decision."""

    kind: ClassVar[str] = "approval"
    decision: Annotated[Id, Ref("gate-decision")]
    approver: Annotated[str, Private()]
    verdict: Literal["approve", "reject"]
    reason: Annotated[str, Private()] = ""
    at: When
    signature: Annotated[dict[str, Any], Private()] = Field(default_factory=dict)
    """DSSE envelope over decision, entry hash and verdict, where the approver has a key."""


class Waiver(Record):
    """A rule is set aside for one fingerprint, by somebody, for a reason, until a day."""

    kind: ClassVar[str] = "waiver"
    rule: str
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    granted_by: Annotated[str, Private()]
    reason: Annotated[str, Private()]
    compensation: str = ""
    """What is done instead."""
    expires_at: When
    revoked: bool = False
