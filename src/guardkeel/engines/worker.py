"""What runs inside a Ray worker: a guard is opened once, then judges part after part.

Parts come as pickled bytes, one a block; each finished batch goes back as a block of its own, so that what was judged
is on the driver's disk while the rest of the part is still under way. Errors that guardkeel raises on purpose come back
as rows, word for word, and are raised on the driver as they would have been raised there.
"""

from __future__ import annotations

import pickle
import socket
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.engines.opening import Opening
from guardkeel.engines.parts import depth_of, judge_here
from guardkeel.errors import ConfigError, GuardkeelError
from guardkeel.guards.base import Guard


@dataclass(frozen=True, slots=True)
class Described:
    """What a driver needs to know of a guard that it does not load; `depth` as in parts.depth_of."""

    name: str
    family: str
    threshold: float
    facts: dict[str, Any]
    depth: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """An error on its way to the driver: the name of its class in errors.py, "" for any other."""

    kind: str
    problem: str
    remedy: str


class Holder:
    """A guard in this process; `threads` is how many processors torch may use, 0 for as many as it likes."""

    def __init__(self, opening: Opening, threads: int) -> None:
        self._opening, self._threads = opening, threads
        self._roles: Any = None
        self._guard: Guard | None = None

    def guard(self) -> Guard:
        """The guard, opened when first asked for and kept."""
        if self._guard is None:
            for path in self._opening.paths():
                if not Path(path).exists():
                    raise ConfigError(
                        f"{path}: not there on worker {socket.gethostname()}",
                        remedy="put the guard where every worker sees it under the same path (shared storage), "
                        "or name it as hub:org/name@revision",
                    )
            limit_threads(self._threads)
            # Kept: an adapter is taken off again when the generator goes.
            self._roles = self._opening.roles()
            self._guard = next(guard for role, guard in self._roles if role == self._opening.role)
        return self._guard


class Actor(ABC):
    """One actor of a pool. Called with a block of one pickled part; every answer is a block of its own."""

    def __call__(self, block: Any) -> Iterator[Any]:
        """See the module; a Failed ends the part."""
        import pyarrow as pa

        part = pickle.loads(block["part"][0].as_py())  # noqa: S301 - our own
        for done in told(lambda: self.work(part)):
            yield pa.table({"done": pa.array([pickle.dumps(done)], pa.large_binary())})

    @abstractmethod
    def work(self, part: Any) -> Iterator[Any]:
        """The answers to one part, as they come."""


class Worker(Actor):
    """Judges: a Part in, a Done for each batch out."""

    def __init__(self, opening: Opening, threads: int) -> None:
        self._holder = Holder(opening, threads)

    def work(self, part: Any) -> Iterator[Any]:
        """See Actor."""
        yield from judge_here(self._holder.guard(), part)


def described(opening: Opening, threads: int) -> Described | Failed:
    """Open a guard, and say who it is."""

    def ask() -> Iterator[Described]:
        holder = Holder(opening, threads)
        guard = holder.guard()  # valid as long as its holder
        yield Described(guard.name, guard.family, guard.threshold, guard.facts, depth_of(guard))

    said: Described | Failed = next(told(ask))
    return said


def told(work: Any) -> Iterator[Any]:
    """What an iterator gives, and a Failed at its end where it raised."""
    try:
        yield from work()
    except GuardkeelError as e:
        yield Failed(type(e).__name__, e.problem, e.remedy)
    except Exception as e:
        yield Failed("", f"{type(e).__name__}: {e}", "".join(traceback.format_exception(e)[-3:]))


def limit_threads(threads: int) -> None:
    """Let torch use so many processors in this process: workers beside each other would else want them all."""
    if threads:
        import torch

        torch.set_num_threads(threads)
