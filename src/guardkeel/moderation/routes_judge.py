"""`/v1/moderations` for OpenAI's clients, `/v1/verdicts` for all that is known."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from guardkeel.conversation import Conversation
from guardkeel.moderation.answers import openai_result, rich
from guardkeel.moderation.ids import new_id
from guardkeel.moderation.openai_schema import ImagePart, ModerationRequest, TextPart
from guardkeel.moderation.routes_common import (
    ERRORS,
    ApiError,
    answer,
    conversation_of,
    item_of,
    judged,
    needs,
    refuse_unscored,
    service_of,
    unscored_header,
)
from guardkeel.moderation.schemas import ItemBody, VerdictsBody
from guardkeel.moderation.served import Item

router = APIRouter(responses=ERRORS, dependencies=[needs("moderate")])


@router.post("/v1/moderations", response_class=JSONResponse)
async def moderations(body: ModerationRequest, request: Request) -> JSONResponse:
    """Classify texts, in OpenAI's schema. `input` is a text, a list of texts, or the parts of one text.

    Items that were unscored are named by place in the header `x-guardkeel-unscored`.
    """
    texts = _texts(body)
    served = await judged(request, [item_of(Conversation.of(t), "prompt", body.language) for t in texts])
    refuse_unscored(served)
    return answer(
        {
            "id": new_id("modr-"),
            "model": f"guardkeel-{service_of(request).in_force.policy.name}",
            "results": [openai_result(one) for one in served],
        },
        headers=unscored_header(served),
    )


@router.post("/v1/verdicts", response_class=JSONResponse)
async def verdicts(body: VerdictsBody, request: Request) -> JSONResponse:
    """Classify conversations: what every expert said, its weight, why an item is unscored, whether to audit it."""
    served = await judged(request, [_item(i) for i in body.items])
    refuse_unscored(served)
    return answer({"verdicts": [rich(one) for one in served]}, headers=unscored_header(served))


def _texts(body: ModerationRequest) -> list[str]:
    given = body.input
    if isinstance(given, str):
        return [given]
    if not given:
        raise ApiError(400, "input is empty", param="input", code="empty_input")
    if any(isinstance(part, ImagePart) for part in given):
        raise ApiError(
            400, "only texts can be judged here, no images", param="input", code="unsupported_input"
        )
    if isinstance(given[0], TextPart):
        return ["\n".join(part.text for part in given if isinstance(part, TextPart))]
    return [text for text in given if isinstance(text, str)]


def _item(body: ItemBody) -> Item:
    if body.messages is not None:
        return item_of(conversation_of(body.messages), body.side, body.language)
    assert body.prompt is not None
    return item_of(Conversation.of(body.prompt, body.response), body.side, body.language)
