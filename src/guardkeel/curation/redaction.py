"""Personal data → typed placeholders: "mail me at [EMAIL]". Nothing leaves the machine.

    EMAIL    an address
    PHONE    a number that is valid in its country, with its +code or of a region that was named
    IP       an IPv4 or IPv6 address that is not private, loopback or documentation
    CARD     a payment card number: its length and check digit are right
    IBAN     an account number whose check digits are right for its country
    SSN      a US social security number that can have been given out
    SECRET   an API key or private key of a well-known shape

Numbers are told from mere digits by kept libraries, phonenumbers (Google's libphonenumber) and python-stdnum: both
are pure Python without further dependencies, come with the extra `curation` and are imported when first needed.
Names, postal addresses and whatever a person is told from otherwise are NOT found: that takes a language model or a
reader, and a set is not anonymous because this step ran.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from guardkeel.conversation import Conversation, ToolCall, Turn
from guardkeel.curation.rows import Row
from guardkeel.errors import ConfigError

KINDS = ("SECRET", "EMAIL", "IBAN", "CARD", "SSN", "IP", "PHONE")
"""In the order in which they are looked for; what is found is gone before the next looks."""

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]{0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{60,255}"
    r"|sk-[A-Za-z0-9_-]{32,200}|hf_[A-Za-z0-9]{30,100}|xox[abpr]-[A-Za-z0-9-]{20,200}|AIza[A-Za-z0-9_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000})(?![A-Za-z0-9])"
)
_CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_IP4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_DIGITS = re.compile(r"(?:\d\D{0,3}){6}\d")

Found = Callable[[str], Iterable[tuple[int, int]]]


class Redactor:
    """Takes kinds of personal data out of texts.

    Args:
        kinds: which of `KINDS`.
        regions: countries (two letters) whose phone numbers are also known without their +code, where they are
            grouped as is usual there.

    Raises:
        ConfigError: an unknown kind or region, or the extra `curation` is not installed and needed.
    """

    def __init__(self, kinds: Sequence[str] = KINDS, regions: Sequence[str] = ("US",)) -> None:
        unknown = next((k for k in kinds if k not in KINDS), None)
        if unknown is not None:
            raise ConfigError(
                f"unknown kind of personal data {unknown!r}", remedy=f"kinds are {', '.join(KINDS)}"
            )
        makers: dict[str, Callable[[], Found]] = {
            "SECRET": lambda: _spans(_SECRET),
            "EMAIL": lambda: _spans(_EMAIL),
            "IBAN": lambda: _spans(_IBAN, _stdnum("iban").is_valid),
            "CARD": lambda: _spans(_CARD, _card()),
            "SSN": lambda: _spans(_SSN, _stdnum("us.ssn").is_valid),
            "IP": lambda: _addresses,
            "PHONE": lambda: _phones(regions),
        }
        self._finders = [(kind, makers[kind]()) for kind in KINDS if kind in kinds]

    def text(self, text: str) -> tuple[str, Counter[str]]:
        """A text with placeholders, and how many of each."""
        counts: Counter[str] = Counter()
        for kind, find in self._finders:
            spans = list(find(text))
            if spans:
                counts[kind] += len(spans)
                text = _replaced(text, spans, f"[{kind}]")
        return text, counts

    def row(self, row: Row) -> Row:
        """A row with placeholders in everything that was said, and in the texts of `extra`; the same row if none."""
        counts: Counter[str] = Counter()

        def clean(text: str) -> str:
            made, found = self.text(text)
            counts.update(found)
            return made

        turns = tuple(_turn(turn, clean) for turn in row.conversation.turns)
        extra = _values(row.extra, clean)
        if not counts:
            return row
        total = Counter(row.redactions) + counts
        said = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        return replace(
            row,
            conversation=Conversation(turns),
            extra=extra,
            redactions=dict(sorted(total.items())),
            history=(*row.history, f"redact: {said}"),
        )


def _turn(turn: Turn, clean: Callable[[str], str]) -> Turn:
    calls = tuple(ToolCall(c.name, clean(c.arguments), c.id) for c in turn.tool_calls)
    return replace(turn, content=clean(turn.content), tool_calls=calls)


def _values(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {k: _values(v, clean) for k, v in value.items()}
    return [_values(v, clean) for v in value] if isinstance(value, list) else value


def _replaced(text: str, spans: list[tuple[int, int]], by: str) -> str:
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], by]
        at = end
    return "".join([*parts, text[at:]])


def _spans(pattern: re.Pattern[str], valid: Callable[[str], bool] | None = None) -> Found:
    return lambda text: [m.span() for m in pattern.finditer(text) if valid is None or valid(m[0])]


def _card() -> Callable[[str], bool]:
    luhn = _stdnum("luhn")
    return lambda number: (
        bool(luhn.is_valid(re.sub(r"[ -]", "", number))) and len(set(re.sub(r"\D", "", number))) > 1
    )


def _addresses(text: str) -> list[tuple[int, int]]:
    found = []
    for pattern in (_IP4, _IP6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if address.is_global and (pattern is _IP4 or len(re.findall(r"[0-9A-Fa-f]", match[0])) >= 8):
                found.append(match.span())
    return sorted(found)


def _phones(regions: Sequence[str]) -> Found:
    phonenumbers = _library("phonenumbers", "phonenumbers", "PHONE")
    unknown = next((r for r in regions if r not in phonenumbers.SUPPORTED_REGIONS), None)
    if unknown is not None:
        raise ConfigError(f"unknown region {unknown!r}", remedy="give two letters as in US, GB, DE")
    leniency = phonenumbers.Leniency
    looks = [(None, leniency.VALID), *((region, leniency.STRICT_GROUPING) for region in regions)]

    def find(text: str) -> list[tuple[int, int]]:
        if not _DIGITS.search(text):  # most texts: the search below is a hundred times slower
            return []
        found: set[tuple[int, int]] = set()
        for region, how in looks:
            for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=how):
                bare = match.raw_string.isdigit()  # ten digits alone are any number
                if not bare or region is None:
                    found.add((match.start, match.end))
        return _apart(sorted(found))

    return find


def _apart(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that do not overlap with one before them."""
    kept: list[tuple[int, int]] = []
    for start, end in spans:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _stdnum(name: str) -> Any:
    return _library(f"stdnum.{name}", "python-stdnum", "IBAN, CARD and SSN")


def _library(module: str, package: str, kinds: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise ConfigError(
            f"{package} is not installed, and finding {kinds} needs it",
            remedy='pip install "guardkeel[curation]", or leave them out of redact.kinds',
        ) from e
