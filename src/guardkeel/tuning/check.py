"""Whether a configuration can be run, found out before anything is loaded: for command, library and bench."""

from __future__ import annotations

from guardkeel.errors import ConfigError
from guardkeel.guards.embedded import NAME
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.keeper import parts
from guardkeel.tuning.posthoc import PostHoc
from guardkeel.tuning.ranks import here
from guardkeel.tuning.regularisers.asft import AsFT
from guardkeel.tuning.regularisers.base import Regulariser
from guardkeel.tuning.regularisers.registry import build
from guardkeel.tuning.trainer import check_reports


def check(config: TuneConfig) -> Regulariser:
    """The method of a configuration that can be run.

    Raises:
        ConfigError: the method, its options, or what goes with them cannot be used.
    """
    regulariser = build(config.method, config.options)
    for part in parts(regulariser):
        if config.adapter != "lora" and isinstance(part, PostHoc):
            raise ConfigError(
                f"method {part.name!r} repairs the updates of a LoRA, but adapter is {config.adapter!r}",
                remedy="set adapter to lora, or choose another method",
            )
        if config.adapter == "dora" and isinstance(part, AsFT):
            raise ConfigError(
                f"method {part.name!r} cannot follow the updates of DoRA",
                remedy="set adapter to lora or full, or choose another method",
            )
    if getattr(regulariser, "needs", ()) and config.unaligned is None and config.guard not in (NAME, "keel"):
        raise ConfigError(
            f"method {config.method!r} compares the guard with the model that it was made from",
            remedy="name that checkpoint with --unaligned",
        )
    if config.dtype in ("float16", "fp16"):
        raise ConfigError(
            "dtype float16 is too coarse to train in: small gradients vanish and large ones overflow",
            remedy="use bfloat16 or float32",
        )
    check_reports(config.report_to)
    _check_ranks(config, regulariser)
    return regulariser


def _check_ranks(config: TuneConfig, regulariser: Regulariser) -> None:
    ranks = here(config.sharding, config.offload, config.device)
    if config.batch % ranks.size:
        near = max(1, round(config.batch / ranks.size)) * ranks.size
        raise ConfigError(
            f"{ranks.size} processes cannot take equal shares of batch {config.batch}",
            remedy=f"set batch to {near}, or start another number of processes",
        )
    for part in parts(regulariser) if ranks.sharded else ():
        if type(part) is not Regulariser and not part.sharded:
            raise ConfigError(
                f"method {part.name!r} needs whole weights, and with sharding fsdp no process has them",
                remedy="set sharding to none, or choose plain, replay, kl, safegrad or one of the fwssr family",
            )
