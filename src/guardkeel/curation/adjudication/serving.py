"""Running the page: from a pipeline's folder to a server that listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from guardkeel.curation.adjudication.access import Annotators, secret_of
from guardkeel.curation.adjudication.app import make_app
from guardkeel.curation.adjudication.desk import Desk
from guardkeel.curation.adjudication.guidelines import categories
from guardkeel.curation.adjudication.store import Store
from guardkeel.curation.config import CurateConfig, read_config
from guardkeel.curation.pipeline import CONFIG
from guardkeel.curation.steps.adjudicate import decisions_file, strictness
from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.guard_policy import read_policy


def config_of(folder: Path) -> CurateConfig:
    """The pipeline of a folder; raises ConfigError where there is none, or none with [adjudicate]."""
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no pipeline's folder", remedy="give the --out of a guardkeel curate pipeline"
        )
    config = read_config(path, {})
    if config.adjudicate is None:
        raise ConfigError(
            f"{path}: has no [adjudicate]", remedy="add the table to the pipeline, and run guardkeel curate"
        )
    return config


def open_store(folder: Path, config: CurateConfig) -> Store:
    """The decisions of a pipeline's folder; raises ConfigError where there are none yet."""
    return Store(decisions_file(config, folder))


def open_desk(
    folder: Path,
    config: CurateConfig,
    names: Sequence[str],
    *,
    policy: Path | None = None,
    show_votes: bool = False,
) -> Desk:
    """The desk of a pipeline's folder.

    Args:
        folder: the pipeline's.
        config: its configuration.
        names: annotators.
        policy: a guard policy whose categories are picked from.
        show_votes: before a decision.
    """
    assert config.adjudicate is not None
    store = open_store(folder, config)
    table = config.adjudicate
    if show_votes:
        table = table.model_copy(update={"show_votes": True})
    secret = secret_of(store.path.with_name(f"{store.path.name}.key"))
    picked = categories(read_policy(policy) if policy else None)
    return Desk(store, table, strictness(config), Annotators(names, secret), picked)


def serve(desk: Desk, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve until a signal ends it.

    Args:
        desk: what is served.
        host: address to listen on.
        port: 0 takes a free one.
        ready: called with the port once it listens.

    Raises:
        RunError: the port is taken.
    """
    settings = uvicorn.Config(
        make_app(desk),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        ws="none",
        lifespan="off",
    )
    server = _Server(settings, ready)
    try:
        with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
            runner.run(server.serve())
    except KeyboardInterrupt:
        pass
    except SystemExit as e:
        raise RunError(f"{host}:{port} cannot be listened on", remedy="choose another --port") from e
    finally:
        desk.store.close()


class _Server(uvicorn.Server):
    """Tells its port once it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """See uvicorn."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._ready(self.servers[0].sockets[0].getsockname()[1])
