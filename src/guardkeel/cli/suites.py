"""guardkeel suites: what guards can be judged by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.terminal import emit, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.evaluation.suites import Suite, SuiteCard


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("suites")(suites)


def suites(
    name: Annotated[
        str | None,
        typer.Argument(help="A suite's name, name@copy, file, card or reference: show it, and load it."),
    ] = None,
    card_only: Annotated[
        bool, typer.Option("--card", help="Show the card and its label traps only: fetch and load nothing.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder that data: references of cards start from.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Use what is in the cache only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the suites, or show one: licence, label traps, copies, counts, splits and digest.

    A name reads the suite from its source (the hub, a package). Copies are other places or readings of the same set:
    toxicchat@local is the one in your data folder (--data, or GUARDKEEL_DATA). Neither stands in for the other.

    Your own data needs no registration: a JSONL file with id, messages and labels is a suite; any other CSV, JSON or
    Parquet file is one with a ten-line card (see docs/suites.md).

    [bold]Examples[/bold]

      guardkeel suites
      guardkeel suites advbench
      guardkeel suites toxicchat --card
      guardkeel suites toxicchat@local --data sets
      guardkeel suites mine.jsonl
    """
    from guardkeel.evaluation.suites import available, find_card, load_suite, present

    if name is None:
        cards = available()
        if as_json:
            emit([_row(card, present(card, data)) for card in cards])
        else:
            _list(cards, {card.name: present(card, data) for card in cards})
        return
    with progress(as_json) as watch:
        card = find_card(name, offline=offline, progress=watch)
    here = present(card, data)
    if not as_json:
        _show(card, here)
    if card_only:
        if as_json:
            emit(_row(card, here))
        return
    with progress(as_json) as watch:
        suite = load_suite(card, data=data, offline=offline, progress=watch)
    if as_json:
        emit(_row(suite.card, here) | _counts(suite))
    else:
        _show_counts(suite)


def _row(card: SuiteCard, here: list[str]) -> dict[str, Any]:
    return {
        "name": card.name,
        "read_from": card.read_from,
        "version": card.version,
        "description": card.description,
        "sides": card.sides,
        "unsafe": card.unsafe,
        "safe": card.safe,
        "one_class": card.one_class,
        "licence": card.licence,
        "tier": card.tier,
        "checked": card.checked,
        "where": card.where,
        "home": card.home,
        "origin": card.origin,
        "citation": card.citation,
        "references": [part.reference for part in card.files],
        "traps": card.traps,
        "copies": {c.name: c.note for c in card.copies},
        "here": here,
    }


def _list(cards: list[SuiteCard], here: dict[str, list[str]]) -> None:
    rows = []
    for card in cards:
        there = [n.removeprefix(card.name) or "here" for n in here[card.name]]
        rows.append(
            [
                f"[bold]{card.name}[/bold]",
                ", ".join(card.sides) or "prompt",
                _number(card.unsafe),
                _number(card.safe),
                literal(card.description),
                literal(card.licence),
                card.checked or "",
                literal(card.where + (f" ({', '.join(there)})" if there else "")),
            ]
        )
    table("suites", ["name", "side", "unsafe", "safe", "what", "licence", "checked", "where"], rows)
    say(
        "\nchecked: read = the mapping was tried on records; documented = written from the source's documentation, and "
        "the first load may refuse\n"
        "where: from where the name is read; in brackets what lies in the data folder, to be read as name@copy\n"
        "guardkeel suites NAME shows a suite with its label traps"
    )


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _show(card: SuiteCard, here: list[str]) -> None:
    copies = [
        f"{card.name}@{c.name}"
        + (f": {c.note}" if c.note else "")
        + (" (here)" if f"{card.name}@{c.name}" in here else "")
        for c in card.copies
    ]
    tier = f" ({card.tier})" if card.tier else ""
    checked = f" · mapping {card.checked}" if card.checked else ""
    lines = [
        ("licence", (card.licence or "not stated") + tier),
        ("origin", card.origin or "not stated"),
        ("home", card.home),
        ("paper", card.citation),
        ("read from", card.where + checked),
        *(("", text) for text in _shortened([part.reference for part in card.files])),
        *(("" if i else "copies", text) for i, text in enumerate(copies)),
        *(("" if i else "traps", text) for i, text in enumerate(card.traps)),
    ]
    title = f"[bold]{literal(card.full_name)}[/bold] {literal(card.version)}  {literal(card.description)}"
    say("\n".join([title, *(f"{key:<10}{literal(text)}" for key, text in lines if text)]))


def _shortened(texts: list[str], most: int = 3) -> list[str]:
    return texts if len(texts) <= most else [*texts[: most - 1], f"and {len(texts) - most + 1} more"]


def _counts(suite: Suite) -> dict[str, Any]:
    from guardkeel.evaluation.suites import SPLITS

    return {
        "digest": suite.digest,
        "examples": len(suite.examples),
        "unsafe": suite.count("unsafe"),
        "safe": suite.count("safe"),
        "splits": {s: sum(held == s for held in suite.splits.values()) for s in SPLITS},
        "sides": sorted({side for e in suite.examples for side in e.labels}),
        "left_out": suite.left_out,
    }


def _show_counts(suite: Suite) -> None:
    found = _counts(suite)
    one = f" · all {suite.card.one_class}" if suite.card.one_class else ""
    say(
        f"items     {found['examples']} examples · {found['unsafe']} unsafe, {found['safe']} safe labels{one} · "
        f"sides: {', '.join(found['sides'])}"
        + (f" · {found['left_out']} rows without a label left out" if found["left_out"] else "")
        + f"\nsplits    {', '.join(f'{s} {n}' for s, n in found['splits'].items())}"
        + f"\ndigest    {found['digest']}"
    )
