"""What the verbs of a dossier share: where it is, who acts, and how records are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardkeel.cli.terminal import literal, say
from guardkeel.errors import ConfigError

if TYPE_CHECKING:
    from guardkeel.dossier.chain import Entry
    from guardkeel.dossier.dossier import Dossier

Folder = Annotated[
    Path,
    typer.Option("--dossier", "-d", envvar="GUARDKEEL_DOSSIER", help="Folder of the dossier."),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Who acts. Default: GUARDKEEL_ACTOR, else the login name."),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]
HERE = Path("dossier")


def needs() -> None:
    """Say which extra to install where it is not."""
    try:
        import alembic  # noqa: F401
        import sqlalchemy  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            "a dossier needs SQLAlchemy and Alembic", remedy="pip install 'guardkeel[dossier]'"
        ) from e


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Dossier]:
    """The dossier in a folder; in the end its head is signed where it has a key."""
    needs()
    from guardkeel.dossier.dossier import open_dossier

    with open_dossier(folder) as dossier:
        yield dossier
        dossier.sign()


def told(entries: list[Entry], quiet: bool = False) -> None:
    """Say what was written; results, of which a run has dozens, by their number."""
    if quiet:
        return
    named = [e for e in entries if e.kind != "result"]
    for entry in named if len(named) <= 12 else named[:10]:
        say(f"{entry.sequence:>6}  {entry.kind}  [bold]{literal(entry.id)}[/bold]")
    if len(named) > 12:
        say(f"        and {len(named) - 10} more")
    if len(named) < len(entries):
        say(f"        with {len(entries) - len(named)} results")
    if not entries:
        say("nothing new: all of it is in the dossier already")
