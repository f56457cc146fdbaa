"""`guardkeel serve --config moderation.toml`: what is served, as one TOML file. Unknown keys are refused.

    [[expert]]
    guard = "keel-135m"                # anything that guardkeel can load: see docs/guards.md

    [[expert]]
    guard = "rules"

    [policy]
    strictness = "strict"

Paths are looked for beside the file first, then from the working directory.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardkeel.configuration import read_configuration
from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation import LossName
from guardkeel.moderation.policies import Policy

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpertConfig(Table):
    """One guard of the ensemble."""

    guard: str = Field(
        min_length=1, description="reference of a guard: a folder, hub:…, guard.toml, any:NAME, rules"
    )
    name: str | None = Field(
        default=None, pattern=NAME, description="what logs and weights call it; default: the guard's own name"
    )
    cost: float = Field(default=1.0, ge=0, description="cost of asking it, in any one unit; for the cascade")
    timeout: float = Field(
        default=5.0, gt=0, le=600, description="seconds from question to answer, waiting included"
    )
    retries: int = Field(
        default=1,
        ge=0,
        le=10,
        description="further tries where a guard in this process raises; a server's are in its own file",
    )
    failures: int = Field(default=5, ge=1, description="failures in a row after which it is left alone")
    rest: float = Field(
        default=5.0,
        gt=0,
        description="seconds that it is then left alone; doubled while its probes fail, to a minute",
    )
    calibration: str | None = Field(
        default=None,
        description="file that guardkeel serve calibrate wrote; default: its threshold becomes ½",
    )
    family: str | None = Field(default=None, description="guard family, where it is not known")
    threshold: float | None = Field(
        default=None, gt=0, lt=1, description="P(unsafe) from which the guard alone flags"
    )
    policy: str | None = Field(default=None, description="guard policy (TOML) that it is asked under")
    max_tokens: int | None = Field(default=None, ge=64, description="longest input in tokens")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    batch: int = Field(default=32, ge=1, le=1024, description="most items that it is asked about at once")
    batch_tokens: int = Field(
        default=16384, ge=64, description="most tokens of them, by a rough count of four bytes each"
    )
    batch_wait_ms: float = Field(
        default=2.0, ge=0, le=1000, description="most milliseconds that a batch waits for company under load"
    )


class CostsConfig(Table):
    """What the two errors cost; only their ratio matters."""

    miss: float = Field(default=1.0, gt=0, description="a missed harm")
    alarm: float = Field(default=1.0, gt=0, description="a false alarm")


class AuditConfig(Table):
    """With which probability a served item is marked for review."""

    floor: float = Field(default=0.02, gt=0, le=1, description="the least probability of any item")
    flagged: float = Field(default=0.05, ge=0, le=1, description="of flagged and unscored items")
    allowed: float = Field(default=0.02, ge=0, le=1, description="of allowed items")
    focus: float = Field(default=0.2, ge=0, le=1, description="more where the experts disagree")


class CascadeConfig(Table):
    """Cheap experts first, the others where they could matter."""

    enabled: bool = Field(default=False, description="ask in the order of cost and stop early")
    reach: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="how far the others are taken to lie from those who answered; 1: only settled items stop early",
    )
    disagreement: float = Field(default=0.5, ge=0, description="the most at which they are believed")


ContextPart = Literal["side", "language", "category"]


class LearnerConfig(Table):
    """How weights follow from feedback."""

    rule: str = Field(default="fixed-share", description="how weights follow from losses; see learner.md")
    settings: dict[str, float] = Field(default_factory=dict, description="of the rule")
    loss: LossName = Field(default="brier", description="what experts are charged")
    contexts: tuple[ContextPart, ...] = Field(
        default=("side", "language"), description="tables of weights, from coarse to fine"
    )
    prior_strength: float = Field(
        default=100.0, ge=0, description="rounds after which a table is believed half"
    )
    unsolicited: float = Field(
        default=0.0, ge=0, le=1, description="weight of appeals and reports beside an audit"
    )
    costs: CostsConfig = Field(default=CostsConfig(), description="what the two errors cost")
    audit: AuditConfig = Field(default=AuditConfig(), description="which items are marked for review")
    cascade: CascadeConfig = Field(default=CascadeConfig(), description="cheap experts first")

    @field_validator("contexts")
    @classmethod
    def _once(cls, parts: tuple[ContextPart, ...]) -> tuple[ContextPart, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError("has a part twice")
        if "category" in parts[:-1]:
            raise ValueError("category must be the last part: the experts say it")
        return parts


class ServerConfig(Table):
    """Where it listens, and what it takes."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port; 0: any that is free")
    keys: str | None = Field(default=None, description="file of API keys; see guardkeel serve key new")
    no_keys: bool = Field(
        default=False, description="serve other machines without keys; whoever reaches it is admin"
    )
    open_metrics: bool = Field(default=True, description="/metrics needs no key")
    max_body_bytes: int = Field(default=2**20, ge=1024, description="largest request")
    max_items: int = Field(default=256, ge=1, description="most items in one request")
    max_chars: int = Field(default=200_000, ge=100, description="longest text of an item")
    window_chars: int = Field(
        default=4000, ge=200, description="longer texts are judged in windows; the worst counts"
    )
    max_pending: int = Field(default=512, ge=1, description="most items under way; more are answered 429")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="of one key, where the key names no rate of its own"
    )
    body_seconds: float = Field(default=10.0, gt=0, description="within which a request must have arrived")
    drain_seconds: float = Field(
        default=0.0, ge=0, description="of not being ready before the port is closed, for load balancers"
    )
    shutdown_seconds: int = Field(default=20, ge=1, description="for requests under way when it is stopped")
    torch_threads: int | None = Field(
        default=None, ge=1, description="of each model; default: cores over models"
    )


class ProxyConfig(Table):
    """The guarded `/v1/chat/completions`."""

    upstream: str | None = Field(
        default=None, description="OpenAI-compatible API (…/v1); without it there is no proxy"
    )
    api_key_env: str | None = Field(
        default=None, min_length=1, description="environment variable that holds the upstream's key"
    )
    timeout: float = Field(default=120.0, gt=0, description="seconds of silence of the upstream")
    check_input: bool = Field(default=True, description="judge messages before they are sent")
    check_output: bool = Field(default=True, description="judge replies before they are passed on")
    chunk_chars: int = Field(default=200, ge=1, description="new characters of a stream between two checks")
    max_reply_bytes: int = Field(default=4 * 2**20, ge=1024, description="longest reply that is read")


class StoreConfig(Table):
    """Where verdicts and feedback are kept."""

    url: str = Field(
        default="sqlite:///moderation.db", description="SQLAlchemy URL; sqlite or postgresql+psycopg"
    )
    url_env: str | None = Field(
        default=None, min_length=1, description="environment variable that holds the URL instead"
    )
    texts: bool = Field(default=False, description="keep texts; otherwise only their sha256")
    texts_days: float | None = Field(default=None, gt=0, description="days after which texts are deleted")
    verdicts_days: float | None = Field(
        default=None, gt=0, description="days after which verdicts are deleted; feedback and weights stay"
    )
    verdicts: Literal["behind", "before"] = Field(
        default="behind", description="log a verdict behind its answer, or before it is given"
    )
    buffer: int = Field(default=10_000, ge=0, description="verdicts kept while the database is away")
    poll: float = Field(default=1.0, gt=0, description="seconds between looks at what other replicas logged")


class LogsConfig(Table):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="from which on")
    format: Literal["json", "plain"] = Field(default="json", description="of a line")
    texts: bool = Field(default=False, description="log messages of errors too, which may quote texts")


class ServeConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    experts: tuple[ExpertConfig, ...] = Field(alias="expert", min_length=1, description="the ensemble")
    learner: LearnerConfig = LearnerConfig()
    policy: Policy = Policy()
    server: ServerConfig = ServerConfig()
    proxy: ProxyConfig = ProxyConfig()
    store: StoreConfig = StoreConfig()
    logs: LogsConfig = LogsConfig()
    offline: bool | None = Field(default=None, description="never use the network to fetch guards")
    folder: Path = Field(default=Path(), exclude=True, description="where relative paths are looked for")

    def path(self, given: str) -> Path:
        """A path of the file: beside it, where that is there, else from the working directory."""
        beside = self.folder / given
        return beside if beside.exists() else Path(given)

    def reference(self, given: str) -> str:
        """A guard's reference, a path beside the file made one from here."""
        return str(self.folder / given) if (self.folder / given).exists() else given


def read_config(
    path: Path, given: Mapping[str, Any] | None = None, changes: Sequence[str] = ()
) -> ServeConfig:
    """Read the file, overridden by KEY=VALUE changes; raises ConfigError naming file, key and value."""
    given = {**(given or {}), "folder": path.parent.absolute()}
    config = read_configuration(ServeConfig, "serve", path, given, changes)
    _check(path, config)
    return config


def _check(path: Path, config: ServeConfig) -> None:
    """What no single key can tell. Values are not shown: an address may hold a password."""
    server, url = config.server, config.proxy.upstream
    if server.keys is None and not server.no_keys and not _loopback(server.host):
        raise ConfigError(
            f"{path}: server.host {server.host!r} is open to other machines and there are no keys",
            remedy="set server.keys (see guardkeel serve key new), or server.no_keys = true",
        )
    names = [e.name for e in config.experts if e.name]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two experts have one name", remedy="give each a name of its own")
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{path}: proxy.upstream is no address", remedy="it must be http://host… or https://host…"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"{path}: proxy.upstream must hold no user, password or key",
                remedy="put the key in a variable and name it in proxy.api_key_env",
            )


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def store_url(config: StoreConfig, folder: Path) -> str:
    """The URL, from the environment where the file says so; a relative SQLite file is beside the configuration.

    Raises:
        ConfigError: the variable is not set.
    """
    if config.url_env is None:
        url = config.url
    else:
        url = os.environ.get(config.url_env, "").strip()
        if not url:
            raise ConfigError(
                f"store.url_env: the variable {config.url_env} is not set",
                remedy=f"export {config.url_env}=… first",
            )
    head = "sqlite:///"
    name = url.removeprefix(head)
    relative = url.startswith(head) and name and not name.startswith(("/", ":memory:", "file:"))
    return f"{head}{folder / name}" if relative else url
