"""Train the LoRA adapter of keel-135m on the mixture that build_data.py writes.

    python recipes/keel-135m/train.py --data train.jsonl --out DIR [--base DIR] [--set steps=1500 …]

Writes the adapter (bf16), the log of every step and the settings; a snapshot every 100 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardkeel.conversation import read_jsonl
from guardkeel.guards.keel import Keel
from guardkeel.models.base import BASE_NAME, base_model_path
from guardkeel.records import file_digest, write_json
from guardkeel.tuning.lora import LoraSettings, Step, add_lora, save_adapter, train
from guardkeel.tuning.targets import targets

SETTINGS = {
    "rank": 16,
    "alpha": 32.0,
    "learning_rate": 4e-4,
    "batch": 16,
    "steps": 700,
    "decay": True,
    "answer_weight": 0.3,
    "first_layer": 10,
    "max_tokens": 352,
    "seed": 20,
}


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="folder of SmolLM2-135M-Instruct (default: from the wheel)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    settings = LoraSettings(**{**SETTINGS, **changes})
    if args.base is None:
        args.base = base_model_path()
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.bfloat16)
    model = add_lora(base, settings)
    examples = targets(read_jsonl(args.data))
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def on_step(step: Step) -> None:
        with (args.out / "log.jsonl").open("a") as log:
            log.write(step.model_dump_json() + "\n")
        if step.step % 20 == 0:
            print(
                f"{step.step}/{settings.steps} loss {step.loss:.4f} {step.seconds:.2f}s {time.time() - started:.0f}s",
                flush=True,
            )
        if step.step % 100 == 0 or step.step == settings.steps:
            save_adapter(model, args.out / f"step-{step.step}", BASE_NAME)

    train(model, tokenizer, Keel(), examples, settings, on_step)
    save_adapter(model, args.out / "final", BASE_NAME)
    record = {
        "settings": settings.model_dump(),
        "data_sha256": file_digest(args.data),
        "examples": len(examples),
    }
    write_json(args.out / "recipe.json", record)


if __name__ == "__main__":
    main()
