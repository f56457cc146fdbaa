"""Finished shards on disk, so that a sweep that was killed goes on where it stopped.

One .npz a shard, written atomically and named after the digest of everything that its numbers follow from; its own
arrays' sha256 is in it. A file that is damaged, or another sweep's, is as if it were not there.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guardkeel.records import atomic_writer, value_digest

Arrays = dict[str, np.ndarray[Any, Any]]


def fingerprint(model: Any) -> str:
    """A digest of a loaded model's weights: names, shapes, formats, sums and squares. Adapters are part of it."""
    facts = []
    for name, weight in sorted(model.named_parameters()):
        w = weight.detach().flatten()
        parts = [(float(p.double().sum()), float((p.double() ** 2).sum())) for p in w.split(1 << 22)]
        facts.append([name, list(weight.shape), str(weight.dtype), parts])
    return value_digest([facts, _adapters(model)])


def _adapters(model: Any) -> list[list[str]]:
    """Settings of LoRA layers that no weight shows: what is active, switched off, merged or scaled."""
    shown = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    return [
        [name, *(str(getattr(module, setting, "")) for setting in shown)]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    ]


class Shards:
    """Shard files in a folder; with folder None nothing is kept.

    Args:
        folder: made where it is not there.
        facts: what all shards' numbers follow from, as JSON values; each call adds what its own do.
    """

    def __init__(self, folder: str | Path | None, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder) if folder is not None else None
        self._facts = dict(facts)

    def read(self, own: Any) -> Arrays | None:
        """A finished shard, or None."""
        path = self._path(own)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        said = arrays.pop("sha256", None)
        return arrays if said is not None and str(said) == _sum(arrays) else None

    def write(self, own: Any, arrays: Arrays) -> None:
        """Keep a finished shard."""
        path = self._path(own)
        if path is not None:
            with atomic_writer(path) as out:
                np.savez(out, sha256=np.array(_sum(arrays)), **arrays)  # type: ignore[arg-type]

    def _path(self, own: Any) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"shard-{value_digest([self._facts, own])[:32]}.npz"


def _sum(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {a.dtype} {a.shape} ".encode())
        found.update(a.tobytes())
    return found.hexdigest()
