"""The output appears whole or not at all; what a kill leaves is gone on with, or is removed."""

import errno
import json
import os

import pytest
import torch

from guardkeel.errors import ConfigError, RunError
from guardkeel.fusion import writer as writing
from guardkeel.fusion.plan import Shard
from guardkeel.fusion.writer import JOURNAL, Writer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


SHARDS = (
    Shard("one.safetensors", b"head1", {"a": 5, "b": 9}, 13),
    Shard("two.safetensors", b"head2", {"c": 5}, 7),
)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "out"


def leave(out, *names, identity="run"):
    """As a kill leaves it: what Python would clean up is not."""
    w = Writer(out, SHARDS, identity)
    w.__enter__()
    for name in names:
        w.write(name, 0, memoryview(name.encode() * 2))
        w.finished(name)
    w._close()
    return w


def test_bytes_go_where_the_plan_says_and_the_folder_appears_at_the_end(out, tmp_path):
    beside = tmp_path / "tokenizer.json"
    beside.write_text("{}")
    (tmp_path / "config.json").write_text("old")
    with Writer(out, SHARDS, "run") as w:
        w.write("b", 2, torch.tensor([7], dtype=torch.int16))
        w.write("a", 0, memoryview(b"aaaa"))
        w.write("c", 0, memoryview(b"cc"))
        assert not out.exists()
        w.publish([beside, tmp_path / "config.json"], {"config.json": b"new"})

    assert (out / "one.safetensors").read_bytes() == b"head1aaaa\0\0\x07\0"
    assert (out / "two.safetensors").read_bytes() == b"head2cc"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    assert index["metadata"]["total_size"] == 10
    assert (out / "config.json").read_text() == "new" and (out / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"] and not (out / JOURNAL).exists()


def test_what_was_finished_is_not_done_again(out):
    leave(out, "a", "c")

    with Writer(out, SHARDS, "run") as w:
        assert w.done == {"a", "c"}
        w.write("b", 0, memoryview(b"bbbb"))
        w.finished("b")
        w.publish()
    assert (out / "one.safetensors").read_bytes() == b"head1aa\0\0bbbb"


def test_a_line_that_a_kill_cut_short_does_not_count(out):
    w = leave(out, "a")
    journal = w.folder / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'"b')

    with Writer(out, SHARDS, "run") as again:
        assert again.done == {"a"}
        again.finished("c")
        again._close()
    with Writer(out, SHARDS, "run") as third:
        assert third.done == {"a", "c"}
        third.publish()


@pytest.mark.parametrize("change", ["identity", "boot", "shard"])
def test_what_is_not_this_runs_own_is_done_again(out, monkeypatch, change):
    w = leave(out, "a", "c")
    if change == "boot":
        monkeypatch.setattr(writing, "_boot", lambda: "after a restart")
    if change == "shard":
        (w.folder / JOURNAL).unlink()
    with Writer(out, SHARDS, "other" if change == "identity" else "run") as again:
        assert again.done == set()
        assert (again.folder / "two.safetensors").read_bytes() == b"head2\0\0"
        again.publish()


def test_an_error_leaves_nothing_and_an_interruption_leaves_all(out):
    with pytest.raises(RuntimeError), Writer(out, SHARDS, "run") as w:
        w.finished("a")
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), Writer(out, SHARDS, "run") as w:
        w.finished("a")
        raise KeyboardInterrupt
    assert not out.exists()
    with Writer(out, SHARDS, "run") as again:
        assert again.done == {"a"}
        again.publish()


def test_what_is_there_is_never_overwritten(out):
    out.mkdir()
    with Writer(out, SHARDS, "run") as w:  # an empty folder is no loss
        w.publish()
    with pytest.raises(ConfigError, match="out: is there already"), Writer(out, SHARDS, "run"):
        raise AssertionError
    assert (out / "one.safetensors").exists()
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        Writer(out / "one.safetensors" / "x", SHARDS, "run"),
    ):
        raise AssertionError


def test_a_full_disk_is_known_before_the_work(out, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match="no room left on the disk"), Writer(out, SHARDS, "run"):
        raise AssertionError
    assert list(out.parent.iterdir()) == []


def test_what_is_written_goes_to_the_disk_meanwhile_and_its_errors_are_told(out, monkeypatch):
    synced = []

    def broken(path):
        synced.append(path.name)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing, "_SYNC", 4)
    monkeypatch.setattr(writing, "_sync", broken)
    with pytest.raises(RunError, match="Input/output error"), Writer(out, SHARDS, "run") as w:
        w.write("c", 0, memoryview(b"cc"))
        w.write("a", 0, memoryview(b"aaaa"))
        w.publish()
    assert synced == ["one.safetensors"] and list(out.parent.iterdir()) == []


def test_file_systems_that_cannot_reserve_are_written_all_the_same(out, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    with Writer(out, SHARDS, "run") as w:
        w.publish()
    assert (out / "two.safetensors").stat().st_size == 7
