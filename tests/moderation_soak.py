"""kill -9 while feedback is written by many at once: nothing acknowledged is lost, nothing is applied twice.

    python tests/moderation_soak.py --feedback 10000 --clients 64 --kills 20 [--replicas 2 --postgresql]

Replicas of one log run in processes of their own. Clients write one piece of feedback a request, to any replica, and
again until it is acknowledged; each tenth piece is sent once more after that. Meanwhile replicas are killed, one after
another, at even shares of what has been acknowledged, and started again. In the end the log must hold every piece once,
under the number that was acknowledged, without gaps, and every replica must have the weights of its replay.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import moderation_process
from moderation_parts import until
from moderation_postgres import running

TESTS = Path(__file__).parent


class Replica:
    """A service in a process of its own, which can be killed and started again under the same address."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        script = str(TESTS / "moderation_process.py")
        self._command = [sys.executable, script, str(folder), str(self.port), *([url] if url else [])]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=silent, stderr=silent
        )  # fmt: skip
        end = time.monotonic() + 120
        async with httpx.AsyncClient() as http:
            while True:
                assert self._process.poll() is None and time.monotonic() < end, "the service did not start"
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.address}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


@dataclass
class Soak:
    """One run, and what came of it.

    Args:
        folder: of the log, where it is SQLite.
        url: of the log; default: SQLite in the folder.
        feedback: pieces.
        clients: that write at once.
        kills: replicas killed in all.
        replicas: processes.
    """

    folder: Path
    url: str | None = None
    feedback: int = 240
    clients: int = 8
    kills: int = 2
    replicas: int = 1
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Numbers in the log, by id."""
    retries: int = 0
    """Requests that were not answered, or with 503."""
    seconds: float = 0.0
    _left: list[int] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """All of it; raises AssertionError where anything was lost, or counted twice."""
        found = [Replica(self.folder, self.url) for _ in range(self.replicas)]
        try:
            for replica in found:
                await replica.start()
            await self._serve(found[0])
            self._left = list(range(self.feedback))
            begun = time.monotonic()
            limits = httpx.Limits(max_connections=self.clients)
            async with httpx.AsyncClient(timeout=60, limits=limits) as http:
                clients = (self._client(http, found) for _ in range(self.clients))
                await asyncio.gather(self._killer(found), *clients)
            self.seconds = time.monotonic() - begun
            tables = await self._tables(found)
        finally:
            for replica in found:
                replica.kill()
        self._check(tables)

    async def _serve(self, replica: Replica) -> None:
        """Verdicts to speak of, all in the log."""
        async with httpx.AsyncClient(timeout=120) as http:
            for start in range(0, self.feedback, 200):
                texts = [f"text {i}" for i in range(start, min(start + 200, self.feedback))]
                body = {"items": [{"prompt": t} for t in texts]}
                answer = await http.post(f"{replica.address}/v1/verdicts", json=body)
                self._ids += [v["id"] for v in answer.json()["verdicts"]]
            counts = {"served": 0}
            while counts["served"] < self.feedback:
                counts = (await http.get(f"{replica.address}/v1/experts")).json()["counts"]

    async def _client(self, http: httpx.AsyncClient, replicas: list[Replica]) -> None:
        while self._left:
            i = self._left.pop()
            sequence = await self._write(http, replicas, i)
            self.acknowledged[f"f{i}"] = sequence
            if i % 10 == 0:
                assert await self._write(http, replicas, i) == sequence

    async def _write(self, http: httpx.AsyncClient, replicas: list[Replica], i: int) -> int:
        """The number under which a piece is acknowledged, after as many tries as that takes."""
        row = self._row(i)
        for attempt in range(100_000):
            address = replicas[(i + attempt) % len(replicas)].address
            try:
                answer = await http.post(f"{address}/v1/feedback", json={"feedback": [row]})
            except httpx.HTTPError:  # killed: whether it was written nobody knows
                answer = None
            if answer is not None and answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                return int(answer.json()["feedback"][0]["sequence"])
            self.retries += 1
            await asyncio.sleep(0.2)
        raise AssertionError("it was never acknowledged")

    async def _killer(self, replicas: list[Replica]) -> None:
        for k in range(self.kills):
            due = (k + 1) * self.feedback // (self.kills + 1)
            await until(lambda due=due: len(self.acknowledged) >= due, 600)
            assert len(self.acknowledged) < self.feedback, "it was over before the kill"
            replica = replicas[k % len(replicas)]
            replica.kill()
            await replica.start()

    async def _tables(self, replicas: list[Replica]) -> list[object]:
        """The weights of every replica that has caught up."""
        found = []
        async with httpx.AsyncClient(timeout=60) as http:
            for replica in replicas:
                end = time.monotonic() + 60
                while True:
                    shown = (await http.get(f"{replica.address}/v1/experts")).json()
                    if shown["weights_version"] >= self.feedback:
                        break
                    assert time.monotonic() < end, "a replica does not catch up"
                    await asyncio.sleep(0.05)
                found.append(shown["tables"])
        return found

    def _check(self, tables: list[object]) -> None:
        learnt = moderation_process.service(self.folder, self.url)
        try:
            rows = learnt.store.feedback_after(0, most=self.feedback + 1)
        finally:
            learnt.store.close()
        assert [r["sequence"] for r in rows] == list(range(1, self.feedback + 1))  # each once, without gaps
        assert {r["id"]: r["sequence"] for r in rows} == self.acknowledged
        asked = {self._row(i)["id"]: self._row(i) for i in range(self.feedback)}
        for row in rows:
            assert {k: row[k] for k in ("verdict", "unsafe")} == {
                k: asked[row["id"]][k] for k in ("verdict", "unsafe")
            }
        learnt.learner.apply(rows)
        assert all(one == learnt.learner.tables() for one in tables)

    def _row(self, i: int) -> dict[str, object]:
        return {"id": f"f{i}", "verdict": self._ids[i], "unsafe": i % 3 == 0}


def main() -> None:
    """One run from the command line."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("feedback", 10_000), ("clients", 64), ("kills", 20), ("replicas", 1)):
        said.add_argument(f"--{name}", type=int, default=value)
    said.add_argument("--postgresql", action="store_true", help="a server is started for it")
    given = vars(said.parse_args())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(running()).database() if given.pop("postgresql") else None
        soak = Soak(folder, url, **given)
        asyncio.run(soak.run())
    print(
        f"{len(soak.acknowledged):,} pieces of feedback by {soak.clients} clients, {soak.replicas} replicas, "
        f"{soak.kills} kills, {soak.retries:,} tries again, {soak.seconds:.0f} s: none lost, none twice"
    )


if __name__ == "__main__":
    main()
