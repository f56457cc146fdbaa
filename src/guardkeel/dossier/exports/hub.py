"""For the Hugging Face Hub: a model card with a model-index, and `.eval_results/*.yaml` for benchmarks there.

The Hub shows `.eval_results` only of data sets that are benchmarks on it; those are the prompt sets with a
`hub_dataset` and `hub_task`. All other results are in the card.
"""

from __future__ import annotations

import re
from typing import Any

from guardkeel.dossier.kinds import Evaluator, Model, PromptSet, Result, Run
from guardkeel.dossier.standing import Standing
from guardkeel.dossier.state import State
from guardkeel.errors import ConfigError

SHOWN = ("recall", "fpr", "f1", "auroc", "unscored")


def card(state: State, model: Model, stands: Standing) -> str:
    """README.md of a model: front matter by huggingface_hub, and what the dossier says of it."""
    from huggingface_hub import EvalResult, ModelCardData

    runs = [s.record for s in state.runs(model)]
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="guard",
            dataset_type=_slug(part),
            dataset_name=part,
            dataset_revision=digest,
            metric_type=result.metric,
            metric_name=f"{result.metric} ({run.spec})",
            metric_value=result.value,
        )
        for run in runs
        for result, part, digest in _parts(state, run)
    ]
    known, _ = state.lineage(model)
    data = ModelCardData(
        model_name=model.id,
        license=model.licence.lower() if re.fullmatch(r"[A-Za-z0-9.-]+", model.licence) else None,
        base_model=[m.repository for m in known if m.repository] or None,
        pipeline_tag="text-classification",
        tags=["guard", "safety"],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(state, model, runs, stands)}"


def _parts(state: State, run: Run) -> list[tuple[Result, str, str | None]]:
    digests = {s.id: s.digest for s in run.prompt_sets}
    whole = ", ".join(digests) or run.spec
    return [
        (r, whole if r.slice == "*" else r.slice, digests.get(r.slice))
        for r in state.results(run.id)
        if r.value is not None and r.metric in SHOWN and (r.slice == "*" or r.slice in digests)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


def _body(state: State, model: Model, runs: list[Run], stands: Standing) -> str:
    lines = [
        f"# {model.id}",
        model.intended_use or "Its intended use is not recorded.",
        f"Digest of its weights: `{model.digest}`. Release mode: {model.release_mode}.",
        "## Data",
        model.data_summary or "Not recorded.",
        "## Evaluation",
        "Rates are over scored items; what was unscored is a rate of its own and never counts as safe.",
        "| run | spec | evaluator | on | metric | value | interval | n | unscored |\n"
        + "|---" * 9
        + "|\n"
        + "\n".join(_row(state, run, r, part) for run in runs for r, part, _ in _parts(state, run)),
        "## Release",
        f"{stands.decision.outcome}: {stands.decision.reason}" if stands.decision else "No gate decision.",
    ]
    return "\n\n".join(lines) + "\n"


def _row(state: State, run: Run, result: Result, part: str) -> str:
    who = state.get(Evaluator, run.evaluator)
    interval = "–" if result.low is None or result.high is None else f"{result.low:.3f} to {result.high:.3f}"
    cells = [run.id, run.spec, f"{who.id} ({who.party} party)", part, result.metric, f"{result.value:.3f}", interval,
             str(result.n), str(result.n_unscored)]  # fmt: skip
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def eval_results(state: State, model: Model) -> dict[str, str]:
    """File name → YAML, one file a benchmark and metric. Empty where no prompt set is a benchmark on the Hub."""
    import yaml

    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError as e:
        raise ConfigError(
            "this huggingface_hub knows no .eval_results", remedy="pip install -U huggingface_hub"
        ) from e
    found: dict[str, list[Any]] = {}
    for run in (s.record for s in state.runs(model)):
        for result in state.results(run.id):
            prompts = state.find(PromptSet, result.slice)
            if prompts is None and result.slice == "*" and len(run.prompt_sets) == 1:
                prompts = state.find(PromptSet, run.prompt_sets[0].id)
            if prompts is None or not prompts.hub_dataset or not prompts.hub_task or result.value is None:
                continue
            if result.metric not in SHOWN:
                continue
            entry = EvalResultEntry(
                dataset_id=prompts.hub_dataset,
                task_id=prompts.hub_task,
                value=result.value,
                date=run.started_at.strftime("%Y-%m-%d"),
                notes=f"{result.metric}, n = {result.n}, unscored = {result.n_unscored}",
            )
            found[f"{_slug(prompts.id)}_{_slug(result.metric)}.yaml"] = [entry]
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(e), sort_keys=False) for name, e in found.items()
    }
