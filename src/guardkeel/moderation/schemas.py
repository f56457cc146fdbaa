"""Bodies of the endpoints of our own. Ids are printable ASCII; unknown fields are refused."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardkeel.conversation import Side

ID = r"^[\x21-\x7e]{1,128}$"


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid")


class ItemBody(Body):
    """One thing to judge: a prompt, with its response where that is judged, or whole messages."""

    prompt: str | None = None
    response: str | None = None
    messages: list[dict[str, Any]] | None = Field(default=None, description="OpenAI-style messages")
    side: Side | None = Field(
        default=None, description="default: response where the last message is the assistant's, else prompt"
    )
    language: str | None = Field(default=None, max_length=35, description="BCP 47 tag; chooses the weights")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give prompt (and response) or messages")
        if self.messages is not None and self.response is not None:
            raise ValueError("a response goes with a prompt; put it into messages")
        return self


class VerdictsBody(Body):
    """Of `/v1/verdicts`."""

    items: list[ItemBody] = Field(min_length=1)


class FeedbackBody(Body):
    """What a person says of one verdict."""

    id: str = Field(pattern=ID, description="chosen by you; sent again, it counts once")
    verdict: str = Field(pattern=ID, description="id of the verdict")
    unsafe: bool = Field(description="what it should have been")
    source: Literal["review", "appeal", "report", "other"] = Field(
        default="review",
        description="why it was looked at; a verdict drawn for audit counts as audit whatever this is",
    )
    reviewer: str = Field(default="", pattern=r"^[\x20-\x7e]{0,128}$", description="who said it")


class FeedbacksBody(Body):
    """Of `/v1/feedback`."""

    feedback: list[FeedbackBody] = Field(min_length=1, max_length=1000)


class StrictnessBody(Body):
    """A flip of the policy in force."""

    strictness: Literal["strict", "permissive"]
