"""What a study leaves beside run.json: arrays as NPZ, one row a head as CSV, everything as JSON, and reading them back.

heads.npz    (layers, heads) arrays named model.mode.set.measure (model `model`, or `against1`, …), NaN where a head was
             not swept; with `.estimates` what screening said; `.by_prompt` is (n, layers, heads)
heads.csv    a row a model, mode, set and head
heads.json   the results and the arrays, null for NaN
heads.jsonl  the ranking as the released code of arXiv:2410.13708 writes it, of the first mode on unsafe items
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from guardkeel.errors import DataError
from guardkeel.heads.official import write_official
from guardkeel.heads.results import HeadsResults
from guardkeel.records import RunRecord, atomic_writer, read_record, write_json, write_text

if TYPE_CHECKING:  # a page is made without torch
    from guardkeel.heads.sahara import Measure
    from guardkeel.heads.summary import Rankings

VERB = "heads"
Arrays = dict[str, np.ndarray[Any, Any]]
COLUMNS = ("model", "mode", "set", "layer", "head", "exact", "rank", "kl", "dataset", "verdict", "estimate")


def arrays(models: Mapping[str, Rankings]) -> Arrays:
    """All arrays of heads.npz, by name. `models` are rankings by key: model, against1, …"""
    found: Arrays = {}
    for key, rankings in models.items():
        for (mode, of), ranking in rankings.items():
            at = f"{key}.{mode}.{of}"
            for measure in ranking.measures:
                found[f"{at}.{measure}"] = ranking.values(measure)
            if ranking.estimates is not None:
                found[f"{at}.estimates"] = ranking.estimates
            if ranking.sweep.kl is not None:
                found[f"{at}.by_prompt"] = ranking.sweep.kl.astype(np.float32)
            found[f"{at}.ids"] = np.array(ranking.sweep.ids)
    return found


def write_outputs(
    folder: Path, models: Mapping[str, Rankings], names: Mapping[str, str], results: HeadsResults
) -> None:
    """Write the files of this module; `names` are of the models, by key."""
    held = arrays(models)
    with atomic_writer(folder / "heads.npz") as out:
        np.savez_compressed(out, **held)  # type: ignore[arg-type]
    write_text(folder / "heads.csv", table(models, names, results.measure))
    plain = {
        name: _plain(values) for name, values in held.items() if not name.endswith((".by_prompt", ".ids"))
    }
    write_json(folder / "heads.json", {"results": results.model_dump(mode="json"), "arrays": plain})
    first = models["model"][results.modes[0], "unsafe"]
    write_official(folder / "heads.jsonl", [first.values(results.measure)])  # type: ignore[arg-type]


def table(models: Mapping[str, Rankings], names: Mapping[str, str], measure: str) -> str:
    """heads.csv."""
    from guardkeel.heads.overlap import ranks

    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for key, rankings in models.items():
        for (mode, of), ranking in rankings.items():
            values = {m: ranking.values(m) for m in ranking.measures}
            order = ranks(values[measure]) if measure in values else np.zeros(ranking.exact.shape, int)
            for layer, head in np.ndindex(*ranking.exact.shape):
                said = [_number(values.get(m), layer, head) for m in ("kl", "dataset", "verdict")]
                rows.writerow(
                    [
                        *(names[key], mode, of, layer, head),
                        *(int(ranking.exact[layer, head]), int(order[layer, head]) or ""),
                        *said,
                        _number(ranking.estimates, layer, head),
                    ]
                )
    return out.getvalue()


def read_heads(folder: str | Path) -> tuple[RunRecord, HeadsResults, Arrays]:
    """Record, results and arrays of a finished study.

    Raises:
        DataError: the run is unfinished, another verb's, or damaged.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record.verb != VERB:
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not of heads", remedy="give the run directory of heads"
        )
    try:
        results = HeadsResults.model_validate(record.results)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{folder}/run.json: results.{where}: {first['msg']}", remedy="run it again") from e
    path = folder / "heads.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
            return record, results, {name: held[name] for name in held.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: cannot be read", remedy="run it again") from e


def of_model(
    held: Arrays, key: str, measure: Measure | str
) -> Iterator[tuple[str, str, np.ndarray[Any, Any]]]:
    """(mode, set, array) of one measure of one model."""
    for name, values in held.items():
        model, _, rest = name.partition(".")
        mode, _, of = rest.partition(".")
        if model == key and of.partition(".")[2] == measure:
            yield mode, of.partition(".")[0], values


def _plain(values: np.ndarray[Any, Any]) -> Any:
    return [[None if not np.isfinite(v) else float(f"{v:.6g}") for v in row] for row in values]


def _number(values: np.ndarray[Any, Any] | None, layer: int, head: int) -> str:
    return "" if values is None or not np.isfinite(values[layer, head]) else f"{values[layer, head]:.6g}"
