"""What a fuse did to the weights, tensor by tensor: how much of each change was kept, and how far the result is.

For one tensor, with δ_i = θ_i − θ₀ and δ̃ = θ̃ − θ₀ of the fused θ̃, all that is shown follows from the Gram matrix of
(δ̃, δ_1 … δ_N) and from ‖θ₀‖²; sums of these over tensors are those of the tensors laid end to end, so that layers,
module kinds and the whole model are exact too:

    share_i   = ‖δ̃‖ / ‖δ_i‖                      how much of candidate i's change is left, by length
    cosine_i  = ⟨δ̃, δ_i⟩ / (‖δ̃‖ ‖δ_i‖)           whether what is left points the way that candidate i went
    between   = ⟨δ_i, δ_j⟩ / (‖δ_i‖ ‖δ_j‖)         whether two candidates went the same way
    distance  = ‖δ̃‖ / ‖θ₀‖                       how far the result is from the reference
    rounded   = ⟨round(θ̃) − θ₀, δ̃⟩ / ‖δ̃‖²       how much of δ̃ the stored numbers still hold

Tensors that neither a candidate nor the fuse changed are counted and left out, of ‖θ₀‖ too. All but `rounded` is
measured before θ̃ is rounded to the output's dtype: what moves a weight by less than half a step of it rounds back to
θ₀, and bfloat16 has steps of 0.4 to 0.8%, more than a short fine-tune moves most weights. A share near 0 says that the
fine-tuning was undone: the result is all but the reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.results import Diagnostics, Measured

UNDONE = 0.05
"""Shares of a candidate's change below this are told as "all but undone"."""

HELD = 0.95
"""Less of the change than this in the stored numbers is told."""

_CHUNK = 2**17
_OUTSIDE = "outside"
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_PART = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Line:
    """One tensor's sums; `gram[a][b]` of rows a, b of (δ̃, δ_1 … δ_N), row by row from the diagonal on.

    `stored` is ⟨round(θ̃) − θ₀, δ̃⟩, None where it was not measured.
    """

    name: str
    values: int
    reference: float
    gram: tuple[float, ...]
    stored: float | None = None

    def text(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def measure(tensors: Tensors, fused: Tensor, dtype: torch.dtype | None = None) -> Line:
    """The sums of one tensor, in float32 by chunks that stay in the processor's cache, added up in float64.

    Args:
        tensors: the inputs of the method.
        fused: what came out of it, as float32 or as it was stored.
        dtype: what it is to be stored in, where rounding is to be measured.
    """
    flat = [t.reshape(-1) for t in (tensors.reference, fused, *tensors.candidates)]
    size, device = flat[0].numel(), flat[0].device
    pairs = [(i, j) for i in range(len(flat) - 1) for j in range(i, len(flat) - 1)]
    room = torch.empty(len(flat) - 1, min(_CHUNK, size), device=device)
    reference, stored, gram = 0.0, 0.0, [0.0] * len(pairs)
    for start in range(0, size, _CHUNK):
        before, *after = (t[start : start + _CHUNK] for t in flat)
        changes = [torch.sub(t, before, out=space[: t.numel()]) for t, space in zip(after, room, strict=True)]
        dots = [torch.dot(before, before), *(torch.dot(changes[i], changes[j]) for i, j in pairs)]
        if dtype is not None:
            dots.append(torch.dot(after[0].to(dtype).float() - before, changes[0]))
        found = [float(d) for d in dots] if device.type == "cpu" else torch.stack(dots).tolist()
        reference += found[0]
        gram = [total + one for total, one in zip(gram, found[1 : 1 + len(pairs)], strict=True)]
        stored += found[-1]
    return Line(tensors.name, size, reference, tuple(gram), None if dtype is None else stored)


def joined(pieces: Sequence[Line]) -> Line:
    """The line of a tensor that was measured in pieces."""
    gram = tuple(map(sum, zip(*(p.gram for p in pieces), strict=True)))
    stored = _sum([p.stored for p in pieces])
    return Line(pieces[0].name, sum(p.values for p in pieces), sum(p.reference for p in pieces), gram, stored)


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(v for v in values if v is not None)


def layer_of(name: str) -> str:
    """`model.layers.7.mlp.up_proj.weight` → `model.layers.7`; a tensor outside the blocks is `outside`."""
    found = _NUMBER.search(name)
    return name[: found.end() - 1] if found else _OUTSIDE


def kind_of(name: str) -> str:
    """`model.layers.7.mlp.up_proj.weight` → `up_proj`: what a tensor is, whichever layer it is in."""
    parts = [p for p in name.split(".") if p not in _PART]
    return parts[-1] if parts else name


def summarised(lines: Iterable[Line], candidates: int, tensors: int | None = None) -> Diagnostics:
    """Lines added up: the whole model, each layer, each kind of module, and each tensor that changed.

    Args:
        lines: of tensors, each once.
        candidates: how many there are.
        tensors: how many there are in all, where lines of some that did not change are not given.
    """
    every = list(lines)
    lines = sorted((line for line in every if any(line.gram)), key=lambda line: line.name)
    return Diagnostics(
        whole=_measured("whole", lines, candidates),
        layers=_grouped(lines, candidates, layer_of),
        kinds=_grouped(lines, candidates, kind_of),
        tensors=[_measured(line.name, [line], candidates) for line in lines],
        unchanged=(len(every) if tensors is None else tensors) - len(lines),
    )


def _grouped(lines: list[Line], candidates: int, key: Callable[[str], str]) -> list[Measured]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line.name), []).append(line)
    return [_measured(name, groups[name], candidates) for name in sorted(groups, key=_natural)]


def _natural(name: str) -> tuple[bool, list[str]]:
    """layers.2 before layers.10, and what is outside the blocks last."""
    return name == _OUTSIDE, [p.zfill(9) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def _measured(name: str, lines: list[Line], candidates: int) -> Measured:
    rows = candidates + 1
    sums = [sum(values) for values in zip(*(line.gram for line in lines), strict=True)] or [0.0] * (
        rows * (rows + 1) // 2
    )
    gram = dict(zip(((i, j) for i in range(rows) for j in range(i, rows)), sums, strict=True))
    norm = [max(0.0, gram[i, i]) ** 0.5 for i in range(rows)]
    reference = sum(line.reference for line in lines) ** 0.5
    stored = _sum([line.stored for line in lines if line.gram[0]])

    def cosine(i: int, j: int) -> float | None:
        length = norm[i] * norm[j]
        return max(-1.0, min(1.0, gram[i, j] / length)) if length > 0 else None

    ours = range(1, rows)
    return Measured(
        name=name,
        values=sum(line.values for line in lines),
        reference=reference,
        change=norm[0],
        changes=norm[1:],
        shares=[norm[0] / norm[i] if norm[i] > 0 else None for i in ours],
        cosines=[cosine(0, i) for i in ours],
        between=[cosine(i, j) for i, j in combinations(ours, 2)],
        distance=norm[0] / reference if reference > 0 else None,
        rounded=stored / gram[0, 0] if stored is not None and gram[0, 0] > 0 else None,
    )


class Journal:
    """The lines of a run as they are made, in a file: a run that goes on after a kill has those of its finished shards.

    A tensor may be there twice, where it was begun again: the last line counts. A line cut short is left out.
    It is an observer of the stream (see pieces.py). `dtypes` are what tensors are stored in.
    """

    def __init__(self, path: Path, dtypes: Mapping[str, torch.dtype] = MappingProxyType({})) -> None:
        self.path, self.dtypes = path, dtypes
        self.lines: dict[str, Line] = {}
        self._start = ""
        self.read()

    def read(self) -> None:
        """Take up what is in the file; worker processes write to it too."""
        path = self.path
        text = path.read_text("utf-8", "replace") if path.is_file() else ""
        for line in map(_read, text.splitlines()):
            if line is not None:
                self.lines[line.name] = line
        self._start = "\n" if text and not text.endswith("\n") else ""

    def piece(self, tensors: Tensors, fused: Tensor) -> Line:
        """Measure some rows of a tensor."""
        return measure(tensors, fused, self.dtypes.get(tensors.name))

    def tensor(self, name: str, pieces: list[Line]) -> None:
        """All rows of a tensor have been measured."""
        self.add(joined(pieces))

    def add(self, line: Line) -> None:
        """Keep a line, and hand it to the system before anything that says that its tensor is done."""
        self.lines[line.name] = line
        with self.path.open("a", encoding="utf-8") as out:
            out.write(self._start + line.text())
        self._start = ""


def _read(text: str) -> Line | None:
    try:
        value = json.loads(text)
        return Line(**value | {"gram": tuple(value["gram"])})
    except (ValueError, KeyError, TypeError):
        return None
