"""What routes share: who may, the service of an app, errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import JSONResponse

from guardkeel.conversation import Conversation, Side
from guardkeel.errors import DataError
from guardkeel.moderation.contexts import language_of
from guardkeel.moderation.keys import Role
from guardkeel.moderation.openai_schema import error
from guardkeel.moderation.served import Item, Served
from guardkeel.moderation.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": what,
        "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
    }
    for status, what in {
        400: "the request cannot be used",
        401: "no key, or a wrong one",
        403: "the key has not the role",
        408: "the request did not arrive in time",
        413: "the request is too large",
        415: "the body is not JSON",
        429: "too much at once: see Retry-After",
        503: "not now: see Retry-After",
    }.items()
}


class ApiError(HTTPException):
    """An error that is answered as OpenAI's clients read it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.body = error(message, kind, param=param, code=code)


def service_of(request: Request) -> Service:
    """The app's service."""
    found: Service = request.app.state.service
    return found


def needs(role: Role) -> Any:
    """A dependency: the key must have a role."""

    async def check(request: Request) -> None:  # async: others are run in a thread
        key = request.state.key
        if key is None or not key.may(role):
            raise ApiError(
                403, f"this key has not the role {role!r}", kind="permission_error", code="forbidden"
            )

    return Depends(check)


async def judged(request: Request, items: Sequence[Item]) -> list[Served]:
    """Verdicts of a request's items, within the limits."""
    service = service_of(request)
    server = service.config.server
    if len(items) > server.max_items:
        raise ApiError(
            400, f"{len(items)} items, at most {server.max_items} are taken at once", code="too_many_items"
        )
    long = next((i for i in items if len(i.conversation.text) > server.max_chars), None)
    if long is not None:
        raise ApiError(
            400,
            f"a text of {len(long.conversation.text)} characters, at most {server.max_chars} are taken",
            code="text_too_long",
        )
    return await service.judge(items, request=request.state.request, key=request.state.key.id)


def item_of(conversation: Conversation, side: Side | None, language: str | None) -> Item:
    """An item; the side follows from the last message where it is not given."""
    last = conversation.turns[-1].role
    return Item(
        conversation, side or ("response" if last == "assistant" else "prompt"), language_of(language)
    )


def conversation_of(messages: list[dict[str, Any]]) -> Conversation:
    """OpenAI-style messages; what is wrong with them is said without quoting them."""
    try:
        return Conversation.from_messages(messages)
    except DataError as e:
        raise ApiError(400, f"messages: {e.remedy}", param="messages", code="invalid_messages") from None


def unscored_header(served: Sequence[Served]) -> dict[str, str]:
    """Which items of a request were unscored, for clients whose schema cannot say it."""
    found = [str(i) for i, one in enumerate(served) if one.unscored]
    return {"x-guardkeel-unscored": ",".join(found)} if found else {}


def refuse_unscored(served: Sequence[Served]) -> None:
    """Where the policy says that an unscored item is an error, it is one."""
    if any(one.unscored and one.policy.policy.unscored == "error" for one in served):
        raise ApiError(
            503,
            "no expert gave a verdict",
            kind="server_error",
            code="unscored",
            headers={"retry-after": "2", **unscored_header(served)},
        )


def answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    """JSON, as it is: bodies are made here and need no second validation."""
    return JSONResponse(body, status, headers)
