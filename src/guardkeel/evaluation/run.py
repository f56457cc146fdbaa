"""An audit from its configuration: names and references in, a finished run directory out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkeel.engines.moments import Sample, summed
from guardkeel.engines.opening import open_pair
from guardkeel.engines.settings import ENGINE_FIELDS
from guardkeel.evaluation.audit import Source, Watch, audit_guards
from guardkeel.evaluation.config import AuditConfig, read_config
from guardkeel.evaluation.policy import load_policy
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.guard_policy import read_policy
from guardkeel.guards.kinds import kind_of, other_digest
from guardkeel.guards.load import base_path, describe, guard_path, unknown_family
from guardkeel.models.adapters import adapter_base, check_adapter, is_adapter
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.loading import checkpoint_digest, task_of
from guardkeel.results import AuditResults


def audit(
    reference: str = "keel-135m", against: str | None = None, *, out: str | Path, **config: Any
) -> AuditResults:
    """Judge labelled conversations with a guard before and after a change, and say what changed.

    Args:
        reference: the guard before: `keel-135m`, a folder, or a hub:, pypi: or path: reference.
        against: the guard after: a checkpoint, or a LoRA adapter on the reference.
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of AuditConfig: suites, limit, policy, family, threshold, dtype, device, …

    Returns:
        The results, which are also in out/run.json. `results.decision.decision` is the gate's answer.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    return run(read_config(None, config | {"reference": reference, "against": against}), Path(out))


def run(
    config: AuditConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> AuditResults:
    """Run, or resume, the audit of a configuration in a folder."""
    policy = load_policy(config.policy)
    suites = [load_suite(s, data=config.data, offline=config.offline, progress=watch) for s in config.suites]
    named = {"reference": config.reference} | ({"candidate": config.against} if config.against else {})
    # A candidate that cannot be used is found out here, before hours of scoring.
    sources = {role: _source(text, config.family, config.offline, watch) for role, text in named.items()}
    engine, options = config.engine_settings(), config.guard_options()

    def sums(items: Any, cells: Any, layers: Any, paired: bool) -> Any:
        return summed(
            engine,
            config.reference,
            config.against if paired else None,
            Sample(0, items, cells, tuple(layers)),
            watch=lambda done, total: watch("sum up activations", done, total),
            progress=watch,
            **options,
        )

    return audit_guards(
        open_pair(engine, config.reference, config.against, progress=watch, **options),
        suites,
        folder,
        sources=sources,
        settings=config.settings(),
        policy=policy,
        options=_recorded(config) | engine.engine_mark(),
        engine=config.model_dump(mode="json", include=ENGINE_FIELDS) if engine.engine != "local" else {},
        summed=sums,
        command=command,
        watch=watch,
    )


def _recorded(config: AuditConfig) -> dict[str, Any]:
    """The guards' options that results depend on: a policy by what it says, and not whether the network was used."""
    options = config.guard_options()
    path = options.pop("policy")
    del options["offline"]
    return options | ({"guard_policy": read_policy(path).model_dump(mode="json")} if path else {})


def _source(reference: str, family: str | None, offline: bool | None, watch: Watch) -> Source:
    """Where a guard comes from. A checkpoint's files, weights and family are checked without loading it."""
    kind = kind_of(reference, progress=watch, offline=offline)
    if kind != "checkpoint":
        said = other_digest(kind, reference, progress=watch, offline=offline)
        return Source(reference=reference, digest=said)
    path = guard_path(reference, progress=watch, offline=offline)
    _check(reference, path, family, watch)
    on = base_path(path, watch, offline) if is_adapter(path) and adapter_base(path) else None
    return Source(
        reference=reference,
        digest=checkpoint_digest(path),
        base="" if on is None else checkpoint_digest(on),
    )


def _check(reference: str, path: Path, family: str | None, watch: Watch) -> None:
    if is_adapter(path):
        check_adapter(path)
        if not adapter_base(path):
            return
    encoder, folder = describe(path, reference, family=family)
    checkpoint = check_checkpoint(folder, progress=watch)
    if encoder is None and task_of(checkpoint.config, folder) == "causal":
        raise unknown_family(reference)
