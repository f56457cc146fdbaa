"""Data sets as they were released: FORMATS by name, and which one a record is of."""

from __future__ import annotations

from collections.abc import Iterable

from guardkeel.curation.formats.aegis import REDACTED, Aegis1, Aegis2
from guardkeel.curation.formats.base import Parsed, Released
from guardkeel.curation.formats.behaviours import AILuminate, HarmBench, JailbreakBench, XSTest
from guardkeel.curation.formats.chat import Messages, Own
from guardkeel.curation.formats.mixes import BeaverTails, OpenAIModeration, ToxicChat, WildGuardMix
from guardkeel.errors import DataError

FORMATS: dict[str, Released] = {
    made.name: made
    for made in (
        Aegis1(),
        Aegis2(),
        WildGuardMix(),
        BeaverTails(),
        ToxicChat(),
        OpenAIModeration(),
        XSTest(),
        HarmBench(),
        JailbreakBench(),
        AILuminate(),
        Messages(),
        Own(),
    )
}

__all__ = ["FORMATS", "REDACTED", "Aegis2", "Own", "Parsed", "Released", "format_named", "recognise"]


def format_named(name: str) -> Released:
    """Raises DataError with the known names."""
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}", remedy=f"formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def recognise(columns: Iterable[str], where: str) -> Released:
    """The one format that has these columns; raises DataError where none has, or several."""
    names = set(columns)
    found = [f for f in FORMATS.values() if f.fits(names)]
    if len(found) == 1:
        return found[0]
    problem = f"{where}: the columns {', '.join(sorted(names))[:200]} are those of " + (
        " and ".join(f.name for f in found) if found else "no known format"
    )
    raise DataError(problem, remedy=f"say format = one of {', '.join(FORMATS)}, or declare a mapping")
