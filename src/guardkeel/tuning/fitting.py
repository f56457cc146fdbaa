"""From what a run has put together to its trainer: the same for `guardkeel tune` and `guardkeel train-guard`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.log import StepLog
from guardkeel.tuning.monitor import SafetyMonitor
from guardkeel.tuning.order import schedule
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.ranks import ALONE, Ranks
from guardkeel.tuning.regularisers.base import Regulariser
from guardkeel.tuning.trainer import GuardTrainer, arguments

if TYPE_CHECKING:
    from guardkeel.tuning.guard_training.config import TrainConfig


def fitted(
    config: TuneConfig | TrainConfig,
    folder: Path,
    model: Any,
    learner: Any,
    lessons: Any,
    *,
    steps: int,
    regulariser: Regulariser,
    probes: GuardProbes | None,
    monitor: SafetyMonitor | None,
    on_step: Callable[[int], None],
    kind: Any = GuardTrainer,
    ranks: Ranks = ALONE,
) -> tuple[GuardTrainer, StepLog]:
    """A trainer of this kind, its monitor and its log, ready to train."""
    trainer: GuardTrainer = kind(
        model,
        learner,
        lessons,
        args=arguments(
            folder,
            steps=steps,
            batch=config.batch // ranks.size,
            accumulation=config.accumulation,
            learning_rate=config.learning_rate,
            max_norm=config.max_norm,
            seed=config.seed,
            report_to=config.report_to,
            cpu=model.device.type == "cpu",
            checkpointing=config.checkpointing,
            run_name=folder.name,
        ),
        regulariser=regulariser,
        probes=probes,
        schedule=partial(schedule, steps=steps, warmup=config.warmup, decay=config.decay),
        callbacks=[monitor] if monitor else [],
        ranks=ranks,
    )
    log = StepLog(folder, trainer.facts, on_step, every=config.every, writes=ranks.first)
    trainer.add_callback(log)
    if monitor is not None:
        monitor.trainer = trainer
        trainer.keeper.keep = lambda: monitor.last_good
    return trainer, log
