"""guardkeel models: which guards can be used here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from guardkeel.cli.terminal import emit, hush, literal, progress, say, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("models")(models)


def models(
    reference: Annotated[str | None, typer.Argument(help="A guard to fetch, check and describe.")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Use what is in the cache only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the guard families, or fetch one guard into the cache, check its files and describe it.

    Checkpoints are safetensors or GGUF; pickles are refused, and no code of a checkpoint is run.

    [bold]Examples[/bold]

      guardkeel models
      guardkeel models keel-135m
      guardkeel models hub:meta-llama/Llama-Guard-3-1B
    """
    hush()
    if reference is not None:
        found = _describe(reference, offline, as_json)
        if as_json:
            emit(found)
        else:
            say("\n".join(f"{key:11}{literal(value)}" for key, value in found.items()))
        return
    from guardkeel.guards.registry import CLASSIFIER, families

    rows = {name: f"{len(f.categories)} categories" for name, f in families().items()}
    rows[CLASSIFIER] = "any sequence classifier; labels by name or guardkeel.json"
    if as_json:
        emit({"embedded": "keel-135m", "families": list(rows)})
        return
    table("guard families", ["family", "what"], [[f"[bold]{k}[/bold]", v] for k, v in rows.items()])
    say(
        "\nembedded  [bold]keel-135m[/bold]: 135 M parameters, Apache-2.0; the default wherever a guard is asked for"
    )


def _describe(reference: str, offline: bool | None, quiet: bool) -> dict[str, Any]:
    from guardkeel.guards.kinds import kind_of
    from guardkeel.guards.load import describe, guard_path, guard_settings, load_guard
    from guardkeel.models.adapters import check_adapter, is_adapter
    from guardkeel.models.checks import check_checkpoint
    from guardkeel.models.loading import checkpoint_digest

    with progress(quiet) as watch:
        kind = kind_of(reference, progress=watch, offline=offline)
        if kind != "checkpoint":
            guard = load_guard(reference, progress=watch, offline=offline)
            facts = {key: str(value) for key, value in guard.facts.items() if value not in ("", 0, None)}
            return {"kind": kind, "family": guard.family, "threshold": guard.threshold, **facts}
        path = guard_path(reference, progress=watch, offline=offline)
        encoder, base = describe(path, reference)
        checkpoint = check_checkpoint(base, progress=watch)
        if is_adapter(path):
            check_adapter(path)
    said = guard_settings(path, base)
    family = (
        encoder.family.name
        if encoder
        else said.family or ("classifier" if _classifier(checkpoint.config) else "unknown: use --family")
    )
    return {
        "path": str(path),
        "family": family,
        "threshold": said.threshold if said.threshold is not None else 0.5,
        "parameters": checkpoint.parameters,
        "weights": f"{checkpoint.weight_bytes / 1e6:.0f} MB",
        "digest": checkpoint_digest(path),
    }


def _classifier(config: dict[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")
