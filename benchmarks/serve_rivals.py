"""The moderation service beside other ways to put guards behind HTTP: the same guard, framework, texts and clients.

    python benchmarks/serve_rivals.py [--guard keel-135m] [--requests 40] [--clients 1,8] [--pairs 5] [--scanners 2]

    guardkeel       `guardkeel serve` with one expert
    any-guardrail   its Llama Guard guardrail, `validate` in FastAPI's threads: one call a message is all it offers. It
                    gets the guard as a checkpoint with a chat template of the same token ids; left out where it is not
                    installed
    one by one      the guard as guardkeel loads it, one message after the other, its policy computed anew for each
    in turn         n scanners like that, one after the other for each message, as LLM Guard runs them, beside the
                    service with n experts

Each server is a process of its own; they take turns. Ratios are medians over the turns. Texts are harmless, to which a
guard that generates answers with two tokens: any-guardrail is at its fastest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve import Process, load, process, reference, service, texts

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement


def shell(kind: str, folder: str, scanners: int) -> None:
    """Serve a way to judge in the smallest FastAPI application that speaks the same schema."""
    import uvicorn
    from fastapi import FastAPI

    judge = any_guardrail(folder) if kind == "any-guardrail" else sequential(folder, scanners)
    app = FastAPI()

    @app.post("/v1/moderations")
    def moderate(body: dict[str, Any]) -> dict[str, Any]:  # not async: FastAPI runs it in a thread
        return {"results": [{"flagged": judge(body["input"])}]}

    uvicorn.run(app, port=0, access_log=False)


def any_guardrail(folder: str) -> Callable[[str], bool | None]:
    """Its guardrail on a checkpoint that `write_checkpoint` wrote."""
    from scoring_peers import Opened
    from scoring_peers import any_guardrail as opened

    from guardkeel.models.devices import pick_device, pick_dtype

    device = pick_device("auto")
    one_by_one = opened(Opened(Path(folder), pick_dtype("auto", device), device, 1))[0].judge
    return lambda text: one_by_one([text])[0]


def sequential(guard: str, scanners: int) -> Callable[[str], bool | None]:
    """Scanner after scanner. A model is not for several threads."""
    from guardkeel.guards.load import load_guard

    loaded = [load_guard(guard) for _ in range(scanners)]
    turn = threading.Lock()

    def judge(text: str) -> bool:
        item = Judgement("", Conversation.of(text), "prompt")
        with turn:
            verdicts = [g.score([item])[0] for g in loaded]
        return any(v.unsafe is None or v.unsafe >= g.threshold for v, g in zip(verdicts, loaded, strict=True))

    return judge


def started(kind: str, guard: str, scanners: int = 1) -> contextlib.AbstractContextManager[Process]:
    """A shell in a process of its own."""
    return process([sys.executable, __file__, "--shell", kind, "--guard", guard, "--scanners", str(scanners)])


def compare(servers: dict[str, Process], clients: list[int], requests: int, pairs: int) -> None:
    """Requests a second and the median seconds of a request, all taking turns."""
    first = next(iter(servers))
    print("| clients | server | requests/s | median ms | guardkeel is faster by (smallest to largest) |")
    print("|---|---|---|---|---|")
    for count in clients:
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for pair in range(pairs):
            some = texts(max(requests // pairs, 2 * count), 900 * count + pair)
            for name, server in servers.items():
                found = load(server.url, count, some)
                turns[name].append((found.rate, statistics.median(found.seconds)))
        for name, measured in turns.items():
            rate, ms = (statistics.median(m[k] for m in measured) for k in (0, 1))
            ratios = sorted(a[0] / b[0] for a, b in zip(turns[first], measured, strict=True))
            shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {count} | {name} | {rate:.1f} | {1000 * ms:.0f} | {shown} |", flush=True)


def main() -> None:
    """Start all servers, and compare them."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--guard", default="keel-135m", help="reference of a guard, or tiny")
    said.add_argument("--requests", type=int, default=40, help="of each measurement")
    said.add_argument("--clients", default="1,8")
    said.add_argument("--pairs", type=int, default=5)
    said.add_argument("--scanners", type=int, default=2)
    said.add_argument("--shell", help=argparse.SUPPRESS)
    given = said.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given.shell:
        shell(given.shell, given.guard, given.scanners)
        return
    clients = [int(c) for c in given.clients.split(",")]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        guard = reference(given.guard, folder)
        one = {"guardkeel": stack.enter_context(service(folder, guard))}
        if importlib.util.find_spec("any_guardrail"):
            checkpoint = str(with_template(guard, folder / "checkpoint"))
            one["any-guardrail"] = stack.enter_context(started("any-guardrail", checkpoint))
        else:
            print("any-guardrail is not installed and left out")
        one["one by one"] = stack.enter_context(started("sequential", guard))
        compare(one, clients, given.requests, given.pairs)
        stack.pop_all().close()
        expert = f"[[expert]]\nguard = {json.dumps(guard)}\ntimeout = 600\nname = "
        more = "".join(f"{expert}'guard-{k}'\n" for k in range(1, given.scanners))
        several = {
            f"guardkeel, {given.scanners} experts": stack.enter_context(service(folder, guard, 32, more))
        }
        several[f"{given.scanners} scanners in turn"] = stack.enter_context(
            started("sequential", guard, given.scanners)
        )
        print()
        compare(several, clients, given.requests, given.pairs)


def with_template(guard: str, folder: Path) -> Path:
    """The guard's weights, with a chat template of the same token ids."""
    from scoring_peers import write_checkpoint

    from guardkeel.guards.causal import CausalGuard
    from guardkeel.guards.load import load_guard

    loaded = load_guard(guard)
    assert isinstance(loaded, CausalGuard)
    write_checkpoint(loaded, folder)
    return folder


if __name__ == "__main__":
    main()
