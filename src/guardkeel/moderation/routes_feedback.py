"""`/v1/feedback` and what there is to review."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from guardkeel.moderation.routes_common import ERRORS, ApiError, answer, needs, service_of
from guardkeel.moderation.schemas import FeedbacksBody

router = APIRouter(responses=ERRORS, dependencies=[needs("feedback")])


@router.post(
    "/v1/feedback", response_class=JSONResponse, responses={207: {"description": "some were not taken"}}
)
async def feedback(body: FeedbacksBody, request: Request) -> JSONResponse:
    """Say what verdicts should have been, late, in any order, and again where the answer got lost.

    Each piece is `new` or `known` (committed, under its number in the log), or it was not taken: `conflict` where
    its id is known with other content, `unknown verdict` where there is no such verdict. 207 where any was not taken.
    The `first` piece on a verdict teaches: an `audited` one by its propensity, an unasked one as `unsolicited` says.
    """
    rows = [{**one.model_dump(), "key": request.state.key.id} for one in body.feedback]
    acks = await service_of(request).take_feedback(rows)
    taken = all(a.status in ("new", "known") for a in acks)
    return answer({"feedback": [asdict(a) for a in acks]}, 200 if taken else 207)


@router.get("/v1/audits", response_class=JSONResponse)
async def audits(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JSONResponse:
    """Verdicts that were drawn for review and have none yet, the oldest first."""
    rows = await asyncio.to_thread(service_of(request).store.audits, limit)
    return answer({"audits": rows})


@router.get(
    "/v1/verdicts/{id}", response_class=JSONResponse, responses={404: {"description": "no such verdict"}}
)
async def verdict(request: Request, id: Annotated[str, Path(pattern=r"^[\x21-\x7e]{1,64}$")]) -> JSONResponse:
    """One verdict of the log."""
    row = await asyncio.to_thread(service_of(request).store.verdict, id)
    if row is None:
        raise ApiError(404, "there is no such verdict", code="not_found")
    return answer(row)
