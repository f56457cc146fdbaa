"""Points as weights: the sources, opened once and held in memory where they fit, and the loaded model they go into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from guardkeel.evaluation.audit import Watch
from guardkeel.fusion.diagnostics import Line, measure, summarised
from guardkeel.fusion.methods.base import Method, Tensors
from guardkeel.fusion.preflight import preflight
from guardkeel.fusion.results import Diagnostics
from guardkeel.fusion.sources import Source, Sources, open_source
from guardkeel.fusion.stream import fused
from guardkeel.fusion.sweep.candidates import Candidate
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.grid import Asked, knows_unaligned
from guardkeel.fusion.sweep.weights import Weights
from guardkeel.fusion.sweep.writing import write
from guardkeel.fusion.tensorfile import FLOATS, TensorFiles
from guardkeel.guards.load import guard_settings
from guardkeel.models.adapters import is_adapter
from guardkeel.models.base import base_model_path
from guardkeel.models.devices import free_memory

_SHARE = 0.5  # of free memory that tensors may be held in


class Held(Source):
    """A source whose tensors are read once and then held, in the dtype that they are read in.

    What an adapter does not change is not held twice: it is the reference's.
    """

    def __init__(self, source: Source, reference: Source | None = None) -> None:
        self.__dict__.update(source.__dict__)
        self._source = source
        same = reference is not None and source.changed is not None
        self._below = (
            reference if same and reference and source.base_digest == reference.base_digest else None
        )
        self._tensors: dict[str, Tensor] = {}
        self._same: dict[tuple[int, str], bool] = {}

    @property
    def bytes(self) -> int:
        """What it comes to hold."""
        return sum(spec.bytes for name, spec in self.specs.items() if not self._shared(name))

    def read(self, name: str) -> Tensor:
        """See Source; the tensor is not the caller's to change."""
        if self._shared(name) and self._below is not None:
            return self._below.read(name)
        if name not in self._tensors:
            self._tensors[name] = self._source.read(name)
        return self._tensors[name]

    def same_bytes(self, other: Source, name: str) -> bool:
        """See Source; looked at once."""
        key = (id(other), name)
        if key not in self._same:
            self._same[key] = super().same_bytes(other, name)
        return self._same[key]

    def fill(self, name: str, row: int, out: Tensor) -> None:
        """See Source."""
        whole = self.read(name)
        rows = whole.reshape(-1, whole.shape[-1]) if whole.ndim > 1 else whole
        out.copy_(rows[row : row + len(out)])

    def _shared(self, name: str) -> bool:
        return self._below is not None and self.changed is not None and name not in self.changed


class Engine:
    """Makes the points of a sweep."""

    def __init__(
        self,
        config: SweepConfig,
        path: Path,
        candidates: Sequence[Candidate],
        watch: Watch,
        *,
        unaligned: bool = True,
    ) -> None:
        """Open and check the sources; `unaligned` is whether any point needs the model before the reference."""
        self.sources = opened(config, path, candidates, watch, unaligned=unaligned)
        preflight(self.sources)
        self.candidates = candidates
        if keeps(config, held_bytes(self.sources)):
            self.sources = _held(self.sources)
        reference = self.sources.reference
        wide = getattr(torch, config.write_dtype) if config.write_dtype else None
        self.stored = {
            name: wide or FLOATS[reference.stored[name]]
            for name, spec in reference.specs.items()
            if spec.floating
        }
        self._files: dict[str, TensorFiles] = {}
        self._norms: dict[str, Line] = {}

    def into(self, weights: Weights, asked: Asked) -> Diagnostics | None:
        """Put a point's weights into the model; what it changed, None for the reference.

        Raises:
            GuardkeelError: the method cannot fuse these, or a value is not finite.
        """
        if asked.control == "reference":
            weights.restore()
            return None
        lines: dict[str, Line] = {}
        weights.put(self._made(asked, lines))
        for name in self.stored:
            if name not in lines:
                lines[name] = self._still(name)
        found = summarised(lines.values(), len(self.candidates))
        return found.model_copy(update={"tensors": []})

    def shipped(self, asked: Asked) -> dict[str, Any]:
        """The operating point that a candidate has of its own, as arguments of Scorer.ask; empty where it has none."""
        if asked.candidate is None:
            return {}
        path = self.candidates[asked.candidate].path
        said = guard_settings(path, path)
        if not is_adapter(
            path
        ):  # what it does not say is not the reference's, but what every guard begins with
            return {
                "threshold": 0.5 if said.threshold is None else said.threshold,
                "offsets": said.offsets or {},
            }
        own = {"threshold": said.threshold, "offsets": said.offsets}
        return {key: value for key, value in own.items() if value is not None}

    def _made(self, asked: Asked, lines: dict[str, Line]) -> Iterator[tuple[str, Tensor]]:
        """The point's tensors in float32; leaves out those that are the reference's."""
        made: Iterator[tuple[str, Tensor]]
        if asked.candidate is None:
            method = asked.build()
            sources = self._with(asked, method)
            preflight(sources, method)
            made = fused(sources, method, self._names(method, sources), asked.seed or 0)
        else:
            candidate = self.sources.candidates[asked.candidate]
            names = [n for n in self.stored if candidate.changed is None or n in candidate.changed]
            made = ((n, candidate.read(n).float()) for n in names)
        for name, tensor in made:
            lines[name] = measure(self._tensors(name), tensor, self.stored[name])
            yield name, tensor

    def _names(self, method: Method, sources: Sources) -> list[str]:
        """Tensors that can come out other than the reference's.

        Where no candidate differs from the reference, a method changes a tensor only by what it knows beside them.
        """
        changed = [c.changed for c in sources.candidates]
        if method.needs_unaligned or any(c is None for c in changed):
            return list(self.stored)
        more = {n for files in sources.extras.values() for n in files.specs}
        return [n for n in self.stored if n in more or any(n in (c or ()) for c in changed)]

    def write(
        self, asked: Asked, out: Path, settings: Mapping[str, Any], config: SweepConfig, watch: Watch
    ) -> None:
        """Write a fused point to a folder that is not there yet; see writing.write."""
        method = asked.build()
        write(
            self._with(asked, method),
            method,
            out,
            seed=asked.seed or 0,
            settings=settings,
            adapter=config.adapter,
            dtype=config.write_dtype,
            reference=config.reference,
            progress=watch,
        )

    def _tensors(self, name: str) -> Tensors:
        s = self.sources
        return Tensors(
            name, s.reference.read(name).float(), tuple(c.read(name).float() for c in s.candidates)
        )

    def _still(self, name: str) -> Line:
        """The line of a tensor that was left as it is, but for what candidates did to it."""
        if name not in self._norms:
            tensors = self._tensors(name)
            self._norms[name] = measure(tensors, tensors.reference, self.stored[name])
        return self._norms[name]

    def _with(self, asked: Asked, method: Method) -> Sources:
        for file in asked.extras.values():
            if file not in self._files:
                self._files[file] = TensorFiles.of(Path(file))
        extras = {name: self._files[file] for name, file in asked.extras.items()}
        s = self.sources
        return Sources(s.reference, s.candidates, s.unaligned if method.needs_unaligned else None, extras)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sources.close()
        for file in self._files.values():
            file.close()


def opened(
    config: SweepConfig, path: Path, candidates: Sequence[Candidate], watch: Watch, *, unaligned: bool = True
) -> Sources:
    """The models of a sweep; their headers are read."""
    options: Mapping[str, Any] = {"progress": watch, "offline": config.offline}
    before = None
    if unaligned and config.unaligned is not None:
        before = open_source(config.unaligned, **options)
    elif unaligned and knows_unaligned(config):
        before = open_source(base_model_path(watch, config.offline), **options)
    return Sources(
        open_source(path, **options), tuple(open_source(c.path, **options) for c in candidates), before
    )


def check_models(
    config: SweepConfig, path: Path, candidates: Sequence[Candidate], watch: Watch, *, unaligned: bool
) -> tuple[int, dict[str, str]]:
    """Whether these models can be fused, told from their headers.

    Returns:
        The bytes that holding all their tensors takes, and their digests by what they are.

    Raises:
        ModelError: naming what does not go together.
    """
    sources = opened(config, path, candidates, watch, unaligned=unaligned)
    try:
        preflight(sources)
        digests = {"guard reference": sources.reference.digest}
        digests |= {f"guard {c.name}": s.digest for c, s in zip(candidates, sources.candidates, strict=True)}
        if sources.unaligned is not None:
            digests["unaligned"] = sources.unaligned.digest
        return held_bytes(sources), digests
    finally:
        sources.close()


def _held(sources: Sources) -> Sources:
    reference = Held(sources.reference)
    others = [None if s is None else Held(s, reference) for s in (*sources.candidates, sources.unaligned)]
    return Sources(reference, tuple(s for s in others[:-1] if s is not None), others[-1])


def held_bytes(sources: Sources) -> int:
    """What holding all models' tensors takes."""
    held = _held(sources)
    return sum(s.bytes for s in held.models if isinstance(s, Held))


def keeps(config: SweepConfig, needed: int) -> bool:
    """Whether tensors are held between points: as the configuration says, or where they fit."""
    if config.keep == "auto":
        return needed <= _SHARE * free_memory()
    return config.keep == "always"
