"""What each method costs: step time and peak memory against the plain step, side by side.

    python benchmarks/tune.py [--guard keel-135m] [--arms fwssr,replay] [--blocks 5] [--batch 8] [--guard-batch 2]
    python benchmarks/tune.py --task keel-anchor    # rows of the task as long as the probes

Time: the plain trainer and the method's take turns, step by step, on the same batches; a block is ten steps of each,
which holds one update of an adaptive λ, and gives one ratio of means. Printed is the median over the blocks. Memory:
largest resident size (or accelerator memory) of a process that prepares and makes ten steps, over that of the plain
one; and the same above what the loaded model takes. Beside them stand the tokens of a row and of a probe after the
shared prefix: a probe costs at least what a row of its length costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from guardkeel.evaluation.suites import load_suite, split_many
from guardkeel.guards.load import load_checkpoint
from guardkeel.models.devices import peak_memory
from guardkeel.tuning.data import suite_data
from guardkeel.tuning.gather import balanced
from guardkeel.tuning.learner import learner, training
from guardkeel.tuning.lessons import guard_lessons
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.registry import METHODS, build
from guardkeel.tuning.trainer import GuardTrainer, arguments
from guardkeel.tuning.weights import trainable

BLOCK = 10


class Arm:
    """A trainer that makes a step when it is told to."""

    def __init__(self, method: str, args: argparse.Namespace, folder: Path) -> None:
        guard = load_checkpoint(args.guard)
        task, anchors = split_many([load_suite("keel-domain"), load_suite("keel-anchor")])
        teacher = learner(guard)
        guards = balanced(suite_data(anchors).targets, 200)
        rows = suite_data(task, source="bank").targets if args.task == "keel-domain" else guards
        teacher.encoder.share([t.judgement for t in (*rows, *guards)])
        guard.model = trainable(
            guard.model, adapter="lora", rank=8, alpha=16.0, first_layer=0, seed=0, task="causal"
        )
        self.device = str(guard.model.device)
        self.loaded = peak_memory(self.device)
        regulariser = build(method)
        lessons, anchored = (guard_lessons(r, teacher.encoder, guard.tokenizer) for r in (rows, guards))
        self.tokens = [statistics.mean(len(one.prompt_ids) for one in some) for some in (lessons, anchored)]
        probes = GuardProbes(guard.model, teacher, anchored, batch=args.guard_batch)
        self.trainer = GuardTrainer(
            guard.model,
            teacher,
            lessons,
            args=arguments(
                folder, steps=10_000, batch=args.batch, learning_rate=2e-4, cpu=self.device == "cpu"
            ),
            regulariser=regulariser,
            probes=None if method == "plain" else probes,
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        keeper, t = self.trainer.keeper, self.trainer
        started = time.perf_counter()
        keeper.on_train_begin(t.args, t.state, t.control, model=t.model)
        self.prepared = time.perf_counter() - started
        self.batches = iter(t.get_train_dataloader())

    def step(self) -> float:
        """One optimiser step; seconds."""
        t = self.trainer
        inputs = next(self.batches)
        self._wait()
        started = time.perf_counter()
        t.training_step(t.model, inputs)
        t._clip_grad_norm(t.model)
        t.keeper.on_pre_optimizer_step(t.args, t.state, t.control, model=t.model)
        t.optimizer.step()
        t.model.zero_grad()
        t.state.global_step += 1
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def main() -> None:
    """Time and weigh the arms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guard", default="keel-135m")
    parser.add_argument("--arms", default=",".join(m for m, made in METHODS.items() if not made.needs)[6:])
    parser.add_argument("--task", choices=("keel-domain", "keel-anchor"), default="keel-domain")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--guard-batch", type=int, default=2)
    parser.add_argument("--weigh", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.weigh:
        weigh(args)
        return
    arms = [a for a in args.arms.split(",") if a not in ("plain", "interpolation")]
    print(
        f"{'method':22s} {'time':>6s} {'low–high':>11s} {'prepare':>8s} {'memory':>7s} {'above model':>12s} "
        f"{'row, probe tokens':>18s}"
    )
    plain_memory = memory("plain")
    for method in arms:
        ratios, arm = compare(method, args)
        peak = memory(method)
        above = (peak["peak"] - peak["loaded"]) / (plain_memory["peak"] - plain_memory["loaded"])
        print(
            f"{method:22s} {statistics.median(ratios):6.2f} {min(ratios):5.2f}–{max(ratios):.2f} "
            f"{arm.prepared:6.1f} s {peak['peak'] / plain_memory['peak']:7.2f} {above:12.2f} "
            f"{'{:.0f}, {:.0f}'.format(*arm.tokens):>18s}",
            flush=True,
        )


def compare(method: str, args: argparse.Namespace) -> tuple[list[float], Arm]:
    """One ratio of step times a block, and the method's arm."""
    with tempfile.TemporaryDirectory() as folder:
        plain, arm = (Arm(m, args, Path(folder) / m) for m in ("plain", method))
        ratios = []
        with training(plain.trainer.model), training(arm.trainer.model):
            plain.step(), arm.step()  # caches and allocations
            arm.trainer.state.global_step = 0
            for _ in range(args.blocks):
                seconds = [(plain.step(), arm.step()) for _ in range(BLOCK)]
                ratios.append(sum(s for _, s in seconds) / sum(s for s, _ in seconds))
        return ratios, arm


def memory(method: str) -> dict[str, Any]:
    """Bytes of a fresh process with this arm alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--weigh", method]
    return dict(
        json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    )


def weigh(args: argparse.Namespace) -> None:
    """What `memory` starts."""
    with tempfile.TemporaryDirectory() as folder:
        arm = Arm(args.weigh, args, Path(folder) / "run")
        with training(arm.trainer.model):
            for _ in range(BLOCK):
                arm.step()
        print(json.dumps({"loaded": arm.loaded, "peak": peak_memory(arm.device)}))


if __name__ == "__main__":
    main()
