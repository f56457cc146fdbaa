"""Every Eval Ever 0.3: one JSON document a run, aggregate results with their intervals.

What the schema has no place for (unscored items, digests) stands in its additional details, as text.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from guardkeel.dossier.kinds import EvalSpec, Evaluator, Model, Organisation, PromptSet, Result, Run
from guardkeel.dossier.state import State

VERSION = "0.3.0"
RELATION = {"first": "first_party", "third": "third_party", "collaborative": "collaborative"}
AVAILABLE = {
    "open-weights": "open_weights",
    "gated": "open_weights",
    "api": "closed_weights",
    "internal": "closed_weights",
}


def document(state: State, run: Run, now: datetime) -> dict[str, Any]:
    """A run as the schema has it; results without a value are left out, as it has no word for them."""
    model, spec, who = (
        state.get(Model, run.model),
        state.get(EvalSpec, run.spec),
        state.get(Evaluator, run.evaluator),
    )
    organisations = state.each(Organisation)
    owner = who.organisation or (
        organisations[-1].name if organisations and who.party == "first" else "unknown"
    )
    stamp = str(int(now.timestamp()))
    tool, _, _ = run.tool.partition(" ")
    return {
        "schema_version": VERSION,
        "evaluation_id": f"{run.spec}/{model.id}/{stamp}",
        "evaluation_timestamp": str(int(run.started_at.timestamp())),
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": f"guardkeel dossier, run {run.id}",
            "source_type": "evaluation_run",
            "source_organization_name": owner,
            "evaluator_relationship": RELATION[who.party],
            "additional_details": {
                "form": spec.form,
                "independent_of_development": str(who.independent_of_development).lower(),
                "access": who.access,
                "status": run.status,
            },
        },
        "eval_library": {"name": tool, "version": run.tool_version or "unknown"},
        "model_info": {
            "name": model.id,
            "id": model.repository or f"unknown/{model.id}",
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": AVAILABLE.get(model.release_mode, "unknown"),
                "weights_digest": model.digest,
                "fingerprint": model.fingerprint,
            },
        },
        "evaluation_results": [_result(state, run, r) for r in state.results(run.id) if r.value is not None],
    }


def _result(state: State, run: Run, result: Result) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": result.n}
    if result.low is not None and result.high is not None:
        uncertainty["confidence_interval"] = {
            "lower": result.low,
            "upper": result.high,
            "confidence_level": result.confidence,
        }
    change = result.metric.endswith(" change")
    return {
        "evaluation_result_id": result.id,
        "evaluation_name": run.spec if result.slice == "*" else f"{run.spec} {result.slice}",
        "source_data": _source(state, run, result.slice),
        "evaluation_timestamp": str(int(run.started_at.timestamp())),
        "metric_config": {
            "metric_id": result.metric.replace(" ", "_"),
            "metric_name": result.metric,
            "metric_kind": result.metric.replace(" ", "_"),
            "metric_unit": "proportion",
            "lower_is_better": result.direction == "lower",
            "score_type": "continuous",
            "min_score": -1.0 if change else 0.0 if 0 <= (result.value or 0) <= 1 else None,
            "max_score": 1.0 if abs(result.value or 0) <= 1 else None,
        },
        "score_details": {
            "score": result.value,
            "uncertainty": uncertainty,
            "details": {"n_unscored": str(result.n_unscored), "rows": result.rows},
        },
    }


def _source(state: State, run: Run, part: str) -> dict[str, Any]:
    used = [s for s in run.prompt_sets if s.id == part] or run.prompt_sets
    known = [state.find(PromptSet, s.id) for s in used]
    name = ", ".join(f"{s.id} {s.version}" for s in used) or "unknown"
    details = {s.id: f"sha256 {s.digest}" for s in used}
    if len(known) == 1 and known[0] is not None and known[0].hub_dataset:
        return {
            "dataset_name": name,
            "source_type": "hf_dataset",
            "hf_repo": known[0].hub_dataset,
            "additional_details": details,
        }
    return {"dataset_name": name, "source_type": "other", "additional_details": details}
