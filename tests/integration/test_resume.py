"""Runs that were killed, interrupted or ran out of disk go on where they stopped, to the same results."""

import errno
import json
import os
import signal
import time

import numpy as np
import pytest

from command_processes import start
from guardkeel.evaluation import audit as audit_module
from guardkeel.evaluation import scoring
from guardkeel.evaluation.audit import Source, audit_guards
from guardkeel.evaluation.runs import read_audit
from guardkeel.evaluation.settings import AuditSettings
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.load import load_guard
from guardkeel.records import read_record

DENIED = 1  # what every audit here ends with


@pytest.fixture(scope="module")
def arguments(harbour):
    """An audit with geometry in many small batches."""
    return [
        *("audit", str(harbour.guard), "--against", str(harbour.forgetful), "--suite", str(harbour.suite)),
        *("--dtype", "float32", "--device", "cpu", "--limit", "40", "--set", "draws=19"),
        *("--token-budget", "64", "--no-report"),
    ]


@pytest.fixture(scope="module")
def whole(arguments, harbour, tmp_path_factory):
    """The run directory of the same audit without a stop."""
    from guardkeel.evaluation.config import read_config
    from guardkeel.evaluation.run import run

    folder = tmp_path_factory.mktemp("whole") / "run"
    given = {
        "reference": str(harbour.guard),
        "against": str(harbour.forgetful),
        "suites": [str(harbour.suite)],
        "dtype": "float32",
        "device": "cpu",
        "limit": 40,
        "token_budget": 64,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        run(read_config(None, given, ["draws=19"]), folder)
    return folder


def batches(folder):
    """The batches that are done: name → (modification time, size, inode)."""
    found = {}
    for path in (folder / "progress").glob("*.npz"):
        stat = path.stat()
        found[path.name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def start_and_stop(arguments, harbour, folder, sign, *, after, role="reference"):
    """Run the command in a process of its own and send it a signal when some batches are done."""
    out, err = folder.with_name("out"), folder.with_name("err")
    environment = {"GUARDKEEL_CACHE": str(harbour.cache), "OMP_NUM_THREADS": "1"}
    process = start([*arguments, "--out", str(folder)], out, err, environment)
    until = time.monotonic() + 300
    while len(list((folder / "progress").glob(f"{role}-*.npz"))) < after:
        assert process.is_alive(), err.read_text()
        assert time.monotonic() < until
        time.sleep(0.002)
    os.kill(process.pid, sign)
    process.join(300)
    return process.exitcode, out.read_text(), err.read_text()


@pytest.fixture
def kept(monkeypatch):
    """What is in progress/ of the folder named in it when scoring has ended."""
    seen, real = {}, audit_module._results

    def spy(items, suites, scored, *rest):
        seen["batches"] = batches(seen["folder"])
        return real(items, suites, scored, *rest)

    monkeypatch.setattr(audit_module, "_results", spy)
    return seen


def same(folder, whole):
    for name in ("items.jsonl", "reference.jsonl", "candidate.jsonl", "geometry.safetensors", "config.toml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_record(folder).results == read_record(whole).results
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}


def test_kill_9_and_again(arguments, harbour, whole, cli, kept, tmp_path):
    folder = tmp_path / "run"
    code, _, _ = start_and_stop(arguments, harbour, folder, signal.SIGKILL, after=5, role="candidate")
    assert code == -signal.SIGKILL
    assert (folder / "plan.json").exists() and not (folder / "run.json").exists()
    done = batches(folder)
    assert sum(n.startswith("candidate") for n in done) >= 5
    kept["folder"] = folder
    found = cli(*arguments, "--out", folder)
    assert found.code == DENIED, found.err
    after = kept["batches"]
    assert done.items() <= after.items()  # not one was written again
    assert len(after) > len(done)
    same(folder, whole)


def test_ctrl_c_and_again(arguments, harbour, whole, cli, kept, tmp_path):
    folder = tmp_path / "run"
    code, out, err = start_and_stop(arguments, harbour, folder, signal.SIGINT, after=3)
    assert code == 130
    assert err.splitlines()[-1] == "interrupted; repeat the same command to go on from here"
    assert "Traceback" not in err and "Aborted" not in err and out == ""
    done = batches(folder)
    assert len(done) >= 3
    kept["folder"] = folder
    assert cli(*arguments, "--out", folder).code == DENIED
    assert done.items() <= kept["batches"].items()
    same(folder, whole)


@pytest.fixture
def stopped(arguments, cli, monkeypatch, tmp_path):
    """A run whose disk was full after seven batches, and what was said."""
    folder, real, count = tmp_path / "run", scoring.atomic_writer, iter(range(10**6))

    def full(path):
        if path.suffix == ".npz" and next(count) >= 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "atomic_writer", full)
        found = cli(*arguments, "--out", folder)
    assert len(batches(folder)) == 7
    return folder, found


def test_a_full_disk(arguments, stopped, whole, cli, kept):
    folder, found = stopped
    assert found.code == 2
    assert "no space left" in found.err and "free disk space and repeat the command; it resumes" in found.err
    assert "Traceback" not in found.err
    done = batches(folder)
    kept["folder"] = folder
    assert cli(*arguments, "--out", folder).code == DENIED
    assert done.items() <= kept["batches"].items()
    same(folder, whole)


@pytest.mark.parametrize(
    "change",
    [
        ("--token-budget", "128"),
        ("--threshold", "0.4"),
        ("--max-tokens", "900"),
        ("--dtype", "bfloat16"),
        ("--limit", "41"),
        ("--seed", "1"),
        ("--no-geometry",),
    ],
    ids=lambda c: c[0],
)
def test_other_settings_are_refused(arguments, stopped, cli, change):
    folder, _ = stopped
    before = batches(folder)
    found = cli(*arguments, "--out", folder, *change)
    assert found.code == 2
    assert f"{folder}: holds an unfinished run with other guards, data or settings" in found.err
    assert "repeat its command to resume it, or choose another --out" in found.err
    assert batches(folder) == before


def test_another_suite_or_guard_is_refused(arguments, stopped, cli, harbour, tmp_path):
    folder, _ = stopped
    other = [harbour.guard if a == str(harbour.forgetful) else a for a in arguments]
    assert cli(*other, "--out", folder).code == 2
    lines = harbour.suite.read_text().splitlines(keepends=True)
    (tmp_path / "mine.jsonl").write_text("".join(lines[:-1]))
    other = [tmp_path / "mine.jsonl" if a == str(harbour.suite) else a for a in arguments]
    assert "holds an unfinished run" in cli(*other, "--out", folder).err


def test_a_batch_that_the_disk_lost_is_scored_again(arguments, stopped, whole, cli):
    folder, _ = stopped
    first, second, third = sorted((folder / "progress").glob("*.npz"))[:3]
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:200])
    with third.open("wb") as out:
        np.savez(out, head=np.frombuffer(b"{}", np.uint8), hidden=np.zeros(1))
    assert cli(*arguments, "--out", folder).code == DENIED
    same(folder, whole)


def test_guards_that_were_loaded_otherwise(harbour, tmp_path, monkeypatch):
    """Whoever loads guards in Python cannot mix batches of different guards either."""
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    suite, sources = load_suite(harbour.suite), {"reference": Source(reference="g", digest="d")}

    def run(budget):
        guard = load_guard(str(harbour.guard), dtype="float32", token_budget=budget)
        settings = AuditSettings(limit=10, geometry=False)
        return audit_guards(
            [("reference", guard)], [suite], tmp_path / "run", sources=sources, settings=settings
        )

    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "_results", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(64)
    with pytest.raises(Exception, match="unfinished run with token_budget 64, this one has 2048"):
        run(2048)
    assert run(64).reference.overall.n == 10


def test_a_folder_with_something_else_in_it(arguments, cli, tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for plan in (None, "not json", "[1]", '{"digest": 3}'):
        if plan:
            (folder / "plan.json").write_text(plan)
        found = cli(*arguments, "--out", folder)
        assert found.code == 2
        assert f"{folder}: is not empty" in found.err and "choose another --out" in found.err
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert {p.name for p in folder.iterdir()} == {"thesis.txt", "plan.json"}


def test_a_finished_run_is_not_overwritten(arguments, cli, whole):
    before = (whole / "run.json").read_bytes()
    found = cli(*arguments, "--out", whole)
    assert found.code == 2 and "is not empty, it holds a finished run" in found.err
    assert (whole / "run.json").read_bytes() == before


def test_an_out_that_is_a_file(arguments, cli, tmp_path):
    (tmp_path / "file").write_text("")
    found = cli(*arguments, "--out", tmp_path / "file")
    assert found.code == 2 and f"{tmp_path / 'file'}: cannot be a run directory" in found.err


def test_what_a_kill_left_before_the_plan_was_written(arguments, cli, whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".plan.json.abc.part").write_bytes(b"{")
    assert cli(*arguments, "--out", folder).code == DENIED
    assert read_audit(folder) == read_audit(whole)


def test_without_out_an_unfinished_run_is_found_again(arguments, cli, monkeypatch, tmp_path):
    """The default place: runs/audit-…, resumed by the same command, left alone by another."""
    home = tmp_path / "home"

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "_results", interrupted)
        found = cli(*arguments, "--no-geometry")
    assert found.code == 130 and "repeat the same command" in found.err
    (first,) = (home / "runs").iterdir()
    assert first.name.startswith("audit-guard-") and (first / "plan.json").exists()
    done = json.loads((first / "plan.json").read_text())
    assert cli(*arguments, "--no-geometry", "--seed", "5").code == DENIED
    (second,) = set((home / "runs").iterdir()) - {first}
    assert (second / "run.json").exists() and json.loads((first / "plan.json").read_text()) == done
    again = cli(*arguments, "--no-geometry", "--json")
    assert again.json["run"] == f"runs/{first.name}"
    assert (first / "run.json").exists() and not (first / "plan.json").exists()
    assert len(list((home / "runs").iterdir())) == 2


def test_a_command_that_fails_at_once_leaves_nothing(arguments, cli, tmp_path):
    assert cli(*arguments, "--suite", "nothing.jsonl").code == 2
    assert cli(*arguments, "--policy", "nothing.toml").code == 2
    assert list((tmp_path / "home").iterdir()) == []
