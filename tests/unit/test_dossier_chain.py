"""Canonical JSON, the chain, withheld fields and signed heads."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import Clock, basics, opened
from guardkeel.dossier import chain, dsse, heads
from guardkeel.dossier.canonical import canonical
from guardkeel.dossier.chain import first_fault, from_line, line, redacted, sealed
from guardkeel.dossier.heads import Head
from guardkeel.dossier.kinds import KINDS
from guardkeel.dossier.verifying import verify
from guardkeel.errors import ConfigError, DataError, EvidenceError

# RFC 8785, appendix B: IEEE-754 bits and how ECMAScript writes them
NUMBERS = {
    0x0000000000000000: "0", 0x8000000000000000: "0", 0x0000000000000001: "5e-324", 0x7FEFFFFFFFFFFFFF:
    "1.7976931348623157e+308", 0x4340000000000000: "9007199254740992", 0x4430000000000000: "295147905179352830000",
    0x44B52D02C7E14AF5: "9.999999999999997e+22", 0x44B52D02C7E14AF6: "1e+23",
    0x444B1AE4D6E2EF4E: "999999999999999700000",
    0x444B1AE4D6E2EF50: "1e+21", 0x3EB0C6F7A0B5ED8C: "9.999999999999997e-7", 0x3EB0C6F7A0B5ED8D: "0.000001",
    0x41B3DE4355555553: "333333333.3333332", 0xBECBF647612F3696: "-0.0000033333333333333333",
}  # fmt: skip


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers_are_written_as_the_rfc_says(bits):
    import struct

    assert canonical(struct.unpack(">d", bits.to_bytes(8, "big"))[0]).decode() == NUMBERS[bits]


def test_keys_are_sorted_by_utf16_and_strings_escaped_as_in_the_rfc():
    said = {
        "€": "Euro Sign",
        "\r": "CR",
        "\ufb33": "Hebrew",
        "1": "One",
        "😀": "Emoji",
        "\x80": "Control",
        "ö": "o",
    }
    assert [*json.loads(canonical(said))] == ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]
    assert canonical('€$\x0f\nA\'B"\\\\"/\x7f') == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f"'.encode()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", {"\ud800": 1}, {1, 2}])
def test_what_readers_do_not_agree_on_is_refused(bad):
    with pytest.raises(DataError):
        canonical(bad)


def some(count=6):
    made, previous = [], chain.GENESIS
    for n in range(1, count + 1):
        at = f"2026-01-0{n}T00:00:00.000000Z"
        made.append(sealed(n, previous, "evaluator", f"e{n}", at, {"name": f"name {n}", "n": n}, f"{n:032x}"))
        previous = made[-1].hash
    return made


def test_every_kind_of_tampering_is_found_at_its_entry():
    whole = some()
    assert first_fault(whole) is None
    for i, entry in enumerate(whole):
        for changed in (
            {"body": {**entry.body, "name": "another"}}, {"body": {"name": entry.body["name"]}}, {"id": "x"},
            {"kind": "judge"}, {"at": entry.at.replace("2026", "2027")}, {"salt": "ff" * 16}, {"hash": "0" * 64},
        ):  # fmt: skip
            found = first_fault([*whole[:i], dataclasses.replace(entry, **changed), *whole[i + 1 :]])
            assert found is not None and found.sequence == entry.sequence, changed
        if i < len(whole) - 1:
            assert first_fault(whole[:i] + whole[i + 1 :]).sequence == entry.sequence  # deleted
            swapped = [*whole[:i], whole[i + 1], entry, *whole[i + 2 :]]
            assert first_fault(swapped).sequence == entry.sequence
        twice = [*whole[: i + 1], entry, *whole[i + 1 :]]
        assert first_fault(twice).sequence == entry.sequence
    forged = sealed(3, whole[1].hash, "evaluator", "e3", whole[2].at, {"name": "forged"}, "aa" * 16)
    assert first_fault([*whole[:2], forged, *whole[3:]]).sequence == 4  # it does not follow any more


def test_withheld_fields_leave_the_chain_closed_and_cannot_be_filled_in():
    whole = some()
    copy = [redacted(e, {"name"}) for e in whole]
    assert first_fault(copy) is None
    assert b"name 3" not in b"".join(map(line, copy))
    again = [from_line(line(e), "a line") for e in copy]
    assert first_fault(again) is None and again[2].body == {"n": 3}
    filled = dataclasses.replace(
        copy[2], body={"n": 3, "name": "guess"}, salts={**copy[2].salts, "name": "00" * 32}
    )
    assert first_fault([*copy[:2], filled, *copy[3:]]).sequence == 3
    assert redacted(copy[0], {"n"}).withheld.keys() == {"name", "n"}


def test_a_cut_end_and_a_chain_written_anew_are_found_by_a_signed_head(tmp_path):
    path, beside = dsse.new_key(tmp_path / "k")
    key, public = dsse.private_key(path), dsse.read_public(beside)
    whole = some()
    envelope = heads.signed(Head(whole[0].hash, 5, whole[4].hash, "2026-02-01T00:00:00.000000Z"), key)
    head = heads.read(envelope, [public], "head")
    hashes = [e.hash for e in whole]
    assert heads.fault(hashes, [head]) is None and heads.fault(hashes[:5], [head]) is None
    assert heads.fault(hashes[:3], [head]).sequence == 4
    anew, previous = [], chain.GENESIS
    for e in whole:
        anew.append(sealed(e.sequence, previous, e.kind, e.id, e.at, {**e.body, "n": 0}, e.salt))
        previous = anew[-1].hash
    assert first_fault(anew) is None
    assert heads.fault([e.hash for e in anew], [head]).sequence == 1


def test_envelopes_are_for_one_key_one_type_one_payload(tmp_path):
    key = dsse.private_key(dsse.new_key(tmp_path / "a")[0])
    other = dsse.private_key(dsse.new_key(tmp_path / "b")[0]).public_key()
    assert dsse.pae("t", b"hello") == b"DSSEv1 1 t 5 hello"
    envelope = dsse.sign("t", b"hello", key)
    assert dsse.opened(envelope, [other, key.public_key()], "t", "x") == b"hello"
    with pytest.raises(EvidenceError, match="no signature"):
        dsse.opened(envelope, [other], "t", "x")
    with pytest.raises(EvidenceError):
        dsse.opened({**envelope, "payload": "aGVsbG8h"}, [key.public_key()], "t", "x")
    with pytest.raises(DataError, match="holds 't'"):
        dsse.opened(envelope, [key.public_key()], "u", "x")
    with pytest.raises(ConfigError, match="a file already"):
        dsse.new_key(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o77 == 0


def test_securesystemslib_reads_our_envelopes(tmp_path):
    envelopes = pytest.importorskip("securesystemslib.dsse", reason="securesystemslib is not installed")
    signer = pytest.importorskip("securesystemslib.signer")
    key = dsse.private_key(dsse.new_key(tmp_path / "a")[0])
    theirs = signer.SSlibKey.from_crypto(key.public_key(), keyid=dsse.key_id(key.public_key()))
    envelope = envelopes.Envelope.from_dict(dsse.sign("application/vnd.in-toto+json", b"{}", key))
    assert envelope.verify([theirs], 1)


def test_a_life_verifies_and_kinds_know_what_is_private(tmp_path):
    with opened(tmp_path / "d", Clock()) as dossier:
        dossier.record(basics(), "ada")
        keys = [dsse.read_public(tmp_path / "d" / "dossier.key.pub")]
        found = verify(dossier.store.entries(), dossier.store.heads(), keys)
        assert found.sound and found.entries == 8 and found.signed == 1
        assert "entries 2 to 8 came after" in found.notes[0]
        dossier.sign()
        assert verify(dossier.store.entries(), dossier.store.heads(), keys).signed == 8
    assert KINDS["approval"].private() == {"by", "note", "approver", "reason", "signature"}
    assert "location" in KINDS["run"].private() and "value" not in KINDS["result"].private()
