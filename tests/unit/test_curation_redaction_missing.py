"""Without the extra, redaction says what to install."""

from __future__ import annotations

import sys

import pytest

from guardkeel.curation.redaction import Redactor
from guardkeel.errors import ConfigError


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    monkeypatch.setitem(sys.modules, "stdnum", None)
    monkeypatch.setitem(sys.modules, "stdnum.iban", None)
    with pytest.raises(ConfigError, match=r"phonenumbers is not installed[\s\S]*guardkeel\[curation\]"):
        Redactor(["PHONE"])
    with pytest.raises(ConfigError, match="python-stdnum"):
        Redactor(["IBAN"])
    assert Redactor(["EMAIL", "IP", "SECRET"]).text("a@b.org")[0] == "[EMAIL]"
