"""Parts of a moderation service for tests: rule lists as experts, experts that misbehave, a service in this process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from guardkeel.guards.base import Batch, Guard, Verdict
from guardkeel.guards.judged import judged_text
from guardkeel.guards.rules import RuleGuard, RuleList


def rules(name="ships", words=("ship*",), category="Violence", weight=1.0, **more):
    """A real guard: whoever speaks of ships is unsafe."""
    rule = {"category": category, "words": list(words), "weight": weight}
    return RuleGuard(RuleList(kind="rules", name=name, rules=(rule,), **more))


def rules_file(path, **options):
    """The same as a file."""
    words = ", ".join(f'"{w}"' for w in options.get("words", ("ship*",)))
    rule = f'category = "Violence"\nweight = {options.get("weight", 1.0)}\nwords = [{words}]\n'
    path.write_text(f'kind = "rules"\nname = "{options.get("name", "ships")}"\n[[rules]]\n{rule}')
    return path


class Acting(Guard):
    """A guard that does what a function of the text says: gives a Verdict or a number, raises, sleeps, gives garbage.

    `batches_seen` holds the size of each batch, `texts` what it was asked.
    """

    family, facts = "acting", {}

    def __init__(self, act, name="acting", threshold=0.5):
        self.act, self.name, self.threshold = act, name, threshold
        self.batches_seen, self.texts = [], []

    def batches(self, items, *, layers=(), categories=True, skip=()):
        self.batches_seen.append(len(items))
        found = []
        for item in items:
            text = judged_text(item.conversation, item.side)
            self.texts.append(text)
            said = self.act(text)
            found.append(Verdict(said) if isinstance(said, float) and 0 <= said <= 1 else said)
        yield Batch(0, list(range(len(items))), found)


class Hanging:
    """An act that never ends by itself; `release` ends it."""

    def __init__(self):
        self.released = threading.Event()

    def __call__(self, text):
        self.released.wait(30)
        return 0.0

    def release(self):
        self.released.set()


def service_of(tmp_path, *guards, experts=(), **tables):
    """A Service over guards, not started. `experts` are tables of [[expert]], in the guards' order."""
    from guardkeel.moderation.config import ExpertConfig, ServeConfig
    from guardkeel.moderation.experts import Expert
    from guardkeel.moderation.metrics import Metrics
    from guardkeel.moderation.service import Service

    said = [*experts, *({} for _ in guards[len(experts) :])]
    configs = [ExpertConfig(guard="double", **{"retries": 0, **s}) for s in said]
    tables.setdefault("store", {"url": f"sqlite:///{tmp_path}/log.db", "poll": 0.05})
    config = ServeConfig(expert=configs, folder=tmp_path, **tables)
    metrics = Metrics()
    made = [Expert(c.name or g.name, g, c, seen=metrics.batch) for c, g in zip(configs, guards, strict=True)]
    return Service(config, made, metrics)


@contextlib.asynccontextmanager
async def client_of(service, upstream=None, headers=None):
    """An HTTP client of the running service, in this process."""
    import httpx

    from guardkeel.moderation.app import make_app, running

    app = make_app(service, upstream)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        running(service, upstream),
        httpx.AsyncClient(transport=transport, base_url="http://serve", headers=headers) as client,
    ):
        yield client


@contextlib.contextmanager
def listening(service, upstream=None):
    """The URL of the service, served by uvicorn on a free port in a thread."""
    import uvicorn

    from guardkeel.moderation.app import make_app

    app = make_app(service, upstream)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


async def until(condition, seconds=5.0):
    """Wait for a condition; fails where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)
