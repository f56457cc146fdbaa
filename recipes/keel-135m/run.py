"""The whole recipe of keel-135m in one command: data, training, threshold, packaged adapter.

    python recipes/keel-135m/run.py --data DIR [--work runs/keel-135m]

A step whose result is in the work folder is not repeated. The threshold is the lowest at which at most 2 % of the
keel-domain messages outside its `test` split are flagged, by the merged bf16 guard as users get it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.embedded import NAME, SETTINGS
from guardkeel.guards.load import load_guard
from guardkeel.records import write_json

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "src" / "guardkeel" / "guards" / "data" / NAME
FALSE_ALARMS = 0.02


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the tier G sources")
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME)
    args = parser.parse_args()
    mixture = args.work / "train.jsonl"
    if not mixture.exists():
        step("build_data.py", "--data", args.data, "--out", mixture)
    if not (args.work / "recipe.json").exists():
        step("train.py", "--data", mixture, "--out", args.work)
    recipe = json.loads((args.work / "recipe.json").read_text())
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(args.work / "final" / name, PACKAGE / name)
    settings: dict[str, object] = {"family": "keel", "name": NAME, "threshold": 0.5, "provenance": recipe}
    write_json(PACKAGE / SETTINGS, settings)
    texts = [i.judgement for i in load_suite("keel-domain").items() if i.split != "test"]
    scores = np.array([v.unsafe for v in load_guard().score(texts, categories=False)], float)
    settings["threshold"] = math.ceil(100 * float(np.quantile(scores, 1 - FALSE_ALARMS))) / 100
    write_json(PACKAGE / SETTINGS, settings)
    print(f"{PACKAGE}: threshold {settings['threshold']} on {len(texts)} messages")


def step(script: str, *arguments: object) -> None:
    """Run one of the scripts beside this one."""
    subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
