"""Signatures: DSSE envelopes with ed25519 keys (github.com/secure-systems-lab/dsse, protocol v1.0.2).

What is signed is PAE(type, payload) = "DSSEv1" SP len(type) SP type SP len(payload) SP payload, lengths in decimal
bytes, so that a payload of one type can never pass as one of another. A key's id is the sha256 of its public half
(SubjectPublicKeyInfo, DER). Keys are PEM files; the private one is readable by its owner alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkeel.errors import ConfigError, DataError, EvidenceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Envelope = dict[str, Any]


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as e:
        raise ConfigError(
            "signatures need the package cryptography", remedy="pip install 'guardkeel[dossier]'"
        ) from e
    return ed25519


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a payload and its type."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def new_key(path: Path) -> tuple[Path, Path]:
    """Make a key pair: `path` (private, mode 600) and `path`.pub; an existing file is never replaced."""
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives import serialization as form

    private = ed25519.Ed25519PrivateKey.generate()
    secret = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.pub")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secret)
    except FileExistsError as e:
        raise ConfigError(
            f"{path}: there is a file already", remedy="use that key, or name another file"
        ) from e
    beside.write_bytes(public)
    return path, beside


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key; raises ConfigError naming the file."""
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as e:
        raise ConfigError(
            f"{path}: cannot be read ({e.strerror})", remedy="give the private key's file"
        ) from e
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"{path}: no private key without a password", remedy="make one: dossier key FILE"
        ) from e
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an ed25519 key", remedy="make one: guardkeel dossier key FILE")
    found: Ed25519PrivateKey = key
    return found


def public_key(text: str | bytes, where: str) -> Ed25519PublicKey:
    """A public key from its PEM text; `where` is how errors call it."""
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode() if isinstance(text, str) else text)
    except ValueError as e:
        raise ConfigError(
            f"{where}: no public key in PEM form", remedy="give the .pub file of the key"
        ) from e
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{where}: not an ed25519 key", remedy="make one: guardkeel dossier key FILE")
    found: Ed25519PublicKey = key
    return found


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key's file."""
    try:
        return public_key(path.read_bytes(), str(path))
    except OSError as e:
        raise ConfigError(
            f"{path}: cannot be read ({e.strerror})", remedy="give the .pub file of the key"
        ) from e


def pem(key: Ed25519PublicKey) -> str:
    """A public key as PEM text."""
    from cryptography.hazmat.primitives import serialization as form

    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the key's DER form, as hex."""
    from cryptography.hazmat.primitives import serialization as form

    data = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def sign(kind: str, payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    """The envelope of a payload with one signature."""
    signature = {
        "keyid": key_id(key.public_key()),
        "sig": base64.b64encode(key.sign(pae(kind, payload))).decode(),
    }
    return {"payload": base64.b64encode(payload).decode(), "payloadType": kind, "signatures": [signature]}


def opened(envelope: Envelope, keys: Iterable[Ed25519PublicKey], kind: str, where: str) -> bytes:
    """The payload of an envelope that one of the keys has signed.

    Raises:
        DataError: it is no envelope, or of another type.
        EvidenceError: none of the keys has signed it, or it was changed since.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        said = envelope["payloadType"]
        signatures = [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]]
    except (KeyError, TypeError, binascii.Error) as e:
        raise DataError(f"{where}: no DSSE envelope", remedy="take the file as it was exported") from e
    if said != kind:
        raise DataError(f"{where}: holds {said!r}, not {kind!r}", remedy="take the file as it was exported")
    for key in keys:
        for signature in signatures:
            try:
                key.verify(signature, pae(kind, payload))
            except InvalidSignature:
                continue
            return payload
    raise EvidenceError(
        f"{where}: no signature of it is by a key that you trust, or it was changed since it was signed",
        remedy="get the signer's public key from the signer, not with the file, and compare",
    )
