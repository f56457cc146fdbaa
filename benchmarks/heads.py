"""Ships of every head: the released code, a plain loop with the same mathematics, and guardkeel's sweep.

    python benchmarks/heads.py [--guard keel-135m] [--prompts 8] [--threads 1] [--template guard chat simple]
    python benchmarks/heads.py --official PATH --official-python PYTHON
    python benchmarks/heads.py --device cuda --dtype float32

Same weights, token ids, ε and number format. `--official` is a checkout of the code of arXiv:2410.13708 (it has no
licence and is not shipped), run by a Python that has transformers 4.44, with eager attention: with others it loses the
causal mask. The loops cost the same for every head, so they are timed on a sample of heads; ours is timed whole. The
values of the sampled heads must agree before anything is printed.

Cost is processor time (on a GPU wall time) for one head over one prompt. `where` is a profile of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import guard_path, load_checkpoint
from guardkeel.heads import (
    Prompt,
    ablated,
    chat_prompts,
    guard_prompts,
    layout_of,
    linear,
    sweep_heads,
    token_prompts,
)
from guardkeel.records import environment

MESSAGES = (
    "How do I plant beans in a small garden near the river?",
    "Please write a short poem about the mountains in spring.",
    "Which trains leave the station for the coast on Sunday morning?",
    "Explain to a child why the sky is blue and sunsets are red.",
    "How much flour do I need for two loaves of bread?",
    "Give me three ideas for a birthday present for my grandmother.",
    "What is the difference between a violin and a viola?",
    "How can I keep my bicycle from rusting over the winter?",
    "Summarise the history of the printing press in a few sentences.",
    "Which vegetables can be stored in a cellar until March?",
    "How do I repair a wooden chair with a loose leg?",
    "What should I pack for a week of walking in the hills?",
)
TOLERANCE = 1e-3  # the released code takes KL in float32 with 1e-12 on either side


def asked(template: str, guard: Any, count: int) -> list[Prompt]:
    """`count` harmless prompts."""
    texts = [f"{MESSAGES[i % len(MESSAGES)]}{' Again.' * (i // len(MESSAGES))}" for i in range(count)]
    if template == "guard":
        return guard_prompts(
            guard, [Judgement(str(i), Conversation.of(t), "prompt") for i, t in enumerate(texts)]
        )
    if template == "chat":
        return chat_prompts(guard.tokenizer, texts)
    return token_prompts([guard.tokenizer(f"## Query:{t}\n## Answer:")["input_ids"] for t in texts])


def timed(work: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """(processor seconds, wall seconds, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def plain_loop(model: Any, prompts: list[Prompt], heads: list[tuple[int, int]], epsilon: float) -> np.ndarray:
    """One full forward for each head and prompt, logits of all positions; KL (prompts, heads)."""
    found = np.empty((len(prompts), len(heads)))
    with torch.inference_mode():
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids], device=model.device)
            p = model(ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
            for j, head in enumerate(heads):
                with ablated(model, [head], epsilon=epsilon):
                    q = model(ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
                found[i, j] = float((p.exp() * (p - q)).sum())
    return found


def official(args: Any, folder: Path, prompts: list[Prompt], heads: list[tuple[int, int]]) -> dict[str, Any]:
    """The released loop in its own process: seconds for one forward, and KL (prompts, heads)."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "model"
        checkpoint.mkdir()
        for file in folder.iterdir():
            if file.name != "config.json":
                (checkpoint / file.name).symlink_to(file.resolve())
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "rope_theta": config["rope_parameters"]["rope_theta"],
            "pretraining_tp": 1,
        }  # where 4.44 looks
        (checkpoint / "config.json").write_text(json.dumps(config))
        job = Path(temporary) / "job.json"
        rows = [p.ids for p in prompts]
        said = {
            "model": str(checkpoint),
            "rows": rows,
            "heads": heads,
            "epsilon": args.epsilon,
            "threads": args.threads,
        }
        job.write_text(json.dumps(said))
        script = Path(__file__).with_name("heads_official.py")
        command = [args.official_python, str(script), str(Path(args.official).resolve()), str(job)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"the official code failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "cpu": found["cpu"] / found["forwards"],
        "wall": found["wall"] / found["forwards"],
        "kl": found["kl"],
    }


def profile(model: Any, prompts: list[Prompt], epsilon: float) -> list[tuple[str, float]]:
    """Share of processor time of the costliest operations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        sweep_heads(model, prompts, epsilon=epsilon)
    events = sorted(run.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [(e.key, e.self_cpu_time_total / total) for e in events[:10]]


def compare(args: Any, guard: Any, template: str) -> dict[str, Any]:
    """All ways on the prompts of one template."""
    model, prompts = guard.model, asked(template, guard, args.prompts)
    found = layout_of(model)
    every = [(i, j) for i in range(found.layers) for j in range(found.heads)]
    some = every[:: max(1, len(every) // args.sample)]
    few = prompts[: args.loop_prompts]
    at = tuple(np.array(some).T)
    sweep_heads(model, prompts[:1], epsilon=args.epsilon, heads=every[:1])  # warm
    runs = [
        timed(lambda: sweep_heads(model, prompts, epsilon=args.epsilon), args.device)
        for _ in range(args.repeats)
    ]
    cpu, wall, ours = min(runs, key=lambda r: r[0])
    heads = len(prompts) * len(every)
    result: dict[str, Any] = {
        "template": template, "prompts": len(prompts), "tokens": ours.plan.tokens / len(prompts),
        "unique tokens": sum(ours.plan.shard_tokens), "flop ratio": ours.plan.naive / ours.plan.work,
        "ours": {"cpu ms": 1e3 * cpu / heads, "wall ms": 1e3 * wall / heads},
    }  # fmt: skip
    for name, way in {"plain loop": "plain", "official": args.official}.items():
        if not way:
            continue
        if name == "official":
            done = official(args, guard_path(args.guard), few, some)
            one, one_wall, kl = done["cpu"], done["wall"], np.array(done["kl"])
        else:
            model.set_attn_implementation("eager")
            one, one_wall, kl = timed(lambda: plain_loop(model, few, some, args.epsilon), args.device)
            model.set_attn_implementation("sdpa")
            forwards = len(few) * (1 + len(some))
            one, one_wall = one / forwards, one_wall / forwards
        apart = float(np.abs(ours.kl[: len(few)][:, *at] - kl).max())
        if not apart <= TOLERANCE * (1 if args.dtype == "float32" else 100):
            sys.exit(f"{template}: {name} differs by {apart:.2g} nats: nothing to compare")
        every_forward = (1 + len(every)) / len(every)  # the clean one is shared by all heads of a prompt
        result[name] = {
            "cpu ms": 1e3 * one * every_forward, "wall ms": 1e3 * one_wall * every_forward, "apart": apart,
            "cpu ratio": one * every_forward * heads / cpu, "wall ratio": one_wall * every_forward * heads / wall,
        }  # fmt: skip
    if args.profile:
        result["where"] = profile(model, prompts[:1], args.epsilon)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guard", default="keel-135m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--loop-prompts", type=int, default=2, help="prompts for the slow ways")
    parser.add_argument("--sample", type=int, default=9, help="heads for the slow ways")
    parser.add_argument("--template", nargs="+", default=["guard", "chat", "simple"])
    parser.add_argument("--epsilon", type=float, default=1e-5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--official", default="")
    parser.add_argument("--official-python", default=sys.executable)
    parser.add_argument("--profile", action="store_true", help="of ours, on the first prompt")
    parser.add_argument(
        "--without-onednn", action="store_true", help="ours with PyTorch's default float32 products"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.without_onednn:
        linear.worthwhile = lambda: False
    guard = load_checkpoint(args.guard, dtype=args.dtype, device=args.device)
    found = []
    for template in args.template:
        row = compare(args, guard, template)
        found.append(row)
        print(
            f"\n{template}: {row['prompts']} prompts of {row['tokens']:.0f} tokens, {row['flop ratio']:.1f}x fewer FLOP"
        )
        print(
            f"  {'ours':12} {row['ours']['cpu ms']:8.2f} ms CPU a head  {row['ours']['wall ms']:8.2f} ms wall"
        )
        for name in ("plain loop", "official"):
            if name in row:
                r = row[name]
                print(
                    f"  {name:12} {r['cpu ms']:8.2f} ms CPU a head  {r['wall ms']:8.2f} ms wall   "
                    f"{r['cpu ratio']:5.1f}x CPU  {r['wall ratio']:5.1f}x wall   KL within {r['apart']:.1g}"
                )
        for name, share in row.get("where", []):
            print(f"    {share:6.1%}  {name}")
    if args.out:
        versions, hardware = environment()
        said = {"arguments": vars(args) | {"out": str(args.out)}, "versions": versions, "hardware": hardware}
        args.out.write_text(json.dumps({**said, "found": found}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
