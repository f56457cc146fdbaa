"""Running the service: uvicorn, signals, and a shutdown that drains.

On SIGTERM or SIGINT the service says at `/readyz` that it is not ready, waits `drain_seconds` for load balancers to
notice, takes no further connections, lets requests under way end, and writes what waits.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import uvicorn

from guardkeel.errors import RunError
from guardkeel.moderation.app import make_app, running
from guardkeel.moderation.config import ServeConfig
from guardkeel.moderation.experts import Expert, load_experts
from guardkeel.moderation.logs import set_up
from guardkeel.moderation.metrics import Metrics
from guardkeel.moderation.proxy import Upstream
from guardkeel.moderation.service import Service
from guardkeel.resources import Progress


def load(config: ServeConfig, progress: Progress | None = None) -> tuple[list[Expert], Metrics]:
    """The experts, and the metrics that they report to."""
    metrics = Metrics()
    return load_experts(config, progress=progress, seen=metrics.batch), metrics


def serve(config: ServeConfig, experts: list[Expert], metrics: Metrics) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigError, StoreDownError: something of the configuration cannot be used.
        RunError: the port is taken.
    """
    set_up(config.logs.level, config.logs.format, config.logs.texts)
    service = Service(config, experts, metrics)
    upstream = Upstream(config.proxy) if config.proxy.upstream else None
    settings = uvicorn.Config(
        make_app(service, upstream),
        host=config.server.host,
        port=config.server.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=config.server.shutdown_seconds,
        http="h11",  # which bounds the headers; httptools, where it is installed, does not
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
        lifespan="off",  # the service is started here, so that what stops it is one message
    )
    server = _Server(settings, service)

    async def run() -> None:
        async with running(service, upstream):
            await server.serve()

    try:
        with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
            runner.run(run())
    except SystemExit as e:
        raise RunError(
            f"{config.server.host}:{config.server.port} cannot be listened on",
            remedy="choose another server.port, or stop what uses it",
        ) from e


class _Server(uvicorn.Server):
    """Tells the service of a signal before connections are closed."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal drains, a second one waits no longer, and after a second interrupt nothing is waited for.

        The signal is not raised again once the service has ended well: that is exit code 0.
        """
        wait = 0.0 if self._service.draining else self._service.config.server.drain_seconds
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self._service.draining = True
        if wait:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, wait, self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        self.should_exit = True
