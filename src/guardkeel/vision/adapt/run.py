"""An adaptation from its configuration: a language model in, a model that sees out, and what became of its safety.

Run directory: run.json · config.toml · start/ (the model before its first step, where it was made here) · reference/ ·
looks/ (see looks.py) · log.jsonl (a line a step) · adapted/ (the model) · checkpoint-N/ while it is unfinished.

The procedure is that of arXiv:2410.07571 (adapt, watch safety, repair by safety SFT and by merging), at a scale of our
own: a LLaVA of toy pictures around a language model of 135 million weights. Its tables, α and layers are not public,
and nothing here is compared with them.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from guardkeel.conversation import normalised
from guardkeel.errors import ConfigError, DataError
from guardkeel.evaluation.audit import Known, Source, score_reference
from guardkeel.evaluation.runs import read_audit
from guardkeel.evaluation.suites import Suite, load_suite
from guardkeel.guards.base import Family
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.load import guard_path, guard_settings, unknown_family
from guardkeel.guards.registry import CLASSIFIER, family_named, guess
from guardkeel.guards.vision import VisionGuard
from guardkeel.models.base import BASE_NAME, base_model_path
from guardkeel.models.devices import peak_memory, pick_device
from guardkeel.models.eyes import eyes_of
from guardkeel.models.loading import checkpoint_digest, load_model, load_tokenizer
from guardkeel.models.sight import Sight
from guardkeel.models.towers import vision_parameters
from guardkeel.records import RunRecord, claim, toml_text, value_digest, write_record, write_text
from guardkeel.tuning.data import read_data
from guardkeel.tuning.gather import balanced
from guardkeel.tuning.keeper import FIXED, acts, ended, last_checkpoint, resumed
from guardkeel.tuning.learner import CausalLearner
from guardkeel.tuning.lessons import guard_lessons
from guardkeel.tuning.log import LOG, StepLog
from guardkeel.tuning.order import schedule
from guardkeel.tuning.probes import GuardProbes
from guardkeel.tuning.regularisers.registry import build as build_method
from guardkeel.tuning.targets import Instruction, Target
from guardkeel.tuning.trainer import arguments
from guardkeel.vision.adapt.config import AdaptConfig, read_config
from guardkeel.vision.adapt.looks import (
    REFERENCE,
    Judging,
    Looker,
    audit_settings,
    requests_as_pictures,
)
from guardkeel.vision.adapt.results import VERB, AdaptResults, Look, front, rates, read_adaptation
from guardkeel.vision.adapt.trainer import Looking, SeeingTrainer
from guardkeel.vision.answers import chance
from guardkeel.vision.language import Language, learnable
from guardkeel.vision.lessons import seeing_lessons
from guardkeel.vision.llava import build_llava, save_llava
from guardkeel.vision.pairs import TEST_SEED, Pair, key, pairs
from guardkeel.vision.refusing import Refusing

START, ADAPTED = "start", "adapted"

Watch = Callable[[str, int, int | None], None]


def adapt(model: str = "keel-135m", *, out: str | Path, **config: Any) -> AdaptResults:
    """Give a language model eyes, and measure what that does to its safety.

    Args:
        model: the guard, or chat model.
        out: the run directory. An unfinished run of the same configuration in it is resumed.
        config: any field of AdaptConfig: arm, steps, seed, suites, …

    Returns:
        The results, which are also in out/run.json. The adapted model is in out/adapted.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    return run(read_config(None, config | {"model": model}), Path(out))


def run(
    config: AdaptConfig,
    folder: Path,
    *,
    command: Sequence[str] = (),
    watch: Watch = lambda what, done, total: None,
    on_look: Callable[[Look], None] = lambda look: None,
) -> AdaptResults:
    """Run, or resume, the adaptation of a configuration in a folder."""
    started_at, started = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    path = _language_path(config, watch)
    suites = _suites(config.suites, config, watch)
    drawn = _suites(config.typographic_suites, config, watch) if config.typographic_suites else suites
    targets = _guard_data(config, [*suites, *drawn], watch)
    digest = checkpoint_digest(path)
    inputs = {"model": digest} | {f"suite {s.name}": s.digest for s in suites}
    inputs |= {"guard data": value_digest([[t.judgement.id, t.label] for t in targets])}
    if config.start:
        inputs["start"] = checkpoint_digest(config.start)
    same = value_digest([inputs, config.model_dump(exclude={"offline"})])
    claim(folder, same, begun="looks/*")
    write_text(folder / "config.toml", toml_text(config.model_dump(mode="json")))
    if last_checkpoint(folder) is None:
        for begun in (LOG, FIXED):
            (folder / begun).unlink(missing_ok=True)

    source = Source(reference=config.model, digest=digest)
    known = _reference(config, path, suites, folder, source, watch)
    start = Path(config.start) if config.start else folder / START
    if not start.exists():
        watch("make the model", 0, 1)
        build_llava(
            str(path),
            start,
            shape=config.vision,
            captions=config.captions,
            seed=config.seed,
            progress=watch,
        )
        watch("make the model", 1, 1)
    guard = _seeing(config, start, path)
    model = guard.model
    language = learnable(model, config, path, config.seed, frozen=config.arm == "freeze-language")
    tested = list(pairs(config.test_pictures, seed=TEST_SEED, size=config.vision.size, kinds=config.kinds))
    learned = _pictures(config, tested)
    looker = Looker(
        config,
        folder,
        guard,
        digest=same,
        source=source,
        known=known,
        suites=suites,
        requests=requests_as_pictures(config, drawn),
        pairs=tested,
        watch=watch,
    )
    told: set[int] = set()

    def look(step: int) -> None:
        found = looker.look(step)
        if step not in told:
            told.add(step)
            on_look(found)

    trainer, log, notes = _trainer(config, folder, guard, learned, targets, look, watch)
    trainer.train(resume_from_checkpoint=resumed(folder))
    seen = sorted({0, *range(config.every, config.steps, config.every), config.steps})
    looks = [looker.look(step) for step in seen]
    merged = _merge(config, language, looker, looks[-1], on_look)
    results = AdaptResults(
        arm=config.arm,
        method=config.chosen_method,
        subject=config.subject,
        steps=config.steps,
        reference=rates(read_audit(folder / looks[0].text_audit), "reference"),
        chance=chance(tested),
        looks=looks,
        merged=merged,
        front=front(merged),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        step_seconds=statistics.median(log.seconds) if log.seconds else 0.0,
        peak_memory=peak_memory(str(model.device)),
        notes=notes,
    )
    language.end()
    _keep(config, guard, path, folder)
    write_record(
        folder,
        RunRecord.finished(
            verb=VERB,
            started_at=started_at,
            command=list(command),
            inputs=inputs,
            config=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            timings={"total": time.perf_counter() - started, "steps": sum(log.seconds)},
            counts={"pictures": len(learned), "test pictures": len(tested), "guard data": len(targets)},
            results=results.model_dump(mode="json"),
        ),
    )
    (folder / FIXED).unlink(missing_ok=True)
    ended(folder)
    guard.sight.close()
    return results


def taken_up(folder: Path) -> AdaptResults | None:
    """The results of a finished run in a folder, which is not run again; None where there is none."""
    return read_adaptation(folder)[1] if (folder / "run.json").is_file() else None


def _suites(names: Sequence[str], config: AdaptConfig, watch: Watch) -> list[Suite]:
    return [load_suite(n, data=config.data_folder, offline=config.offline, progress=watch) for n in names]


def _guard_data(config: AdaptConfig, audited: Sequence[Suite], watch: Watch) -> list[Target]:
    """Labelled texts for the method, of all that are named, labels in balance; none that is audited too."""
    if config.chosen_method == "plain":
        return []
    judged = {normalised(e.conversation.text) for suite in audited for e in suite.examples}
    found: list[Target] = []
    for name in config.guard_data:
        data = read_data(name, kind=None, data=config.data_folder, offline=config.offline, progress=watch)
        if data.kind != "guard":
            raise DataError(
                f"{name}: no labelled texts", remedy="name suites or files whose rows have labels"
            )
        found += [t for t in data.targets if normalised(t.judgement.conversation.text) not in judged]
    if {t.label for t in found} != {"safe", "unsafe"}:
        raise DataError(
            f"{', '.join(config.guard_data)}: not both labels among texts that are not audited too",
            remedy="give guard data with safe and unsafe texts of their own",
        )
    return balanced(found, config.guard_items)


def _language_path(config: AdaptConfig, watch: Watch) -> Path:
    """The language model's folder; the base of the embedded guard is known by its name too."""
    if config.model == BASE_NAME and not Path(config.model).exists():
        return base_model_path(watch, config.offline)
    return guard_path(config.model, progress=watch, offline=config.offline)


def _family(config: AdaptConfig, path: Path, vocabulary: int) -> tuple[Family, dict[str, Any]]:
    """The family in which the model is judged, and what its guardkeel.json says of its threshold.

    Raises:
        ConfigError: it is no guard that is known, and not said to be a chat model.
    """
    if config.subject == "chat":
        return Refusing(vocabulary), {"name": path.name}
    said = guard_settings(path, path)
    name = config.family or said.family or guess(config.model, path.name)
    if name is None or name == CLASSIFIER:
        raise unknown_family(config.model)
    threshold = 0.5 if said.threshold is None else said.threshold
    return family_named(name), {
        "name": said.name or path.name,
        "threshold": threshold,
        "offsets": said.offsets or {},
    }


def _reference(
    config: AdaptConfig, path: Path, suites: Sequence[Suite], folder: Path, source: Source, watch: Watch
) -> Known:
    """What the language model says before it has eyes. It is let go of: two large models are never held at once."""
    model, tokenizer = load_model(path, config.language_dtype, config.device), load_tokenizer(path)
    family, options = _family(config, path, len(tokenizer))
    guard: Any = Judging(CausalGuard(model, tokenizer, family, **options))
    known = score_reference(
        guard, suites, folder / REFERENCE, source=source, settings=audit_settings(config), watch=watch
    )
    del guard, model
    gc.collect()
    return known


def _seeing(config: AdaptConfig, start: Path, path: Path) -> VisionGuard:
    """The model that is adapted, in float32 so far, as a guard over images."""
    model = load_model(start, "float32", config.device, images=True)
    tokenizer = load_tokenizer(start)
    family, options = _family(config, path, len(tokenizer))
    sight = Sight(model, eyes_of(model, tokenizer, start))
    return VisionGuard(model, tokenizer, family, sight, **options)


def _pictures(config: AdaptConfig, tested: Sequence[Pair]) -> list[Pair]:
    """What is learned: none of what is asked later."""
    drawn = pairs(
        config.pictures,
        seed=config.seed,
        size=config.vision.size,
        kinds=config.kinds,
        without={key(pair) for pair in tested},
    )
    return list(drawn)


def _trainer(
    config: AdaptConfig,
    folder: Path,
    guard: VisionGuard,
    learned: Sequence[Pair],
    targets: Sequence[Target],
    look: Callable[[int], None],
    watch: Watch,
) -> tuple[SeeingTrainer, StepLog, list[str]]:
    """The trainer with its lessons, its method's probes and its looks."""
    model, notes = guard.model, list[str]()
    teacher = CausalLearner(guard, max_tokens=config.max_tokens)
    instructions = [Instruction(pair.id, pair.conversation()) for pair in learned]
    lessons = seeing_lessons(instructions, guard.tokenizer, guard.sight, config.max_tokens)
    method = build_method(config.chosen_method, config.options)
    probes = None
    if acts(method):
        if config.arm == "freeze-language":
            raise ConfigError(
                f"method {config.chosen_method!r} acts on weights that freeze-language does not train",
                remedy="take another arm, or leave the method out",
            )
        if teacher.sharing:
            teacher.encoder.share([t.judgement for t in targets])
        anchors = guard_lessons(targets, teacher.encoder, guard.tokenizer, strict=False)
        if len(anchors) < len(targets):
            notes.append(f"{len(targets) - len(anchors)} guard conversations did not fit and were left out")
        probes = GuardProbes(model, teacher, anchors, batch=config.guard_batch, seed=config.seed)
    trainer = SeeingTrainer(
        model,
        teacher,
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
        regulariser=method,
        probes=probes,
        schedule=partial(schedule, steps=config.steps, warmup=config.warmup, decay=config.decay),
        vision=set(vision_parameters(model)),
        vision_rate=config.vision_rate,
    )
    log = StepLog(
        folder,
        trainer.facts,
        lambda step: watch(f"adapt ({config.arm})", step, config.steps),
        every=config.every,
    )
    trainer.add_callback(log)
    trainer.add_callback(Looking(look))
    return trainer, log, notes


def _merge(
    config: AdaptConfig, language: Language, looker: Looker, last: Look, on_look: Callable[[Look], None]
) -> list[Look]:
    """Looks at θ₀ + α(θ − θ₀) of the language part, the vision part as it is; at α = 1 that is the last look."""
    merged: list[Look] = []
    for alpha in [] if config.arm == "freeze-language" else config.alphas:
        if alpha == 1:
            merged.append(last.model_copy(update={"alpha": alpha}))
            continue
        with language.share(alpha):
            merged.append(looker.look(config.steps, alpha))
        on_look(merged[-1])
    return merged


def _keep(config: AdaptConfig, guard: VisionGuard, path: Path, folder: Path) -> None:
    """The adapted model, with what its language model's guardkeel.json said."""
    import torch

    settings = path / "guardkeel.json"
    said = json.loads(settings.read_text()) if settings.is_file() else {}
    model = guard.model.to(getattr(torch, config.keep))
    save_llava(model, guard.tokenizer, guard.sight.eyes.processor, folder / ADAPTED, said)
