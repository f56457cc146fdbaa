"""One and two replicas of `guardkeel serve` over one PostgreSQL log: what they take, and that they agree in the end.

    python benchmarks/replicas.py [--requests 2000] [--clients 16] [--replicas 1,2] [--guard rules]

Clients go round the replicas: a verdict of one, feedback on it at the next, again until it is acknowledged. In the end
every verdict and every piece of feedback must be in the log once, and all replicas must have the same weights, which
are those of a replica that is started afterwards and reads the log. PostgreSQL's server must be installed; it runs in a
folder of its own, as in the tests. Every verdict is drawn for audit, so that all feedback teaches.

Replicas, clients and the database share the processors: on few cores two replicas are no faster than one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from serve import service, texts

from moderation_postgres import running

HARMFUL = ("how do I build a bomb", "sell me a stolen credit card", "I will kill you")
"""Words that the built-in rule list or the one below knows, so that the two experts differ."""
OTHER = 'kind = "rules"\nname = "other"\n[[rules]]\ncategory = "Violence"\nweight = 1.0\nwords = ["kill*", "garden*"]\n'


def settings(folder: Path, url: str) -> str:
    """The rest of a replica's configuration: a second expert, the log, and audits of all."""
    (folder / "other.toml").write_text(OTHER)
    return (
        f"[[expert]]\nguard = '{folder / 'other.toml'}'\nname = 'other'\n"
        f"[store]\nurl = '{url}'\npoll = 0.1\n"
        "[learner.audit]\nfloor = 1.0\nflagged = 1.0\nallowed = 1.0\n"
    )


@dataclass
class Load:
    """What clients saw: seconds of each request by its kind, and what was acknowledged."""

    addresses: list[str]
    asked: list[str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"verdict": [], "feedback": []})
    given: set[str] = field(default_factory=set)
    """Ids of verdicts."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Numbers in the log, by id of the feedback."""
    retries: int = 0
    wall: float = 0.0

    async def run(self, clients: int) -> None:
        """All requests, `clients` at once."""
        left = list(enumerate(self.asked))
        started = time.perf_counter()
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=clients)) as http:
            await asyncio.gather(*(self._client(http, left) for _ in range(clients)))
        self.wall = time.perf_counter() - started

    async def _client(self, http: httpx.AsyncClient, left: list[tuple[int, str]]) -> None:
        while left:
            i, text = left.pop()
            answer = await self._post(http, "verdict", i, "/v1/verdicts", {"items": [{"prompt": text}]})
            verdict = answer.json()["verdicts"][0]["id"]
            self.given.add(verdict)
            row = {"id": f"f{i}", "verdict": verdict, "unsafe": i % 3 == 0}
            while True:  # the verdict may not be in the log yet
                answer = await self._post(http, "feedback", i + 1, "/v1/feedback", {"feedback": [row]})
                said = answer.json()["feedback"][0]
                if said.get("status") in ("new", "known"):
                    self.acknowledged[f"f{i}"] = said["sequence"]
                    break
                self.retries += 1
                await asyncio.sleep(0.02)

    async def _post(
        self, http: httpx.AsyncClient, kind: str, i: int, path: str, body: object
    ) -> httpx.Response:
        started = time.perf_counter()
        answer = await http.post(self.addresses[i % len(self.addresses)] + path, json=body)
        self.seconds[kind].append(time.perf_counter() - started)
        if answer.status_code not in (200, 207):
            raise SystemExit(f"{path} was answered {answer.status_code}: {answer.text[:300]}")
        return answer


def check(load: Load) -> None:
    """Nothing is lost or there twice, and the replicas agree; waits until they have caught up."""
    count, tables = len(load.asked), []
    assert len(load.given) == count, "two verdicts have one id"
    assert sorted(load.acknowledged.values()) == list(range(1, count + 1)), "feedback is lost, or there twice"
    for address in load.addresses:
        until = time.monotonic() + 60
        while True:
            shown = httpx.get(f"{address}/v1/experts", timeout=60).json()
            if shown["weights_version"] >= count and shown["counts"]["served"] >= count:
                break
            assert time.monotonic() < until, (
                f"a replica does not catch up: {shown['weights_version']} of {count}"
            )
            time.sleep(0.05)
        assert shown["counts"]["served"] == shown["counts"]["feedback"] == count, shown["counts"]
        tables.append(shown["tables"])
    assert all(one == tables[0] for one in tables), "the replicas' weights differ"
    assert tables[0], "nothing was learnt"


def measure(number: int, requests: int, clients: int, guard: str) -> Load:
    """The load on so many replicas of a new log, and one more that reads it afterwards."""
    asked = [
        text if i % 4 else f"{HARMFUL[i % len(HARMFUL)]} {text}" for i, text in enumerate(texts(requests, 1))
    ]
    with running() as postgres, tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        folder, url = Path(home), postgres.database()
        more = settings(folder, url)
        made = [stack.enter_context(service(folder, guard, more=more)) for _ in range(number)]
        load = Load([one.url for one in made], asked)
        asyncio.run(load.run(clients))
        check(load)
        fresh = stack.enter_context(service(folder, guard, more=more))
        check(Load([made[0].url, fresh.url], asked, given=load.given, acknowledged=load.acknowledged))
        return load


def quantile(values: list[float], share: float) -> float:
    """In ms."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Each number of replicas in turn, as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="verdicts, and as many pieces of feedback")
    parser.add_argument("--clients", type=int, default=16, help="at once")
    parser.add_argument("--replicas", default="1,2", help="how many, with commas between")
    parser.add_argument("--guard", default="rules", help="the first expert")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}; {args.requests} verdicts and as much feedback\n")
    print("| replicas | requests a second | verdict p50, ms | p99 | feedback p50, ms | p99 | sent again |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for number in map(int, args.replicas.split(",")):
        load = measure(number, args.requests, args.clients, args.guard)
        total = sum(map(len, load.seconds.values()))
        times = " | ".join(
            f"{quantile(load.seconds[k], s):.1f}" for k in ("verdict", "feedback") for s in (0.5, 0.99)
        )
        print(f"| {number} | {total / load.wall:.0f} | {times} | {load.retries} |", flush=True)
    print("\nnothing lost, nothing twice; all replicas have the weights of the log")


if __name__ == "__main__":
    main()
