"""The command line. Each verb is a thin file; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every verb shares."""


def _register() -> None:
    from guardkeel.cli import audit, demo, doctor, gate, models, report, suites

    for module in (demo, audit, gate, report, suites, models, doctor):
        module.register(app)


_register()


def main() -> None:
    """Entry point: run a verb; turn every expected error into one message and its exit code."""
    from guardkeel.errors import GuardkeelError

    try:
        app()
    except GuardkeelError as e:
        _complain(str(e))
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; repeat the same command to go on from here", label="")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        sys.exit(141)
    except OSError as e:
        if e.errno != 28:  # ENOSPC
            raise
        _complain(
            f"{e.filename or 'disk'}: no space left\n  remedy: free disk space and repeat the command; it resumes"
        )
        sys.exit(2)


def _complain(message: str, label: str = "error: ") -> None:
    typer.echo(f"{label}{message}", err=True)
