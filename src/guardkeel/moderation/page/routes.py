"""The routes of the page. It follows the service by asking for `live` every few seconds.

Asking again is simpler than a stream of events, passes every proxy, and a replica that goes away is no event at all.
Forms work without scripts; a script asks for JSON and gets that.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from guardkeel.moderation.keys import ApiKey
from guardkeel.moderation.page import log
from guardkeel.moderation.page.access import (
    PLACE,
    Door,
    fields_of,
    forget,
    may_look,
    own_form,
    remember,
    wants_json,
)
from guardkeel.moderation.page.board import Board, View
from guardkeel.moderation.page.render import POLICY, asset, render
from guardkeel.moderation.page.review import MOST, SHOWN, Case, Which, case_of, feedback_of
from guardkeel.moderation.routes_common import ApiError, answer, service_of
from guardkeel.moderation.schemas import ID
from guardkeel.moderation.store import Ack, StoreDownError

router = APIRouter(include_in_schema=False)

HOLD = 5.0
"""Seconds for which the browser holds what was said, so that it can be taken back: the log forgets nothing."""
EVERY = 5.0
"""Seconds between two looks at what has changed."""
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
PARTS = ("now", "weights", "regret", "experts", "policy")
ACKS = {
    "new": "Taken: it is in the log.",
    "known": "This was said before, and counted once.",
    "conflict": "You said otherwise of this verdict before; that stays in the log.",
    "unknown verdict": "There is no such verdict in the log.",
}


class _Page:
    """What the page of one service keeps between requests."""

    def __init__(self, request: Request) -> None:
        service = service_of(request)
        self.door, self.board = Door(service), Board(service)


def _page(request: Request) -> _Page:
    state = request.app.state
    if not hasattr(state, "page"):
        state.page = _Page(request)
    found: _Page = state.page
    return found


async def _enter(request: Request) -> ApiKey:
    return _page(request).door.enter(request)


async def _own_form(request: Request) -> None:
    own_form(request)


Visitor = Annotated[ApiKey, Depends(_enter)]
OWN_FORM = Depends(_own_form)


@router.get("/")
@router.get(PLACE)
async def lead() -> Response:
    """To the page."""
    return RedirectResponse(f"{PLACE[1:]}/", 307)


@router.get(f"{PLACE}/")
async def home(request: Request, key: Visitor, of: Which = "drawn", said: str = "") -> Response:
    """The page."""
    try:
        view = await asyncio.to_thread(_page(request).board.view)
        cases = await _cases(request, of, SHOWN)
    except StoreDownError:
        return _notice(
            request, 503, "The log is away", "Verdicts go on; the page is back when the database is."
        )
    fragments = _fragments(request, view, key)
    return _html(
        request,
        "page.html",
        view=view,
        fragments=fragments,
        seen=_seen(fragments),
        cases=cases,
        of=of,
        said=ACKS.get(said, ""),
        hold=HOLD,
        every=EVERY,
    )


@router.get(f"{PLACE}/live")
async def live(request: Request, key: Visitor, seen: str = "") -> Response:
    """What has changed; 204 where nothing has."""
    view = await asyncio.to_thread(_page(request).board.view)
    fragments = _fragments(request, view, key)
    if seen == _seen(fragments):
        return Response(status_code=204, headers=HEADERS)
    return answer({"seen": _seen(fragments), "audits": view.audits, "fragments": fragments}, headers=HEADERS)


@router.get(f"{PLACE}/queue")
async def queue(
    request: Request, key: Visitor, of: Which = "drawn", limit: Annotated[int, Query(ge=1, le=MOST)] = SHOWN
) -> Response:
    """Items to review, as they stand in the page."""
    cases = await _cases(request, of, limit)
    return _html(request, "cases.html", cases=cases, of=of)


@router.get(f"{PLACE}/text")
async def text(request: Request, key: Visitor, verdict: Annotated[str, Query(pattern=ID)]) -> Response:
    """The whole text of one item, where texts are kept."""
    row = await asyncio.to_thread(service_of(request).store.verdict, verdict)
    if row is None:
        return _notice(request, 404, "No such verdict", "The log has none under this id.")
    whole = service_of(request).config.server.max_body_bytes
    return _html(request, "text.html", case=case_of(row, whole))


@router.post(f"{PLACE}/feedback", dependencies=[OWN_FORM])
async def feedback(request: Request, key: Visitor) -> Response:
    """What a reviewer says of one verdict."""
    fields = await fields_of(request)
    if fields.get("unsafe") not in ("0", "1"):
        raise ApiError(400, "unsafe: 0 or 1", param="unsafe", code="invalid_request")
    try:
        given = feedback_of(fields.get("verdict", ""), fields["unsafe"] == "1", key)
    except ValidationError:
        raise ApiError(400, "verdict: no id of a verdict", param="verdict", code="invalid_request") from None
    acks = await service_of(request).take_feedback([{**given.model_dump(), "key": key.id}])
    return _acknowledged(request, acks[0], fields.get("of", ""))


@router.get(f"{PLACE}/policy")
async def policy(request: Request, key: Visitor) -> Response:
    """What a flip of the policy would change, to be confirmed."""
    if not key.may("admin"):
        return _notice(
            request, 403, "Not with this key", "The policy is changed with a key that has the role admin."
        )
    view = await asyncio.to_thread(_page(request).board.view, True)
    return _html(request, "flip.html", view=view)


@router.post(f"{PLACE}/policy", dependencies=[OWN_FORM])
async def flip(request: Request, key: Visitor) -> Response:
    """Flip the policy, if it is still the one that was looked at."""
    if not key.may("admin"):
        raise ApiError(403, "this key has not the role 'admin'", kind="permission_error", code="forbidden")
    fields = await fields_of(request)
    service, to = service_of(request), fields.get("to")
    if to not in ("strict", "permissive"):
        raise ApiError(400, "to: strict or permissive", param="to", code="invalid_request")
    if fields.get("version") != str(service.in_force.version):
        return _notice(
            request,
            409,
            "The policy has changed meanwhile",
            "Look at what is in force now, and decide again.",
        )
    changed = service.in_force.policy.model_copy(update={"strictness": to})
    await service.put_policy(changed, key.id)
    await asyncio.to_thread(_page(request).board.view, True)
    return RedirectResponse("./#policy", 303, HEADERS)


@router.get(f"{PLACE}/login")
async def login(request: Request) -> Response:
    """A form for the key."""
    if not _page(request).door.keyed:
        return RedirectResponse("./", 303, HEADERS)
    return _html(request, "login.html", problem="")


@router.post(f"{PLACE}/login", dependencies=[OWN_FORM])
async def log_in(request: Request) -> Response:
    """Keep the key in a cookie."""
    secret = (await fields_of(request)).get("key", "")
    key = _page(request).door.find(secret)
    if key is None or not may_look(key):
        problem = (
            "This key is not known. It may have been revoked."
            if key is None
            else "This key has not the role feedback or admin, which the page is for."
        )
        return _html(request, "login.html", 401 if key is None else 403, problem=problem)
    response = RedirectResponse("./", 303, HEADERS)
    remember(request, response, secret)
    return response


@router.post(f"{PLACE}/logout", dependencies=[OWN_FORM])
async def log_out(request: Request) -> Response:
    """Forget the key."""
    response = RedirectResponse("login", 303, HEADERS)
    forget(request, response)
    return response


@router.get(f"{PLACE}/page.css")
async def style() -> Response:
    """The style sheet."""
    return _file("page.css", "text/css")


@router.get(f"{PLACE}/page.js")
async def script() -> Response:
    """The script."""
    return _file("page.js", "text/javascript")


PATHS = frozenset(route.path for route in router.routes if isinstance(route, APIRoute))
"""What the gate lets pass without a bearer token, since the page looks at the cookie itself."""


def _file(name: str, kind: str) -> Response:
    """Its address changes with what it holds, so it is never asked for twice."""
    kept = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}
    return Response(asset(name), media_type=kind, headers=kept)


def _html(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    page = _page(request)
    body = render(name, key=request.state.key, keyed=page.door.keyed, **values)
    return HTMLResponse(body, status, HEADERS)


def _notice(request: Request, status: int, title: str, text: str) -> Response:
    """An answer to a person in one sentence; to a script the same as an error."""
    if wants_json(request):
        raise ApiError(status, f"{title}: {text}", code="refused")
    return _html(request, "notice.html", status, title=title, text=text)


def _fragments(request: Request, view: View, key: ApiKey) -> dict[str, str]:
    """The parts of the page that change by themselves, as HTML; weights and policy are an admin's, as in the API."""
    names = PARTS if key.may("admin") else PARTS[:1]
    learner = service_of(request).config.learner
    return {name: render(f"{name}.html", view=view, learner=learner, key=key) for name in names}


def _seen(fragments: dict[str, str]) -> str:
    return hashlib.sha256("\0".join(fragments.values()).encode()).hexdigest()[:16]


async def _cases(request: Request, of: Which, most: int) -> list[Case]:
    store = service_of(request).store
    read = store.audits if of == "drawn" else partial(log.disagreements, store)
    return [case_of(row) for row in await asyncio.to_thread(read, most)]


def _acknowledged(request: Request, ack: Ack, of: str) -> Response:
    if wants_json(request):
        body = {"status": ack.status, "teaches": ack.first and ack.audited, "said": ACKS.get(ack.status, "")}
        return answer(body, 200 if ack.sequence is not None else 409, HEADERS)
    where = {"of": of if of == "disagreements" else "drawn", "said": ack.status}
    return RedirectResponse(f"./?{urlencode(where)}#review", 303, HEADERS)
