"""The command line in a process of its own, for tests that send it signals; forked from one that has torch loaded."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "guardkeel.cli",
        "guardkeel.evaluation.run",
        "guardkeel.report.render",
        "peft",
        "transformers",
        "sklearn.metrics",
    ]
)


def start(arguments: list[str], out: Path, err: Path, environment: dict[str, str]) -> BaseProcess:
    """guardkeel with these arguments, stdout and stderr into files."""
    child = _context.Process(target=_run, args=(arguments, out, err, environment))
    child.start()
    return child


def _run(arguments: list[str], out: Path, err: Path, environment: dict[str, str]) -> None:
    gc.freeze()
    for file, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    from guardkeel.cli import main

    sys.argv = ["guardkeel", *arguments]
    main()
