"""The dossier as a service: its page as it is now, and approvals.

    GET  /                the page
    GET  /state.json      where models stand
    GET  /records.jsonl   the chain
    POST /approvals       decision, name, verdict, reason, token

Approvals pass the same rules as anywhere. A request that changes something must carry the token and come from this
page (Origin). Answers forbid frames, scripts and caching.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from threading import Lock
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from markupsafe import Markup

from guardkeel.dossier.chain import line
from guardkeel.dossier.dossier import Dossier
from guardkeel.dossier.kinds import Approval, GateDecision, Model, moment
from guardkeel.dossier.standing import standing
from guardkeel.dossier.state import State
from guardkeel.errors import GuardkeelError
from guardkeel.report.dossier import page
from guardkeel.report.plots import tag

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST = 1 << 16
"""Bytes of a form."""


def app(dossier: Dossier, token: str = "") -> FastAPI:
    """The service over an open dossier. Without a token nobody can approve."""
    made = FastAPI(title="guardkeel dossier", docs_url=None, redoc_url=None, openapi_url=None)
    turn = Lock()  # the state is one object; reading what others wrote changes it

    @made.middleware("http")
    async def _guarded(request: Request, then: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await then(request)
        answer.headers.update(HEADERS)
        return answer

    @made.exception_handler(GuardkeelError)
    def _refused(request: Request, error: GuardkeelError) -> Response:
        return _said(422, "Refused", f"{error.problem}. {error.remedy}")

    @made.get("/", response_class=HTMLResponse)
    def _page() -> str:
        with turn:
            state = dossier.refresh()
            return page(state, dossier.now, form=_form(state) if token else None)

    @made.get("/state.json")
    def _state() -> JSONResponse:
        with turn:
            state, now = dossier.refresh(), dossier.now
            stands = [standing(state, m, now) for m in state.each(Model)]
        said = {s.model: {"may_run": s.may_run, "reasons": s.reasons} for s in stands}
        return JSONResponse({"entries": state.last, "head": state.all[-1].entry.hash, "models": said})

    @made.get("/records.jsonl")
    def _records() -> Response:
        with turn:
            body = b"".join(line(s.entry) for s in dossier.refresh().all)
        return Response(body, media_type="application/jsonl")

    @made.post("/approvals")
    async def _approve(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST:
                return _said(413, "Refused", f"More than {MOST:,} bytes.")
        fields = dict(parse_qsl(body.decode("utf-8", "replace")))
        given = fields.get("token", "")
        if not token or not hmac.compare_digest(given.encode(), token.encode()):
            return _said(403, "Refused", "The token is not the one that this service was started with.")
        origin = request.headers.get("origin")
        if origin is not None and origin.split("//", 1)[-1] != request.headers.get("host", ""):
            return _said(403, "Refused", "This came from another page.")
        return await run_in_threadpool(_record, fields)

    def _record(fields: dict[str, str]) -> Response:
        if fields.get("verdict") not in ("approve", "reject") or not fields.get("name"):
            return _said(422, "Refused", "It needs a name, and a verdict that is approve or reject.")
        with turn:
            found = dossier.refresh().get(GateDecision, fields.get("decision", ""))
            one = Approval(
                id=f"{found.id} {moment(dossier.now)}"[:200],
                decision=found.id,
                approver=fields["name"],
                verdict="approve" if fields["verdict"] == "approve" else "reject",
                reason=fields.get("reason", ""),
                at=dossier.now,
            )
            dossier.record([one], fields["name"])
            dossier.sign()
        return RedirectResponse("/#decisions", status_code=303)

    @made.get("/healthz")
    def _alive() -> PlainTextResponse:
        return PlainTextResponse("ok")

    return made


def _form(state: State) -> Markup:
    """How to approve the decisions that nobody has answered; empty where there is none."""
    waiting = [
        d for m in state.each(Model) for d in state.decisions(m)[-1:]
        if d.outcome not in ("hold", "deny") and not state.approvals(d.id)
    ]  # fmt: skip
    if not waiting:
        return Markup("")
    options = [
        tag("option", f"{d.model}: {d.outcome}, {d.decided_at:%Y-%m-%d %H:%M}", value=d.id) for d in waiting
    ]
    return tag(
        "form",
        tag("h2", "Waiting for approval"),
        tag("label", "Decision", tag("select", *options, name_="decision", required="required")),
        tag(
            "label",
            "Your name, as records have it",
            _field("name", required="required", autocomplete="username"),
        ),
        tag("label", "Reason", _field("reason")),
        tag("label", "Token", _field("token", type="password", required="required", autocomplete="off")),
        tag(
            "div",
            tag("button", "Approve", name_="verdict", value="approve"),
            tag("button", "Reject", name_="verdict", value="reject"),
            class_="answers",
        ),
        method="post",
        action="/approvals",
        class_="approve",
    )


def _field(name: str, **more: str) -> Markup:
    """An input, which has no end tag."""
    return Markup(str(tag("input", name_=name, **more)).removesuffix("</input>"))  # noqa: S704 - of our own tag


def _said(status: int, title: str, text: str) -> Response:
    """A short answer for people, as plain text."""
    return PlainTextResponse(f"{title}. {text}\n", status_code=status)
