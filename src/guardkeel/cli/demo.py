"""guardkeel demo: the main job, on the embedded guard, from nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from guardkeel.cli.audit import EXIT_CODES, run, show
from guardkeel.cli.terminal import emit, hush, literal, progress, say

SUITES = ["advbench", "do-not-answer", "bastion-injection", "keel-domain", "keel-contrast"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for both audits and the adapter.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="LoRA steps of the harmless fine-tune.")] = 50,
    limit: Annotated[int, typer.Option(min=30, help="Most items of each suite and split.")] = 150,
    offline: Annotated[bool, typer.Option("--offline", help="Use what is in the cache only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Outcome as JSON on stdout.")] = False,
) -> None:
    """See a guard lose its sight: audit it, fine-tune it on harmless bank messages, audit it again.

    Everything is real: keel-135m (guardkeel's own small guard), labelled suites taken through pip, a plain LoRA
    fine-tune on bank customer messages that are all labelled safe, and the gate's verdict on the result. Takes a few
    minutes on two cores; a second run takes up what is there.
    """
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.report import write_report

    hush()
    quiet = as_json and not sys.stderr.isatty()
    common: dict[str, Any] = {"suites": SUITES, "limit": limit, "offline": offline or None}
    out.mkdir(parents=True, exist_ok=True)
    _forget_other_guards(out, common["offline"], quiet)

    say("[bold]1  The guard as it ships[/bold]", as_json=as_json)
    before = _audit(AuditConfig(**common), out / "before", quiet)
    if not as_json:
        show(before)

    say("\n[bold]2  A harmless fine-tune[/bold]", as_json=as_json)
    adapter = out / f"bank-lora-{steps}"
    spent = _tune(adapter, steps, common, quiet)
    say(
        f"{steps} LoRA steps on bank customer messages, all labelled safe"
        + (f": {spent:.0f} s" if spent else " (done before)")
        + f"  →  {literal(adapter)}",
        as_json=as_json,
    )

    say("\n[bold]3  The same guard after it[/bold]", as_json=as_json)
    folder = out / f"after-{steps}"
    after = _audit(AuditConfig(against=str(adapter), **common), folder, quiet)
    page = write_report(folder)
    if as_json:
        emit({"run": str(folder), "report": str(page), "results": after.model_dump(mode="json")})
    else:
        show(after)
        say(f"\nThe gate's answer is also an exit code: guardkeel gate {literal(folder)}")
        if after.decision is not None:
            say(f"  → exit {EXIT_CODES[after.decision.decision]}")
        say(f"report  [bold]{literal(page)}[/bold]")


def _forget_other_guards(out: Path, offline: bool | None, quiet: bool) -> None:
    """What was made with another embedded guard or guardkeel is not this demo's."""
    import shutil

    import guardkeel
    from guardkeel.guards.embedded import NAME
    from guardkeel.guards.load import guard_path
    from guardkeel.models.loading import checkpoint_digest

    with progress(quiet) as watch:
        mark = f"{guardkeel.__version__} {checkpoint_digest(guard_path(NAME, progress=watch, offline=offline))}\n"
    stamp = out / ".guard"
    if (
        stamp.exists() and stamp.read_text() != mark
    ):  # without it, what lies there is not the demo's to remove
        for old in (out / "before", *out.glob("after-*"), *out.glob("bank-lora-*")):
            if old.is_dir():
                shutil.rmtree(old)
    stamp.write_text(mark)


def _audit(config: Any, folder: Path, quiet: bool) -> Any:
    """A finished audit of the same configuration is taken up; the demo's own of another one is redone."""
    import shutil

    from guardkeel.evaluation.runs import read_audit

    saved = folder.with_suffix(".config.json")
    text = config.model_dump_json()
    if saved.exists() and saved.read_text() == text and (folder / "run.json").exists():
        return read_audit(folder)
    if saved.exists() and saved.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
    saved.write_text(text)
    return run(config, folder, quiet=quiet)


def _tune(adapter: Path, steps: int, common: dict[str, Any], quiet: bool) -> float:
    """Fine-tune on the `fit` messages of the bank, unless that has been done; seconds spent."""
    if (adapter / "adapter_config.json").exists():
        return 0.0
    from guardkeel.evaluation.suites import load_suite, split_many
    from guardkeel.guards.embedded import NAME
    from guardkeel.guards.load import load_guard
    from guardkeel.guards.registry import family_named
    from guardkeel.tuning.lora import LoraSettings, Step, add_lora, save_adapter, train
    from guardkeel.tuning.targets import Target

    with progress(quiet) as watch:
        suites = split_many([load_suite(name, offline=common["offline"], progress=watch) for name in SUITES])
        bank = next(s for s in suites if s.name == "keel-domain").items("fit")
        lessons = [Target(i.judgement, i.label) for i in bank if i.example.source == "bank"]
        guard = load_guard(offline=common["offline"], progress=watch)
        settings = LoraSettings(steps=steps)
        model = add_lora(guard.model, settings)
        started = time.perf_counter()

        def on_step(step: Step) -> None:
            watch(f"fine-tune on {len(lessons)} bank messages", step.step, steps)

        train(model, guard.tokenizer, family_named("keel"), lessons, settings, on_step)
        save_adapter(model, adapter, NAME)
    return time.perf_counter() - started
