"""`/v1/experts` and `/v1/policies`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from guardkeel.moderation.policies import Policy
from guardkeel.moderation.routes_common import ERRORS, answer, needs, service_of
from guardkeel.moderation.schemas import StrictnessBody
from guardkeel.moderation.served import InForce

router = APIRouter(responses=ERRORS, dependencies=[needs("admin")])


@router.get("/v1/experts", response_class=JSONResponse)
async def experts(request: Request) -> JSONResponse:
    """The experts, how they fare, and every table of weights."""
    service = service_of(request)
    learner = service.learner
    weights = learner.weights()
    found = [
        {
            "name": e.name,
            "guard": e.guard.name,
            "family": e.guard.family,
            "digest": e.digest,
            "threshold": e.guard.threshold,
            "cost": e.config.cost,
            "timeout": e.config.timeout,
            "calibration": e.calibration.kind,
            "breaker": e.breaker.state,
            "waiting": e.runner.waiting,
            "weight": weights[e.name],
        }
        for e in service.experts
    ]
    counts = await asyncio.to_thread(service.store.counts)
    return answer(
        {
            "experts": found,
            "rule": learner.config.rule,
            "loss": learner.config.loss,
            "weights_version": learner.sequence,
            "tables": learner.tables(),
            "counts": counts,
        }
    )


@router.get("/v1/policies", response_class=JSONResponse)
async def policies(request: Request) -> JSONResponse:
    """The policy in force, and those before it."""
    service = service_of(request)
    history = await asyncio.to_thread(service.store.policy_history)
    return answer({"in_force": _shown(service.in_force), "history": history})


@router.put("/v1/policies", response_class=JSONResponse)
async def put_policy(body: Policy, request: Request) -> JSONResponse:
    """Put a whole policy in force, at once and in every replica."""
    return answer(_shown(await service_of(request).put_policy(body, request.state.key.id)))


@router.patch("/v1/policies", response_class=JSONResponse)
async def flip(body: StrictnessBody, request: Request) -> JSONResponse:
    """Flip the policy in force between strict and permissive."""
    service = service_of(request)
    await service.look_at_policy()
    changed = service.in_force.policy.model_copy(update={"strictness": body.strictness})
    return answer(_shown(await service.put_policy(changed, request.state.key.id)))


def _shown(in_force: InForce) -> dict[str, Any]:
    return {"version": in_force.version, "policy": in_force.policy.model_dump(mode="json")}
