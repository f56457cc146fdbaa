"""Tensors read out of safetensors files piece by piece: `pread` into the caller's memory, nothing mapped or kept.

A mapped file would count in the process's memory and end it with SIGBUS where the file is cut short under it; a read
is an error with a name. Values are checked for NaN and Inf while they are still in the processor's cache.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.models.headers import FETCH_AGAIN, TensorEntry, read_header

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
"""What is fused; all other dtypes are copied or refused (see preflight)."""
_STORED = FLOATS | {
    "F64": torch.float64, "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
_CHUNK = 2**19  # bytes read at once: with the values made of them they stay in a core's cache
_DAMAGED = "the training that wrote it diverged or the file is damaged; take an earlier checkpoint"


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor's dtype, as safetensors names it, and shape; rows are what it is cut into."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Values in a row: the last dimension; 1 in a vector."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def rows(self) -> int:
        """All dimensions but the last, laid end to end; a vector's values."""
        return math.prod(self.shape[:-1] if len(self.shape) > 1 else self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return 1 if self.dtype == "BOOL" else int(re.findall(r"\d+", self.dtype)[0]) // 8

    @property
    def bytes(self) -> int:
        """Bytes of the tensor as stored."""
        return self.values * self.itemsize

    @property
    def floating(self) -> bool:
        """Whether it is fused."""
        return self.dtype in FLOATS


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, to read from or to write to."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


class TensorFiles:
    """The tensors of some safetensors files, by name. Safe to read from several threads."""

    def __init__(self, tensors: Mapping[str, tuple[Path, TensorEntry]]) -> None:
        self.tensors = dict(tensors)
        self.specs = {name: Spec(entry.dtype, entry.shape) for name, (_, entry) in self.tensors.items()}
        self._opened: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._scratch = threading.local()

    @classmethod
    def of(cls, path: Path) -> TensorFiles:
        """The tensors of one file.

        Raises:
            UnsafeFileError: it is a pickle.
            ModelError: it is missing, cut short or damaged.
        """
        return cls({name: (path, entry) for name, entry in read_header(path).items()})

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which opens the files for itself."""
        return TensorFiles, (self.tensors,)

    @property
    def files(self) -> list[Path]:
        """The files, sorted."""
        return sorted({file for file, _ in self.tensors.values()})

    def bytes_of(self, name: str) -> int:
        """How many bytes it takes in its file."""
        _, entry = self.tensors[name]
        return entry.end - entry.start

    def raw(self, name: str) -> Iterator[memoryview]:
        """The stored bytes, chunk by chunk; each chunk is gone when the next one is taken."""
        left, at = self.bytes_of(name), 0
        while left > at:
            size = min(_CHUNK, left - at)
            chunk = memory(self._space()[:size])
            self._pread(name, at, chunk)
            yield chunk
            at += size

    def fill(self, name: str, row: int, out: Tensor) -> None:
        """Rows from `row` on as float32, as many values as the contiguous float32 tensor `out` holds.

        Raises:
            ModelError: they are not all finite, naming file, tensor and how many are not; or the file is cut short.
        """
        spec = self.specs[name]
        flat, dtype = out.view(-1), _STORED[spec.dtype]
        start, step = row * spec.width * dtype.itemsize, _CHUNK // dtype.itemsize
        for at in range(0, flat.numel(), step):
            part = flat[at : at + step]
            where = start + at * dtype.itemsize
            if dtype == torch.float32:
                self._pread(name, where, memory(part))
            else:
                raw = self._space()[: part.numel() * dtype.itemsize]
                self._pread(name, where, memory(raw))
                part.copy_(raw.view(dtype))
            # A sum is NaN or Inf where a value is. A sum that only overflowed is found out by counting.
            if not math.isfinite(part.sum().item()):
                self._refuse_not_finite(name)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """The whole tensor, as stored; or some of its rows, (rows, width), of a vector its values."""
        spec = self.specs[name]
        if spec.dtype not in _STORED:
            raise ModelError(
                f"{self.tensors[name][0]}: tensor {name!r} is stored as {spec.dtype}",
                remedy=f"save it as one of {', '.join(_STORED)}",
            )
        shape = spec.shape
        if last is not None:
            shape = (last - first, spec.width) if len(shape) > 1 else (last - first,)
        out = torch.empty(shape, dtype=_STORED[spec.dtype])
        self._pread(name, first * spec.width * spec.itemsize, memory(out))
        return out

    def prefetch(self, name: str) -> None:
        """Ask the system to read ahead what will be wanted soon."""
        if hasattr(os, "posix_fadvise"):
            file, entry = self.tensors[name]
            with contextlib.suppress(OSError):
                os.posix_fadvise(
                    self._file(file), entry.start, entry.end - entry.start, os.POSIX_FADV_WILLNEED
                )

    def close(self) -> None:
        """Close the files; reading opens them again."""
        with self._lock:
            while self._opened:
                os.close(self._opened.popitem()[1])

    def _refuse_not_finite(self, name: str) -> None:
        dtype, bad = _STORED[self.specs[name].dtype], 0
        for chunk in self.raw(name):
            bad += int((~torch.frombuffer(chunk, dtype=dtype).isfinite()).sum())
        if bad:
            raise ModelError(
                f"{self.tensors[name][0]}: tensor {name!r} has {bad:,} NaN or infinite values "
                f"of {self.specs[name].values:,}",
                remedy=_DAMAGED,
            )

    def _pread(self, name: str, at: int, out: memoryview) -> None:
        file, entry = self.tensors[name]
        handle, position, done = self._file(file), entry.start + at, 0
        while done < len(out):
            try:
                got = os.preadv(handle, [out[done:]], position + done)
            except OSError as e:
                raise ModelError(f"{file}: cannot be read ({e.strerror})", remedy=FETCH_AGAIN) from e
            if not got:
                raise ModelError(f"{file}: cut short in tensor {name!r}", remedy=FETCH_AGAIN)
            done += got

    def _file(self, path: Path) -> int:
        with self._lock:
            if path not in self._opened:
                self._opened[path] = os.open(path, os.O_RDONLY)
            return self._opened[path]

    def _space(self) -> Tensor:
        if not hasattr(self._scratch, "bytes"):
            self._scratch.bytes = torch.empty(_CHUNK, dtype=torch.uint8)
        found: Tensor = self._scratch.bytes
        return found
