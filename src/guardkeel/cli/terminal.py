"""What verbs print: progress on stderr, results on stdout, JSON when asked."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

Progress = Callable[[str, int, int | None], None]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Imports without the garbage collector, which looks again and again at what stays for good: a fifth of torch's."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """A callback (what, done, total) that draws one bar for each `what`.

    Silent when quiet; plain lines without a terminal.
    """
    if quiet:
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, Any] = {}
    with bar:

        def draw(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield draw


def _plain() -> Progress:
    """Logs of machines: a line when something starts, at every tenth of it, and at its end."""
    shown: dict[str, int] = {}

    def say(what: str, done: int, total: int | None) -> None:
        tenth = done * 10 // total if total else 0
        if shown.get(what, -1) < tenth:
            shown[what] = tenth
            typer.echo(f"{what}: {done}/{total}" if total else f"{what} …", err=True)

    return say


def hush() -> None:
    """Keep libraries' notices out of the user's terminal; errors still come through."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("transformers", "peft", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say(text: str, *, as_json: bool = False) -> None:
    """A line for people: stdout, or stderr when stdout carries JSON. Rich markup; plain when piped."""
    from rich.console import Console

    Console(stderr=as_json, highlight=False, soft_wrap=True, emoji=False).print(text)


def literal(text: object) -> str:
    """Text that may come from anywhere (paths, names), for `say` and `table`: no bracket of it is markup."""
    from rich.markup import escape

    return escape(str(text))


def emit(value: Any) -> None:
    """One JSON document on stdout. Lone surrogates, which UTF-8 does not have, are JSON escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def table(title: str, columns: list[str], rows: list[list[str]], *, as_json: bool = False) -> None:
    """A small table."""
    from rich.console import Console
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        made.add_column(column, overflow="fold", justify="left" if i == 0 else "right")
    for row in rows:
        made.add_row(*row)
    Console(stderr=as_json, highlight=False, emoji=False).print(made)
