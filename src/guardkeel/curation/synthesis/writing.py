"""A chat model behind a server that writes texts. What it wrote is kept, in the file of a jury's votes if need be, as
soon as it arrived: equal requests are made once, and after a kill only what was under way is asked again.

    url = "http://localhost:8000"
    model = "mistralai/Mistral-7B-Instruct-v0.3"
    api_key_env = "WRITER_KEY"       # the name of an environment variable, never the key

The server is asked with the client of guards behind servers: bounded, paced, retried (guards/remote/client.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from guardkeel.curation.config import Price
from guardkeel.curation.jury.asking import Metered, run_to_end
from guardkeel.curation.jury.cache import VoteCache
from guardkeel.curation.jury.cost import BYTES_PER_TOKEN, CostEstimate, Meter, cost, question_bytes
from guardkeel.curation.jury.jurors import Juror
from guardkeel.errors import GuardkeelError
from guardkeel.guards.remote.api import entries
from guardkeel.guards.remote.client import Client, Failed, Session
from guardkeel.guards.remote.config import ApiName, RemoteConfig, read_server, server_file
from guardkeel.guards.remote.guard import check_reachable, key_of
from guardkeel.records import value_digest

ENOUGH = 20
"""Answers from which on their own sizes are taken for an estimate."""

_TABLE = """
CREATE TABLE IF NOT EXISTS texts (
    writer TEXT NOT NULL, question TEXT NOT NULL, text TEXT NOT NULL, cut INTEGER NOT NULL,
    bytes INTEGER NOT NULL, input INTEGER, output INTEGER, seconds REAL,
    PRIMARY KEY (writer, question)
) WITHOUT ROWID
"""
_POLITE = {
    "concurrency",
    "requests_per_minute",
    "timeout",
    "retries",
    "backoff",
    "api_key_env",
    "headers",
    "name",
}


class WriterConfig(RemoteConfig):
    """What a writer's file may say: that of a guard behind a server, without what judging needs."""

    api: ApiName = Field(default="chat", description="chat, and nothing else")
    temperature: float = Field(default=0.7, ge=0, le=2, description="0 writes the likeliest")
    max_new_tokens: int | None = Field(default=512, ge=16, description="longest text in tokens")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.api != "chat":
            raise ValueError("a writer is asked with api 'chat'")
        judging = (self.family, self.policy, self.tokenizer, self.labels, self.unsafe_labels)
        if any(judging) or self.inputs != 1:
            raise ValueError("family, policy, tokenizer, labels and inputs are of guards, not of writers")
        return self


@dataclass(frozen=True, slots=True)
class Question:
    """A request: `key` names it among its writer's."""

    key: str
    messages: tuple[Mapping[str, Any], ...]


def question(messages: Sequence[Mapping[str, Any]]) -> Question:
    """A question; equal ones have equal keys."""
    return Question(value_digest(list(messages))[:40], tuple(messages))


@dataclass(frozen=True, slots=True)
class Written:
    """What was written; `cut` where it was longer than it might be."""

    text: str
    cut: bool = False


class TextCache(VoteCache):
    """Votes and texts in one file; see VoteCache."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._db.execute(_TABLE)

    def text(self, writer: str, key: str) -> Written | None:
        """What was written, if it was."""
        row = self._db.execute(
            "SELECT text, cut FROM texts WHERE writer = ? AND question = ?", (writer, key)
        ).fetchone()
        return Written(row[0], bool(row[1])) if row else None

    def keep(
        self,
        writer: str,
        key: str,
        given: Written,
        *,
        bytes: int,
        input: int | None,
        output: int | None,
        seconds: float,
    ) -> None:
        """Keep a text for good. One that is there already stays as it was."""
        self._db.execute(
            "INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (writer, key, given.text, int(given.cut), bytes, input, output, seconds),
        )

    def sizes(self, writer: str) -> tuple[int, float, float, float]:
        """Texts so far, and of each on average tokens a byte sent, tokens written, seconds."""
        n, sent, read, wrote, took = self._db.execute(
            "SELECT COUNT(*), TOTAL(bytes), TOTAL(input), TOTAL(output), TOTAL(seconds) FROM texts "
            "WHERE writer = ? AND input IS NOT NULL",
            (writer,),
        ).fetchone()
        return (n, read / sent, wrote / n, took / n) if n and sent else (0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Writer:
    """A writer, opened without asking it anything. `identity` is a digest of all that its texts follow from."""

    path: Path
    config: WriterConfig
    price: Price
    offline: bool | None = None

    @property
    def name(self) -> str:
        """What labels and rows call it."""
        return self.config.name or self.config.model

    @property
    def identity(self) -> str:
        """See the class."""
        return value_digest(["writer", self.config.model_dump(mode="json", exclude=_POLITE)])

    @property
    def source(self) -> str:
        """The source of labels that follow from its being asked."""
        return f"synthesis:{self.name}"

    def body(self, asked: Question) -> dict[str, Any]:
        """The request."""
        c = self.config
        made: dict[str, Any] = {
            "model": c.model,
            "messages": list(asked.messages),
            "temperature": c.temperature,
        }
        return made | ({"max_tokens": c.max_new_tokens} if c.max_new_tokens else {}) | c.extra


def open_writer(file: str, price: Price, offline: bool | None) -> Writer:
    """Read a writer's file; raises ConfigError, ResourceError naming file, key and remedy."""
    path = server_file(file)
    return Writer(path, read_server(path, WriterConfig), price, offline)


def estimate(writer: Writer, questions: Sequence[Question], cache: TextCache, guess: float) -> CostEstimate:
    """What asking for what is missing will take; `guess` is the tokens of an answer before any is known."""
    missing = [q for q in questions if cache.text(writer.identity, q.key) is None]
    n, rate, answer, each = cache.sizes(writer.identity)
    known = n >= ENOUGH
    sent = sum(question_bytes(writer.body(q)) for q in missing)
    read = sent * (rate if known else 1 / BYTES_PER_TOKEN)
    wrote = len(missing) * (answer if known else guess)
    pace = writer.config.requests_per_minute
    seconds = len(missing) * (each if known else guess / 30) / writer.config.concurrency
    return CostEstimate(
        writer.name,
        len(questions),
        len(questions) - len(missing),
        len(missing),
        read,
        wrote,
        None if writer.price.free else cost(writer.price, read, wrote, len(missing)),
        max(seconds, 60 * len(missing) / pace if pace else 0.0),
        known,
    )


def write(
    writer: Writer,
    questions: Sequence[Question],
    cache: TextCache,
    meter: Meter,
    *,
    watch: Callable[[int], None] = lambda done: None,
) -> dict[str, str]:
    """Ask for what is missing; what was written is in the cache then.

    Args:
        writer: who is asked.
        questions: equal ones are asked once.
        cache: where texts are kept.
        meter: adds up what is spent, and stops at the budget.
        watch: called with the number of new texts.

    Returns:
        Why there is none, by key, for what the server did not answer after all tries: the next run asks again.

    Raises:
        ConfigError, RunError, OfflineError: the server can be asked nothing (more), or the budget is spent; texts are
            kept.
    """
    missing = {q.key: q for q in questions if cache.text(writer.identity, q.key) is None}
    if not missing:
        return {}
    check_reachable(writer.path, writer.config, writer.offline)
    work = _Work(writer, iter(missing.values()), cache, meter, watch)
    run_to_end(work.run(key_of(writer.path, writer.config)))
    if work.stop is not None:
        raise work.stop
    return work.failed


class _Work:
    def __init__(
        self,
        writer: Writer,
        todo: Iterator[Question],
        cache: TextCache,
        meter: Meter,
        watch: Callable[[int], None],
    ) -> None:
        self._writer, self._todo, self._cache, self._meter, self._watch = writer, todo, cache, meter, watch
        self._payer = Juror(writer.name, "server", writer.identity, 0.5, price=writer.price)
        self.failed: dict[str, str] = {}
        self.stop: GuardkeelError | None = None
        self._done = 0

    async def run(self, key: str) -> None:
        config = self._writer.config
        async with Client(config, key).session() as session:
            await asyncio.gather(*(self._work(session) for _ in range(config.concurrency)))

    async def _work(self, session: Session) -> None:
        for asked in self._todo:
            if self.stop is not None:
                return
            try:
                await self._one(session, asked)
            except GuardkeelError as e:
                self.stop = self.stop or e
                return

    async def _one(self, session: Session, asked: Question) -> None:
        metered, begun = Metered(session), time.monotonic()
        try:
            written = _read(await metered.ask(self._writer.body(asked)))
        except Failed as e:
            self.failed[asked.key] = e.reason
            if not metered.bytes:
                session.failed(e)
                return
            written = Written("")  # it was answered, and paid for: asking again would give the same
        session.succeeded()
        counted = metered.counted
        self._cache.keep(
            self._writer.identity,
            asked.key,
            written,
            bytes=metered.bytes,
            input=metered.input if counted else None,
            output=metered.output if counted else None,
            seconds=time.monotonic() - begun,
        )
        self._done += 1
        self._watch(self._done)
        self._meter.add(self._payer, metered.bytes, metered.input if counted else None, metered.output)


def _read(answer: Any) -> Written:
    """The text of an answer; "" where the model refused to write any."""
    (choice,) = entries(answer, "choices", 1)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Failed("the answer has no message")
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise Failed("the answer has no text")
    return Written(text.strip(), choice.get("finish_reason") == "length")
