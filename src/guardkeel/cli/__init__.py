"""The command line. Each verb is a thin file; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from guardkeel import __version__

app = typer.Typer(
    name="guardkeel",
    help=(
        "Keep guard models upright while they are fine-tuned.\n\n"
        "Fine-tune a guard on perfectly harmless data and it can stop seeing harm. "
        "[bold]guardkeel audit[/bold] judges the same labelled conversations with the guard before and after "
        "and says, with paired statistics, what changed and where; "
        "[bold]guardkeel tune[/bold] fine-tunes it without losing that; "
        "[bold]guardkeel gate[/bold] turns that into allow, hold or deny."
    ),
    epilog=(
        "Exit codes: 0 fine or gate passed · 1 gate failed · 2 usage or input error · "
        "3 held for missing evidence · 130 interrupted (repeat the command to resume)."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"guardkeel {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every verb shares."""
    from guardkeel.errors import ConfigError

    verb = context.invoked_subcommand
    size = os.environ.get("WORLD_SIZE", "1") if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else "1"
    if verb != "tune" and size != "1":
        raise ConfigError(
            f"guardkeel {verb} was started in {size} processes, which would write one folder",
            remedy="start it without a launcher; guardkeel tune alone runs under torchrun and accelerate launch",
        )


def _register() -> None:
    from guardkeel.cli import (
        audit,
        bench,
        curate,
        demo,
        doctor,
        dossier,
        fuse,
        gate,
        heads,
        leaderboard,
        models,
        plan,
        report,
        serve,
        suites,
        train_guard,
        tune,
        vision,
    )

    for module in (
        demo,
        audit,
        leaderboard,
        tune,
        fuse,
        heads,
        serve,
        curate,
        train_guard,
        vision,
        bench,
        plan,
        gate,
        dossier,
        report,
        suites,
        models,
        doctor,
    ):
        module.register(app)


_register()


def main() -> None:
    """Entry point: run a verb; turn every expected error into one message and its exit code."""
    try:
        app()
    except BaseException as e:
        sys.exit(_exit_code(e))


def _exit_code(error: BaseException) -> int | str | None:
    """Say what ended the program, where it has not been said, and give its exit code."""
    from guardkeel.errors import GuardkeelError

    # typer turns an interrupt and a closed pipe into an exit of its own, without a word on resuming; the pipe's
    # would even be that of a failed gate.
    for cause in _causes(error):
        if isinstance(cause, KeyboardInterrupt):
            _complain("interrupted; repeat the same command to go on from here", label="")
            return 130
        if isinstance(cause, OSError) and cause.errno == errno.EPIPE:
            return 141  # the reader of our output has gone; nothing is left to say
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, GuardkeelError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the disk of the run directory"
        _complain(f"{where}: no space left\n  remedy: free disk space and repeat the command; it resumes")
        return 2
    import traceback

    traceback.print_exception(error)
    _complain("this is a bug in guardkeel\n  remedy: report it with the lines above", label="")
    return 2  # never 1, which says that a gate failed


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, latest first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _complain(message: str, label: str = "error: ") -> None:
    typer.echo(f"{label}{message}", err=True)
