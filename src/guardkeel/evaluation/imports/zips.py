"""Members of a zip archive, in memory and bounded. Nothing is unpacked onto the disk.

inspect_ai packs with Zstandard (method 93), which Python's zipfile reads from 3.14 on; pyarrow's reader is used for it.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from guardkeel.errors import DataError, UnsafeFileError
from guardkeel.resources.archive import MAX_RATIO, RATIO_FROM_BYTES
from guardkeel.resources.reference import check_member_name

MAX_MEMBER = 512 * 1024**2
MAX_MEMBERS = 200_000
ZSTANDARD = 93
_CHUNK = 1024**2
_LOCAL = struct.Struct("<4s22xHH")
"""A local file header: signature, then the lengths of name and extra field."""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive after a look at its names; raises DataError or UnsafeFileError."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise DataError(
            f"{path}: not a whole zip archive ({e})", remedy="take the log as it was written"
        ) from e
    with archive:
        if len(archive.filelist) > MAX_MEMBERS:
            raise UnsafeFileError(
                f"{path}: {len(archive.filelist):,} members; the limit is {MAX_MEMBERS:,}",
                remedy="do not use this archive, or write the log in parts",
            )
        for info in archive.filelist:
            check_member_name(info.filename.removesuffix("/"), str(path))
        yield archive


def member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, checked against its checksum and against limits, whatever its header says."""
    info = archive.getinfo(name)  # of members with one name the last
    where = f"{archive.filename}: {name!r}"
    parts: list[bytes] = []
    size = 0
    try:
        with _zstandard(archive, info) if info.compress_type == ZSTANDARD else archive.open(info) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > MAX_MEMBER or (
                    size > RATIO_FROM_BYTES and size > MAX_RATIO * max(info.compress_size, 1)
                ):
                    raise UnsafeFileError(
                        f"{where} unpacks from {info.compress_size:,} to {size:,} bytes or more",
                        remedy="do not use this archive: it looks like a decompression bomb",
                    )
                parts.append(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as e:
        raise DataError(f"{where} is damaged ({e})", remedy="take the log as it was written") from e
    data = b"".join(parts)
    if zlib.crc32(data) != info.CRC:
        raise DataError(f"{where} is damaged (checksum)", remedy="take the log as it was written")
    return data


def _zstandard(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    import pyarrow as pa

    if info.flag_bits & 0x1:
        raise RuntimeError("it is encrypted")
    file: IO[bytes] = archive.fp  # type: ignore[assignment]
    file.seek(info.header_offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile("no local header")
    _, name, extra = _LOCAL.unpack(head)
    file.seek(info.header_offset + _LOCAL.size + name + extra)
    packed = file.read(info.compress_size) if info.compress_size <= MAX_MEMBER else b""
    if len(packed) < info.compress_size:
        raise EOFError("it ends early or is too large")
    return pa.CompressedInputStream(pa.BufferReader(packed), "zstd")
