"""A guard whose parts are judged by Ray Data actors, on this machine or on a cluster.

Every actor loads the guard once. A part is one block in, every batch of it one block out, in any order. What a lost
worker was about is sent again by Ray (`worker_retries` times); a batch that comes twice is taken once. Which batches
are finished is known from the files that the driver writes, so nothing is held in Ray that could be lost.

Verdicts are those of the same guard in this process with the same device, dtype and thread count, bit for bit.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from guardkeel import errors
from guardkeel.engines.opening import Opening
from guardkeel.engines.parts import Done, Part, parts
from guardkeel.engines.settings import EngineSettings
from guardkeel.engines.worker import Actor, Described, Failed, Worker, described
from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.base import Batch, Guard, Judgement

SHARES = 4
"""Parts that each worker gets, about: the last to finish is then waited for by a quarter of its work at most."""


class RayGuard(Guard):
    """A guard that is loaded in Ray's workers and not here. Making one asks a worker who it is.

    Raises:
        ConfigError: Ray is not installed, or the cluster has not what the workers need.
        GuardkeelError: what loading the guard raises.
    """

    def __init__(self, opening: Opening, settings: EngineSettings) -> None:
        self._opening, self._settings = opening, settings
        ray = connected(settings)
        # A process of its own, which ends with its answer: its memory is wanted for the workers.
        ask = ray.remote(**_needs(settings), max_calls=1)(described)
        said = _lost(lambda: ray.get(ask.remote(opening, threads(settings))))
        if isinstance(said, Failed):
            raise_again(said)
        assert isinstance(said, Described)
        self.name, self.family, self.threshold = said.name, said.family, said.threshold
        self.depth, self._facts = said.depth, said.facts

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard: those of the guard in a worker."""
        return self._facts

    def judge_parts(self, parts: Sequence[Part]) -> Iterator[Done]:
        """See parts.Spreads."""
        seen: set[int] = set()
        shares = math.ceil(SHARES * self._settings.workers / max(1, len(parts)))
        dealt = [share for part in parts for share in part.deal(shares)]
        for done in spread(self._settings, Worker, (self._opening, threads(self._settings)), dealt):
            if done.number not in seen:
                seen.add(done.number)
                yield done

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard; in any order. Hidden states of all items come here: prefer judge_parts for a sample."""
        given = parts(items, layers=layers, sample=range(len(items)), known=skip, categories=categories)
        for done in self.judge_parts(given):
            # Rows of `hidden` are in the order of `sampled`, which is that of `indices` where all are sampled.
            yield Batch(done.number, done.indices, done.verdicts, done.hidden if layers else None)


def spread(
    settings: EngineSettings, actor: type[Actor], arguments: tuple[Any, ...], given: Sequence[Any]
) -> Iterator[Any]:
    """What actors of a class answer to some parts, as it comes; a Failed is raised."""
    import pyarrow as pa

    ray = connected(settings)
    blocks = [pa.table({"part": pa.array([pickle.dumps(part)], pa.large_binary())}) for part in given]
    if not blocks:
        return
    context = ray.data.DataContext.get_current()
    kept = {name: getattr(context, name) for name in _CONTEXT}
    for name, value in _CONTEXT.items():
        setattr(context, name, value)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        data = _quietly(
            ray.data.from_arrow(blocks).map_batches,
            actor,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(settings.workers, len(blocks)), max_tasks_in_flight_per_actor=1
            ),
            max_restarts=-1,
            max_task_retries=settings.worker_retries,
            **_needs(settings),
        )
    finally:
        for name, value in kept.items():
            setattr(context, name, value)
    # Not prefetched: what is finished is to be on the disk here, not on its way.
    found = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    while (block := _lost(lambda: next(found, None))) is not None:
        for row in block["done"].to_pylist():
            done = pickle.loads(row)  # noqa: S301 - our own
            if isinstance(done, Failed):
                raise_again(done)
            yield done


def _quietly(map_batches: Any, *arguments: Any, **named: Any) -> Any:
    """`max_task_retries` has no parameter of its own yet, and passing it otherwise is called deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return map_batches(*arguments, **named)


_CONTEXT = {"target_max_block_size": 1, "enable_progress_bars": False, "print_on_execution_start": False}
"""One block for each batch, which comes as soon as it is there; our own progress is shown instead of Ray's."""


def connected(settings: EngineSettings) -> Any:
    """Ray, joined to the cluster that is asked for, or started on this machine.

    Raises:
        ConfigError: Ray is not installed, or the cluster is too small.
        RunError: the cluster cannot be reached.
    """
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise ConfigError("engine 'ray' needs Ray", remedy="pip install 'guardkeel[ray]'") from e
    if not ray.is_initialized():
        address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            cpus = math.ceil(settings.workers * settings.worker_cpus)
            options |= {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
        try:
            ray.init(address=address, **options)
        except Exception as e:  # a node that does not start is a bare Exception
            raise RunError(
                f"Ray at {address}: {str(e).splitlines()[0] if str(e) else type(e).__name__}",
                remedy="start it with ray start, or check ray_address and RAY_ADDRESS",
            ) from e
    held = ray.cluster_resources()
    for name, each in (("CPU", settings.worker_cpus), ("GPU", settings.worker_gpus)):
        if each * settings.workers > held.get(name, 0):
            raise ConfigError(
                f"{settings.workers} workers with {each:g} {name} each: the cluster has {held.get(name, 0):g}",
                remedy="lower workers, worker_cpus or worker_gpus, or add machines",
            )
    return ray


def threads(settings: EngineSettings) -> int:
    """Processors that torch may use in a worker."""
    return max(1, int(settings.worker_cpus))


def raise_again(failed: Failed) -> None:
    """Raise on the driver what was raised in a worker."""
    kind = getattr(errors, failed.kind, None) if failed.kind else None
    if kind is None:
        raise RunError(f"a worker failed: {failed.problem}", remedy=failed.remedy)
    raise kind(failed.problem, remedy=failed.remedy)


def _needs(settings: EngineSettings) -> dict[str, Any]:
    return {"num_cpus": settings.worker_cpus, "num_gpus": settings.worker_gpus}


def _lost(work: Any) -> Any:
    """Work that waits for Ray; what Ray gives up on is a RunError."""
    import ray

    try:
        return work()
    except ray.exceptions.RayError as e:
        raise RunError(
            f"Ray gave up: {str(e).splitlines()[0][:300]}",
            remedy="where workers die for want of memory, lower token_budget or workers; then repeat the command: "
            "it goes on where it stopped",
        ) from e
