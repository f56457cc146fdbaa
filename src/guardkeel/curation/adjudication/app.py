"""The routes of the page. Forms work without scripts; the script sends the same forms and puts the answer in place.

A form's answer is a redirect to the page, so reloading never sends anything twice.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, cast
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from guardkeel.curation.adjudication.access import own_form
from guardkeel.curation.adjudication.decisions import line
from guardkeel.curation.adjudication.desk import Desk
from guardkeel.curation.adjudication.render import POLICY, asset, render
from guardkeel.curation.adjudication.resolving import CHOICES, Choice
from guardkeel.errors import GuardkeelError

HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
EVERY = 10.0
"""Seconds between two looks at how far the queue is; meanwhile the item stays leased."""
MOST_BYTES = 64 * 1024
SAID = {
    "known": "This was said before, and counts once.",
    "conflict": "You said something else of that item before; that stays. Undo it first.",
    "late": "Your time with that item was over and somebody else has it: what you said was not written down.",
    "unknown": "There is no such item, or nothing to undo.",
    "undone": "Taken back. The record of it stays in the log.",
    "skipped": "Skipped: it comes again after all others.",
}
_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,64}")


router = APIRouter()


def make_app(desk: Desk, *, every: float = EVERY) -> FastAPI:
    """The page over a desk.

    Args:
        desk: what it shows.
        every: seconds between two looks for news.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.desk, app.state.every = desk, every
    app.include_router(router)

    @app.exception_handler(GuardkeelError)
    async def failed(request: Request, problem: Exception) -> Response:
        said = cast(GuardkeelError, problem)
        return _html("notice.html", 503, title="The store cannot be used", text=said.problem, me="")

    return app


def _desk(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


def _who(request: Request) -> str:
    """Who asks; to the login where nobody is known."""
    found = _desk(request).annotators.find(request.cookies.get(_cookie(request), ""))
    if found is not None:
        return found
    if request.method == "GET":
        raise HTTPException(303, headers={"location": "login"})
    raise HTTPException(401, "log in first")


async def _own(request: Request) -> None:
    headers = request.headers
    if not own_form(headers.get("sec-fetch-site"), headers.get("origin", ""), headers.get("host", "")):
        raise HTTPException(403, "this form was not sent from the page itself")


Me = Annotated[str, Depends(_who)]
OWN = [Depends(_own)]


@router.get("/")
async def home(request: Request, me: Me, said: str = "") -> Response:
    """The item that is somebody's now, or what is to be said where there is none."""
    desk = _desk(request)
    view = await asyncio.to_thread(desk.look, me)
    values = {"desk": desk, "view": view, "said": SAID.get(said, ""), "every": request.app.state.every}
    return _html("item.html" if view.claim else "nothing.html", 200, me=me, **values)


@router.post("/decide", dependencies=OWN)
async def decide(request: Request, me: Me) -> Response:
    """What somebody says of their item, or that they skip it."""
    fields = await _fields(request)
    choice = _one(fields, "choice")
    if choice not in (*CHOICES, "skip"):
        raise HTTPException(400, "choice: no answer that there is")
    given = None if choice == "skip" else cast(Choice, choice)
    ack = await asyncio.to_thread(
        _desk(request).answer, me, _name(fields, "token"), _name(fields, "item"), given,
        fields.get("category", []), _one(fields, "note"),
    )  # fmt: skip
    return _back(("skipped" if given is None else "") if ack.status == "new" else ack.status)


@router.post("/undo", dependencies=OWN)
async def undo(request: Request, me: Me) -> Response:
    """Take back what somebody said last."""
    fields = await _fields(request)
    ack = await asyncio.to_thread(_desk(request).undo, me, _name(fields, "id"))
    return _back("undone" if ack.status == "new" else ack.status)


@router.post("/keep", dependencies=OWN)
async def keep(request: Request, me: Me) -> Response:
    """Hold the item for longer; how far the queue is, as HTML, and whether the page is to be read again."""
    token, desk = _one(await _fields(request), "token"), _desk(request)
    kept = bool(token) and await asyncio.to_thread(desk.keep, me, token)
    progress = await asyncio.to_thread(desk.progress, me)
    stale = not kept if token else progress.open > progress.others
    html = render("progress.html", progress=progress)
    return JSONResponse({"progress": html, "stale": stale}, headers=HEADERS)


@router.get("/decisions.jsonl")
async def decisions(request: Request, me: Me) -> Response:
    """The log."""
    records = await asyncio.to_thread(_desk(request).store.records)
    headers = {**HEADERS, "content-disposition": 'attachment; filename="decisions.jsonl"'}
    return Response(b"".join(map(line, records)), media_type="application/x-ndjson", headers=headers)


@router.get("/login")
async def login() -> Response:
    """Where a key is given."""
    return _html("login.html", 200, problem="", me="")


@router.post("/login", dependencies=OWN)
async def log_in(request: Request) -> Response:
    """With a key."""
    return _entered(request, _one(await _fields(request), "key"))


@router.get("/enter")
async def enter(request: Request, key: str = "") -> Response:
    """By a link that somebody was given."""
    return _entered(request, key)


@router.post("/logout", dependencies=OWN)
async def logout(request: Request) -> Response:
    """Take the key out of the browser."""
    response = RedirectResponse("login", 303, headers=HEADERS)
    response.delete_cookie(_cookie(request), httponly=True, samesite="lax")
    return response


@router.get("/page.css")
async def css() -> Response:
    """The style sheet."""
    return _asset("page.css", "text/css; charset=utf-8")


@router.get("/page.js")
async def script() -> Response:
    """The script."""
    return _asset("page.js", "text/javascript; charset=utf-8")


async def _fields(request: Request) -> dict[str, list[str]]:
    """The fields of a form of bounded size."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, "the form is too large")
    try:
        return parse_qs(body.decode(), max_num_fields=200, keep_blank_values=True)
    except ValueError:
        raise HTTPException(400, "the form cannot be read") from None


def _one(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0]


def _name(fields: dict[str, list[str]], name: str) -> str:
    found = _one(fields, name)
    if not _TOKEN.fullmatch(found):
        raise HTTPException(400, f"{name}: not one of ours")
    return found


def _entered(request: Request, key: str) -> Response:
    if _desk(request).annotators.find(key) is None:
        return _html("login.html", 403, problem="This key is nobody's.", me="")
    response = RedirectResponse("./", 303, headers=HEADERS)
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    response.set_cookie(_cookie(request), key.strip(), httponly=True, samesite="lax", secure=secure)
    return response


def _cookie(request: Request) -> str:
    """Browsers keep cookies by host, whatever the port: two pages on one machine must not share theirs."""
    return f"guardkeel_adjudicate_{request.url.port or 80}"


def _back(said: str) -> Response:
    query = f"?{urlencode({'said': said})}" if said else ""
    return RedirectResponse(f"./{query}", 303, headers=HEADERS)


def _html(name: str, status: int, **values: Any) -> Response:
    return HTMLResponse(render(name, **values), status, headers=HEADERS)


def _asset(name: str, kind: str) -> Response:
    headers = {**HEADERS, "cache-control": "max-age=31536000, immutable"}
    return Response(asset(name), media_type=kind, headers=headers)
