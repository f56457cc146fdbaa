"""The store, on SQLite and on PostgreSQL: what is acknowledged is there, once, under a number that only rises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading

import pytest

pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.databases import shown
from guardkeel.errors import ConfigError
from guardkeel.moderation.config import LearnerConfig
from guardkeel.moderation.learning import Learner
from guardkeel.moderation.store import Store, StoreDownError
from guardkeel.moderation.tables import metadata
from guardkeel.moderation.writer import Writer
from moderation_postgres import running


def verdict(identity, **more):
    row = {
        "id": identity, "created": 1.0, "request": "r", "key": "k", "side": "prompt", "language": "en",
        "context": ["prompt", "en"], "digest": "0" * 64, "text": None, "policy": "default", "policy_version": 1,
        "strictness": "strict", "unsafe": 0.7, "flagged": True, "unscored": "", "disagreement": 0.5, "vote": 0.5,
        "weights_version": 0, "propensity": 0.25, "audited": True, "advice": {"a": 0.9, "b": 0.3, "c": None},
        "weights": {"a": 0.5, "b": 0.5, "c": 0.0}, "opinions": {}, "categories": [], "windows": 1, "seconds": 0.01,
    }  # fmt: skip
    return {**row, **more}


def said(identity, about, unsafe=True, **more):
    return {
        "id": identity,
        "verdict": about,
        "unsafe": unsafe,
        "source": "review",
        "reviewer": "",
        "key": "k",
        **more,
    }


@pytest.fixture(scope="module")
def postgres():
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def store(url):
    made = Store(url, clock=lambda: 5.0)
    made.migrate()
    yield made
    made.close()


def test_feedback_is_idempotent_and_numbered(store):
    store.write([verdict("v1"), verdict("v2", audited=False)], [])
    acks = store.write([], [said("f1", "v1"), said("f2", "v2"), said("f1", "v1"), said("f3", "nowhere")])
    assert [(a.status, a.sequence, a.first, a.audited) for a in acks] == [
        ("new", 1, True, True),
        ("new", 2, True, False),
        ("known", 1, True, True),
        ("unknown verdict", None, False, False),
    ]
    again = store.write([], [said("f2", "v2"), said("f1", "v1", unsafe=False), said("f4", "v1")])
    assert [(a.status, a.sequence, a.first) for a in again] == [
        ("known", 2, True),
        ("conflict", None, False),
        ("new", 3, False),  # a second word on v1 is kept and does not teach
    ]
    rows = store.feedback_after(0)
    assert [r["sequence"] for r in rows] == [1, 2, 3]
    assert [r["propensity"] for r in rows] == [0.25, None, 0.25]
    assert rows[0]["advice"] == {"a": 0.9, "b": 0.3, "c": None} and rows[0]["context"] == ["prompt", "en"]
    assert store.feedback_after(2, most=1)[0]["id"] == "f4"
    assert store.counts() == {"served": 2, "drawn": 1, "feedback": 3}


def test_verdicts_written_twice_are_there_once(store):
    store.write([verdict("v1")], [])
    store.write([verdict("v1", unsafe=0.1), verdict("v2")], [])
    assert store.verdict("v1")["unsafe"] == 0.7 and store.verdict("v2") and store.verdict("v3") is None


def test_audits_are_those_drawn_and_not_reviewed(store):
    store.write([verdict("v1", created=2.0), verdict("v2", created=1.0), verdict("v3", audited=False)], [])
    assert [r["id"] for r in store.audits()] == ["v2", "v1"]
    store.write([], [said("f", "v2")])
    assert [r["id"] for r in store.audits()] == ["v1"]


def test_what_is_old_is_forgotten_and_stays_counted(store):
    old = [verdict(f"v{i}", created=float(i), text="[]", audited=i % 2 == 0) for i in range(10)]
    store.write(old, [said("f2", "v2"), said("f9", "v9")])
    learnt = store.feedback_after(0)
    assert store.forget(texts_before=6.0) == (6, 0)
    assert [store.verdict(f"v{i}")["text"] for i in (5, 6)] == [None, "[]"]
    assert store.forget(texts_before=6.0) == (0, 0)
    assert store.forget(texts_before=8.0, verdicts_before=4.0, most=3) == (2, 3)
    assert store.forget(verdicts_before=4.0, most=3) == (0, 1)
    assert [store.verdict(f"v{i}") is None for i in (0, 3, 4)] == [True, True, False]
    assert store.counts() == {"served": 10, "drawn": 5, "feedback": 2}
    assert [r["id"] for r in store.audits()] == ["v4", "v6", "v8"]
    assert store.feedback_after(0) == learnt  # all that the learner needs
    [known, gone] = store.write([], [said("f2", "v2"), said("f3", "v3")])
    assert (known.status, known.sequence, gone.status) == ("known", 1, "unknown verdict")


def test_writers_at_once_number_without_gaps(store, url):
    store.write([verdict(f"v{i}") for i in range(40)], [])
    stores = [Store(url) for _ in range(4)]
    found = []

    def work(k):
        for i in range(10):
            found.extend(
                stores[k].write([], [said(f"f{k}-{i}", f"v{10 * k + i}"), said(f"shared-{i}", f"v{i}")])
            )

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in stores:
        one.close()
    new = sorted(a.sequence for a in found if a.status == "new")
    assert new == list(range(1, 51))
    assert sum(a.status == "known" for a in found) == 30
    assert [r["sequence"] for r in store.feedback_after(0)] == new


def test_migrating_again_changes_nothing(store, url):
    store.write([verdict("v1")], [said("f", "v1")])
    other = Store(url)
    other.migrate()
    assert other.counts() == {"served": 1, "drawn": 1, "feedback": 1}
    other.close()


def test_of_replicas_that_start_at_once_one_migrates(url):
    stores = [Store(url) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(Store.migrate, stores))  # none raises
    stores[0].write([verdict("v1")], [said("f", "v1")])
    for one in stores:
        assert one.counts()["feedback"] == 1
        one.close()


def test_migrations_make_the_tables_that_the_code_has(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._reader.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_database_of_a_later_version_is_refused(store):
    from sqlalchemy import text

    with store._writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreDownError, match="not known to this version"):
        store.migrate()


def test_policy_of_the_file_goes_in_force_when_the_file_changes(store):
    first = store.put_policy({"name": "a"}, origin="file", key="")
    changed = store.put_policy({"name": "b"}, origin="api", key="k")
    assert (first["version"], changed["version"]) == (1, 2)
    assert store.put_policy({"name": "a"}, origin="file", key="")["version"] == 2  # another replica starts
    assert store.put_policy({"name": "c"}, origin="file", key="")["version"] == 3
    assert store.policy()["body"] == {"name": "c"}
    assert [r["version"] for r in store.policy_history()] == [3, 2, 1]


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("nonsense", "not a SQLAlchemy URL"),
        ("sqlite://", "names no file"),
        ("mysql://a/b", "mysql is not served"),
    ],
)
def test_urls_that_are_not_served(url, what):
    with pytest.raises(ConfigError, match=what):
        Store(url)


def test_password_is_not_shown():
    assert "secret" not in shown("postgresql+psycopg://u:secret@db/guard")


# The learner on the log


def rows(count, skip=()):
    return [
        {
            "sequence": n,
            "first": n not in skip,
            "advice": {"a": (n * 7 % 10) / 10, "b": (n * 3 % 10) / 10},
            "unsafe": n % 3 == 0,
            "propensity": 0.5 if n % 2 else None,
            "context": ["prompt", "en" if n % 5 else "de"],
        }
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("rule", ["adahedge", "hedge", "fixed-share", "squint"])
def test_replay_is_what_was_learnt_step_by_step(rule):
    config = LearnerConfig(
        rule=rule, settings={"share": 0.01} if rule == "fixed-share" else {}, unsolicited=0.5
    )
    log = rows(60, skip={4, 9})
    whole, steps = Learner(["a", "b"], config), Learner(["a", "b"], config)
    assert whole.apply(log) == 60
    for start in range(0, 60, 7):
        steps.apply(log[max(0, start - 3) : start + 7])  # overlapping reads
    assert steps.sequence == whole.sequence == 60
    assert steps.weights(("prompt", "de")) == whole.weights(("prompt", "de")) != {"a": 0.5, "b": 0.5}
    assert [t["weights"] for t in steps.tables()] == [t["weights"] for t in whole.tables()]


def test_new_expert_joins_and_a_gone_one_is_left_out():
    config = LearnerConfig(unsolicited=1.0)
    learner = Learner(["b", "new"], config)
    learner.apply(rows(30))
    assert set(learner.weights()) == {"b", "new"} and learner.skipped == 0


def test_rows_that_cannot_be_learnt_are_left_out_and_said(caplog):
    config = LearnerConfig(audit={"floor": 0.4})
    learner = Learner(["a", "b"], config)
    bad = rows(10)
    bad[4]["propensity"] = 0.1  # under the floor
    bad[6]["advice"] = {"a": 1.5}
    assert learner.apply(bad) == 10 and learner.skipped == 2 and learner.sequence == 10
    assert "feedback 5 cannot be learnt from" in caplog.text
    without = Learner(["a", "b"], config)
    without.apply([r for r in rows(10) if r["sequence"] not in (5, 7)])
    assert learner.weights(("prompt", "en")) == without.weights(("prompt", "en"))


# The writer


class Away:
    """A store whose database goes away and comes back."""

    def __init__(self, store):
        self.store, self.down, self.passing = store, False, True

    def write(self, rows, given):
        if self.down:
            raise StoreDownError("away", passing=self.passing)
        return self.store.write(rows, given)


def test_verdicts_wait_while_the_database_is_away_and_feedback_is_told(store):
    away = Away(store)
    writer = Writer(away, buffer=3, pause=0.02)

    async def work():
        writer.start()
        await writer.commit([verdict("v0")])
        away.down = True
        with pytest.raises(StoreDownError):
            await writer.commit([], [said("f0", "v0")])
        assert not writer.up
        for i in range(1, 6):
            writer.log([verdict(f"v{i}")])
        while writer.waiting > 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (writer.waiting, writer.lost) == (3, 2)
        away.down = False
        [ack] = await writer.commit([], [said("f0", "v0")])
        assert ack.status == "new" and writer.up
        assert await writer.stop(5)

    asyncio.run(work())
    assert [bool(store.verdict(f"v{i}")) for i in range(6)] == [True, True, True, True, False, False]


def test_one_row_that_the_database_refuses_costs_the_others_nothing(store):
    writer = Writer(store)

    async def work():
        writer.log([verdict("bad", unsafe=None, flagged=None)])  # flagged may not be null
        writer.log([verdict("good")])
        pending = writer.commit([], [said("f", "good")])
        writer.start()
        [ack] = await pending
        assert ack.status == "new"
        assert await writer.stop(5)

    asyncio.run(work())
    assert store.verdict("good") and not store.verdict("bad")
    assert writer.lost == 1 and writer.up


def test_stopping_writes_what_waits(store):
    writer = Writer(store)

    async def work():
        for i in range(1200):
            writer.log([verdict(f"v{i}")])
        writer.start()
        assert await writer.stop(20)

    asyncio.run(work())
    assert store.counts()["served"] == 1200
