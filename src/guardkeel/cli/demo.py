"""guardkeel demo: the main job, on the embedded guard, from nothing."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardkeel.cli.audit import DECISION_STYLE, EXIT_CODES, run, show
from guardkeel.cli.terminal import emit, hush, literal, progress, say, table

if TYPE_CHECKING:
    from guardkeel.evaluation.config import AuditConfig
    from guardkeel.results import AuditResults
    from guardkeel.tuning.config import TuneConfig

SUITES = ["advbench", "do-not-answer", "bastion-injection", "keel-domain", "keel-contrast"]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the audits and the fine-tuned guards.")
    ] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="LoRA steps of the harmless fine-tunes.")] = 50,
    limit: Annotated[int, typer.Option(min=30, help="Most items of each suite and split.")] = 150,
    offline: Annotated[bool, typer.Option("--offline", help="Use what is in the cache only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Outcome as JSON on stdout.")] = False,
) -> None:
    """See a guard lose its sight, and keep it: audit it, fine-tune it on harmless bank messages, audit it again.

    Everything is real: keel-135m (guardkeel's own small guard), labelled suites taken through pip, LoRA fine-tunes on
    bank customer messages that are all labelled safe, first plain and then as guardkeel tune does it, and the gate's
    verdict on both. Takes some minutes on two cores; a second run takes up what is there.
    """
    from guardkeel.evaluation.config import AuditConfig

    hush()
    quiet = as_json and not sys.stderr.isatty()
    common: dict[str, Any] = {"suites": SUITES, "limit": limit, "offline": offline or None}
    out.mkdir(parents=True, exist_ok=True)
    _forget_other_guards(out, common["offline"], quiet)
    plain, kept = _configs(steps, common["offline"])
    tuned = {"plain": out / f"bank-plain-{steps}", "kept": out / f"bank-kept-{steps}"}
    runs = {name: out / f"after-{name}-{steps}" for name in tuned}

    def judged(name: str) -> AuditResults:
        config = AuditConfig(against=str(tuned[name] / "tuned"), **common)
        results = _audit(config, runs[name], quiet, of=tuned[name] / "tuned")
        if not as_json:
            show(results)
        return results

    say("[bold]1  The guard as it ships[/bold]", as_json=as_json)
    before = _audit(AuditConfig(**common), out / "before", quiet)
    if not as_json:
        show(before)

    say("\n[bold]2  A harmless fine-tune[/bold]", as_json=as_json)
    say(_tune(plain, tuned["plain"], quiet), as_json=as_json)
    say("\n[bold]3  The same guard after it[/bold]", as_json=as_json)
    after = {"plain": judged("plain")}

    say("\n[bold]4  The same fine-tune, kept upright[/bold]", as_json=as_json)
    say(_tune(kept, tuned["kept"], quiet), as_json=as_json)
    after["kept"] = judged("kept")

    pages = _reports(runs)
    if as_json:
        emit(
            {"before": {"run": str(out / "before"), "results": before.model_dump(mode="json")}}
            | {
                name: {
                    "tuned": str(tuned[name]),
                    "run": str(runs[name]),
                    "report": str(pages[name]),
                    "results": results.model_dump(mode="json"),
                }
                for name, results in after.items()
            }
        )
        return
    _compare(before, after)
    say("\nThe gate's answer is also an exit code:")
    for name, results in after.items():
        assert results.decision is not None
        code = EXIT_CODES[results.decision.decision]
        say(f"  guardkeel gate {literal(runs[name])}  → exit {code}   report  {literal(pages[name])}")
    say("Your guard, your data: guardkeel tune GUARD --data FILE --audit")


def _forget_other_guards(out: Path, offline: bool | None, quiet: bool) -> None:
    """What was made with another embedded guard or guardkeel is not this demo's."""
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
        for old in (out / "before", *out.glob("after-*"), *out.glob("bank-*")):
            if old.is_dir():
                shutil.rmtree(old)
    stamp.write_text(mark)


def _known(folder: Path, text: str) -> bool:
    """Whether the demo began this folder with these settings; its own of others is removed, and no one else's."""
    saved = folder.with_suffix(".config.json")
    before = saved.read_text() if saved.exists() else None
    if before is not None and before != text:
        shutil.rmtree(folder, ignore_errors=True)
    if before is not None or not folder.exists():
        saved.write_text(text)
    return before == text


def _audit(config: AuditConfig, folder: Path, quiet: bool, of: Path | None = None) -> AuditResults:
    """A finished audit of the same configuration, and of the same tuned guard, is taken up."""
    from guardkeel.evaluation.runs import read_audit
    from guardkeel.models.loading import checkpoint_digest

    text = config.model_dump_json() + (f"\n{checkpoint_digest(of)}" if of else "")
    if _known(folder, text) and (folder / "run.json").exists():
        return read_audit(folder)
    return run(config, folder, quiet=quiet)


def _configs(steps: int, offline: bool | None) -> tuple[TuneConfig, TuneConfig]:
    """The plain fine-tune, which leaves the threshold as it is, and the same as guardkeel tune does it."""
    from guardkeel.tuning.config import TuneConfig

    same: dict[str, Any] = {
        "data": ["keel-domain"],
        "source": "bank",
        "held_out": 0.0,
        "steps": steps,
        "batch": 8,
        "learning_rate": 2e-4,
        "monitor": SUITES,  # their `calibrate` items, on which the audit moves thresholds too
        "monitor_items": 100,
        "every": steps,  # a look takes as long as ten steps
        "offline": offline,
    }
    return TuneConfig(method="plain", recalibrate=False, **same | {"monitor": []}), TuneConfig(**same)


def _tune(config: TuneConfig, folder: Path, quiet: bool) -> str:
    """Fine-tune on the bank's messages, unless that has been done. Says what was done."""
    from guardkeel.cli.tune import run as run_tuning
    from guardkeel.tuning.gather import gather_beside

    spent = ""
    if _known(folder, config.model_dump_json(exclude={"offline"})) and (folder / "run.json").exists():
        spent = " (done before)"
    else:
        with progress(quiet) as watch:
            rows = gather_beside(config, SUITES, watch)
        started = time.perf_counter()
        run_tuning(config, folder, quiet=quiet, gathered=rows)
        spent = f": {time.perf_counter() - started:.0f} s"
    return (
        f"{config.steps} LoRA steps on bank customer messages, all labelled safe, method {config.method}"
        f"{spent}  →  {literal(folder / 'tuned')}"
    )


def _reports(runs: dict[str, Path]) -> dict[str, Path]:
    from guardkeel.report import write_report

    return {name: write_report(folder) for name, folder in runs.items()}


def _compare(before: AuditResults, after: dict[str, AuditResults]) -> None:
    """The three guards side by side."""
    guards = [before.reference, *(r.candidate for r in after.values())]
    rows = []
    for key, label in (("recall", "unsafe recall"), ("fpr", "false positives"), ("auroc", "AUROC")):
        values = [getattr(g.overall, key).value if g else None for g in guards]
        rows.append([label, *("–" if v is None else f"{v:.3f}" for v in values)])
    decided = [r.decision.decision if r.decision else "" for r in (before, *after.values())]
    rows.append(["gate", *(f"[{DECISION_STYLE[d]}]{d.upper()}[/]" if d else "–" for d in decided)])
    say("")
    table("side by side", ["", "as it ships", *after], rows)
