"""A guard behind a server, as one TOML file.

    url = "http://localhost:8000"
    api = "completions"                       # or "chat", "classify", "moderations"
    model = "meta-llama/Llama-Guard-3-1B"
    family = "llama-guard-3"
    tokenizer = "hub:meta-llama/Llama-Guard-3-1B"
    api_key_env = "GUARD_KEY"                 # the name of an environment variable, never the key

Such a file says which machine a conversation is sent to. It is opened only where a person names it: as a path, never
inside a hub: or pypi: package, and never because a checkpoint, an adapter or a card speaks of it.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guardkeel.errors import ConfigError, ResourceError, UnsafeFileError
from guardkeel.resources import parse, resolve

ApiName = Literal["chat", "completions", "classify", "moderations"]

_SECRET = re.compile(r"auth|cookie|token|secret|password|api[-_]?key|(^|[-_])key$|^sig$", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = {"model", "messages", "prompt", "input", "stream", "n", "logprobs", "top_logprobs"}


class RemoteConfig(BaseModel):
    """What the file may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        description="the server (http://host:8000), its API (…/v1) or the whole address of the endpoint"
    )
    api: ApiName = Field(description="chat, completions, classify or moderations")
    model: str = Field(min_length=1, description="what the server calls the model")
    family: str | None = Field(default=None, description="guard family; for chat and completions")
    name: str | None = Field(
        default=None, min_length=1, description="what tables call the guard; default: the file's name"
    )
    threshold: float = Field(default=0.5, ge=0, le=1, description="P(unsafe) from which a verdict is unsafe")
    policy: str | None = Field(default=None, description="guard policy (TOML), beside this file")

    api_key_env: str | None = Field(
        default=None, min_length=1, description="environment variable that holds the key"
    )
    api_key_header: str = Field(
        default="Authorization", description="where the key goes; Authorization has Bearer"
    )
    headers: dict[str, str] = Field(default_factory=dict, description="further headers; none that are secret")

    concurrency: int = Field(default=8, ge=1, le=1024, description="requests under way at once")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="most requests in a minute, retries too"
    )
    timeout: float = Field(default=60.0, gt=0, description="seconds for one request, from first byte to last")
    retries: int = Field(
        default=5, ge=0, le=20, description="further tries on 429, 5xx and broken connections"
    )
    backoff: float = Field(default=0.5, gt=0, description="seconds before the first retry; doubled each time")
    inputs: int = Field(default=1, ge=1, le=1024, description="items in one request; chat takes one")

    tokenizer: str | None = Field(
        default=None, description="folder or reference; prompts are then sent as token ids"
    )
    max_tokens: int | None = Field(
        default=None, ge=64, description="longest input in tokens; needs tokenizer"
    )
    max_new_tokens: int | None = Field(default=None, ge=1, description="longest answer in tokens")
    top_logprobs: int = Field(
        default=20, ge=0, description="likeliest tokens to ask for; 0: read the text alone"
    )

    exact: bool = Field(
        default=False,
        description="completions: ask for the verdicts' own tokens, likely or not (vLLM's logprob_token_ids)",
    )

    labels: tuple[str, ...] = Field(default=(), description="classify: the model's labels, in order")
    unsafe_labels: tuple[str, ...] = Field(default=(), description="classify: those that mean unsafe")
    multi_label: bool = Field(default=False, description="classify: a sigmoid for each label")
    score: Literal["max", "flagged"] = Field(
        default="max", description="moderations: the highest category score, or flagged as 0 or 1"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="further keys of every request's body")

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http://host… or https://host…")
        secret = next(
            (k for k, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(k)), None
        )
        if parts.username or parts.password or secret:
            raise ValueError(
                "must hold no user, password or key; put the key in a variable and name it in api_key_env"
            )
        return url.rstrip("/") if not parts.query else url

    @field_validator("headers")
    @classmethod
    def _public(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} is secret; put it in a variable, and name that in api_key_env and api_key_header"
                )
            if not _HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
                raise ValueError(f"{name} is not a header's name and printable ASCII value")
        return headers

    @field_validator("api_key_header")
    @classmethod
    def _token(cls, name: str) -> str:
        if not _HEADER.fullmatch(name):
            raise ValueError("must be a header's name")
        return name

    @field_validator("extra")
    @classmethod
    def _free(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = next((k for k in extra if k in _OURS), None)
        if taken:
            raise ValueError(f"{taken} is written by guardkeel")
        secret = next(
            (k for k in extra if re.search(r"api_?key|secret|password|authorization", k, re.IGNORECASE)), None
        )
        if secret:
            raise ValueError(f"{secret} looks secret; put it in a variable and name that in api_key_env")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("has a date, nan or inf, which JSON has not") from None
        return extra

    @model_validator(mode="after")
    def _fits(self) -> Self:
        generative = self.api in ("chat", "completions")
        if generative and not self.family:
            raise ValueError(f"family is missing: api {self.api!r} needs one")
        if not generative and (self.family or self.policy):
            raise ValueError(f"family and policy are of generative guards, not of api {self.api!r}")
        if self.api == "classify" and not self.labels:
            raise ValueError("labels is missing: the model's labels in the order of its config's id2label")
        if self.api != "classify" and (self.labels or self.unsafe_labels or self.multi_label):
            raise ValueError("labels, unsafe_labels and multi_label are of api 'classify'")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has one twice")
        if self.tokenizer and self.api not in ("completions", "classify"):
            raise ValueError(f"tokenizer is of no use to api {self.api!r}: the server tokenises")
        if self.max_tokens and not self.tokenizer:
            raise ValueError("max_tokens needs tokenizer: nothing else can count them")
        if self.exact and not (self.api == "completions" and self.tokenizer):
            raise ValueError("exact is of api 'completions' with a tokenizer: it names tokens by their ids")
        if self.api == "chat" and self.inputs != 1:
            raise ValueError("inputs must be 1: a chat request has one conversation")
        return self

    @property
    def endpoint(self) -> str:
        """The whole address that is asked."""
        ending = {
            "chat": "/chat/completions",
            "completions": "/completions",
            "classify": "/classify",
            "moderations": "/moderations",
        }[self.api]
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith(ending) or (self.api == "completions" and path.endswith("/chat/completions")):
            # vLLM has /classify beside /v1 and not in it.
            path = (path or ("" if self.api == "classify" else "/v1")) + ending
        return parts._replace(path=path, fragment="").geturl()


Remote = TypeVar("Remote", bound=RemoteConfig)


def is_server(reference: str) -> bool:
    """Whether a reference is the TOML file of a server.

    Raises:
        UnsafeFileError: it is one inside something downloaded.
    """
    if not re.search(r"\.toml(#sha256=.*)?$", reference.strip(), re.IGNORECASE):
        return False
    parsed = parse(reference)
    if parsed.kind != "path" and not parsed.guessed:
        raise UnsafeFileError(
            f"{reference}: a server file that was downloaded could send your conversations anywhere",
            remedy="read it, save it as a file of your own and give its path",
        )
    return True


def server_file(reference: str) -> Path:
    """The local file; raises ResourceError where there is none, PinError where it is not the pinned one."""
    parsed = parse(reference)
    if parsed.kind != "path":  # "guards/llama.toml" that does not exist looks like a repository
        raise ResourceError(f"{reference}: no such file", remedy="check the path of the server's TOML file")
    path = resolve(parsed)
    if not path.is_file():
        raise ResourceError(f"{path}: not a file", remedy="give the server's TOML file")
    return path


def read_remote(path: str | Path) -> RemoteConfig:
    """Read the file; see read_server."""
    return read_server(path, RemoteConfig)


def read_server(path: str | Path, form: type[Remote]) -> Remote:
    """Read a server's file of some form.

    Raises ConfigError naming file, key and remedy. Values are not shown: one may be a secret.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8", remedy="save it as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not TOML ({e})", remedy="check the file at that place") from None
    try:
        return form.model_validate(table)
    except ValidationError as e:
        first = e.errors(include_input=False, include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{path}: unknown key {key!r}", remedy=f"keys are {', '.join(form.model_fields)}"
            ) from None
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{path}: {key + ': ' if key else ''}{said}", remedy="see docs/guards.md, Guards behind a server"
        ) from None
