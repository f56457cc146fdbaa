"""Which attention heads carry a verdict: exact ablation sweeps, Ships and Sahara (arXiv:2410.13708).

layout.py     where a model keeps its heads, and how its blocks are put together
ablation.py   the modes; `with ablated(model, heads): …`
prompts.py    what is asked: through a guard's template, a chat template, or token ids
plan.py       what a sweep will cost in memory and work
sweep.py      every head ablated once, exactly: KL, verdict log-odds and hidden states
ships.py      importance per query and per data set
sahara.py     greedy groups of heads
screening.py  estimates, labelled as such, then exact values for the best of them
overlap.py    how alike two rankings are
official.py   the released code's files
controls.py   random groups of heads, and of the same layers
effects.py    what ablating a group does to answers, beside those
refusal.py    whether a chat model's reply refuses
studies.py    all of it in a run directory: `guardkeel heads`

    found = query_ships(guard.model, guard_prompts(guard, items))
    found.mean            # (layers, heads), nats
    with ablated(guard.model, found.top(3)):
        guard.score(items)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name → module; resolved on first use, so that importing the room stays free of torch.
_PUBLIC = {
    "MODES": "ablation",
    "ablated": "ablation",
    "Layout": "layout",
    "layout_of": "layout",
    "Prompt": "prompts",
    "chat_prompts": "prompts",
    "guard_prompts": "prompts",
    "token_prompts": "prompts",
    "SweepPlan": "plan",
    "plan_sweep": "plan",
    "Sweep": "sweep",
    "sweep_heads": "sweep",
    "DatasetShips": "ships",
    "QueryShips": "ships",
    "dataset_ships": "ships",
    "query_ships": "ships",
    "Group": "sahara",
    "find_group": "sahara",
    "Screened": "screening",
    "screen": "screening",
    "verdict": "ships",
    "read_official": "official",
    "write_official": "official",
    "spearman": "overlap",
    "shared": "overlap",
    "moves": "overlap",
    "reliability": "overlap",
    "trials": "controls",
    "Trial": "controls",
    "effect": "effects",
    "refuses": "refusal",
    "calibrate": "refusal",
    "replies": "generation",
    "HeadsConfig": "config",
    "HeadsResults": "results",
    "study": "studies",
    "read_heads": "outputs",
}

__all__ = [*_PUBLIC]  # noqa: PLE0604 - strings all


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"guardkeel.heads.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'guardkeel.heads' has no attribute {name!r}")
