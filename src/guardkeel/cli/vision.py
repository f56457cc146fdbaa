"""guardkeel vision: what seeing does to a guard's safety, and requests of several pictures."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.fields import says
from guardkeel.cli.options import AsJson, Changes, ConfigFile, RunFolder
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table
from guardkeel.vision.adapt.config import AdaptConfig
from guardkeel.vision.mis.config import MisConfig

if TYPE_CHECKING:
    from guardkeel.records import Estimate
    from guardkeel.vision.adapt.results import AdaptResults, Look
    from guardkeel.vision.mis.run import MisResults

_adapts, _mis = says(AdaptConfig), says(MisConfig)


def register(app: typer.Typer) -> None:
    """Add the verb with its sub-commands."""
    vision = typer.Typer(
        help="Images: give a language model eyes and see what that does to its safety; requests of several pictures. "
        "Needs Pillow: pip install 'guardkeel\\[vision]'.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    vision.command("adapt")(adapt)
    vision.command("mis")(mis)
    vision.command("build")(build)
    vision.command("draw")(draw)
    vision.command("extract")(extract)
    vision.command("insert")(insert)
    app.add_typer(vision, name="vision")


def adapt(
    model: Annotated[str | None, typer.Argument(help=_adapts("model"))] = None,
    arm: Annotated[str | None, typer.Option(metavar="ARM", help=_adapts("arm"))] = None,
    subject: Annotated[str | None, typer.Option(metavar="KIND", help=_adapts("subject"))] = None,
    start: Annotated[str | None, typer.Option(help=_adapts("start"))] = None,
    steps: Annotated[int | None, typer.Option(help=_adapts("steps"))] = None,
    pictures: Annotated[int | None, typer.Option(help=_adapts("pictures"))] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", "-s", help=_adapts("suites", after="; repeat for several"))
    ] = None,
    limit: Annotated[int | None, typer.Option(help=_adapts("limit"))] = None,
    seed: Annotated[int | None, typer.Option(help=_adapts("seed"))] = None,
    device: Annotated[str | None, typer.Option(help=_adapts("device", "where it runs: "))] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help=_adapts("offline"))] = None,
    config: ConfigFile = None,
    changes: Changes = None,
    out: RunFolder = None,
    as_json: AsJson = False,
) -> None:
    """Give a language model eyes, and measure its safety before, along the way, at the end and merged back.

    A small LLaVA is made around the model and taught on drawn pictures. At every look its language part is audited on
    texts (behaviour, and geometry by layer), it is shown requests as pictures of their words, and asked harmless
    questions on pictures. Arms: plain, freeze-language, safety-sft (labelled texts beside the pictures), fwssr (the
    safety subspace kept on the text side). Then the language part is merged with what it was, over α.

    [bold]Examples[/bold]

      guardkeel vision adapt                                       [dim]the embedded guard, plain[/dim]
      guardkeel vision adapt --arm fwssr --seed 1 --out runs/v/fwssr-1
      guardkeel vision adapt SmolLM2-135M-Instruct --subject chat --steps 200
    """
    from guardkeel.vision.adapt.config import read_config
    from guardkeel.vision.adapt.run import run, taken_up

    given: dict[str, Any] = {
        "model": model, "arm": arm, "subject": subject, "start": start, "steps": steps, "pictures": pictures,
        "suites": suite or None, "limit": limit, "seed": seed, "device": device, "offline": offline,
    }  # fmt: skip
    resolved = read_config(config, given, changes or ())
    hush()
    folder = out or _fresh(f"vision-{resolved.arm}-{resolved.seed}")
    results = taken_up(folder)
    quiet = as_json and not sys.stderr.isatty()
    if results is None:
        with progress(quiet) as watch:
            results = run(resolved, folder, command=["guardkeel", *sys.argv[1:]], watch=watch)
    page = _page(folder)
    if as_json:
        emit({"run": str(folder), "report": str(page), "results": results.model_dump(mode="json")})
        return
    _show(results)
    say(f"\nmodel   {literal(folder / 'adapted')}\nreport  [bold]{literal(page)}[/bold]")


def mis(
    start: Annotated[str | None, typer.Argument(help=_mis("start"))] = None,
    labels: Annotated[str | None, typer.Option(metavar="KIND", help=_mis("labels"))] = None,
    steps: Annotated[int | None, typer.Option(help=_mis("steps"))] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="A judge that sees: a server with OpenAI's API (…/v1). Default: by words."),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's model on that server.")] = "",
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds its key.")
    ] = "OPENAI_API_KEY",
    seed: Annotated[int | None, typer.Option(help=_mis("seed"))] = None,
    device: Annotated[str | None, typer.Option(help=_mis("device", "where it runs: "))] = None,
    config: ConfigFile = None,
    changes: Changes = None,
    out: RunFolder = None,
    as_json: AsJson = False,
) -> None:
    """Judge a model that sees on requests of two pictures, teach it, and judge it again.

    Items are drawn signs that are dangerous only together, each with a harmless twin. Labels are chains of thought
    (content of each picture, what they do together, a safe answer) or the answer alone.

    [bold]Examples[/bold]

      guardkeel vision mis runs/vision-plain-0/adapted
      guardkeel vision mis ./adapted --labels answer --out runs/mis/answer
      guardkeel vision mis ./adapted --labels none --judge-url http://localhost:8000/v1 --judge-model qwen2-vl
    """
    from guardkeel.vision.mis.config import read_config
    from guardkeel.vision.mis.judging import AskedJudge, server
    from guardkeel.vision.mis.run import run

    given = {"start": start, "labels": labels, "steps": steps, "seed": seed, "device": device}
    if start is None and config is None:
        raise typer.BadParameter("give the folder of a model that sees", param_hint="START")
    resolved = read_config(config, given, changes or ())
    judge = None
    if judge_url:
        import os

        judge = AskedJudge(server(judge_url, judge_model, key=os.environ.get(judge_key_env, "")), judge_model)
    hush()
    folder = out or _fresh(f"mis-{resolved.labels}-{resolved.seed}")
    with progress(as_json and not sys.stderr.isatty()) as watch:
        results = run(resolved, folder, judge=judge, command=["guardkeel", *sys.argv[1:]], watch=watch)
    page = _page(folder)
    if as_json:
        emit({"run": str(folder), "report": str(page), "results": results.model_dump(mode="json")})
        return
    _show_mis(results)
    say(f"\nreport  [bold]{literal(page)}[/bold]")


def build(
    model: Annotated[str, typer.Argument(help="The language model: a name, folder or reference.")],
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is written.")],
    seed: Annotated[int, typer.Option(help="Of the new weights.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures it takes, in pixels.")] = 96,
    patch: Annotated[int, typer.Option(help="Side of a patch; a picture takes (size / patch)² places.")] = 16,
    captions: Annotated[
        int,
        typer.Option(
            help="Drawings that it learns to describe in the model's word embeddings; 20000 take minutes."
        ),
    ] = 0,
) -> None:
    """Write a small LLaVA around a language model: a vision tower, a projector of random weights, and the model."""
    from guardkeel.vision.llava import build_llava
    from guardkeel.vision.shape import VisionShape

    hush()
    with progress() as watch:
        build_llava(
            model,
            folder,
            shape=VisionShape(size=size, patch=patch),
            captions=captions,
            seed=seed,
            progress=watch,
        )
    say(literal(folder))


def draw(
    folder: Annotated[Path, typer.Argument(help="Where pictures and pairs.jsonl are written.")],
    count: Annotated[int, typer.Option(help="How many.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the drawings.")] = 0,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 96,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="shape, count, place, chart, word, sign. Default: all. Repeat for several."
        ),
    ] = None,
) -> None:
    """Draw pictures with questions and answers: the same ones everywhere, thousands in seconds."""
    import json

    from guardkeel.pictures import open_picture
    from guardkeel.records import atomic_writer
    from guardkeel.vision.pairs import KINDS, pairs

    rows = []
    for one in pairs(count, seed=seed, size=size, kinds=kind or list(KINDS)):
        with atomic_writer(folder / f"{one.id}.png") as out:
            open_picture(one.image).pixels.save(out, "PNG")
        rows.append(
            {
                "id": one.id,
                "image": f"{one.id}.png",
                "question": one.question,
                "answer": one.answer,
                "alt": one.image.alt,
            }
        )
    with atomic_writer(folder / "pairs.jsonl") as out:
        out.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    say(f"{len(rows)} pictures in {literal(folder)}")


def extract(
    model: Annotated[Path, typer.Argument(help="A model that sees: a checkpoint's folder.")],
    folder: Annotated[Path, typer.Argument(help="Where its language tower is written.")],
) -> None:
    """Write the language tower of a model that sees as a checkpoint of its own, for audit, tune, fuse and heads."""
    import json

    from guardkeel.models.loading import load_model, load_tokenizer
    from guardkeel.models.towers import extract_tower

    hush()
    whole = load_model(model, _stored(model), "cpu", images=True)
    said = model / "guardkeel.json"
    settings = json.loads(said.read_text()) if said.is_file() else None
    say(literal(extract_tower(whole, load_tokenizer(model), folder, settings)))


def insert(
    model: Annotated[Path, typer.Argument(help="The model that sees: a checkpoint's folder.")],
    tower: Annotated[Path, typer.Argument(help="The language tower that is put into it.")],
    folder: Annotated[Path, typer.Argument(help="Where the result is written.")],
) -> None:
    """Write a model that sees with another language tower in it, such as one that was repaired or merged."""
    import json

    from guardkeel.models.eyes import eyes_of
    from guardkeel.models.loading import load_model, load_tokenizer
    from guardkeel.models.towers import insert_tower
    from guardkeel.vision.llava import save_llava

    hush()
    whole, tokenizer = load_model(model, _stored(model), "cpu", images=True), load_tokenizer(model)
    insert_tower(whole, load_model(tower, _stored(tower), "cpu"))
    said = next((f / "guardkeel.json" for f in (tower, model) if (f / "guardkeel.json").is_file()), None)
    settings = json.loads(said.read_text()) if said else {}
    save_llava(whole, tokenizer, eyes_of(whole, tokenizer, model).processor, folder, settings)
    say(literal(folder))


def _stored(folder: Path) -> str:
    """The number format that a checkpoint is stored in, so that what is written again is not rounded."""
    from guardkeel.models.checks import read_json

    config = read_json(folder / "config.json", "a checkpoint has it beside its weights")
    said = config.get("dtype") or config.get("torch_dtype")
    return said if said in ("float32", "bfloat16", "float16") else "float32"


def _fresh(name: str) -> Path:
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def _page(folder: Path) -> Path:
    from guardkeel.report.vision import write_vision_report

    return write_vision_report(folder)


def _show(results: AdaptResults) -> None:
    def row(name: str, look: Look) -> list[str]:
        image = look.image
        return [
            name,
            _rate(look.text.recall),
            _rate(look.text.fpr),
            _rate(look.text.auroc),
            _rate(image.recall) if image else "–",
            _rate(image.auroc) if image else "–",
            _rate(look.accuracy),
        ]

    before = results.reference
    rows = [["before", _rate(before.recall), _rate(before.fpr), _rate(before.auroc), "–", "–", "–"]]
    rows += [row(f"step {look.step}", look) for look in results.looks]
    rows += [row(f"α = {look.alpha:g}", look) for look in results.merged]
    columns = ["", "recall", "FPR", "AUROC", "recall, pictures", "AUROC, pictures", "accuracy"]
    table(f"{results.arm} ({results.method}); guessing: {results.chance:.3f}", columns, rows)
    for note in results.notes:
        say(literal(note))


def _show_mis(results: MisResults) -> None:
    rows = []
    for when, tiers in (("before", results.before), ("after", results.after)):
        for tier, found in tiers.items():
            shares = found.outcomes.percentages()
            rows.append(
                [
                    f"{tier}, {when}",
                    *(f"{shares[s]:.1f}" if shares else "–" for s in ("ASR", "RSR", "RR", "HR")),
                    _rate(found.twins.over_refused),
                    _rate(found.accuracy),
                ]
            )
    columns = ["", "ASR", "RSR", "RR", "HR", "twins refused", "accuracy"]
    table(f"labels: {results.labels}; judge: {results.judge}", columns, rows)


def _rate(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.3f}"
