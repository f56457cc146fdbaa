"""CycloneDX 1.6 ML-BOM of a model: what it was made from, on which data, and how it was evaluated, with hashes."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import guardkeel
from guardkeel.dossier.kinds import Assessment, Model, PromptSet
from guardkeel.dossier.state import State

SPACE = uuid.UUID("6f0c3b57-7d51-4b60-9c3a-0d7b4c1e9a55")


def bom(state: State, model: Model, now: datetime) -> dict[str, Any]:
    """The bill of materials. Its serial number follows from the model and the head of the dossier."""
    head = state.all[-1].entry.hash
    known, unknown = state.lineage(model)
    used = {u.id: u for s in state.runs(model) for u in s.record.prompt_sets}
    parts = [_component(m) for m in known]
    parts += [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{d}",
            "name": f"unregistered {d[:12]}",
            "hashes": [{"alg": "SHA-256", "content": d}],
        }
        for d in unknown
    ]
    parts += [_data(state, u.id, u.version, u.digest) for u in used.values()]
    parents = list(dict.fromkeys(p.digest for p in model.parents))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(SPACE, f'{model.fingerprint} {head}')}",
        "version": 1,
        "metadata": {
            "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {
                "components": [{"type": "application", "name": "guardkeel", "version": guardkeel.__version__}]
            },
            "component": _component(model) | {"modelCard": _card(state, model)},
            "properties": [{"name": "guardkeel:dossier-head", "value": head}],
        },
        "components": parts,
        "dependencies": [
            {"ref": f"model:{model.digest}", "dependsOn": [f"model:{d}" for d in parents]},
            *({"ref": f"model:{m.digest}"} for m in known),
        ],
    }


def _component(model: Model) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{model.digest}",
        "name": model.id,
        "version": model.fingerprint[:16],
        "hashes": [{"alg": "SHA-256", "content": model.digest}],
        "properties": [
            {"name": "guardkeel:fingerprint", "value": model.fingerprint},
            {"name": "guardkeel:release-mode", "value": model.release_mode},
        ],
    }
    if model.licence:
        made["licenses"] = [{"license": {"name": model.licence}}]
    if model.parents:
        made["pedigree"] = {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "name": f"{p.relation} {p.digest[:12]}",
                    "hashes": [{"alg": "SHA-256", "content": p.digest}],
                }
                for p in model.parents
            ]
        }
    return made


def _data(state: State, name: str, version: str, digest: str) -> dict[str, Any]:
    known = state.find(PromptSet, name)
    made: dict[str, Any] = {
        "type": "data",
        "bom-ref": f"data:{name}:{digest[:16]}",
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "data": [{"type": "dataset", "name": name, "classification": "evaluation"}],
    }
    if known is not None and known.licence:
        made["licenses"] = [{"license": {"name": known.licence}}]
    return made


def _card(state: State, model: Model) -> dict[str, Any]:
    metrics = []
    for run in (s.record for s in state.runs(model)):
        for r in state.results(run.id):
            if r.value is None:
                continue
            metric: dict[str, Any] = {
                "type": r.metric,
                "value": f"{r.value:.6g}",
                "slice": f"{run.spec}: {r.slice}",
            }
            if r.low is not None and r.high is not None:
                metric["confidenceInterval"] = {"lowerBound": f"{r.low:.6g}", "upperBound": f"{r.high:.6g}"}
            metrics.append(metric)
    found = [a for a in state.each(Assessment) if a.model == model.id and a.fingerprint == model.fingerprint]
    considerations: dict[str, Any] = {"useCases": [model.intended_use]} if model.intended_use else {}
    if found:
        considerations["technicalLimitations"] = [
            t for t in (found[-1].uncertainty, found[-1].guard_bypass) if t
        ]
        considerations["ethicalConsiderations"] = [
            {"name": r.domain, "mitigationStrategy": f"residual risk {r.risk}. {r.why}".strip()}
            for r in found[-1].residual
        ]
    sets = {u.id: u for s in state.runs(model) for u in s.record.prompt_sets}
    return {
        "modelParameters": {
            "task": "text-classification",
            "datasets": [{"ref": f"data:{u.id}:{u.digest[:16]}"} for u in sets.values()],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": considerations,
    }
