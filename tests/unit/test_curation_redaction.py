"""Redaction: what is personal goes, what only looks so stays."""

from __future__ import annotations

import pytest

from curation_rows import row
from guardkeel.curation.redaction import Redactor
from guardkeel.errors import ConfigError

needed = pytest.importorskip("phonenumbers", reason="the extra `curation` is not installed")
pytest.importorskip("stdnum", reason="the extra `curation` is not installed")


@pytest.fixture(scope="module")
def redactor():
    return Redactor()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to joe.bloggs+x@mail.example.co.uk, now", "write to [EMAIL], now"),
        ("call +44 20 7946 0958 or (415) 555-2671", "call [PHONE] or [PHONE]"),
        ("pay with 4111 1111 1111 1111 please", "pay with [CARD] please"),
        ("pay to GB82 WEST 1234 5698 7654 32 today", "pay to [IBAN] today"),
        ("my number is 536-90-4399", "my number is [SSN]"),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]"),
        ("key AKIAABCDEFGHIJKLMNOP here", "key [SECRET] here"),
    ],
)
def test_what_is_personal_goes(redactor, text, expected):
    made, counts = redactor.text(text)
    assert made == expected and sum(counts.values()) == expected.count("[")


@pytest.mark.parametrize(
    "text",
    [
        "what is 2125551234 times 3?",
        "pi is 3.14159265358979, on 2024-05-06 at 12:30:11",
        "10.0.0.1, 127.0.0.1 and 192.168.1.1 are private",
        "a::b and std::vector<int>",
        "card 4111 1111 1111 1112, ssn 000-12-3456, IBAN GB00 WEST 1234 5698 7654 32",
        "0000 0000 0000 0000",
        "version 1.2.3.4.5 of x@y",
    ],
)
def test_what_only_looks_so_stays(redactor, text):
    assert redactor.text(text) == (text, {})


def test_rows_remember_what_was_taken_out_wherever_it_stood(redactor):
    given = row("a", "I am a@b.org", "and I c@d.org", extra={"Target": "mail e@f.org", "n": [1, "g@h.org"]})
    made = redactor.row(given)
    assert made.redactions == {"EMAIL": 4} and "@" not in made.line().decode()
    assert made.history == ("redact: 4 EMAIL",)
    assert redactor.row(made) is made  # nothing is left to find
    assert redactor.row(row("b", "hello")).history == ()


def test_regions_and_kinds_are_chosen():
    german = Redactor(["PHONE"], ["DE"])
    assert german.text("ruf 030 901820 an, a@b.org")[0] == "ruf [PHONE] an, a@b.org"
    with pytest.raises(ConfigError, match="unknown region 'XX'"):
        Redactor(["PHONE"], ["XX"])
    with pytest.raises(ConfigError, match="unknown kind of personal data 'NAME'"):
        Redactor(["NAME"])


def test_hostile_texts_take_no_longer(redactor):
    import time

    begun = time.process_time()
    for text in (
        "a@" * 20_000,
        "1 " * 20_000,
        "1-" * 20_000,
        "a." * 20_000 + "@",
        ":" * 40_000,
        "-----BEGIN " * 4000,
    ):
        redactor.text(text)
    assert time.process_time() - begun < 5
