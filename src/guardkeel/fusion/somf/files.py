"""Safetensors files that appear whole or not at all, read without trusting them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from guardkeel.models.headers import read_header

_KEY = "guardkeel"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically (temp, fsync, rename), the same contents as the same bytes.

    Metadata are kept as one JSON text: safetensors writes several in an order of its own.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        held = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
        said = {_KEY: json.dumps(dict(metadata), sort_keys=True)} if metadata else {"format": "pt"}
        save_file(held, temporary, metadata=said)
        with Path(temporary).open("rb") as written:
            os.fsync(written.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata; ModelError where it is missing, cut short or corrupt."""
    from safetensors import safe_open

    read_header(path)
    with safe_open(path, framework="pt") as file:
        said = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
