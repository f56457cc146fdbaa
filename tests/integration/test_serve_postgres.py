"""Replicas over a real PostgreSQL server: one log, one order, the same weights; servers and replicas that go away."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation import tables
from guardkeel.moderation.store import Store, StoreDownError
from moderation_parts import Acting, client_of, rules, service_of, until
from moderation_postgres import running
from moderation_soak import Soak

AUDIT = {"floor": 0.5, "flagged": 0.5, "allowed": 0.5, "focus": 0.3}


@pytest.fixture(scope="module")
def postgres():
    with running() as server:
        yield server


@pytest.fixture
def url(postgres):
    return postgres.database()


def replica(tmp_path, url, **store):
    """A service on the database, not started."""
    drifting = Acting(lambda text: (sum(map(ord, text)) % 7) / 10, name="drifting")
    return service_of(
        tmp_path,
        rules(),
        drifting,
        learner={"audit": AUDIT, "unsolicited": 0.2, "contexts": ["side", "language"]},
        store={"url": url, "poll": 0.05, **store},
    )


async def verdict(client, text, **more):
    answer = await client.post("/v1/verdicts", json={"items": [{"prompt": text, **more}]})
    assert answer.status_code == 200, answer.text
    return answer.json()["verdicts"][0]


async def say(client, identity, about, unsafe):
    body = {"feedback": [{"id": identity, "verdict": about, "unsafe": unsafe}]}
    return await client.post("/v1/feedback", json=body)


def test_replicas_on_one_log_converge(tmp_path, url):
    """Three replicas at once; a verdict of one is spoken of at another, which has it after a moment."""

    async def main():
        made = [replica(tmp_path, url, verdicts="before") for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(client_of(s)) for s in made]

            async def work(i):
                found = await verdict(clients[i % 3], f"text {i}", language=("de", "en")[i % 2])
                answer = await say(clients[(i + 1) % 3], f"f{i}", found["id"], i % 3 == 0)
                assert answer.status_code == 200, answer.text

            await asyncio.gather(*(work(i) for i in range(60)))
            await clients[0].patch("/v1/policies", json={"strictness": "permissive"})
            await until(lambda: all(s.learner.sequence == 60 for s in made), 20)
            await until(lambda: all(s.in_force.version == 2 for s in made), 20)
            first, second, third = (s.learner.tables() for s in made)
            assert first == second == third
            assert made[0].learner.weights(("prompt", "de")) != {"ships": 0.5, "drifting": 0.5}
        fresh = replica(tmp_path, url)
        async with client_of(fresh):
            assert fresh.learner.tables() == first

    asyncio.run(main())


def test_kill_of_a_replica_loses_nothing_that_was_acknowledged(tmp_path, url):
    soak = Soak(tmp_path, url, feedback=120, clients=16, kills=1, replicas=2)
    asyncio.run(soak.run())
    assert len(soak.acknowledged) == 120


@pytest.mark.parametrize("crash", [False, True], ids=["shut down", "crashed"])
def test_database_gone_and_back(tmp_path, postgres, url, crash):
    """Verdicts go on and wait for it, feedback is refused; what was acknowledged before is there afterwards."""

    async def main():
        service = replica(tmp_path, url)
        async with client_of(service) as client:
            before = await verdict(client, "a ship")
            await until(lambda: service.store.verdict(before["id"]) is not None)
            assert (await say(client, "f0", before["id"], True)).status_code == 200
            postgres.stop(crash)
            try:
                during = [await verdict(client, f"ship {i}") for i in range(3)]
                assert all(v["flagged"] for v in during)
                refused = await say(client, "f1", during[0]["id"], True)
                assert refused.status_code == 503 and refused.headers["retry-after"]
                for path in ("/v1/audits", "/v1/policies", "/v1/experts"):
                    assert (await client.get(path)).status_code == 503
                ready = await client.get("/readyz")
                assert ready.status_code == 200 and ready.json()["store"] == "away"
            finally:
                postgres.start()
            await until(lambda: service.writer.up and service.writer.waiting == 0, 20)
            assert (await say(client, "f1", during[0]["id"], True)).json()["feedback"][0]["sequence"] == 2
            assert (await say(client, "f0", before["id"], True)).json()["feedback"][0]["status"] == "known"
            await until(lambda: service.learner.sequence == 2, 20)
            counts = (await client.get("/v1/experts")).json()["counts"]
            assert (counts["served"], counts["feedback"], service.writer.lost) == (4, 2, 0)

    asyncio.run(main())


def test_replica_that_freezes_does_not_hold_the_others_up_for_ever(tmp_path, url, monkeypatch):
    """One that stops in mid-transaction, with the counter in its hand, is thrown out."""
    monkeypatch.setattr(tables, "PATIENCE", 0.3)
    frozen = Store(url)
    frozen.migrate()

    async def main():
        service = replica(tmp_path, url, verdicts="before")
        async with client_of(service) as client:
            found = await verdict(client, "a ship")
            with frozen._writer.connect() as connection:
                from guardkeel.moderation.store import _lock

                _lock(connection, "feedback")
                answers = [await say(client, "f", found["id"], True)]
                while answers[-1].status_code == 503 and len(answers) < 20:
                    answers.append(await say(client, "f", found["id"], True))
                assert answers[-1].json()["feedback"][0]["sequence"] == 1
                connection.invalidate()

    asyncio.run(main())
    frozen.close()


@pytest.mark.parametrize("text", ["a\u0000b", "\u202eship\u202c", "s\u0301" * 200, "\U000e0041 😀"])
def test_strange_texts_are_kept_as_they_are(tmp_path, url, text):
    """PostgreSQL takes no NUL and no lone surrogate in a text; what is kept has them escaped."""

    async def main():
        service = replica(tmp_path, url, texts=True, verdicts="before")
        async with client_of(service) as client:
            found = await verdict(client, text)
            kept = (await client.get(f"/v1/verdicts/{found['id']}")).json()
            assert json.loads(kept["text"]) == [{"role": "user", "content": text}]
            body = b'{"items": [{"prompt": "a\\ud800b"}]}'
            kind = {"content-type": "application/json"}
            assert (await client.post("/v1/verdicts", content=body, headers=kind)).status_code == 200
            assert service.writer.lost == 0

    asyncio.run(main())


def test_server_that_is_not_there_stops_the_start(tmp_path):
    with pytest.raises(StoreDownError, match="OperationalError"):
        Store(f"postgresql+psycopg://guardkeel:secret@/log?host={tmp_path}").migrate()


def test_page_reads_the_log(tmp_path, url):
    async def main():
        service = replica(tmp_path, url)
        async with client_of(service) as client:
            found = [await verdict(client, t) for t in ("a ship", "calm")]
            await until(lambda: service.store.counts()["served"] == 2)
            await say(client, "f", found[0]["id"], True)
            for path in (
                "/page/",
                "/page/queue",
                "/page/queue?of=disagreements",
                "/page/live",
                "/page/policy",
            ):
                answer = await client.get(path)
                assert answer.status_code == 200, path

    asyncio.run(main())
