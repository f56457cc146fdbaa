"""All that the page shows of the service, read together and at most every SECONDS, however many look.

Where reading takes long it is done less often, so that it never takes more than a tenth of a core.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from guardkeel.moderation.page import log
from guardkeel.moderation.page.history import History, Past
from guardkeel.moderation.page.recent import Flip, Recent, flip, summary
from guardkeel.moderation.served import InForce
from guardkeel.moderation.service import Service
from guardkeel.moderation.store import Row

SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class State:
    """This process, of perhaps several that share the log."""

    store: bool
    lost: int
    pending: int
    breakers: dict[str, str]
    waiting: dict[str, int]


@dataclass(frozen=True, slots=True)
class View:
    """What is shown.

    Args:
        at: when it was read, in seconds since 1970.
        served: items, ever.
        audits: drawn and without feedback.
        state: of this process.
        recent: numbers of the last verdicts.
        past: the feedback log.
        policy: in force.
        policies: the latest changes of it.
        flip: what the other strictness would change.
    """

    at: float
    served: int
    audits: int
    state: State
    recent: Recent
    past: Past
    policy: InForce
    policies: tuple[Row, ...]
    flip: Flip


class Board:
    """See above. `view` blocks; it is called from threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._history = History(service.learner.experts, service.config.learner)
        self._lock = threading.Lock()
        self._view: View | None = None
        self._until = 0.0

    def view(self, fresh: bool = False) -> View:
        """What there is to see; not older than SECONDS, or with `fresh` read now. Raises StoreDownError."""
        with self._lock:
            if self._view is None or fresh or time.monotonic() >= self._until:
                begun = time.monotonic()
                self._view = self._read()
                self._until = time.monotonic() + max(SECONDS, 10 * (time.monotonic() - begun))
            return self._view

    def _read(self) -> View:
        service = self._service
        store, in_force = service.store, service.in_force
        served = store.counts()["served"]
        rows = log.recent(store)
        return View(
            at=time.time(),
            served=served,
            audits=log.waiting(store),
            state=State(
                store=service.writer.up,
                lost=service.writer.lost,
                pending=service.pending.now,
                breakers={e.name: e.breaker.state for e in service.experts},
                waiting={e.name: e.runner.waiting for e in service.experts},
            ),
            recent=summary(rows, service.experts),
            past=self._history.read(store, served),
            policy=in_force,
            policies=tuple(store.policy_history(5)),
            flip=flip(in_force.policy, rows, service.learner.costs.threshold),
        )
