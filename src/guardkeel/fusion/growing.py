"""A safetensors file that is written tensor by tensor, though its header comes first: shapes are known before data."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.models.headers import read_header
from guardkeel.records import value_digest, write_json

_METADATA = "__metadata__"


class Growing:
    """A file of float32 tensors; they are added in the order of `shapes`, some at a time.

    It has another name until it is whole. A note beside it says how many tensors are safely in it, so that a killed run
    that asks for the same file goes on after them.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._names = path, list(shapes)
        self._part, self._note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.json")
        header: dict[str, Any] = {_METADATA: dict(metadata)}
        end = 0
        self._ends = [0]
        for name, shape in shapes.items():
            size = 4 * torch.Size(shape).numel()
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
            self._ends.append(end)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._digest = value_digest(header)
        self._count = self._resumed()
        if not self._count:
            self._part.write_bytes(self._head)

    @property
    def held(self) -> frozenset[str]:
        """The tensors that are in it."""
        return frozenset(self._names[: self._count])

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next tensors, in the order of the header, and note that they are there."""
        with self._part.open("r+b") as out:
            out.seek(len(self._head) + self._ends[self._count])
            for name in self._names[self._count : self._count + len(tensors)]:
                out.write(tensors[name].contiguous().numpy().tobytes())
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
        self._count += len(tensors)
        write_json(self._note, {"digest": self._digest, "count": self._count})

    def finish(self) -> None:
        """Give the file its name."""
        self._part.replace(self.path)
        self._note.unlink(missing_ok=True)

    def _resumed(self) -> int:
        try:
            note = json.loads(self._note.read_bytes())
            count = int(note["count"]) if note["digest"] == self._digest else 0
            whole = self._part.stat().st_size >= len(self._head) + self._ends[count]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return 0
        return count if whole else 0


def metadata(path: Path) -> dict[str, str]:
    """A safetensors file's metadata, empty where it has none; ModelError for what is no such file."""
    read_header(path)
    with path.open("rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    found: dict[str, str] = header.get(_METADATA) or {}
    return found
