import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from guardkeel.errors import PinError, ResourceError, UnsafeFileError
from guardkeel.records import file_digest
from guardkeel.resources import (
    cache_dir,
    check_pin,
    digest,
    folder_digest,
    is_offline,
    lock,
    remembered,
    resolve,
)
from guardkeel.resources import digests as digests_module
from guardkeel.resources.digests import digest_ahead


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GUARDKEEL_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_cache_folder(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("GUARDKEEL_CACHE", "~/x")
    assert cache_dir() == Path.home() / "x"
    monkeypatch.delenv("GUARDKEEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir().name == "guardkeel"


@pytest.mark.parametrize("name", ["GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(name, monkeypatch):
    assert not is_offline()
    monkeypatch.setenv(name, "0")
    assert not is_offline()
    monkeypatch.setenv(name, "True")
    assert is_offline()
    assert not is_offline(False)


def test_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="GUARDKEEL_CACHE"), lock(tmp_path / "x"):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from guardkeel.resources import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_lock_waits_for_another_process_and_survives_its_death(tmp_path):
    target = tmp_path / "thing"

    def hold(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(target), str(seconds)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"held\n"
        return process

    said = []
    process = hold(0.3)
    started = time.monotonic()
    with lock(target, progress=lambda *a: said.append(a)):
        waited = time.monotonic() - started
    process.wait()
    assert 0.1 < waited < 30
    assert "thing" in said[0][0]

    process = hold(600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with lock(target):
        pass


def test_file_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(digests_module, "REMEMBER_BYTES", 4)
    path = tmp_path / "f"
    path.write_bytes(b"hello")
    calls = []

    def compute(p):
        calls.append(p)
        return file_digest(p)

    first = remembered(path, "digests", compute)
    # sha256 of "hello"
    assert first == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert remembered(path, "digests", compute) == first
    assert len(calls) == 1
    before = path.stat()
    path.write_bytes(b"jello")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered(path, "digests", compute) != first
    assert len(calls) == 2

    note = next((cache_dir() / "digests").iterdir())
    note.write_text("{not json")
    assert remembered(path, "digests", compute) == file_digest(path)
    assert len(calls) == 3


def test_what_is_digested_ahead_is_waited_for_and_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digests_module, "REMEMBER_BYTES", 4)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"hello")
    begun, go_on, read = threading.Event(), threading.Event(), []

    def slow(p):
        read.append(p)
        begun.set()
        assert go_on.wait(60)
        return file_digest(p)

    monkeypatch.setattr(digests_module, "file_digest", slow)
    digest_ahead([tmp_path / "not there", tmp_path], threads=1)
    assert begun.wait(60)
    threading.Timer(0.05, go_on.set).start()
    assert digest(path) == file_digest(path)
    assert len(read) == 1


def test_folder_digest(tmp_path):
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "a.txt").write_text("a")
    import hashlib

    lines = "".join(
        f"{hashlib.sha256(b).hexdigest()}  {n}\n" for n, b in (("config.json", b"{}"), ("sub/a.txt", b"a"))
    )
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert folder_digest(folder) == digest(folder) == expected
    for ignored in (".hidden.json", "README.md", "pytorch_model.bin"):
        (folder / ignored).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.json").write_text("x")
    assert folder_digest(folder) == expected
    (folder / "sub" / "a.txt").rename(folder / "sub" / "b.txt")
    assert folder_digest(folder) != expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResourceError, match="no model or data file"):
        folder_digest(tmp_path / "empty")


def test_path_references(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"hello")
    good = file_digest(path)
    assert resolve(str(path)) == path
    assert resolve(f"path:{path}#sha256={good}") == path
    with pytest.raises(PinError) as e:
        resolve(f"path:{path}#sha256={'0' * 64}")
    assert good in e.value.problem and "0" * 64 in e.value.problem and str(path) in e.value.problem
    assert "pin the new digest" in e.value.remedy
    check_pin(path, None, "x")
    with pytest.raises(ResourceError, match="no such file or folder"):
        resolve(f"path:{tmp_path}/missing")
    pickle = tmp_path / "m.pt"
    pickle.write_bytes(b"")
    with pytest.raises(UnsafeFileError, match=r"m\.pt"):
        resolve(str(pickle))
