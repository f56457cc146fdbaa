"""What Prometheus reads at `/metrics`. Labels are names from the configuration and fixed words, never texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from guardkeel.moderation.experts import Expert, Opinion
from guardkeel.moderation.served import Served

if TYPE_CHECKING:
    from guardkeel.moderation.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BREAKER = {"closed": 0, "half-open": 1, "open": 2}


class Metrics:
    """One service's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("guardkeel_requests", "Requests", ["route", "status"], **made)
        self._request_seconds = Histogram(
            "guardkeel_request_seconds", "Seconds of a request", ["route"], buckets=_SECONDS, **made
        )
        self._verdicts = Counter("guardkeel_verdicts", "Verdicts served", ["side", "outcome"], **made)
        self._calls = Counter(
            "guardkeel_expert_calls", "Questions to an expert", ["expert", "outcome"], **made
        )
        self._call_seconds = Histogram(
            "guardkeel_expert_seconds", "Seconds to an expert's answer", ["expert"], buckets=_SECONDS, **made
        )
        self._batch = Histogram(
            "guardkeel_batch_items",
            "Items in a batch",
            ["expert"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **made,
        )
        self._feedback = Counter("guardkeel_feedback", "Feedback", ["source", "status"], **made)
        self._proxied = Counter("guardkeel_proxy", "Proxied chats", ["part", "outcome"], **made)
        self._weight = Gauge("guardkeel_expert_weight", "Weight in the global table", ["expert"], **made)
        self._breaker = Gauge("guardkeel_expert_breaker", "0 closed, 1 half-open, 2 open", ["expert"], **made)
        self._waiting = Gauge("guardkeel_expert_waiting", "Questions that wait", ["expert"], **made)
        self._pending = Gauge("guardkeel_pending_items", "Items under way", **made)
        self._version = Gauge("guardkeel_weights_version", "Feedback that the weights know", **made)
        self._skipped = Gauge("guardkeel_feedback_skipped", "Feedback that cannot be learnt from", **made)
        self._unwritten = Gauge("guardkeel_log_waiting", "Rows that wait for the store", **made)
        self._lost = Gauge("guardkeel_log_lost", "Verdicts that are in no log", **made)
        self._store = Gauge("guardkeel_store_up", "Whether the store takes what is written", **made)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def opinion(self, expert: Expert, opinion: Opinion) -> None:
        """An expert was asked, or the cascade saved the call."""
        self._calls.labels(expert.name, opinion.outcome).inc()
        if opinion.outcome not in ("resting", "not asked"):
            self._call_seconds.labels(expert.name).observe(opinion.seconds)

    def batch(self, expert: str, items: int) -> None:
        """A batch was begun."""
        self._batch.labels(expert).observe(items)

    def verdict(self, served: Served) -> None:
        """A verdict was served."""
        outcome = "unscored" if served.unscored else "flagged" if served.flagged else "allowed"
        self._verdicts.labels(served.item.side, outcome).inc()

    def feedback(self, source: str, status: str) -> None:
        """Feedback was taken, or not."""
        self._feedback.labels(source, status).inc()

    def proxied(self, part: str, outcome: str) -> None:
        """Input or output of a chat was checked."""
        self._proxied.labels(part, outcome).inc()

    def text(self, service: Service) -> bytes:
        """All of it, as it is now."""
        for expert, weight in service.learner.weights().items():
            self._weight.labels(expert).set(weight)
        for one in service.experts:
            self._breaker.labels(one.name).set(_BREAKER[one.breaker.state])
            self._waiting.labels(one.name).set(one.runner.waiting)
        self._pending.set(service.pending.now)
        self._version.set(service.learner.sequence)
        self._skipped.set(service.learner.skipped)
        self._unwritten.set(service.writer.waiting)
        self._lost.set(service.writer.lost)
        self._store.set(service.writer.up)
        return generate_latest(self.registry)
