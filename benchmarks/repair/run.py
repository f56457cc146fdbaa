"""Repairs of damaged guards, method by method: one sweep for each guard that a collapse bench made, one for several.

    GUARDKEEL_DATA=… python benchmarks/repair/run.py --bench runs/collapse --out runs/repair
    GUARDKEEL_DATA=… python benchmarks/repair/run.py --jobs bank,all

The guards are cells of the bench (`--grid` made it): the plain arm on bank messages, agents' trajectories, medical
questions and school mathematics, and one fused from the three of bank, medical and maths. What some methods need
beside weights is made first: Hessians of the reference on guard data, norms of each damaged guard, masks learned for
each. Everything is resumed by repeating the command. Each sweep is an ordinary run directory with its report; the
settings are those of `grid.toml`.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardkeel.fusion.extras import measured
from guardkeel.fusion.somf.run import mask
from guardkeel.fusion.sweep.config import SweepConfig
from guardkeel.fusion.sweep.run import run
from guardkeel.records import read_record
from guardkeel.report.fuse import write_sweep_report
from guardkeel.tuning.collapse.grid import Plan, cells
from guardkeel.tuning.collapse.gridfile import read_grid
from guardkeel.tuning.collapse.material import material
from guardkeel.tuning.gather import Gathered

HERE = Path(__file__).parent
CELL = "{}/plain/base/seed-0"
JOBS = {
    "bank": ["domain-safe"],
    "agents": ["agentic"],
    "medical": ["medical"],
    "maths": ["maths"],
    "all": ["domain-safe", "medical", "maths"],
}
GUARD_DATA = ["keel-anchor"]
MASKS = {
    "row": {"granularity": "row"},
    "row-free": {"granularity": "row", "rescale": "none"},  # the paper's rescaling cannot switch a tensor off
    "tensor": {"granularity": "tensor"},
}
MASK = {"steps": 40, "batch": 4, "learning_rate": 0.1, "measured": 32, "guard_items": 120}


def main(args: argparse.Namespace) -> None:
    """Make what is not there yet, job by job."""
    plans = {plan.name: plan for plan in cells(read_grid(args.grid))}
    settings = tomllib.loads((HERE / "grid.toml").read_text())
    for job in args.jobs.split(","):
        folder, names = args.out / job, JOBS[job]
        if (folder / "sweep" / "run.json").is_file():
            print(f"{job}: done")
            continue
        guards = {name: args.bench / "cells" / CELL.format(name) / "tune" for name in names}
        print(f"{job}: {', '.join(map(str, guards.values()))}", flush=True)
        files = extras(args.out, folder, list(guards.values()))
        config = SweepConfig.model_validate(
            settings
            | {"candidates": [f"{name.replace('-', '_')}={path}" for name, path in guards.items()]}
            | {"extras": {k: v for k, v in files.items() if isinstance(v, str)}}
            | {"point": points(settings["point"], files)}
        )
        rows = {name.replace("-", "_"): gathered(plans[CELL.format(name)]) for name in names}
        run(config, folder / "sweep", rows=rows, watch=told)
        print(write_sweep_report(folder / "sweep"), flush=True)


def gathered(plan: Plan) -> Gathered:
    """The rows that a cell read, those it kept aside among them."""
    return material(plan, plan.config(None), told).gathered


def extras(shared: Path, folder: Path, guards: Sequence[Path]) -> dict[str, Any]:
    """Files of what methods need: one each, of masks one for each granularity. Made once."""
    found: dict[str, Any] = {"mask": []}
    found["safe-hessian"] = str(made("safe-hessian", "keel-135m", shared / "safe-hessian.safetensors"))
    if len(guards) == 1:
        tuned = str(guards[0] / "tuned")
        found["harmful-norms"] = str(made("harmful-norms", tuned, folder / "harmful-norms.safetensors"))
    for name, options in MASKS.items():
        out = folder / f"mask-{name}"
        if not (out / "run.json").is_file():
            mask([str(g / "tuned") for g in guards], out=out, guard_data=GUARD_DATA, **MASK, **options)
        found["mask"].append(out)
    return found


def made(kind: str, guard: str, path: Path) -> Path:
    """An extra that is measured, unless it has been."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        measured(kind, guard, GUARD_DATA, path, most=100, watch=told)
    return path


def points(groups: Sequence[Mapping[str, Any]], files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of the grid; of SOMF one for each mask, with the settings that it was learned for."""
    found: list[dict[str, Any]] = []
    for group in groups:
        if group["method"] != "somf":
            found.append(dict(group))
            continue
        for folder in files["mask"]:
            learned = read_record(folder).results.get("options", {})
            settings = {k: v for k, v in learned.items() if k not in group.get("grid", {})}
            found.append(
                dict(group) | {"extras": {"mask": [str(folder / "mask.safetensors")]}, "settings": settings}
            )
    return found


def told(what: str, done: int, total: int | None) -> None:
    """A line for each step of what takes long."""
    if total and (done == total or what == "points"):
        print(f"  {what} {done}/{total}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", type=Path, default=Path("runs/collapse"), help="a collapse bench")
    parser.add_argument("--grid", type=Path, default=HERE.parent / "collapse" / "grid.toml", help="its grid")
    parser.add_argument("--out", type=Path, default=Path("runs/repair"))
    parser.add_argument("--jobs", default=",".join(JOBS), help="of " + ", ".join(JOBS))
    main(parser.parse_args())
