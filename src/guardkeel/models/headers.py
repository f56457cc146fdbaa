"""The header of a safetensors file, read without trusting it, and a fast look for NaN and Inf.

Layout: 8 bytes little-endian header length n, n bytes of JSON (name → dtype, shape, data_offsets), data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError, UnsafeFileError
from guardkeel.resources import remembered

MAX_HEADER_BYTES = 100_000_000
FETCH_AGAIN = "fetch or write the file again"

_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# Floats by their bits: with the sign dropped, everything from this value up is Inf or NaN.
_NOT_FINITE = {
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
    "F8_E5M2": ("u1", 0x7F, 0x7C),
}
_CHUNK = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor is: dtype as safetensors names it, shape, byte range [start, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, after checking that header and file agree.

    Raises:
        UnsafeFileError: the file is a pickle or a zip archive (torch.save) under another name.
        ModelError: it is missing, cut short, or its header is corrupt.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", remedy="check the path, or fetch the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(8)
        refuse_pickle(path, start)
        if start.startswith(b"version "):
            raise ModelError(
                f"{path}: a Git LFS pointer, not the weights", remedy="run `git lfs pull` in its repository"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{path}: the safetensors header is cut short or corrupt", remedy=FETCH_AGAIN)
        try:
            header = json.loads(f.read(length))
            entries = {k: _entry(path, k, v, 8 + length) for k, v in header.items() if k != "__metadata__"}
        except (ValueError, AttributeError, RecursionError) as e:
            raise ModelError(
                f"{path}: the safetensors header is not valid JSON ({e})", remedy=FETCH_AGAIN
            ) from e
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda kv: (kv[1].start, kv[1].end)):
        if entry.start != end:
            raise ModelError(
                f"{path}: tensor {name!r} does not begin where the one before it ends", remedy=FETCH_AGAIN
            )
        end = entry.end
    if end != size:
        raise ModelError(
            f"{path}: the file has {size:,} bytes and its header describes {end:,}: it is "
            f"{'cut short' if end > size else 'too long'}",
            remedy=FETCH_AGAIN,
        )
    return entries


def refuse_pickle(path: Path, start: bytes) -> None:
    """Refuse bytes that begin like a pickle or like a zip archive, which torch.save writes."""
    pickle = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[2:8] != b"\0" * 6
    if pickle or start.startswith(b"PK\x03\x04"):
        kind = "a pickle" if pickle else "a zip archive, as torch.save writes"
        raise UnsafeFileError(
            f"{path}: {kind} under a safetensors name; it can run code when read",
            remedy="do not load it; write the checkpoint with save_pretrained(safe_serialization=True)",
        )


def _entry(path: Path, name: str, value: Any, data: int) -> TensorEntry:
    problem = f"{path}: the header's entry for tensor {name!r} is corrupt"
    try:
        dtype, shape = value["dtype"], tuple(value["shape"])
        start, end = value["data_offsets"]
        whole = [*shape, start, end]
    except (TypeError, KeyError, ValueError) as e:
        raise ModelError(problem, remedy=FETCH_AGAIN) from e
    if not all(isinstance(n, int) and n >= 0 for n in whole) or dtype not in _BYTES:
        raise ModelError(f"{problem} (dtype {dtype!r}, shape {shape})", remedy=FETCH_AGAIN)
    if end - start != math.prod(shape) * _BYTES[dtype]:
        raise ModelError(f"{problem}: {dtype} of shape {shape} in {end - start:,} bytes", remedy=FETCH_AGAIN)
    return TensorEntry(dtype, shape, data + start, data + end)


def check_finite(path: Path, tick: Callable[[int], None] | None = None) -> None:
    """Refuse NaN and Inf weights. A large file that passed is not read again until it changes.

    Args:
        path: a safetensors file.
        tick: called with the bytes read, as they are read.

    Raises:
        ModelError: naming the first such tensor, in file order, and how many values it has.
    """
    found = remembered(path, "finite", lambda p: _first_not_finite(p, tick))
    if found:
        raise ModelError(
            f"{path}: {found}",
            remedy="the training that wrote it diverged or the file is damaged; take an earlier checkpoint",
        )


def _first_not_finite(path: Path, tick: Callable[[int], None] | None) -> str:
    import numpy as np

    entries = read_header(path)
    with path.open("rb") as f:
        for name, entry in sorted(entries.items(), key=lambda kv: kv[1].start):
            if entry.dtype not in _NOT_FINITE:
                continue
            kind, unsigned, first = _NOT_FINITE[entry.dtype]
            f.seek(entry.start)
            left, bad = entry.end - entry.start, 0
            while left:
                raw = f.read(min(_CHUNK, left))
                left -= len(raw)
                bits = np.frombuffer(raw, dtype=kind) & np.array(unsigned, dtype=kind)
                if bits.max() >= first:
                    bad += int((bits >= first).sum())
                if tick:
                    tick(len(raw))
            if bad:
                return f"tensor {name!r} has {bad:,} NaN or infinite values of {math.prod(entry.shape):,}"
    return ""
