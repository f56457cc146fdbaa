"""`/v1/chat/completions`, guarded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic_core import from_json

from guardkeel.errors import DataError
from guardkeel.moderation.holding import UnreadableError
from guardkeel.moderation.proxy import Chat, Check, Upstream, UpstreamError
from guardkeel.moderation.routes_common import ERRORS, ApiError, answer, needs, service_of

router = APIRouter(responses=ERRORS, dependencies=[needs("moderate")])
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["messages"],
                    "properties": {
                        "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    openapi_extra=_BODY,
    responses={502: {"description": "the upstream failed"}, 504: {"description": "the upstream is too slow"}},
)
async def chat(request: Request) -> Response:
    """Pass a chat on to the upstream: messages are judged before they are sent, replies before they come back.

    A prompt that is flagged is answered 400 with code `content_filter`; a reply ends with finish_reason
    `content_filter`. The headers `x-guardkeel-input` and `x-guardkeel-output` say allowed, flagged, unscanned or
    unchecked; in a stream, the field `guardkeel` of an event does.
    """
    service, upstream = service_of(request), request.app.state.upstream
    body = _body(await request.body())
    told = _chat(request, upstream, body)
    check = await told.check_input(request.app.state.seen)
    service.metrics.proxied("input", check.outcome)
    headers: dict[str, str] = {"x-guardkeel-input": check.outcome}
    if not check.passes:
        raise _stopped(check, headers)
    try:
        if body.get("stream"):
            response = await upstream.send(body)
            output = "checked" if upstream.config.check_output else "unchecked"
            return StreamingResponse(
                told.stream(response),
                media_type="text/event-stream",
                headers=headers | {"x-guardkeel-output": output, "cache-control": "no-store"},
            )
        found, output_check = await told.answer()
    except UpstreamError as e:
        after = {"retry-after": e.after} if e.after else {}
        raise ApiError(
            e.status, e.message, kind="server_error", code=e.code, headers=headers | after
        ) from None
    service.metrics.proxied("output", output_check.outcome)
    return answer(found, headers=headers | {"x-guardkeel-output": output_check.outcome})


def _chat(request: Request, upstream: Upstream, body: dict[str, Any]) -> Chat:
    try:
        return Chat(service_of(request), upstream, body, request.state.request, request.state.key.id)
    except UnreadableError:
        service_of(request).metrics.proxied("input", "unscanned")
        raise ApiError(
            400,
            "a message holds something that no expert can judge, such as an image",
            param="messages",
            code="unscanned",
            headers={"x-guardkeel-input": "unscanned"},
        ) from None
    except DataError as e:
        raise ApiError(400, f"messages: {e.remedy}", param="messages", code="invalid_messages") from None


def _stopped(check: Check, headers: dict[str, str]) -> ApiError:
    if check.outcome == "flagged":
        return ApiError(
            400, "the prompt was flagged", param="messages", code="content_filter", headers=headers
        )
    return ApiError(
        503,
        "the prompt could not be checked",
        kind="server_error",
        code="unscanned",
        headers=headers | {"retry-after": "2"},
    )


def _body(data: bytes) -> dict[str, Any]:
    try:
        found = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "the body is not JSON", code="invalid_request") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be an object", code="invalid_request")
    if not isinstance(found.get("stream"), bool | None):
        raise ApiError(400, "stream must be true or false", param="stream", code="invalid_request")
    return found
