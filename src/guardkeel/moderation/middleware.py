"""What happens to every request before a route sees it, as plain ASGI.

In this order: an id; who asks (a key's hash is looked up before a byte of the body is read); how often; the body, read
whole up to a size and within a time; and at the end one line of log and the metrics. Nothing here logs a body, a query
or a header.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from guardkeel.moderation.ids import new_id
from guardkeel.moderation.keys import ANYONE, ApiKey, Keys
from guardkeel.moderation.limits import OverloadedError
from guardkeel.moderation.openai_schema import error
from guardkeel.moderation.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("guardkeel.serve")
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
POLLED = OPEN_PATHS | {"/metrics", "/page/live"}
"""Asked again and again by machines: logged at debug while they succeed."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _RefusedError(Exception):
    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class Gate:
    """See above.

    Args:
        app: what it stands before.
        service: whose limits it keeps.
        keys: None: whoever asks is admin.
        open_paths: for which no key is needed; pages that have no secrets.
    """

    def __init__(
        self, app: Any, service: Service, keys: Keys | None, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self._app, self._service, self._keys = app, service, keys
        self._open = open_paths | ({"/metrics"} if service.config.server.open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        request = given if _REQUEST_ID.fullmatch(given) else new_id("r_")
        state = scope.setdefault("state", {})
        state["request"], state["key"] = request, None
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request.encode())]
            await send(message)

        try:
            state["key"] = self._who(scope["path"], headers)
            body = await self._body(receive, headers)
            await self._app(scope, _again(body, receive), sending)
        except _RefusedError as e:
            await _answer(sending, e)
        except Exception as e:
            log.exception("a request failed")
            if status:  # half an answer is out: break the connection off
                raise
            body_of = error("the service has a fault", "server_error", code="internal_error")
            await _answer(sending, _RefusedError(500, body_of))
            del e
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - begun
            self._service.metrics.request(route, status, seconds)
            fields = {
                "request": request,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 2),
                "key": state["key"].id if state["key"] is not None else "",
            }
            quiet = route in POLLED and status < 400
            log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})

    def _who(self, path: str, headers: dict[str, str]) -> ApiKey | None:
        """The key, its rate counted."""
        if self._keys is None:
            key: ApiKey | None = ANYONE
        else:
            scheme, _, secret = headers.get("authorization", "").partition(" ")
            key = self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if path in self._open:
            return key
        if key is None:
            raise _RefusedError(
                401,
                error("give an API key as a bearer token", "authentication_error", code="invalid_api_key"),
                {"www-authenticate": "Bearer"},
            )
        try:
            rate = key.requests_per_minute or self._service.config.server.requests_per_minute
            self._service.rates.take(key.id, rate)
        except OverloadedError as e:
            raise too_many(e) from None
        return key

    async def _body(self, receive: Receive, headers: dict[str, str]) -> bytes:
        """The whole body, of at most so many bytes and within so many seconds."""
        server = self._service.config.server
        too_large = _RefusedError(
            413,
            error(
                f"the request is larger than {server.max_body_bytes} bytes",
                "invalid_request_error",
                code="request_too_large",
            ),
            {"connection": "close"},
        )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > server.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(server.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _RefusedError(400, error("the request has no end", "invalid_request_error"))
                    body += message.get("body", b"")
                    if len(body) > server.max_body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _RefusedError(
                408,
                error("the request did not arrive in time", "invalid_request_error", code="timeout"),
                {"connection": "close"},
            ) from None


def too_many(e: OverloadedError) -> _RefusedError:
    """429, and when to come again."""
    return _RefusedError(429, *overloaded(e))


def overloaded(e: OverloadedError) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a 429."""
    return (
        error(e.problem, "rate_limit_error", code="rate_limit_exceeded"),
        {"retry-after": str(max(1, round(e.after)))},
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, in one message; then whatever comes."""
    told = False

    async def receiving() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _answer(send: Send, refused: _RefusedError) -> None:
    data = json.dumps(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(data)), **refused.headers}
    encoded = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": data})
