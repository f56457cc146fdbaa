"""One server, asked politely: bounded, paced and retried requests, and errors that say what to do.

What fails for one item is a `Failed`, which becomes an unscored verdict. What would fail for every item (a wrong key,
a wrong model, nobody at home) stops the run at once, so that a resumed one asks what is still missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from guardkeel.errors import ConfigError, RunError
from guardkeel.guards.remote.config import RemoteConfig
from guardkeel.guards.remote.pace import Pace, backoff, retry_after

LIMIT = 16 * 2**20
"""Most bytes of an answer that are read."""
PATIENCE = 600.0
"""Most seconds that a Retry-After is waited for."""
STREAK = 16
"""Failures in a row after which the run stops."""

_STOPS = {
    401: "the key is missing or wrong: check the variable that api_key_env names",
    402: "the account has no credit left",
    403: "the key may not use this model: check api_key_env and model",
    404: "check url and model: the server knows one of them not (vLLM lists its models at /v1/models)",
    405: "check url and api: the address takes no such request",
    407: "the proxy wants to know who you are: check HTTP_PROXY and HTTPS_PROXY",
}
_REFUSALS = (400, 413, 422)


class Failed(Exception):
    """One request failed. `refused`: the server would not take it as it is; `server`: it was not the item's fault."""

    def __init__(self, reason: str, *, refused: bool = False, server: bool = False, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.refused, self.server, self.detail = reason, refused, server, detail


class Client:
    """Asks one endpoint. Holds the key, which is in nothing that it raises, returns or shows."""

    def __init__(self, config: RemoteConfig, key: str = "") -> None:
        self.config, self.__key = config, key

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Connections that are kept open for many requests."""
        import httpx

        config, key = self.config, self.__key
        headers = {"accept": "application/json", "accept-encoding": "identity", **config.headers}
        if key:
            bearer = config.api_key_header.lower() == "authorization"
            headers[config.api_key_header] = f"Bearer {key}" if bearer else key
        async with httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,  # the key would go along
            timeout=httpx.Timeout(config.timeout, pool=None),
            limits=httpx.Limits(
                max_connections=config.concurrency, max_keepalive_connections=config.concurrency
            ),
        ) as http:
            yield Session(http, config, lambda text: text.replace(key, "…") if key else text)


class Session:
    """See Client. `failed` and `succeeded` are told how each request ended."""

    def __init__(self, http: Any, config: RemoteConfig, hide: Any) -> None:
        self._http, self._config, self._hide = http, config, hide
        self._pace = Pace(config.requests_per_minute)
        self._answered, self._streak = False, 0

    async def ask(self, body: dict[str, Any]) -> Any:
        """The JSON that the server answers.

        Raises:
            Failed: after all tries.
            ConfigError, RunError: no other request would fare better.
        """
        data = json.dumps(body, allow_nan=False).encode()
        for attempt in range(self._config.retries + 1):
            last = attempt == self._config.retries
            await self._pace.take()
            try:
                async with asyncio.timeout(self._config.timeout):
                    return await self._once(data)
            except TimeoutError:
                raise Failed(f"no answer within {self._config.timeout:g} s", server=True) from None
            except _Again as e:
                if last:
                    if e.unreachable and not self._answered:
                        raise RunError(
                            f"{self._where}: {e.reason}",
                            remedy="start the server, or check url in the guard's file",
                        ) from None
                    raise Failed(e.reason, server=True) from None
                if e.wait is None:
                    await asyncio.sleep(backoff(self._config.backoff, attempt))
                else:
                    self._pace.hold(e.wait)
        raise AssertionError("unreachable")

    def succeeded(self) -> None:
        """An answer could be read, whatever the verdict."""
        self._answered, self._streak = True, 0

    def failed(self, failure: Failed) -> None:
        """Raises RunError where it looks as if nothing would succeed any more."""
        self._streak += 1
        if self._streak >= STREAK and (failure.server or not self._answered):
            said = f" ({failure.detail})" if failure.detail else ""
            raise RunError(
                f"{self._where}: {self._streak} requests in a row failed: {failure.reason}{said}",
                remedy="see to the server, then repeat the command: it goes on where it stopped"
                if failure.server
                else "check url, api and extra in the guard's file against what the server says",
            )

    @property
    def _where(self) -> str:
        return str(self._config.endpoint)

    async def _once(self, data: bytes) -> Any:
        import httpx

        try:
            request = self._http.stream(
                "POST", self._config.endpoint, content=data, headers={"content-type": "application/json"}
            )
            async with request as response:
                content = await _bounded(response)
                return self._read(response, content)
        except httpx.TimeoutException as e:
            if isinstance(e, httpx.ConnectTimeout):
                raise _Again("cannot connect in time", unreachable=True) from None
            raise TimeoutError from None
        except httpx.ConnectError:
            raise _Again("cannot connect", unreachable=True) from None
        except httpx.TransportError as e:  # its message may quote what was sent
            raise _Again(f"the connection broke ({type(e).__name__})") from None
        except httpx.DecodingError:
            raise Failed("the answer is damaged") from None

    def _read(self, response: Any, content: bytes) -> Any:
        status = int(response.status_code)
        if status == 200:
            return _json(content)
        kind, detail = (_line(self._hide(text)) for text in _error(content))
        reason = f"HTTP {status}" + (f" ({kind[:60]})" if kind else "")
        if 300 <= status < 400:
            to = urlsplit(response.headers.get("location", "")).netloc or "another path"
            raise ConfigError(
                f"{self._where}: redirects to {to!r:.200}, which is not followed: the key would go along",
                remedy="if that is right, put the new address into url",
            )
        if status in _STOPS:
            raise ConfigError(
                f"{self._where}: {reason}{f': {detail}' if detail else ''}", remedy=_STOPS[status]
            )
        if status == 429 or status >= 500:
            wait = retry_after(response.headers.get("retry-after"))
            if wait is not None and wait > PATIENCE:
                raise RunError(
                    f"{self._where}: {reason}, asks to wait {wait:.0f} s",
                    remedy="repeat the command after that time: it goes on where it stopped",
                )
            raise _Again(reason, wait=wait)
        raise Failed(reason, refused=status in _REFUSALS, detail=detail)


class _Again(Exception):
    """A failure that may pass. `wait`: the seconds that the server asks for."""

    def __init__(self, reason: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.unreachable = reason, wait, unreachable


async def _bounded(response: Any) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > LIMIT:
            raise Failed(f"the answer is longer than {LIMIT >> 20} MB")
    return bytes(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # also what is not UTF-8
        raise Failed("the answer is not JSON") from None


def _error(content: bytes) -> tuple[str, str]:
    """The kind and the message of an error, in the shapes of OpenAI, vLLM and FastAPI; "" where there is none.

    The message may quote what was sent: it is for the one who runs the command, not for records.
    """
    try:
        found = _json(content)
    except Failed:
        return "", ""
    error = found.get("error", found) if isinstance(found, dict) else {}
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    kind = next((error[k] for k in ("type", "code") if isinstance(error.get(k), str)), "")
    message = next((error[k] for k in ("message", "detail") if isinstance(error.get(k), str)), "")
    return kind, message


def _line(text: str) -> str:
    """The beginning of a text, on one line. A key is hidden before: half of it would not be found."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:200]
