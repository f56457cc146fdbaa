"""A multi-image run: a model that sees is judged on two-picture items, taught them, and judged again.

Run directory: run.json · config.toml · items/ (the judged items in the released layout, pictures and all) ·
replies-before.jsonl · replies-after.jsonl · log.jsonl · tuned/ (the model) · checkpoint-N/ while it is unfinished.

The recipe is MIRage's (arXiv:2501.18533: chain-of-thought SFT on two-picture items with some general data), the
pictures are drawn signs and the model is small; whether the labels help there is what a run shows, and nothing is
compared with the paper's numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.errors import DataError
from guardkeel.guards.vision import VisionGuard
from guardkeel.models.devices import peak_memory, pick_device
from guardkeel.models.eyes import eyes_of
from guardkeel.models.loading import checkpoint_digest, load_model, load_tokenizer
from guardkeel.models.sight import Sight
from guardkeel.models.towers import vision_parameters
from guardkeel.records import (
    RunRecord,
    claim,
    read_record,
    toml_text,
    value_digest,
    write_record,
    write_text,
)
from guardkeel.tuning.keeper import ended, last_checkpoint, resumed
from guardkeel.tuning.learner import CausalLearner
from guardkeel.tuning.log import LOG, StepLog
from guardkeel.tuning.order import schedule
from guardkeel.tuning.targets import Instruction
from guardkeel.tuning.trainer import arguments
from guardkeel.vision.adapt.trainer import SeeingTrainer
from guardkeel.vision.language import learnable
from guardkeel.vision.lessons import seeing_lessons
from guardkeel.vision.llava import save_llava
from guardkeel.vision.mis.building import build_items, held_out
from guardkeel.vision.mis.config import MisConfig, read_config
from guardkeel.vision.mis.items import MisItem, write_mis
from guardkeel.vision.mis.judging import Judge, WordsJudge
from guardkeel.vision.mis.labels import lessons_of
from guardkeel.vision.mis.measuring import Tier, Watch, measure
from guardkeel.vision.pairs import pairs
from guardkeel.vision.refusing import Refusing

VERB = "vision mis"
BEFORE, AFTER, TUNED, ITEMS = "replies-before", "replies-after", "tuned", "items"
_TEST_SEED = 1_000_003  # of the judged drawings, whatever the run's seed


class MisResults(BaseModel):
    """`RunRecord.results` of a multi-image run.

    Tiers are `easy` (hazards that were learned, drawn anew) and `hard` (others).
    """

    model_config = ConfigDict(extra="forbid")

    labels: str
    judge: str
    learned: list[str] = Field(description="hazards that were learned")
    held_out: list[str] = Field(description="hazards that were not")
    before: dict[str, Tier]
    after: dict[str, Tier] = Field(default_factory=dict)
    steps: int = 0
    peak_memory: int = 0


def mis(start: str, *, out: str | Path, judge: Judge | None = None, **config: Any) -> MisResults:
    """Judge a model that sees on two-picture items, teach it, and judge it again; resumed where it stopped.

    Args:
        start: the checkpoint's folder.
        out: the run directory.
        judge: who tells outcomes apart; by default WordsJudge.
        config: any field of MisConfig.
    """
    return run(read_config(None, config | {"start": start}), Path(out), judge=judge)


def run(
    config: MisConfig,
    folder: Path,
    *,
    judge: Judge | None = None,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
) -> MisResults:
    """Run, or resume, a multi-image run in a folder."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    judge = judge or WordsJudge()
    start = Path(config.start)
    inputs = {"start": checkpoint_digest(start), "judge": value_digest(judge.name)}
    claim(folder, value_digest([inputs, config.model_dump()]), begun="replies-*.jsonl")
    write_text(folder / "config.toml", toml_text(config.model_dump(mode="json")))
    if last_checkpoint(folder) is None:
        (folder / LOG).unlink(missing_ok=True)
    easy, hard = held_out(config.held_out, config.seed)
    judged = {
        "easy": build_items(config.test_pairs, seed=_TEST_SEED, size=config.size, hazards=easy),
        "hard": build_items(config.test_pairs, seed=_TEST_SEED, size=config.size, hazards=hard),
    }
    for tier, items in judged.items():
        write_mis(folder / ITEMS, items, tier)
    guard = _loaded(config, start)
    language = learnable(guard.model, config, start, config.seed) if config.labels != "none" else None
    ask = partial(measure, most=config.reply_tokens, batch=config.reply_batch, watch=watch)
    # A resumed run has its replies from before already; what is computed anew is computed on the weights from before.
    before = ask(guard, judged, judge, folder / f"{BEFORE}.jsonl")
    after: dict[str, Tier] = {}
    if language is not None:
        _teach(config, folder, guard, easy, watch)
        after = ask(guard, judged, judge, folder / f"{AFTER}.jsonl")
        language.end()
        _keep(config, guard, start, folder)
    results = MisResults(
        labels=config.labels,
        judge=judge.name,
        learned=easy,
        held_out=hard,
        before=before,
        after=after,
        steps=config.steps if after else 0,
        peak_memory=peak_memory(str(guard.model.device)),
    )
    write_record(
        folder,
        RunRecord.finished(
            verb=VERB,
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": time.perf_counter() - started},
            counts={f"{tier} items": len(items) for tier, items in judged.items()},
            results=results.model_dump(mode="json"),
        ),
    )
    ended(folder)
    guard.sight.close()
    return results


def read_mis_run(folder: str | Path) -> tuple[RunRecord, MisResults]:
    """A finished multi-image run; raises DataError for an unfinished one, or another verb's run."""
    record = read_record(folder)
    if record.verb != VERB:
        raise DataError(
            f"{folder}: a run of {record.verb!r}, not of {VERB!r}", remedy="give such a run directory"
        )
    try:
        return record, MisResults.model_validate(record.results)
    except ValidationError as e:
        raise DataError(f"{folder}/run.json: {e.errors()[0]['msg']}", remedy="run it again") from e


def material(config: MisConfig, hazards: Sequence[str]) -> list[Instruction]:
    """What is learned: items and their twins with their labels, and general questions on one picture."""
    items: list[MisItem] = build_items(config.pairs, seed=config.seed, size=config.size, hazards=hazards)
    general = pairs(config.general, seed=config.seed, size=config.size) if config.general else ()
    assert config.labels != "none"
    return [*lessons_of(items, config.labels), *(Instruction(p.id, p.conversation()) for p in general)]


def _loaded(config: MisConfig, start: Path) -> VisionGuard:
    model, tokenizer = load_model(start, "float32", config.device, images=True), load_tokenizer(start)
    sight = Sight(model, eyes_of(model, tokenizer, start))
    return VisionGuard(model, tokenizer, Refusing(len(tokenizer)), sight, name=start.name)


def _teach(config: MisConfig, folder: Path, guard: VisionGuard, hazards: Sequence[str], watch: Watch) -> None:
    lessons = seeing_lessons(material(config, hazards), guard.tokenizer, guard.sight, config.max_tokens)
    trainer = SeeingTrainer(
        guard.model,
        CausalLearner(guard, max_tokens=config.max_tokens),
        lessons,
        args=arguments(
            folder,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.rate,
            max_norm=config.max_norm,
            seed=config.seed,
            cpu=pick_device(config.device) == "cpu",
        ),
        schedule=partial(schedule, steps=config.steps, warmup=config.warmup, decay=config.decay),
        vision=set(vision_parameters(guard.model)),
        vision_rate=config.vision_rate,
    )
    told = f"teach ({config.labels})"
    log = StepLog(folder, trainer.facts, lambda step: watch(told, step, config.steps), every=config.every)
    trainer.add_callback(log)
    trainer.train(resume_from_checkpoint=resumed(folder))


def _keep(config: MisConfig, guard: VisionGuard, start: Path, folder: Path) -> None:
    import torch

    settings = start / "guardkeel.json"
    said = json.loads(settings.read_text()) if settings.is_file() else {}
    model = guard.model.to(getattr(torch, config.keep))
    save_llava(model, guard.tokenizer, guard.sight.eyes.processor, folder / TUNED, said)
