"""Forgetting by age: how much, how often, and by which clock."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation import retention
from guardkeel.moderation.config import StoreConfig
from guardkeel.moderation.retention import DAY, Retention
from guardkeel.moderation.store import StoreDownError
from moderation_parts import client_of, rules, service_of, until


class Kept:
    """Ages in days, forgotten as a store forgets."""

    def __init__(self, now, *ages):
        self.texts = [now - a * DAY for a in ages]
        self.verdicts = list(self.texts)

    def forget(self, *, texts_before, verdicts_before, most):
        return self._take(self.texts, texts_before, most), self._take(self.verdicts, verdicts_before, most)

    def _take(self, times, before, most):
        old = [t for t in times if before is not None and t < before][:most]
        for t in old:
            times.remove(t)
        return len(old)


NOW = 1e9


def sweep(kept, clock=lambda: NOW, **days):
    return asyncio.run(Retention(kept, StoreConfig(**days), clock, lambda: 5.0).sweep())


@pytest.mark.parametrize(
    ("days", "left"),
    [
        ({}, (3, 3)),
        ({"texts_days": 7}, (1, 3)),
        ({"verdicts_days": 30}, (3, 2)),
        ({"texts_days": 0.5, "verdicts_days": 7}, (0, 1)),
    ],
)
def test_each_goes_by_its_own_age(days, left):
    kept = Kept(NOW, 1, 10, 100)
    assert sweep(kept, **days) == (3 - left[0], 3 - left[1])
    assert (len(kept.texts), len(kept.verdicts)) == left


def test_much_goes_in_parts(monkeypatch):
    monkeypatch.setattr(retention, "CHUNK", 10)
    assert sweep(Kept(NOW, *range(2, 37)), verdicts_days=1, texts_days=20) == (16, 35)


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_clock_that_jumps_deletes_nothing(jump, caplog):
    times = iter([NOW, NOW + jump])
    kept = Kept(NOW, 1, 10, 100)
    assert sweep(kept, lambda: next(times), verdicts_days=30) == (0, 0)
    assert len(kept.verdicts) == 3 and "the clock has jumped" in caplog.text


def test_steady_time_ages_what_is_kept():
    wall, steady = iter([NOW, NOW + 25 * DAY]), iter([5.0, 5.0 + 25 * DAY])
    kept = Kept(NOW, 1, 10)
    asked = Retention(kept, StoreConfig(verdicts_days=30), lambda: next(wall), lambda: next(steady))
    assert asyncio.run(asked.sweep()) == (0, 1)


def test_service_forgets_and_weights_stay(tmp_path, monkeypatch):
    """What was served long ago goes at the next start; weights, counts and the page are as they were."""
    audit = {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}
    options = {"learner": {"audit": audit}}
    url = f"sqlite:///{tmp_path}/log.db"
    experts = rules(), rules("sea", ("boat*",))
    shown = []

    async def run(store, work):
        service = service_of(
            tmp_path, *experts, store={"url": url, "poll": 0.05, "texts": True, **store}, **options
        )
        async with client_of(service) as client:
            await work(client, service)
            shown.append((await client.get("/v1/experts")).json())
            assert (await client.get("/page/")).status_code == 200

    async def review(client, service):
        with monkeypatch.context() as long_ago:
            real = time.time
            long_ago.setattr("guardkeel.moderation.service.time.time", lambda: real() - 40 * DAY)
            body = {"items": [{"prompt": f"ship {i}"} for i in range(8)]}
            served = (await client.post("/v1/verdicts", json=body)).json()["verdicts"]
        rows = [{"id": f"f{i}", "verdict": v["id"], "unsafe": True} for i, v in enumerate(served)]
        assert (await client.post("/v1/feedback", json={"feedback": rows})).status_code == 200
        await client.post("/v1/verdicts", json={"items": [{"prompt": "a boat"}]})
        await until(lambda: service.learner.sequence == 8 and service.store.counts()["served"] == 9)

    async def later(client, service):
        await until(lambda: not [a for a in service.store.read(every()) if a["created"] < time.time() - DAY])
        [row] = service.store.read(every())
        assert "boat" in row["text"]

    def every():
        from sqlalchemy import select

        from guardkeel.moderation.tables import verdicts

        return select(verdicts)

    asyncio.run(run({}, review))
    asyncio.run(run({"verdicts_days": 30}, later))
    assert shown[0] == shown[1] and shown[1]["counts"] == {"served": 9, "drawn": 9, "feedback": 8}
    assert b"ship 3" not in (tmp_path / "log.db").read_bytes()


def test_store_that_is_away_is_tried_again(caplog, monkeypatch):
    monkeypatch.setattr(retention, "EVERY", 0.01)
    tried = []

    class Away:
        def forget(self, **options):
            tried.append(options)
            if len(tried) < 3:
                raise StoreDownError("away")
            return 0, 0

    async def main():
        task = asyncio.create_task(Retention(Away(), StoreConfig(texts_days=1)).follow())
        await until(lambda: len(tried) >= 4)
        task.cancel()

    asyncio.run(main())
    assert "nothing could be deleted: away" in caplog.text
