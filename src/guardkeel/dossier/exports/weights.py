"""Weights signed in the OpenSSF Model Signing format v1.0, by its own library, model-signing.

What is signed is an in-toto statement with the sha256 of every file of the folder (those of git aside), in a Sigstore
bundle. The format's keys are of elliptic curves (P-256, P-384, P-521), so this is another key than the dossier's; a
bundle's manifest vouches for the public half. A signature names its model by id, not by the folder's name.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from guardkeel.dossier.chain import Fault
from guardkeel.dossier.kinds import Model
from guardkeel.errors import ConfigError, PinError, RunError
from guardkeel.resources import digest

HASHES = re.compile(r""": Expected \\?'Digest.*?\)\\?'(?=["'][,\]])""")
"""What the library says of two digests: their raw bytes."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE = "make one: openssl ecparam -name prime256v1 -genkey -noout -out models.key"


def library() -> Any:
    """The package model_signing; raises ConfigError naming the extra."""
    try:
        import model_signing
    except ImportError as e:
        raise ConfigError(
            "signatures of weights need the package model-signing", remedy="pip install 'guardkeel[signing]'"
        ) from e
    return model_signing


def public(key: Path) -> str:
    """The public half of a private elliptic curve key, as PEM text; raises ConfigError naming the file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    try:
        secret = form.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as e:
        raise ConfigError(f"{key}: cannot be read ({e.strerror})", remedy=MAKE) from e
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{key}: no private key without a password", remedy=MAKE) from e
    if not isinstance(secret, EllipticCurvePrivateKey) or secret.curve.name not in CURVES:
        raise ConfigError(f"{key}: not a key of the curves P-256, P-384 or P-521", remedy=MAKE)
    return (
        secret.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo).decode()
    )


def sign(model: Model, key: Path, signature: Path) -> None:
    """Sign the weights that lie where the model is registered, into a new file.

    Raises:
        ConfigError: the model has no local folder or file, or the library is not installed.
        PinError: what lies there is not what is registered; nothing is signed then.
        RunError: the library cannot sign it.
    """
    api = library()
    place = Path(model.location)
    if not model.location or not place.exists():
        raise ConfigError(
            f"model {model.id!r}: its weights are not on this machine", remedy="register it with their path"
        )
    found = digest(place)
    if found != model.digest:
        raise PinError(
            f"model {model.id!r}: what lies in {place} is {found}, registered is {model.digest}",
            remedy="put the registered weights back, or register what lies there",
        )
    signature.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as beside:
        # the library names the subject by the last part of the path, which may be private; links are followed anyhow,
        # since in a cache of the hub all files are links
        named = Path(beside, signature.stem)
        named.symlink_to(place.resolve(), target_is_directory=place.is_dir())
        hashing = api.hashing.Config().set_allow_symlinks(True)
        try:
            signer = api.signing.Config().set_hashing_config(hashing).use_elliptic_key_signer(private_key=key)
            signer.sign(named, signature)
        except (OSError, ValueError) as e:
            raise RunError(
                f"model {model.id!r}: its weights cannot be signed: {e}", remedy=f"look at {place}"
            ) from e


def check(model: Model, place: Path, signature: Path, key: Path) -> Fault | None:
    """What is wrong with weights by their signature and the registered digest; None where nothing is.

    Args:
        model: as it is registered.
        place: the weights, wherever they lie.
        signature: the file that `sign` made.
        key: the public key's file.

    Raises:
        ConfigError: there is nothing at that place, or the library is not installed.
    """
    api = library()
    from cryptography.exceptions import InvalidSignature

    if not place.exists():
        raise ConfigError(f"{place}: there are no weights", remedy="give the folder or file of the weights")
    try:
        hashing = api.hashing.Config().set_allow_symlinks(True)
        verifier = api.verifying.Config().set_hashing_config(hashing)
        verifier.use_elliptic_key_verifier(public_key=key).verify(place, signature)
    except InvalidSignature:
        return Fault(0, f"{signature.name}: was not signed by {key.name}", "get the bundle again")
    except (KeyError, OSError, ValueError) as e:
        why = HASHES.sub("", str(e))
        return Fault(0, f"weights of model {model.id!r} in {place}: {why}", "get the weights again")
    if (found := digest(place)) != model.digest:
        return Fault(
            0, f"weights of model {model.id!r} in {place} are {found}, registered is {model.digest}",
            "ask the signer: they signed other weights than they registered",
        )  # fmt: skip
    return None
