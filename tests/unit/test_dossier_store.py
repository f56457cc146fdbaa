"""The store: writers take turns, nothing half-done stays, entries stay as they are, a lying clock is refused."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import START, Clock, basics, model, opened
from guardkeel.dossier import dsse
from guardkeel.dossier.dossier import open_dossier
from guardkeel.dossier.kinds import Evaluator
from guardkeel.dossier.verifying import verify
from guardkeel.errors import ConfigError, DataError, RunError


def evaluator(name, **more):
    return Evaluator(id=name, party="first", independent_of_development=False, **more)


def test_the_same_record_twice_is_one_entry_and_a_changed_one_replaces_it(tmp_path):
    with opened(tmp_path / "d") as dossier:
        assert len(dossier.record(basics(), "ada")) == 7
        assert dossier.record(basics(), "bob") == []
        dossier.record([model(licence="MIT")], "bob")
        assert dossier.state.get(type(model()), "guard").licence == "MIT"
        assert dossier.state.last == 9
        assert [s.record.by for s in dossier.state.all][-2:] == ["ada", "bob"]
    with open_dossier(tmp_path / "d") as again:
        assert again.state.last == 9


def test_a_batch_comes_in_whole_or_not_at_all(tmp_path):
    with opened(tmp_path / "d") as dossier:
        with pytest.raises(DataError, match="limit is"):
            dossier.record([evaluator("one"), evaluator("two", note="x" * (1 << 20))], "ada")
        assert dossier.state.last == 1 and not dossier.state.has("evaluator", "one")


def test_writers_take_turns_and_see_each_other(tmp_path):
    opened(tmp_path / "d").store.close()
    failed = []

    def write(name):
        try:
            with open_dossier(tmp_path / "d", Clock()) as dossier:
                for i in range(12):
                    dossier.record([evaluator(f"{name}{i}"), evaluator("shared")], name)
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(n,)) for n in "abcd"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    with open_dossier(tmp_path / "d", Clock()) as dossier:
        found = verify(dossier.store.entries())
        assert found.sound and len(dossier.state.each(Evaluator)) == 49


KILLED = """
    import sys
    from pathlib import Path
    from guardkeel.dossier.dossier import open_dossier
    from guardkeel.dossier.kinds import Evaluator
    with open_dossier(Path(sys.argv[1])) as dossier:
        for i in range(100000):
            batch = [Evaluator(id=f"e{i}.{k}", party="first", independent_of_development=False) for k in range(3)]
            dossier.record(batch, "ada")
            print(i, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_batches_and_a_sound_chain(tmp_path):
    opened(tmp_path / "d").store.close()
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "d")],
            stdout=subprocess.PIPE,
            text=True,
        )
        said = [child.stdout.readline() for _ in range(15)]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        said += child.stdout.readlines()
        with open_dossier(tmp_path / "d") as dossier:
            assert verify(dossier.store.entries()).sound
            count = len(dossier.state.each(Evaluator))
            assert count % 3 == 0 and count >= 3 * len(said)  # what was acknowledged is there


def test_entries_cannot_be_changed_or_deleted_and_who_gets_around_that_is_seen(tmp_path):
    clock = Clock()
    with opened(tmp_path / "d", clock) as dossier:
        dossier.record(basics(), "ada")
        dossier.sign()
    base = sqlite3.connect(tmp_path / "d" / "dossier.db")
    for statement in ("UPDATE entries SET body = '{}' WHERE sequence = 3", "DELETE FROM entries"):
        with pytest.raises(sqlite3.DatabaseError, match="never changed or deleted"):
            base.execute(statement)
    key = [dsse.read_public(tmp_path / "d" / "dossier.key.pub")]
    base.execute("DROP TRIGGER entries_no_update")
    base.execute("DROP TRIGGER entries_no_delete")
    base.commit()

    def first_bad(statement):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "d", copy)
        other = sqlite3.connect(copy / "dossier.db")
        other.executescript(statement)
        other.close()
        with open_dossier(copy, clock) as found:
            fault = verify(found.store.entries(), found.store.heads(), key).fault
            return None if fault is None else fault.sequence

    base.close()
    swap = "UPDATE entries SET sequence = 99 WHERE sequence = 4; UPDATE entries SET sequence = 4 WHERE sequence = 5;"
    assert first_bad("") is None
    assert first_bad("UPDATE entries SET body = replace(body, 'harm', 'Harm') WHERE sequence = 2") == 2
    assert first_bad("UPDATE entries SET body = body || ' ' WHERE sequence = 5") == 5
    assert first_bad("DELETE FROM entries WHERE sequence = 6") == 6
    assert first_bad("DELETE FROM entries WHERE sequence >= 6") == 6  # the end was cut off
    assert first_bad(swap + "UPDATE entries SET sequence = 5 WHERE sequence = 99") == 4
    assert first_bad("UPDATE entries SET at = '2020' WHERE sequence = 7") == 7
    insert = "INSERT INTO entries SELECT 9, hash, hash || 'x', kind, 'other', at, salt, body FROM entries"
    assert first_bad(f"{insert} WHERE sequence = 8") == 9


def test_a_clock_that_is_behind_waits_or_is_refused(tmp_path):
    clock = Clock()
    with opened(tmp_path / "d", clock) as dossier:
        clock.at = START - timedelta(seconds=30)
        (entry,) = dossier.record([evaluator("a")], "ada")
        assert entry.at.startswith("2026-03-01T12:00:00")
        clock.at = START - timedelta(hours=2)
        with pytest.raises(RunError, match="clock is behind"):
            dossier.record([evaluator("b")], "ada")
        assert dossier.state.last == 2


def test_what_is_no_dossier_or_no_database_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="has no dossier"):
        open_dossier(tmp_path)
    opened(tmp_path / "d").store.close()
    with pytest.raises(ConfigError, match="has a dossier"):
        opened(tmp_path / "d")
    with pytest.raises(ConfigError, match="mysql is not served"):
        opened(tmp_path / "m", store="mysql://u:secret@h/d")
    (tmp_path / "d" / "dossier.toml").write_text('title = "t"\nstore = "env:NO_SUCH_URL"\n')
    with pytest.raises(ConfigError, match="NO_SUCH_URL is not set"):
        open_dossier(tmp_path / "d")


def _postgres() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a PostgreSQL of our own."""
    pytest.importorskip("psycopg", reason="the postgres extra is not installed")
    binaries = _postgres()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path("/tmp") / f"pg{os.getpid()}"
    folder.mkdir()
    who = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    try:
        if who:
            shutil.chown(folder, "postgres", "postgres")
        run = {
            "check": True,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": folder,
            **who,
        }
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "u", "-A", "trust", "--no-sync"], **run
        )
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        subprocess.run([binaries / "pg_ctl", "-D", folder / "data", "-w", "-o", options, "start"], **run)
    except (subprocess.CalledProcessError, LookupError, PermissionError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL does not start here: {e}")
    yield f"postgresql+psycopg://u@/postgres?host={folder}"
    subprocess.run([binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], **run)
    shutil.rmtree(folder, ignore_errors=True)


def test_postgresql_keeps_the_same_promises(tmp_path, server):
    opened(tmp_path / "d", store=server).store.close()
    with pytest.raises(ConfigError, match="holds a dossier"):
        opened(tmp_path / "other", store=server)

    def write(name):
        with open_dossier(tmp_path / "d", Clock()) as dossier:
            for i in range(6):
                dossier.record([evaluator(f"{name}{i}"), evaluator("shared")], name)

    threads = [threading.Thread(target=write, args=(n,)) for n in "abc"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with open_dossier(tmp_path / "d", Clock()) as dossier:
        assert len(dossier.state.each(Evaluator)) == 19
        assert dossier.sign() is not None
        keys = [dsse.read_public(tmp_path / "d" / "dossier.key.pub")]
        assert verify(dossier.store.entries(), dossier.store.heads(), keys).sound
        import sqlalchemy

        with pytest.raises(sqlalchemy.exc.DBAPIError), dossier.store._engine.begin() as connection:
            connection.execute(sqlalchemy.text("DELETE FROM entries"))
