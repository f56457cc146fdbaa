"""The moderation service: what the gateway adds, what batching and the cascade gain, what a weight update takes.

    python benchmarks/serve.py [--guard keel-135m] [--requests 200] [--clients 1,8,32] [--pairs 5]
    python benchmarks/serve.py --guard rules --requests 400      a guard that takes no time: the gateway alone
    python benchmarks/serve.py --guard tiny --requests 40        a random model of two layers, for a quick look

The service runs in a process of its own, as `guardkeel serve` does, over SQLite. Clients are bare sockets that are kept
open, so that they cost little; each sends its next request when it has its answer. All texts are harmless and no text
comes twice.

    overhead    a request by one client less guard.score([item]) on the same texts, in one process without a service;
                the two take turns, and the median over the turns of the difference of medians is given, and of lowest
                deciles. Beside it the processor time that the service's process and the scoring call take for a text:
                on a machine that others use too, waiting for a core is in the former and not in the latter
    batching    requests a second with batches of up to 32 against batches of 1, the two services taking turns
    cascade     a rule list before the guard, half of the texts with a word of the rules: calls saved and requests a
                second, with the decisions of a service that asks both, which are compared
    learner     one row of feedback learnt, in its side/language tables and the global one

Everything is on one machine: where it has few cores, clients and service share them, and the overhead is an upper
bound. Rivals: serve_rivals.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Guard, Judgement

WORDS = [
    "please", "tell", "me", "about", "the", "weather", "in", "spring", "and", "how", "people", "plan", "a", "garden",
    "with", "beans", "roses", "apple", "trees", "near", "the", "river", "while", "children", "read", "books", "at",
    "school", "trains", "leave", "the", "station", "on", "time", "for", "mountains",
]  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    """Harmless sentences of eight to forty words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(8, 40))) + f" {seed}-{i}" for i in range(count)]


@dataclass(frozen=True)
class Process:
    """A service in a process of its own."""

    url: str
    number: int

    def cpu(self) -> float:
        """Seconds of processor time that all its threads have had."""
        times = psutil.Process(self.number).cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def service(folder: Path, guard: str, batch: int = 32, more: str = "") -> Iterator[Process]:
    """A service with one expert, and whatever `more` adds to its configuration."""
    home = Path(tempfile.mkdtemp(dir=folder))
    file = home / "moderation.toml"
    file.write_text(
        f"[[expert]]\nguard = {json.dumps(guard)}\nname = 'guard'\ntimeout = 600\nbatch = {batch}\n"
        f"[server]\nport = 0\nmax_pending = 4096\n[logs]\nlevel = 'info'\n{more}"
    )
    with process([sys.executable, "-m", "guardkeel", "serve", "--config", str(file)]) as running:
        yield running


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[Process]:
    """A server that says on stderr where it listens, as uvicorn does."""
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        said = []
        for line in running.stderr:
            said.append(line)
            if found := re.search(r"Uvicorn running on (http://[\w.:]+)", line):
                break
        else:
            raise SystemExit(f"the service did not start:\n{''.join(said[-5:])}")
        # its log goes on: it must be read, or the pipe fills up
        with subprocess.Popen(["cat"], stdin=running.stderr, stdout=subprocess.DEVNULL):
            yield Process(found[1], running.pid)
            running.terminate()
    finally:
        running.terminate()
        running.wait(60)


async def client(url: str, left: list[str], answers: dict[str, Any], seconds: list[float]) -> None:
    """One connection, one request after the other."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    while left:
        text = left.pop()
        body = json.dumps({"input": text}).encode()
        kind = "content-type: application/json"
        head = f"POST /v1/moderations HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        begun = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found = await reader.readexactly(size)
        seconds.append(time.perf_counter() - begun)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the service answered {answer.splitlines()[0].decode()}")
        answers[text] = json.loads(found)["results"][0]["flagged"]
    writer.close()


@dataclass(frozen=True)
class Load:
    """Requests a second, the seconds of each, and whether each text was flagged."""

    rate: float
    seconds: list[float]
    flagged: dict[str, bool]


def load(url: str, clients: int, some: list[str]) -> Load:
    """Texts sent by so many clients."""
    seconds: list[float] = []
    flagged: dict[str, bool] = {}
    left = list(some)

    async def run() -> None:
        await asyncio.gather(*(client(url, left, flagged, seconds) for _ in range(clients)))

    begun = time.perf_counter()
    asyncio.run(run())
    return Load(len(some) / (time.perf_counter() - begun), seconds, flagged)


def scored(guard: Guard, some: list[str]) -> list[float]:
    """Seconds of each scoring call."""
    seconds = []
    for text in some:
        begun = time.perf_counter()
        guard.score([Judgement("", Conversation.of(text), "prompt")])
        seconds.append(time.perf_counter() - begun)
    return seconds


def overhead(service: Process, guard: Guard, requests: int, pairs: int) -> None:
    """What the gateway adds to a scoring call."""
    scored(guard, texts(5, 0))
    load(service.url, 1, texts(5, 0))
    each = max(10, requests // pairs)
    turns = []
    for pair in range(1, pairs + 1):
        some = texts(each, pair)
        start = time.process_time()
        call = scored(guard, some)
        own, start = time.process_time() - start, service.cpu()
        request = load(service.url, 1, some).seconds
        turns.append((call, request, own / each, (service.cpu() - start) / each))

    def row(name: str, of: Callable[[Any], tuple[float, float]], goal: str = "") -> None:
        call, request = zip(*map(of, turns), strict=True)
        added = statistics.median(r - c for c, r in zip(call, request, strict=True))
        shown = (statistics.median(call), statistics.median(request), added)
        print(f"| {name} | " + " | ".join(f"{1000 * v:.2f}" for v in shown) + f" | {goal} |", flush=True)

    print("\n| ms a text | scoring call | request | gateway adds | target |\n|---|---|---|---|---|")
    row("median", lambda t: (statistics.median(t[0]), statistics.median(t[1])), "3")
    row("lowest decile", lambda t: (decile(t[0]), decile(t[1])))
    row("processor time", lambda t: (t[2], t[3]))


def decile(values: list[float]) -> float:
    """The lowest."""
    return statistics.quantiles(values, n=10)[0]


def batching(one: Process, many: Process, clients: list[int], requests: int, pairs: int) -> None:
    """Requests a second with and without batches."""
    print("\n| clients | one by one, requests/s | batched | ratio (smallest to largest) | target |")
    print("|---|---|---|---|---|")
    for count in clients:
        rates = []
        for pair in range(pairs):
            some = texts(max(requests // pairs, 2 * count), 100 * count + pair)
            rates.append((load(one.url, count, some).rate, load(many.url, count, some).rate))
        ratios = sorted(together / alone for alone, together in rates)
        alone, together = (statistics.median(r[k] for r in rates) for k in (0, 1))
        print(
            f"| {count} | {alone:.1f} | {together:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {3 if count == 32 else ''} |",
            flush=True,
        )


def cascade(folder: Path, guard: str, requests: int, pairs: int) -> None:
    """What a rule list in front of the guard saves, at the decisions of both."""
    rules = folder / "words.toml"
    rules.write_text('kind = "rules"\nname = "words"\n[[rules]]\ncategory = "Other"\nwords = ["volcano*"]\n')
    both = f"[[expert]]\nguard = {json.dumps(str(rules))}\ncost = 0.01\n"
    saving = both + "[learner.cascade]\nenabled = true\n"
    with service(folder, guard, 32, both) as whole, service(folder, guard, 32, saving) as short:
        ratios = []
        for pair in range(pairs):
            some = texts(max(8, requests // pairs), 7000 + pair)
            some = [f"{text} volcano" if i % 2 else text for i, text in enumerate(some)]
            all_of, some_of = load(whole.url, 8, some), load(short.url, 8, some)
            assert all_of.flagged == some_of.flagged, "the cascade decided otherwise"
            ratios.append(some_of.rate / all_of.rate)
        saved, asked = calls(short.url)
    print("\n| cascade, rule list first, 8 clients | |\n|---|---|")
    print(f"| calls of the guard saved | {100 * saved / (saved + asked):.0f}% |")
    print("| decisions that changed | 0 |")
    print(f"| requests a second, ratio | {statistics.median(ratios):.2f} |", flush=True)


def calls(url: str) -> tuple[int, int]:
    """Questions to the guard that were saved, and that were asked."""
    text = urlopen(f"{url}/metrics").read().decode()
    found = re.findall(r'guardkeel_expert_calls_total\{expert="guard",outcome="([^"]+)"\} ([\d.]+)', text)
    saved = sum(int(float(n)) for outcome, n in found if outcome == "not asked")
    return saved, sum(int(float(n)) for _, n in found) - saved


def learner(experts: int = 10, rows: int = 5000) -> None:
    """Seconds of one update."""
    from guardkeel.moderation.config import AuditConfig, LearnerConfig
    from guardkeel.moderation.learning import Learner

    draw = random.Random(0)
    names = [f"e{i}" for i in range(experts)]
    log = [
        {
            "sequence": n,
            "first": True,
            "advice": {name: draw.random() for name in names},
            "unsafe": draw.random() < 0.3,
            "propensity": 0.5,
            "context": ["prompt", draw.choice(("en", "de", "fr"))],
        }
        for n in range(1, rows + 1)
    ]
    print(
        f"\n| weight update, {experts} experts, 3 tables | µs of processor time a row | target |\n|---|---|---|"
    )
    for rule in ("hedge", "adahedge", "fixed-share", "squint"):
        took = []
        for start in range(5):
            made = Learner(names, LearnerConfig(rule=rule, audit=AuditConfig(floor=0.5)))
            part = log[start * rows // 5 : (start + 1) * rows // 5]
            begun = time.process_time()
            made.apply(part)
            took.append((time.process_time() - begun) / len(part))
        print(f"| {rule} | {1e6 * statistics.median(took):.1f} | 50 |", flush=True)


def reference(guard: str, folder: Path) -> str:
    """The guard's reference; "tiny" is made."""
    if guard != "tiny":
        return guard
    from guardkeel.models.tiny import make_tiny

    made = make_tiny("llama", folder / "tiny")
    (made / "guardkeel.json").write_text(json.dumps({"family": "keel", "name": "tiny"}))
    return str(made)


def main() -> None:
    """Run the parts that were asked for."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--guard", default="keel-135m", help="reference of a guard, rules, or tiny")
    said.add_argument("--requests", type=int, default=200, help="of each measurement")
    said.add_argument("--clients", default="1,8,32")
    said.add_argument("--pairs", type=int, default=5, help="turns of each pair of ways")
    said.add_argument("--only", choices=("overhead", "batching", "cascade", "learner"))
    given = said.parse_args()

    def wanted(part: str) -> bool:
        return given.only in (None, part)

    if wanted("learner"):
        learner()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        guard = reference(given.guard, folder)
        if wanted("overhead"):
            from guardkeel.guards.load import load_guard

            alone = load_guard(guard)
            alone.keep()  # as the service does
            with service(folder, guard) as many:
                overhead(many, alone, given.requests, given.pairs)
        if wanted("batching"):
            clients = [int(c) for c in given.clients.split(",")]
            with service(folder, guard, 1) as one, service(folder, guard, 32) as many:
                batching(one, many, clients, given.requests, given.pairs)
        if wanted("cascade"):
            cascade(folder, guard, given.requests, given.pairs)


if __name__ == "__main__":
    main()
