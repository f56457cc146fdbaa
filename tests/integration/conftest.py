"""A trained tiny guard with its adapters, made once, and the command line called in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Harbour:
    """A guard, an adapter on it that forgot what it knew, and labelled messages."""

    guard: Path
    forgetful: Path
    suite: Path
    cache: Path


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """All of stdout as one JSON document."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def harbour(tmp_path_factory) -> Iterator[Harbour]:
    import torch

    from trained_guards import suite_file, train_adapter, train_guard

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("harbour")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(folder / "cache"))
        guard = train_guard(folder / "guard")
        forgetful = train_adapter(folder / "forgetful", guard)
    yield Harbour(guard, forgetful, suite_file(folder / "mine.jsonl", 320), folder / "cache")


@pytest.fixture
def cli(harbour, tmp_path, monkeypatch):
    """cli(*arguments) runs guardkeel in an empty folder and in this process, entry point and all."""
    from guardkeel.cli import main

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["guardkeel", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as e:
                code = e.code or 0
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def audit(cli, harbour):
    """audit(*arguments) audits the trained guard on its suite in fp32, without geometry unless asked."""

    def run(*arguments: object, guard: Path | None = None, suite: Path | None = None) -> Outcome:
        words = list(map(str, arguments))
        if "--geometry" not in words:
            words.append("--no-geometry")
        else:
            words += ["--set", "draws=19"]
        where = ["audit", guard or harbour.guard, "--suite", suite or harbour.suite]
        return cli(*where, "--dtype", "float32", "--device", "cpu", *words)

    return run
