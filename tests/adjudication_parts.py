"""Queues, stores and served pages for tests of adjudication."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from curation_rows import jsonl, row
from guardkeel.curation.adjudication.queue import Queue, Queued, make_queue
from guardkeel.curation.adjudication.store import Answer, Store
from guardkeel.curation.config import AdjudicateConfig
from guardkeel.curation.rows import SideLabel, Vote

NAMES = ("a", "b", "c")


def judged(id, *unsafe, prompt=None, label=None, source="jury", chance=None, **options):
    """A row whose prompt jurors a, b, c … judged with these P(unsafe); None is an abstention."""
    votes = tuple(
        Vote(by, None if p is None else "unsafe" if p >= 0.5 else "safe", p)
        for by, p in zip(NAMES, unsafe, strict=False)
    )
    given = [v.label for v in votes if v.label]
    share = given.count("unsafe") / len(given) if given else 0.5
    label = label or (None if share == 0.5 else "unsafe" if share > 0.5 else "safe")
    scores = {"majority": share, "dawid-skene": share if chance is None else chance} if given else {}
    made = SideLabel(None if label == "unknown" else label, source, votes, scores)
    return row(id, prompt or f"text of {id}", labels={"prompt": made}, **options)


def queue_of(rows, seed=0, calibration=None, **table):
    """The queue over rows."""
    from guardkeel.curation.adjudication.calibration import Calibration

    config = AdjudicateConfig(**table)
    return make_queue(rows, config, jurors=NAMES, calibration=calibration or Calibration({}, {}), seed=seed)


def items(count) -> list[Queued]:
    """So many contested items."""
    return queue_of([judged(f"r{i}", 0.9, 0.1, 0.8) for i in range(count)]).items


def store_of(path: Path, count=5, people=1, strictness="strict", **options) -> Store:
    """A store with a queue of so many items."""
    made = Store(path, create=True, **options)
    made.load(items(count), people, strictness)
    return made


def say(store, who, choice="unsafe", categories=(), note="", seconds=60.0):
    """Take the next item and say something of it; its key, or None where there is nothing."""
    claim = store.claim(who, seconds)
    if claim is None:
        return None
    ack = store.submit(Answer(claim.token, claim.item["key"], who, choice, tuple(categories), note))
    assert ack.status == "new"
    return claim.item["key"]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


def pipeline(folder: Path, count=40, texts=None, **table):
    """The tables of a pipeline whose three recorded jurors disagree on every fourth prompt."""
    texts = texts or [f"question {i} about ships" for i in range(count)]
    messages = [{"id": f"c{i}", "messages": [{"role": "user", "content": t}]} for i, t in enumerate(texts)]
    jurors = []
    for n, name in enumerate(NAMES):
        votes = [
            {
                "id": f"logs/c{i}",
                "side": "prompt",
                "unsafe": 0.9 if (i % 3 == 0) != (i % 4 == 0 and n == 0) else 0.1,
            }
            for i in range(len(texts))
        ]
        jurors.append({"recorded": str(jsonl(folder / f"{name}.jsonl", votes)), "name": name})
    logs = jsonl(folder / "logs.jsonl", messages)
    return {
        "name": "small",
        "source": [{"name": "logs", "data": str(logs), "licence": "MIT"}],
        "jury": {"juror": jurors, "sides": ["prompt"]},
        "adjudicate": table,
        "offline": True,
    }


def held(config, out):
    """Run a pipeline up to where it holds for people."""
    import pytest

    from guardkeel.curation.pipeline import curate
    from guardkeel.errors import EvidenceError

    with pytest.raises(EvidenceError) as found:
        curate(config, out)
    return found.value


@contextlib.contextmanager
def listening(desk, every=10.0):
    """The URL of the page, served by uvicorn on a free port in a thread."""
    import uvicorn

    from guardkeel.curation.adjudication.app import make_app

    server = uvicorn.Server(
        uvicorn.Config(make_app(desk, every=every), port=0, log_config=None, access_log=False, lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


__all__ = [
    "NAMES",
    "Clock",
    "Queue",
    "held",
    "items",
    "judged",
    "listening",
    "pipeline",
    "queue_of",
    "say",
    "store_of",
]
