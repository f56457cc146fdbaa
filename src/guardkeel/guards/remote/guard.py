"""A guard behind a server, as a Guard: items in, numbered batches of verdicts out, many requests under way at once."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guardkeel.errors import ConfigError, OfflineError
from guardkeel.guards.base import Batch, Family, Guard, Judgement, Verdict
from guardkeel.guards.guard_policy import GuardPolicy, read_policy
from guardkeel.guards.judged import BLIND
from guardkeel.guards.offsets import NO_OFFSETS, Offsets, shifted
from guardkeel.guards.registry import family_named
from guardkeel.guards.remote.api import Api, Asked
from guardkeel.guards.remote.chat import Chat
from guardkeel.guards.remote.classify import Classify
from guardkeel.guards.remote.client import Client, Failed, Session
from guardkeel.guards.remote.completions import Completions
from guardkeel.guards.remote.config import RemoteConfig, read_remote, server_file
from guardkeel.guards.remote.moderations import Moderations
from guardkeel.records import file_digest, value_digest
from guardkeel.resources import Progress, is_offline, resolve

BATCH = 32
"""Items in one batch: what a killed run has to ask again."""

_POLITENESS = {
    "concurrency",
    "requests_per_minute",
    "timeout",
    "retries",
    "backoff",
    "inputs",
    "api_key_env",
    "headers",
}


class RemoteGuard(Guard):
    """A guard that a server runs. It shows no activations: `layers` gets none.

    What fails for one item, after all tries, is unscored with its reason: no answer in time, an HTTP error, an answer
    that is not JSON or not of this API, text outside the family's grammar, numbers that are none. What would fail for
    every item stops the run. `client` is whoever answers, by default the server at the configuration's address;
    `batch` is the number of items in one batch.
    """

    def __init__(
        self,
        config: RemoteConfig,
        api: Api,
        *,
        name: str,
        key: str = "",
        family: Family | None = None,
        facts: dict[str, Any] | None = None,
        client: Any = None,
        batch: int = BATCH,
        offsets: Offsets = NO_OFFSETS,
    ) -> None:
        self.name = name
        self.family = family.name if family else {"classify": "classifier"}.get(config.api, config.api)
        self.threshold = config.threshold
        self.config, self._api, self._client = config, api, client or Client(config, key)
        self._facts, self._batch, self._offsets = facts or {}, batch, offsets

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard: what is asked, and where."""
        return {"parameters": 0, "dtype": "", "device": ""} | self._facts

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard. Batch n has the n-th `batch` items; they come in order, however the answers did.

        Raises:
            ConfigError, RunError: the server can be asked nothing (more); what was answered has been yielded.
        """
        size = self._batch
        chunks = [list(range(start, min(start + size, len(items)))) for start in range(0, len(items), size)]
        todo = {n: chunk for n, chunk in enumerate(chunks) if n not in skip}
        with _Round(self, items, todo) as done:
            for batch in done:
                yield (
                    batch
                    if categories
                    else replace(batch, verdicts=[replace(v, categories=()) for v in batch.verdicts])
                )

    async def judge(self, session: Session, items: Sequence[Judgement]) -> list[Verdict]:
        """One verdict for each of a few items, in one request where that goes."""
        asked: dict[int, Asked] = {}
        verdicts: dict[int, Verdict] = {}
        for i, item in enumerate(items):
            if item.conversation.images:
                verdicts[i] = Verdict(None, unscored=BLIND)
                continue
            try:
                asked[i] = self._api.prepare(item)
            except ConfigError as e:
                verdicts[i] = Verdict(None, unscored=e.problem)
        if asked:
            found = await self._ask(session, list(asked.values()))
            for (i, one), verdict in zip(asked.items(), found, strict=True):
                chance = verdict.unsafe
                if chance is not None:
                    chance = shifted(chance, self._offsets.get(one.side, 0.0))
                named = verdict.categories if chance is not None and chance >= self.threshold else ()
                verdicts[i] = replace(verdict, unsafe=chance, dropped=one.dropped, categories=named)
        return [verdicts[i] for i in range(len(items))]

    async def _ask(self, session: Session, asked: list[Asked]) -> list[Verdict]:
        try:
            answer = await session.ask(self._api.body(asked))
            found = self._api.read(answer, asked)
        except Failed as e:
            if e.refused and len(asked) > 1:  # one of them is too long, or else refused: which one?
                return [v for one in asked for v in await self._ask(session, [one])]
            session.failed(e)
            return [Verdict(None, unscored=e.reason)] * len(asked)
        session.succeeded()
        return found


class _Round:
    """One pass over batches, in a thread with an event loop of its own, so that it works inside another's as well."""

    def __init__(self, guard: RemoteGuard, items: Sequence[Judgement], todo: dict[int, list[int]]) -> None:
        self._guard, self._items, self._todo = guard, items, todo
        self._done: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._main = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._work, name=f"guardkeel {guard.name}", daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self._thread.start()
        return self._in_order()

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join()

    def _in_order(self) -> Iterator[Batch]:
        waiting: dict[int, Batch] = {}
        for number in self._todo:
            while number not in waiting:
                got = self._done.get()
                if isinstance(got, BaseException):
                    raise got
                waiting[got.number] = got
            yield waiting.pop(number)

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except BaseException as e:
            self._done.put(e)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _run(self) -> None:
        config = self._guard.config
        found: dict[int, Verdict] = {}
        requests = (
            (number, chunk[at : at + config.inputs])
            for number, chunk in self._todo.items()
            for at in range(0, len(chunk), config.inputs)
        )

        async def work(session: Session) -> None:
            for number, indices in requests:
                verdicts = await self._guard.judge(session, [self._items[i] for i in indices])
                found.update(zip(indices, verdicts, strict=True))
                chunk = self._todo[number]
                if all(i in found for i in chunk):
                    self._done.put(Batch(number, chunk, [found.pop(i) for i in chunk]))

        async with self._guard._client.session() as session:
            workers = [asyncio.create_task(work(session)) for _ in range(config.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


def load_remote(
    reference: str | Path,
    *,
    family: str | None = None,
    threshold: float | None = None,
    max_tokens: int | None = None,
    policy: GuardPolicy | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> RemoteGuard:
    """The guard that a server's TOML file describes. The server is asked nothing yet.

    Args:
        reference: the path of the file.
        family, threshold, max_tokens, policy: over what the file says; `max_tokens` where it names a tokenizer.
        offline: the network is off: only a server on this machine can be asked.
        progress: called with (what, done, total) where a tokenizer is fetched.

    Raises:
        ConfigError, ResourceError, OfflineError: naming file, key and remedy.
    """
    path = server_file(str(reference))
    config = _merged(path, read_remote(path), family, threshold, max_tokens)
    check_reachable(path, config, offline)
    policy = policy or _policy(path, config)
    grammar = family_named(config.family) if config.family else None
    if grammar is not None and policy is not None:
        grammar = grammar.under(policy)
    tokenizer = _tokenizer(config, offline, progress) if config.tokenizer else None
    facts = _facts(config, policy)
    if config.tokenizer:
        facts["tokenizer"] = tokenizer[1] if tokenizer else ""
    return RemoteGuard(
        config,
        _api(config, grammar, tokenizer[0] if tokenizer else None),
        name=config.name or path.stem,
        key=key_of(path, config),
        family=grammar,
        facts=facts,
    )


def stated(reference: str | Path) -> str:
    """sha256 of what the file says that verdicts depend on: what stands for the digest of weights that are not here.

    Raises ConfigError as load_remote does, without fetching anything.
    """
    path = server_file(str(reference))
    config = read_remote(path)
    key_of(path, config)
    if config.family:
        family_named(config.family)
    return value_digest(_facts(config, _policy(path, config)) | {"threshold": config.threshold})


def _merged(
    path: Path, config: RemoteConfig, family: str | None, threshold: float | None, max_tokens: int | None
) -> RemoteConfig:
    generative = config.api in ("chat", "completions")
    if family is not None and not generative and family != "classifier":
        raise ConfigError(f"{path}: api {config.api!r} has no family {family!r}", remedy="leave --family out")
    changes = {
        "family": family if generative else None,
        "threshold": threshold,
        "max_tokens": max_tokens if config.tokenizer else None,
    }
    return config.model_copy(update={k: v for k, v in changes.items() if v is not None})


def _api(config: RemoteConfig, family: Family | None, tokenizer: Any) -> Api:
    if config.api == "classify":
        return Classify(config, tokenizer)
    if config.api == "moderations":
        return Moderations(config)
    assert family is not None
    if config.api == "chat":
        return Chat(config, family)
    return Completions(config, family, tokenizer)


def _facts(config: RemoteConfig, policy: GuardPolicy | None) -> dict[str, Any]:
    """What verdicts depend on. Of headers only the names: a value might be secret after all."""
    said = config.model_dump(mode="json", exclude=_POLITENESS | {"family", "threshold", "name", "policy"})
    return said | {
        "headers": sorted(config.headers),
        "policy": None if policy is None else policy.model_dump(mode="json"),
    }


def _policy(path: Path, config: RemoteConfig) -> GuardPolicy | None:
    return read_policy(path.parent / config.policy) if config.policy else None


def _tokenizer(config: RemoteConfig, offline: bool | None, progress: Progress | None) -> tuple[Any, str]:
    """The tokenizer, and the digest of its files."""
    from guardkeel.models.loading import load_tokenizer, local_checkpoint

    assert config.tokenizer is not None
    folder = local_checkpoint(resolve(config.tokenizer, progress=progress, offline=offline), progress)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".model", ".jinja", ".txt"))
    return load_tokenizer(folder), value_digest({p.name: file_digest(p) for p in files})


def check_reachable(path: Path, config: RemoteConfig, offline: bool | None) -> None:
    """OfflineError where the network is off and the server is not on this machine."""
    if is_offline(offline) and not _here(config.url):
        raise OfflineError(
            f"{path}: the server at {urlsplit(config.url).netloc} is not on this machine, and the network is off",
            remedy="unset GUARDKEEL_OFFLINE and HF_HUB_OFFLINE, leave --offline out, or ask a server on this machine",
        )


def key_of(path: Path, config: RemoteConfig) -> str:
    """The key in the variable that the file names; ConfigError where there is none."""
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{path}: the variable {config.api_key_env} is not set",
            remedy=f"export {config.api_key_env}=… first",
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{path}: the variable {config.api_key_env} holds no key: it has characters that no header may have",
            remedy="set it to the key alone",
        )
    return key


def _here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
