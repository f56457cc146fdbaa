"""The report of a study of heads: one HTML page, made from its run directory alone; it shows no texts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from guardkeel.heads.official import parsed
from guardkeel.heads.outputs import Arrays, of_model, read_heads
from guardkeel.heads.results import HeadsResults
from guardkeel.records import RunRecord, write_text
from guardkeel.report import heads_words as sayings
from guardkeel.report.heads_charts import distribution, heatmap, sizes, standalone
from guardkeel.report.render import asset, environment, source

PAGE, MAP = "report.html", "heatmap.svg"


def write_heads_report(out: str | Path) -> Path:
    """Write out/report.html, whole or not at all, and return its path; DataError where the run is unfinished."""
    out = Path(out)
    write_text(out / PAGE, render(*read_heads(out)))
    return out / PAGE


def write_heatmap(out: str | Path) -> Path:
    """Write out/heatmap.svg: the ranking measure of the first mode on unsafe items."""
    out = Path(out)
    _, results, held = read_heads(out)
    mode = results.modes[0]
    values = next(v for m, of, v in of_model(held, "model", results.measure) if (m, of) == (mode, "unsafe"))
    unit = sayings.UNITS[results.measure]
    title = f"{results.model.name}, {sayings.MEASURES[results.measure]}, mode {mode}"
    write_text(out / MAP, standalone(heatmap("map", title, values, unit, group=_group(results, mode))))
    return out / MAP


def render(record: RunRecord, results: HeadsResults, held: Arrays) -> str:
    """The report as one HTML page."""
    style = "\n".join(
        asset(name) for name in ("report.css", "collapse.css", "leaderboard.css", "fuse.css", "heads.css")
    )
    script = asset("leaderboard.js")
    policy = (
        f"default-src 'none'; style-src '{source(style)}'; script-src '{source(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    found = results.effect
    metrics = sayings.metrics(results)
    charts = {m: sizes(f"size-{m}", found, m, name) for m, name in metrics.items()} if found else {}
    page = (
        environment()
        .get_template("heads.html")
        .render(
            d=record,
            r=results,
            headline=sayings.headline(results),
            say=sayings,
            unit=sayings.UNITS[results.measure],
            metrics=metrics,
            maps=_maps(results, held),
            order=distribution("order", sayings.UNITS[results.measure], _first(results, held)),
            charts={m: c for m, c in charts.items() if c},
            command=shlex.join(record.command),
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy=policy,
        )
    )
    return page + "\n"


def _maps(results: HeadsResults, held: Arrays) -> list[dict[str, Any]]:
    """Heat maps: of the model by mode and measure, of the others by mode; sets side by side on one scale."""
    names = {"model": results.model.name} | {a.key: a.info.name for a in results.against}
    found = []
    for key, name in names.items():
        measures = [results.measure]
        if key == "model":
            measures += [m for m in sayings.MEASURES if m != results.measure]
        for measure in measures:
            by_mode: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
            for mode, of, values in of_model(held, key, measure):
                by_mode.setdefault(mode, {})[of] = values
            for mode, sets in by_mode.items():
                largest = max(
                    (float(np.nanmax(np.abs(v))) for v in sets.values() if np.isfinite(v).any()), default=0.0
                )
                unit = sayings.UNITS[measure]
                found.append(
                    {
                        "model": name,
                        "mode": mode,
                        "measure": measure,
                        "unit": unit,
                        "largest": largest,
                        "first": key == "model" and mode == results.modes[0] and measure == results.measure,
                        "figures": {
                            of: heatmap(
                                f"map-{key}-{mode}-{measure}-{of}",
                                f"{name}, {of}, mode {mode}",
                                values,
                                unit,
                                group=_group(results, mode) if key == "model" else (),
                                largest=largest,
                            )
                            for of, values in sets.items()
                        },
                    }
                )
    return found


def _first(results: HeadsResults, held: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    mode = results.modes[0]
    return {of: values for m, of, values in of_model(held, "model", results.measure) if m == mode}


def _group(results: HeadsResults, mode: str) -> list[tuple[int, int]]:
    found = results.group
    return [parsed(h) for h in found.heads] if found and found.mode == mode else []
