"""The files of arXiv:2410.13708's released code: heads named `layer-head`, both counted from 0, and their scores.

    {"0-0": 0.12, "0-1": 0.003, …}                  one line: Sahara's step, degrees of every head left
    {"<prompt>": {"7-3": 0.9, …}, "generation": …}  a line a prompt: Ships, nats of its ten best

Prompts are returned as they stand, and never shown in errors: they are harmful texts mostly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardkeel.errors import DataError
from guardkeel.records import write_text

if TYPE_CHECKING:  # a page is made without torch
    from guardkeel.heads.layout import Head
    from guardkeel.heads.sweep import Floats

_NAME = re.compile(r"(\d{1,5})-(\d{1,5})")
_REMEDY = "give a file of {layer-head: score} lines, as the released code of arXiv:2410.13708 writes them"


@dataclass(frozen=True)
class Scores:
    """One line: scores of some heads; `prompt` is empty where they are not of one prompt."""

    heads: Mapping[Head, float]
    prompt: str = ""

    def array(self, shape: tuple[int, int]) -> Floats:
        """(layers, heads), NaN where the file says nothing; DataError for a head beyond that."""
        found = np.full(shape, np.nan)
        for head, score in self.heads.items():
            if not (head[0] < shape[0] and head[1] < shape[1]):
                raise DataError(
                    f"head {label(head)} is not in a model of {shape[0]} layers and {shape[1]} heads",
                    remedy="give scores of this model",
                )
            found[head] = score
        return found


def read_official(path: str | Path) -> list[Scores]:
    """Every line of a file, in order.

    Raises:
        DataError: naming file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise DataError(f"{path}: cannot be read ({why})", remedy=_REMEDY) from e
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found += _line(f"{path}:{number}", line)
    if not found:
        raise DataError(f"{path}: there are no scores", remedy=_REMEDY)
    return found


def write_official(path: str | Path, rankings: Sequence[Floats]) -> None:
    """Scores (layers, heads) as lines of their own, highest first; NaN is left out."""
    lines = []
    for scores in rankings:
        order = sorted(np.argwhere(np.isfinite(scores)).tolist(), key=lambda h: -scores[tuple(h)])
        lines.append(json.dumps({label((layer, head)): float(scores[layer, head]) for layer, head in order}))
    write_text(path, "\n".join(lines) + "\n")


def label(head: Head) -> str:
    """(7, 3) → '7-3'."""
    return f"{head[0]}-{head[1]}"


def parsed(name: str) -> Head:
    """'7-3' → (7, 3); DataError for anything else."""
    found = _NAME.fullmatch(name.strip())
    if found is None:
        raise DataError(f"{name!r:.40} names no head", remedy="write layer-head, both from 0, as in 7-3")
    return int(found[1]), int(found[2])


def _line(where: str, line: str) -> list[Scores]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not JSON", remedy=_REMEDY) from e
    if not isinstance(row, dict):
        raise DataError(f"{where}: a line must be an object, not {type(row).__name__}", remedy=_REMEDY)
    if row and all(_NAME.fullmatch(key) and not isinstance(value, dict) for key, value in row.items()):
        return [Scores(_scores(where, row))]
    found = [
        Scores(_scores(where, value), prompt)
        for prompt, value in row.items()
        if isinstance(value, dict)  # beside them stand what was generated
    ]
    if not found:
        raise DataError(f"{where}: there are no scores of heads", remedy=_REMEDY)
    return found


def _scores(where: str, row: Mapping[str, Any]) -> dict[Head, float]:
    found = {}
    for key, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise DataError(f"{where}: the score of {key!r:.20} is no number", remedy=_REMEDY)
        try:
            found[parsed(key)] = float(value)
        except DataError as e:
            raise DataError(f"{where}: {e.problem}", remedy=_REMEDY) from e
    return found
