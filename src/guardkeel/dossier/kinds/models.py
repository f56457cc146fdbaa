"""Records of what is governed and by whom: the dossier, the organisation, people, models, where they run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, computed_field

from guardkeel.dossier.canonical import digest
from guardkeel.dossier.kinds.base import Digest, Id, Part, Private, Record, Ref, When


class Opening(Record):
    """The first record: what this dossier is for, and the keys that sign its heads."""

    kind: ClassVar[str] = "dossier"
    title: str
    purpose: str = ""
    keys: dict[str, str] = Field(default_factory=dict)
    """Key id → public key (PEM)."""


class Organisation(Record):
    """Facts about the organisation on which it depends which regimes apply. What is not known is left out."""

    kind: ClassVar[str] = "organisation"
    name: str
    revenue_usd: Annotated[float, Field(ge=0)] | None = None
    """Gross revenue of the preceding calendar year, affiliates included."""
    regions: list[Literal["eu", "us-ca", "us-ny", "us", "other"]] = Field(default_factory=list)
    """Where its models are placed on the market or used."""
    provider: bool = True
    """Whether it develops models, or only deploys those of others."""
    code_signatory: bool = False
    """Whether it signed the EU's GPAI Code of Practice."""
    accredited_college: bool = False


class Person(Record):
    """Somebody who decides. With a public key, what they approve has to be signed by it."""

    kind: ClassVar[str] = "person"
    name: Annotated[str, Private()] = ""
    roles: list[str] = Field(default_factory=list)
    public_key: str = ""


class Parent(Part):
    """A model that another was made from."""

    digest: Digest
    relation: Literal["base", "adapter", "fine-tune", "merge", "quantisation", "distillation"]


class Model(Record):
    """A model by the digest of its weights and all else that its verdicts follow from."""

    kind: ClassVar[str] = "model"
    digest: Digest
    base: Digest | Literal[""] = ""
    """Of the model under an adapter."""
    guard_policy: str = ""
    """Digest of the policy that it was given, where that is not its own."""
    threshold: float | None = None
    """Its operating point."""
    quantisation: str = ""
    parents: list[Parent] = Field(default_factory=list)
    trainers: Annotated[list[str], Private()] = Field(default_factory=list)
    """Who made it; they may not approve it."""
    parameters: float | None = None
    training_flop: float | None = None
    modification_flop: float | None = None
    data_summary: str = ""
    intended_use: str = ""
    release_mode: Literal["internal", "api", "gated", "open-weights", "unknown"] = "unknown"
    licence: str = ""
    general_purpose: bool = False
    """Whether it shows generality over a wide range of tasks; a guard usually does not."""
    repository: str = ""
    location: Annotated[str, Private()] = ""
    files: dict[str, Digest] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """Digest of what an assessment is an assessment of: weights, base, quantisation, policy, operating point."""
        return digest([getattr(self, name) for name in IDENTITY])


IDENTITY = ("digest", "base", "quantisation", "guard_policy", "threshold")
"""Fields that make a model another one: a change of any re-opens its assessment."""


class Deployment(Record):
    """A model came into use, or went out of it, at a place."""

    kind: ClassVar[str] = "deployment"
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    place: str
    status: Literal["deployed", "staged", "withdrawn", "rolled-back"]
    at: When
    decision: Annotated[Id | Literal[""], Ref("gate-decision")] = ""
