"""guardkeel suites: what guards can be judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardkeel.cli.terminal import emit, literal, progress, say, table


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("suites")(suites)


def suites(
    name: Annotated[
        str | None, typer.Argument(help="A suite's name, file, card or reference: load it and show it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that data: references of cards start from.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Use what is in the cache only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the suites, or load one and show its counts, splits, licence and label traps.

    Your own data needs no registration: a JSONL file with id, messages and labels is a suite; any other CSV, JSON or
    Parquet file is one with a ten-line card (see docs/suites.md).

    [bold]Examples[/bold]

      guardkeel suites
      guardkeel suites advbench
      guardkeel suites mine.jsonl
    """
    from guardkeel.evaluation.suites import SPLITS, available, load_suite

    if name is None:
        cards = available()
        if as_json:
            emit(
                [
                    {"name": c.name, "version": c.version, "licence": c.licence, "description": c.description}
                    for c in cards
                ]
            )
            return
        rows = [[f"[bold]{c.name}[/bold]", literal(c.description), literal(c.licence)] for c in cards]
        table("suites", ["name", "what", "licence"], rows)
        return
    with progress(as_json) as watch:
        suite = load_suite(name, data=data, offline=offline, progress=watch)
    splits = {s: sum(held == s for held in suite.splits.values()) for s in SPLITS}
    sides = sorted({side for e in suite.examples for side in e.labels})
    if as_json:
        emit(
            {
                "name": suite.name,
                "version": suite.version,
                "digest": suite.digest,
                "licence": suite.card.licence,
                "origin": suite.card.origin,
                "traps": suite.card.traps,
                "examples": len(suite.examples),
                "unsafe": suite.count("unsafe"),
                "safe": suite.count("safe"),
                "splits": splits,
                "sides": sides,
                "left_out": suite.left_out,
            }
        )
        return
    traps = literal("\n         ".join(suite.card.traps))
    say(
        f"[bold]{suite.name}[/bold] {literal(suite.version)}  {literal(suite.card.description)}\n"
        f"items    {len(suite.examples)} examples · "
        f"{suite.count('unsafe')} unsafe, {suite.count('safe')} safe labels · "
        f"sides: {', '.join(sides)}"
        + (f" · {suite.left_out} rows without a label left out" if suite.left_out else "")
        + "\n"
        f"splits   {', '.join(f'{s} {n}' for s, n in splits.items())}\n"
        f"licence  {literal(suite.card.licence or 'not stated')}\n"
        f"origin   {literal(suite.card.origin or 'not stated')}\n"
        f"digest   {suite.digest}" + (f"\ntraps    {traps}" if traps else "")
    )
