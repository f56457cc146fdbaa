"""Which suites there are by name: guardkeel's own cards, and those of other packages.

A package adds suites by an entry point in the group `guardkeel.suites` whose value is a card file, a folder
of card files, a SuiteCard, a list of these, or a function without arguments that returns one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.suites.card import SuiteCard, read_card

GROUP = "guardkeel.suites"
CARDS = Path(__file__).parent / "cards"


def available() -> list[SuiteCard]:
    """The cards of all suites that have a name, sorted by name. Reads no data.

    Raises:
        ConfigError: a card cannot be used, or two have one name.
    """
    found: dict[str, tuple[SuiteCard, str]] = {}
    for card, origin in _all():
        if card.name in found:
            raise ConfigError(
                f"two suites are named {card.name!r}: one from {found[card.name][1]}, one from {origin}",
                remedy="rename one, or uninstall the package that brings it",
            )
        found[card.name] = (card, origin)
    return [found[name][0] for name in sorted(found)]


def find(name: str) -> SuiteCard:
    """The card of a suite; raises DataError with near names when there is none."""
    cards = {card.name: card for card in available()}
    if name in cards:
        return cards[name]
    near = difflib.get_close_matches(name, cards, n=3)
    raise DataError(
        f"unknown suite {name!r}: no such name, file or reference",
        remedy=f"did you mean {' or '.join(near)}?"
        if near
        else f"suites are {', '.join(cards)}; or give a path",
    )


def present(card: SuiteCard, data: str | Path | None = None) -> list[str]:
    """The names under which a card can be read from the data folder now: all files of that copy are there."""
    readings = [card, *(card.copied(copy.name) for copy in card.copies)]
    return [r.full_name for r in readings if r.is_local and _are_there(r, data)]


def _are_there(card: SuiteCard, data: str | Path | None) -> bool:
    try:
        found = [card.located(part.reference, data) for part in card.files]
    except ConfigError:  # no data folder is known
        return False
    return all(Path(f.removeprefix("path:").partition("#")[0]).is_file() for f in found)


def _all() -> Iterator[tuple[SuiteCard, str]]:
    for card in _cards(CARDS):
        yield card, "guardkeel"
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        origin = f"the entry point {point.name} = {point.value}"
        try:
            cards = list(_cards(point.load()))
        except ConfigError as e:
            raise ConfigError(f"{origin}: {e.problem}", remedy=e.remedy) from e
        except Exception as e:  # whatever another package's import does
            raise ConfigError(
                f"{origin} cannot be loaded ({type(e).__name__}: {e})",
                remedy="update or uninstall that package",
            ) from e
        for card in cards:
            yield card, origin


def _cards(value: Any) -> Iterator[SuiteCard]:
    if isinstance(value, SuiteCard):
        yield value
    elif isinstance(value, str | Path):
        path = Path(value)
        for file in sorted(path.glob("*.toml")) if path.is_dir() else [path]:
            yield read_card(file)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _cards(one)
    elif callable(value):
        yield from _cards(value())
    else:
        raise ConfigError(
            f"{value!r:.80} is no card",
            remedy="give a card file, a folder of them, a SuiteCard, a list or a function of these",
        )
