"""The experts of the ensemble: guards that are loaded, calibrated, and asked within their time.

What an expert says of an item is an Opinion: a calibrated P(unsafe), or an abstention with its reason. An abstention
is never read as safe.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from guardkeel.errors import ConfigError, GuardkeelError
from guardkeel.guards.base import Guard, Judgement, Verdict
from guardkeel.guards.remote import RemoteGuard
from guardkeel.moderation.aggregation import Calibration
from guardkeel.moderation.batching import BatchWorker, ExpertError
from guardkeel.moderation.breaker import Breaker
from guardkeel.moderation.config import ExpertConfig, ServeConfig
from guardkeel.moderation.remote_expert import RemoteExpert
from guardkeel.resources import Progress

Outcome = Literal["scored", "unscored", "timeout", "failed", "resting", "not asked"]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What an expert said of one item.

    Args:
        outcome: `scored`, or why not: `unscored` by the guard itself, no answer in time, an error, left alone by the
            circuit breaker, or not asked by the cascade.
        unsafe: calibrated P(unsafe); None where it abstained.
        raw: as the guard gave it.
        categories: by name.
        reason: of an abstention.
        dropped: tokens of the text that it has not read.
        seconds: from question to answer.
    """

    outcome: Outcome
    unsafe: float | None = None
    raw: float | None = None
    categories: tuple[str, ...] = ()
    reason: str = ""
    dropped: int = 0
    seconds: float = 0.0


NOT_ASKED = Opinion("not asked", reason="those asked before decided")


class Runner(Protocol):
    """How a guard is asked: BatchWorker or RemoteExpert."""

    async def start(self) -> None: ...  # noqa: D102
    async def stop(self, seconds: float) -> bool: ...  # noqa: D102
    async def ask(self, item: Judgement) -> Verdict: ...  # noqa: D102
    @property
    def waiting(self) -> int: ...  # noqa: D102


class Expert:
    """One guard, with what the configuration says of it; `digest` is that of its files, "" where it is not known."""

    def __init__(
        self,
        name: str,
        guard: Guard,
        config: ExpertConfig,
        *,
        digest: str = "",
        calibration: Calibration | None = None,
        prepare: Callable[[], None] | None = None,
        seen: Callable[[str, int], None] | None = None,
    ) -> None:
        self.name, self.guard, self.config, self.digest = name, guard, config, digest
        self.calibration = calibration or centred(guard.threshold)
        self.breaker = Breaker(config.failures, config.rest)
        self.runner: Runner
        if isinstance(guard, RemoteGuard):
            self.runner = RemoteExpert(guard)
        else:
            self.runner = BatchWorker(
                guard,
                most=config.batch,
                budget=config.batch_tokens,
                wait=config.batch_wait_ms / 1000,
                retries=config.retries,
                prepare=prepare,
                seen=(lambda n: seen(name, n)) if seen is not None else None,
            )

    async def ask(self, item: Judgement) -> Opinion:
        """Its opinion, within its timeout; never raises but when it is cancelled."""
        if not self.breaker.admit():
            return Opinion("resting", reason="failed again and again, and is left alone for a while")
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self.config.timeout):
                verdict = await self.runner.ask(item)
        except TimeoutError:
            self.breaker.failed()
            reason = f"no answer within {self.config.timeout:g} s"
            return Opinion("timeout", reason=reason, seconds=time.monotonic() - begun)
        except ExpertError as e:
            self.breaker.failed()
            return Opinion("failed", reason=unquoted(str(e)), seconds=time.monotonic() - begun)
        except BaseException:
            self.breaker.forgotten()
            raise
        self.breaker.succeeded()
        return self._opinion(verdict, time.monotonic() - begun)

    def _opinion(self, verdict: Verdict, seconds: float) -> Opinion:
        if verdict.unsafe is None:
            reason = unquoted(verdict.unscored)
            return Opinion("unscored", reason=reason, dropped=verdict.dropped, seconds=seconds)
        return Opinion(
            "scored",
            unsafe=float(self.calibration(verdict.unsafe)),
            raw=verdict.unsafe,
            categories=verdict.categories,
            dropped=verdict.dropped,
            seconds=seconds,
        )


def load_experts(
    config: ServeConfig,
    *,
    progress: Progress | None = None,
    seen: Callable[[str, int], None] | None = None,
    calibrated: bool = True,
) -> list[Expert]:
    """Load every guard of the configuration, in its order; with `calibrated`, its calibration too.

    Raises:
        GuardkeelError: one cannot be loaded, two have one name, or a calibration does not fit; naming the expert.
    """
    loaded = [_loaded(config, i, progress) for i in range(len(config.experts))]
    guards = [guard for guard, _ in loaded]
    names = [e.name or g.name for e, g in zip(config.experts, guards, strict=True)]
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise ConfigError(
            f"two experts are called {twice!r}", remedy="give each [[expert]] a name of its own"
        )
    prepare = _threads(config, guards)
    return [
        Expert(
            name,
            guard,
            said,
            digest=digest,
            calibration=read_calibration(config.path(said.calibration), name)
            if said.calibration and calibrated
            else None,
            prepare=prepare,
            seen=seen,
        )
        for name, (guard, digest), said in zip(names, loaded, config.experts, strict=True)
    ]


def centred(threshold: float) -> Calibration:
    """Without a calibration: the guard's own threshold is put at one half, by a shift of the log-odds."""
    if threshold == 0.5 or not 0 < threshold < 1:
        return Calibration()
    return Calibration("platt", intercept=-math.log(threshold / (1 - threshold)))


def read_calibration(path: Path, name: str) -> Calibration:
    """An expert's calibration from a file that `guardkeel serve calibrate` wrote.

    Raises:
        ConfigError: the file cannot be read, or holds none for it.
    """
    remedy = "make it with guardkeel serve calibrate, or leave the key out"
    try:
        table = json.loads(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})", remedy=remedy) from e
    except ValueError as e:
        raise ConfigError(f"{path}: not JSON", remedy=remedy) from e
    found = table.get(name) if isinstance(table, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no calibration of {name!r}", remedy=remedy)
    return Calibration.from_record(found)


def unquoted(reason: str) -> str:
    """A reason without what it quotes: a guard's output, or words of what was judged."""
    head = re.split(r"['\"]", reason, maxsplit=1)[0]
    return reason if head == reason else f"{head.rstrip(': ')} …"


def _loaded(config: ServeConfig, index: int, progress: Progress | None) -> tuple[Guard, str]:
    # torch; a service of servers alone is there before it is
    from guardkeel.guards.load import guard_digest, load_guard

    said = config.experts[index]
    reference = config.reference(said.guard)
    try:
        guard = load_guard(
            reference,
            policy=config.path(said.policy) if said.policy else None,
            family=said.family,
            threshold=said.threshold,
            max_tokens=said.max_tokens,
            offline=config.offline,
            progress=progress,
            dtype=said.dtype,
            device=said.device,
        )
        digest = guard_digest(reference, progress=progress, offline=config.offline)
    except GuardkeelError as e:
        who = said.name or said.guard
        raise type(e)(f"expert {index + 1} ({who}): {e.problem}", remedy=e.remedy) from e
    guard.keep()
    return guard, digest


def _threads(config: ServeConfig, guards: list[Guard]) -> Callable[[], None] | None:
    """Sets torch's threads in an expert's thread: all models together have as many as torch has for one.

    Those follow the cores that this process may use, and OMP_NUM_THREADS.
    """
    models = sum(hasattr(guard, "model") for guard in guards)
    if not models:
        return None
    import torch

    wanted = config.server.torch_threads or max(1, torch.get_num_threads() // models)

    def prepare() -> None:
        torch.set_num_threads(wanted)

    return prepare
