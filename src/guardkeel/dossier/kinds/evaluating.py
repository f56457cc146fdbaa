"""Records of evaluation: risks, specifications, prompt sets and who saw them, evaluators, judges, runs, results."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from guardkeel.dossier.kinds.base import Digest, Id, Part, Private, Rate, Record, Ref, When

Form = Literal["development", "assurance", "red-team", "external"]
Bound = Literal["min", "max"]
Level = Literal["alert", "launch", "critical"]


class RiskDomain(Record):
    """A risk that is evaluated."""

    kind: ClassVar[str] = "risk-domain"
    title: str
    taxonomy: str = ""
    """Where it comes from, such as aegis-2, ailuminate, nist-ai-600-1."""
    horizon: Literal["established", "emerging"] = "established"
    severity: Literal["low", "moderate", "high", "critical", "unknown"] = "unknown"
    likelihood: Literal["rare", "unlikely", "possible", "likely", "unknown"] = "unknown"
    owner: Annotated[str, Private()] = ""
    foresight: str = ""
    """What is expected to change, and how one would notice."""


class PromptSet(Record):
    """A version of a set of prompts, by digest. Two versions are never compared with each other."""

    kind: ClassVar[str] = "prompt-set"
    version: str
    digest: Digest
    n: Annotated[int, Field(ge=0)] = 0
    held_out: bool = False
    """Whether it was kept from development on purpose. Who does not know says no."""
    licence: str = ""
    origin: str = ""
    hub_dataset: str = ""
    """Its data set on the Hugging Face Hub, where it is a benchmark there."""
    hub_task: str = ""


class Exposure(Record):
    """Somebody saw a prompt set: from then on it says nothing about what they could not have known."""

    kind: ClassVar[str] = "exposure"
    prompt_set: Annotated[Id, Ref("prompt-set")]
    digest: Digest
    """Of the version that was seen."""
    to: Literal["development", "training", "calibration", "public"]
    at: When
    how: str = ""


class Evaluator(Record):
    """Who evaluates, and how far from those who develop."""

    kind: ClassVar[str] = "evaluator"
    name: Annotated[str, Private()] = ""
    organisation: str = ""
    party: Literal["first", "third", "collaborative"]
    independent_of_development: bool
    access: Literal["black", "grey", "white"] = "black"
    people: Annotated[list[str], Private()] = Field(default_factory=list)
    """Who they are, as records name them."""


class Judge(Record):
    """A model or person that labels answers, with what is known of its errors from human labels."""

    kind: ClassVar[str] = "judge"
    model: str
    revision: str = ""
    prompt_digest: str = ""
    sensitivity: Rate | None = None
    """Share of what people called unsafe that it calls unsafe."""
    specificity: Rate | None = None
    """Share of what people called safe that it calls safe."""
    n: Annotated[int, Field(ge=0)] = 0
    """Human labels behind the two."""
    n_unsafe: Annotated[int, Field(ge=0)] | None = None
    """How many of them say unsafe; half, where that is not said."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.n_unsafe is not None and self.n_unsafe > self.n:
            raise ValueError(f"n_unsafe is more than n = {self.n}")
        return self


class EvalSpec(Record):
    """What is to be evaluated, on what, how. Its form says what it may be used for."""

    kind: ClassVar[str] = "eval-spec"
    title: str = ""
    form: Form
    goal: Literal["baseline", "improve", "release", "monitor"] = "release"
    layer: Literal["capability", "interaction", "systemic"] = "capability"
    method: Literal["automatic", "human", "hybrid"] = "automatic"
    modality: str = "text"
    language: list[str] = Field(default=["en"])
    domains: Annotated[list[Id], Ref("risk-domain")] = Field(default_factory=list)
    prompt_sets: Annotated[list[Id], Ref("prompt-set")] = Field(default_factory=list)
    metric: str = "recall"
    direction: Literal["higher", "lower"] = "higher"
    judged: bool = False
    """Whether labels come from a judge, whose errors then have to be known."""


class File(Part):
    """A file of a run by digest."""

    sha256: Digest
    bytes: int


class UsedSet(Part):
    """A prompt set as a run used it."""

    id: Id
    version: str
    digest: Digest


class Run(Record):
    """One execution of a specification on one model."""

    kind: ClassVar[str] = "run"
    spec: Annotated[Id, Ref("eval-spec")]
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    """Of the model as it was run: see Model."""
    prompt_sets: list[UsedSet]
    evaluator: Annotated[Id, Ref("evaluator")]
    judge: Annotated[Id | Literal[""], Ref("judge")] = ""
    tool: str
    tool_version: str = ""
    started_at: When
    finished_at: When | None = None
    status: Literal["completed", "errored"]
    errors: str = ""
    """What went wrong, where something did."""
    role: str = ""
    """Which of a run directory's guards this is: reference or candidate."""
    decision: str = ""
    """What the run's own gate said: allow, hold, deny."""
    seeds: dict[str, int] = Field(default_factory=dict)
    elicitation: str = ""
    """How hard was tried to bring the behaviour out."""
    location: Annotated[str, Private()] = ""
    files: dict[str, File] = Field(default_factory=dict)


class Result(Record):
    """One number that a run gave, with its interval and the items behind it."""

    kind: ClassVar[str] = "result"
    run: Annotated[Id, Ref("run")]
    metric: str
    slice: str = "*"
    """`*` for all, else a suite or `by=value`."""
    direction: Literal["higher", "lower"] = "higher"
    value: float | None
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    n: Annotated[int, Field(ge=0)]
    n_unscored: Annotated[int, Field(ge=0)] = 0
    why: str = ""
    """Why there is no value, where there is none."""
    rows: str = ""
    """The run's file that holds the rows behind it."""


class Comparison(Record):
    """Two runs on the same items: what changed, with paired intervals."""

    kind: ClassVar[str] = "comparison"
    reference: Annotated[Id, Ref("run")]
    candidate: Annotated[Id, Ref("run")]
    metric: str
    slice: str = "*"
    n: int
    worse: int
    better: int
    difference: float | None
    low: float | None = None
    high: float | None = None
    margin: float
    p: float | None = None
    outcome: str


class Threshold(Record):
    """A line drawn on a metric. It counts as set before a run only if it is in the chain before it began."""

    kind: ClassVar[str] = "threshold"
    metric: str
    slice: str = "*"
    level: Level = "launch"
    bound: Bound
    value: float
    whole_interval: bool = True
    """Whether the whole interval has to keep it; else the estimate."""
    specs: Annotated[list[Id], Ref("eval-spec")] = Field(default_factory=list)
    """Specifications on which it is read; none: all of the policy's forms."""
    reason: str = ""
    """Why there."""


class Finding(Record):
    """Something is not as it should be."""

    kind: ClassVar[str] = "finding"
    model: Annotated[Id, Ref("model")]
    fingerprint: Digest
    run: Annotated[Id | Literal[""], Ref("run")] = ""
    result: Annotated[Id | Literal[""], Ref("result")] = ""
    threshold: Annotated[Id | Literal[""], Ref("threshold")] = ""
    level: Level
    what: str
    status: Literal["open", "mitigated", "accepted", "closed"] = "open"
    why: str = ""
    """Why it has this status."""


class Mitigation(Record):
    """What was done about a finding, and the run that shows whether it helped."""

    kind: ClassVar[str] = "mitigation"
    finding: Annotated[Id, Ref("finding")]
    description: str
    model: Annotated[Id | Literal[""], Ref("model")] = ""
    """The model that has it, where it is a new one."""
    retest: Annotated[Id | Literal[""], Ref("run")] = ""
