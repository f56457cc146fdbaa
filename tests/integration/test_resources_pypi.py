"""pypi: references against real wheels through the real pip, from a local folder."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from wheel_factory import make_wheel

from guardkeel.errors import OfflineError, PinError, ResourceError, UnsafeFileError
from guardkeel.resources import Reference, archive, cache_dir, pypi, resolve, resolve_many

DATA = b'{"id": 1}\n' * 50
REF = "pypi:keeltest==1.0/keeltest/data.jsonl"


@pytest.fixture(autouse=True)
def local_index(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def files_in_cache():
    """What is in the cache, without lock files."""
    return sorted(p for p in cache_dir().rglob("*") if p.is_file() and p.suffix != ".lock")


def test_file_folder_pin_and_cache(local_index, tmp_path, monkeypatch):
    code = b"raise SystemExit('the wheel was run')"
    wheel = make_wheel(
        local_index, {"keeltest/data.jsonl": DATA, "keeltest/__init__.py": code, "keeltest/sub/a.json": b"{}"}
    )
    steps = []
    pin = hashlib.sha256(DATA).hexdigest()
    path, folder = resolve_many(
        [f"{REF}#sha256={pin}", "pypi:keeltest==1.0/keeltest/sub/"], progress=lambda *a: steps.append(a)
    )
    assert path.read_bytes() == DATA
    assert [p.name for p in folder.iterdir()] == ["a.json"]
    assert files_in_cache() == sorted([path, folder / "a.json"])
    assert steps[0] == ("download keeltest==1.0", 0, None)
    assert ("extract data.jsonl", len(DATA), len(DATA)) in steps
    assert sum(s[0].startswith("download") and s[1] == 0 for s in steps) == 1

    wheel.unlink()  # from now on the cache is all there is
    assert resolve(REF) == path
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    assert resolve(REF) == path
    assert resolve("pypi:KeelTest==1.0/keeltest/data.jsonl") == path
    with pytest.raises(OfflineError, match=r"keeltest/sub/a\.json"):
        resolve("pypi:keeltest==1.0/keeltest/sub/a.json")
    with pytest.raises(PinError):
        resolve(f"{REF}#sha256={'0' * 64}")


def test_cached_file_that_went_bad_is_fetched_again(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})
    pinned = f"{REF}#sha256={hashlib.sha256(DATA).hexdigest()}"
    path = resolve(pinned)
    path.write_bytes(b"rotten")
    assert resolve(pinned).read_bytes() == DATA
    with pytest.raises(PinError) as e:
        resolve(f"{REF}#sha256={'0' * 64}")
    assert hashlib.sha256(DATA).hexdigest() in str(e.value)


def test_offline_argument(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})
    with pytest.raises(OfflineError, match="network is off"):
        resolve(REF, offline=True)


def test_pips_own_words_are_in_the_error(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})
    with pytest.raises(ResourceError, match=r"No matching distribution found for keeltest==9\.9") as e:
        resolve("pypi:keeltest==9.9/a.json")
    assert "pip download --no-deps keeltest==9.9" in e.value.remedy
    with pytest.raises(ResourceError, match=r"(?s)no member 'keeltest/nope\.jsonl'.*keeltest/data\.jsonl"):
        resolve("pypi:keeltest==1.0/keeltest/nope.jsonl")
    with pytest.raises(ResourceError, match="no member 'keeltest/nope/'"):
        resolve("pypi:keeltest==1.0/keeltest/nope/")
    assert files_in_cache() == []


def test_source_distributions_are_not_built(local_index, tmp_path):
    import tarfile

    marker = tmp_path / "ran"
    source = tmp_path / "keeltest-2.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(marker)!r}, 'w')")
    with tarfile.open(local_index / "keeltest-2.0.tar.gz", "w:gz") as t:
        t.add(source, "keeltest-2.0")
    with pytest.raises(ResourceError, match="could not download"):
        resolve("pypi:keeltest==2.0/keeltest/data.jsonl")
    assert not marker.exists()


BAD = {
    "zip slip": ({"extra": {"../../evil.json": b"{}"}}, UnsafeFileError, r"\.\./\.\./evil\.json"),
    "absolute": ({"extra": {"/tmp/evil.json": b"{}"}}, UnsafeFileError, "/tmp/evil.json"),
    "backslash": ({"extra": {"a\\..\\evil.json": b"{}"}}, UnsafeFileError, "evil"),
    "link": ({"links": {"keeltest/link": "/etc/passwd"}}, UnsafeFileError, "is a link"),
    "altered": ({"record": {"keeltest/data.jsonl": b"other"}}, PinError, "does not match the wheel's RECORD"),
    "no RECORD": ({"with_record": False}, ResourceError, "0 RECORD files"),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_wheels_leave_nothing_behind(case, tmp_path):
    # pip itself stumbles over some of these; the archive reader must refuse them by its own judgement.
    options, error, match = BAD[case]
    wheel = make_wheel(tmp_path / "bad", {"keeltest/data.jsonl": DATA}, **options)
    with pytest.raises(error, match=match), archive.open_wheel(wheel) as opened:
        archive.extract(opened, archive.members_of(opened, "keeltest/data.jsonl"), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jsonl")) if (tmp_path / "out").exists() else True
    assert not (tmp_path.parent / "evil.json").exists()


def test_altered_wheel_through_pip(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA}, record={"keeltest/data.jsonl": b"x"})
    with pytest.raises(PinError, match="RECORD"):
        resolve(REF)
    assert files_in_cache() == []


def test_member_that_record_does_not_name(tmp_path):
    wheel = make_wheel(tmp_path, {}, extra={"keeltest/data.jsonl": DATA})
    with pytest.raises(ResourceError, match="RECORD has no sha256"), archive.open_wheel(wheel) as opened:
        archive.extract(opened, ["keeltest/data.jsonl"], tmp_path / "out")


def test_decompression_bomb_and_size(tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path, {"keeltest/zeros.json": b"\0" * 3_000_000})
    with archive.open_wheel(wheel) as opened:
        archive.extract(
            opened, ["keeltest/zeros.json"], tmp_path / "small"
        )  # small: no harm whatever its ratio
        monkeypatch.setattr(archive, "RATIO_FROM_BYTES", 1_000_000)
        with pytest.raises(UnsafeFileError, match="decompression bomb"):
            archive.extract(opened, ["keeltest/zeros.json"], tmp_path / "out")
        monkeypatch.setattr(archive, "MAX_BYTES", 2_000_000)
        with pytest.raises(UnsafeFileError, match="the limit is 2,000,000"):
            archive.extract(opened, ["keeltest/zeros.json"], tmp_path / "out")


def test_cache_that_cannot_be_written(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})
    (cache_dir() / "pypi").mkdir(parents=True)
    (cache_dir() / "pypi" / "keeltest==1.0").write_text("in the way")
    with pytest.raises(ResourceError, match="the cache cannot be written") as e:
        resolve(REF)
    assert "GUARDKEEL_CACHE" in e.value.remedy


def test_damaged_wheels(tmp_path):
    wheel = make_wheel(tmp_path, {"keeltest/data.jsonl": os.urandom(5000)})
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:2000])
    with pytest.raises(ResourceError, match="corrupt"), archive.open_wheel(wheel):
        pass
    for at in (100, 1000):  # inside the compressed stream's own marks, and in its bytes
        wheel.write_bytes(whole[:at] + b"\xff" * 50 + whole[at + 50 :])
        with pytest.raises(ResourceError, match="is damaged"), archive.open_wheel(wheel) as opened:
            archive.extract(opened, ["keeltest/data.jsonl"], tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.*")) == []


def test_names_twice_in_a_wheel(tmp_path):
    import warnings
    import zipfile

    wheel = make_wheel(tmp_path, {"keeltest/data.jsonl": DATA})
    with warnings.catch_warnings(), zipfile.ZipFile(wheel, "a") as z:
        warnings.simplefilter("ignore")
        z.writestr("keeltest/data.jsonl", b"second")
    with pytest.raises(ResourceError, match="is in it twice"), archive.open_wheel(wheel):
        pass


KILLED = """
import os, sys, time
from guardkeel.resources import resolve
def stop(what, done, total):
    if what.startswith("extract") and done:
        print("in the middle", flush=True)
        time.sleep(600)
resolve(sys.argv[1], progress=stop)
"""


def test_killed_in_mid_extraction_leaves_no_file_and_the_next_one_succeeds(local_index):
    big = os.urandom(3_000_000)
    make_wheel(local_index, {"keeltest/data.jsonl": big})
    process = subprocess.Popen([sys.executable, "-c", KILLED, REF], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in the middle\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    place = pypi.place(Reference("pypi", "keeltest", "1.0", "keeltest/data.jsonl"))
    assert not place.exists()
    path = resolve(REF)
    assert path == place
    assert path.read_bytes() == big
    assert files_in_cache() == [path]


def test_interrupt_leaves_nothing(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})

    def stop(what, done, total):
        if what.startswith("extract"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(REF, progress=stop)
    assert files_in_cache() == []


def test_two_processes_download_once(local_index):
    make_wheel(local_index, {"keeltest/data.jsonl": DATA})
    script = "import sys; from guardkeel.resources import resolve as r; r(sys.argv[1], progress=print)"
    started = time.monotonic()
    both = [
        subprocess.Popen([sys.executable, "-c", script, REF], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], (said, time.monotonic() - started)
    assert sum("download" in s for s in said) == 1


def test_raw_progress_of_pip():
    assert pypi.bytes_moved("Progress 12 of 340\n") == (12, 340)
    assert pypi.bytes_moved("Progress bar") is None
