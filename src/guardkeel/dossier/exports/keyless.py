"""Statements signed without a key of one's own, by Sigstore (sigstore.dev).

The signer proves an identity (OpenID Connect) to Fulcio, which certifies a key that lives for minutes; signature and
certificate go into the public log Rekor, with the digest of the statement and not the statement. So the identity is
public, for ever. It is taken from SIGSTORE_IDENTITY_TOKEN, else from the CI job, else asked for in the browser where
somebody sits at a terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from guardkeel.errors import ConfigError, OfflineError, RunError
from guardkeel.resources import is_offline

if TYPE_CHECKING:
    from sigstore.oidc import IdentityToken

VARIABLE = "SIGSTORE_IDENTITY_TOKEN"
HASHES = ("sha256", "sha384", "sha512")
Sign = Callable[[bytes], str]


def statement(said: dict[str, Any]) -> dict[str, Any] | None:
    """An in-toto Statement with those subjects that Sigstore's client takes: digests of SHA-2. None if none is left."""
    subjects = [s for s in said["subject"] if set(s["digest"]) <= set(HASHES)]
    return {**said, "subject": subjects} if subjects else None


@contextlib.contextmanager
def signer() -> Iterator[Sign]:
    """A function that signs an in-toto Statement's bytes, and gives the Sigstore bundle as JSON.

    Raises:
        ConfigError: the library is not installed, or there is no identity.
        OfflineError: the network is switched off.
        RunError: Sigstore cannot be reached, or refused.
    """
    try:
        from sigstore.dsse import Statement
        from sigstore.models import ClientTrustConfig
        from sigstore.sign import SigningContext
    except ImportError as e:
        raise ConfigError(
            "Sigstore needs the package sigstore", remedy="pip install 'guardkeel[signing]'"
        ) from e
    if is_offline():
        raise OfflineError("Sigstore is online, and the network is off", remedy="leave out --sigstore")
    token = _given()
    with _reached("Sigstore cannot be reached"):
        trust = ClientTrustConfig.production()
        token = token or _asked(trust.signing_config.get_oidc_url())
        context = SigningContext.from_trust_config(trust)

    with contextlib.ExitStack() as stack:
        with _reached("Sigstore gives no certificate"):
            inner = stack.enter_context(context.signer(token))

        def sign(payload: bytes) -> str:
            with _reached("Sigstore did not sign"):
                return inner.sign_dsse(Statement(payload)).to_json()

        yield sign


def _given() -> IdentityToken | None:
    """The identity of the environment or the CI job; None where a person can be asked."""
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential

    try:
        raw = os.environ.get(VARIABLE) or detect_credential()
        if raw:
            return IdentityToken(raw)
    except IdentityError as e:
        raise ConfigError(f"no identity for Sigstore: {e}", remedy=f"set {VARIABLE} to a fresh token") from e
    if not sys.stdin.isatty():
        raise ConfigError(
            "no identity for Sigstore: no token, no CI job that has one, nobody at a terminal to ask",
            remedy=f"set {VARIABLE}, or give the CI job the permission (GitHub: id-token: write)",
        )
    return None


def _asked(issuer: str) -> IdentityToken:
    from sigstore.oidc import Issuer

    return Issuer(issuer).identity_token()


@contextlib.contextmanager
def _reached(problem: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # the errors of the library, of its HTTP client and of TUF share no root
        why = str(e) or type(e).__name__
        raise RunError(
            f"{problem}: {why}",
            remedy="try again online, or leave out --sigstore: the local key signs anyhow",
        ) from e
