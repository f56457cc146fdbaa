"""What a study will take, said before it: the model is loaded, nothing is swept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from guardkeel.evaluation.audit import Watch
from guardkeel.evaluation.estimate import SHARE, matmul_rate
from guardkeel.guards.base import common
from guardkeel.heads.config import HeadsConfig
from guardkeel.heads.layout import layout_of
from guardkeel.heads.linear import worthwhile
from guardkeel.heads.material import material
from guardkeel.heads.plan import plan_sweep
from guardkeel.heads.prompts import Prompt
from guardkeel.heads.ranking import keeps_states
from guardkeel.heads.studies import named
from guardkeel.heads.subject import open_subject

SWEEP = 0.66  # of a plain product's rate: 13.1 TFLOP in 105 s on one core of a Zen 5
PACKED = 2.3  # how much faster products are in linear.py, where they are


class StudyPlan(BaseModel):
    """A study in numbers. Memory in bytes, beside the model; time in seconds on this machine, of everything."""

    model_config = ConfigDict(extra="forbid")

    model: str
    layers: int
    query_heads: int
    key_heads: int
    dtype: str
    device: str
    prompts: dict[str, int]
    sweeps: list[str]
    trials: int
    effect_items: int
    models: int
    memory: int
    sweep_seconds: float
    effect_seconds: float
    notes: list[str]

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.sweep_seconds + self.effect_seconds


def plan(config: HeadsConfig, watch: Watch = lambda what, done, total: None) -> StudyPlan:
    """The plan of a study; what would stop it at once stops here too. Screening counts as a whole exact sweep."""
    read = material(config, watch)
    others = named(config.against)
    subject = open_subject(config.guard, config, read.ranked["unsafe"], watch)
    layout = layout_of(subject.model)
    prompts = {of: subject.prompts(items) for of, items in read.ranked.items()}
    said, work, memory, notes = [], 0.0, 0, [*read.notes, *layout.notes]
    for mode in config.modes:
        for of, asked in prompts.items():
            first = plan_sweep(layout, asked, mode=mode, memory=config.bytes)
            states = keeps_states(first, len(asked), layout, config)
            planned = plan_sweep(layout, asked, mode=mode, hidden=states, memory=config.bytes)
            said.append(f"{mode} on {of}: {planned.text}")
            work += planned.work * (1 + len(others))
            memory = max(memory, planned.bytes)
            if of == "unsafe" and mode == config.modes[0]:
                work += planned.work * max(0, config.size - 1)  # the group's first step is this sweep
    doing = config.effect and config.size > 0 and bool(read.judged)
    trials = (1 + 2 * config.controls) * config.size if doing else 0
    rate = matmul_rate(str(layout.dtype).removeprefix("torch."), str(layout.device))
    packed = layout.device.type == "cpu" and layout.dtype.itemsize == 4 and worthwhile()
    rest = config.reply_tokens if config.chat else 0
    tokens = (
        _tokens(subject.prompts(read.judged), share=not config.chat) + rest * len(read.judged) if doing else 0
    )
    weights = sum(p.numel() for block in layout.model.base_model.layers for p in block.parameters())
    return StudyPlan(
        model=subject.name,
        layers=layout.layers,
        query_heads=layout.heads,
        key_heads=layout.groups,
        dtype=str(layout.dtype).removeprefix("torch."),
        device=str(layout.device),
        prompts={of: len(items) for of, items in read.ranked.items()},
        sweeps=said,
        trials=trials,
        effect_items=len(read.judged) if doing else 0,
        models=1 + len(others),
        memory=memory,
        sweep_seconds=work / (SWEEP * rate * (PACKED if packed else 1.0)),
        effect_seconds=2.0 * weights * tokens * (trials + 1) / (SHARE * rate) if doing else 0.0,
        notes=notes,
    )


def _tokens(prompts: list[Prompt], *, share: bool) -> int:
    """What a forward over all of them computes; what all share once."""
    rows = [list(p.ids) for p in prompts]
    prefix = common(rows) if share else 0
    return prefix + sum(len(row) - prefix for row in rows)
