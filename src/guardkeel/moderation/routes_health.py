"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from guardkeel.moderation.metrics import CONTENT_TYPE
from guardkeel.moderation.routes_common import answer, service_of

router = APIRouter()


@router.get("/healthz", response_class=JSONResponse)
async def healthz() -> JSONResponse:
    """Whether the process answers."""
    return answer({"status": "ok"})


@router.get("/readyz", response_class=JSONResponse, responses={503: {"description": "not ready"}})
async def readyz(request: Request) -> JSONResponse:
    """Whether requests should be sent here: the log is replayed, and the service is not being stopped.

    A database that is away does not make it unready: verdicts go on, and feedback is answered 503.
    """
    service = service_of(request)
    ready = service.ready and not service.draining
    resting = [e.name for e in service.experts if e.breaker.state != "closed"]
    body = {
        "status": "ready" if ready else "draining" if service.draining else "starting",
        "store": "up" if service.writer.up else "away",
        "resting": resting,
        "weights_version": service.learner.sequence,
    }
    return answer(body, 200 if ready else 503)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service = service_of(request)
    return Response(service.metrics.text(service), media_type=CONTENT_TYPE)
