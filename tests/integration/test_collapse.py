"""`guardkeel bench collapse` on a tiny guard that has really learned something: cells, stops, repairs, processes."""

import json
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guardkeel.conversation import write_jsonl
from guardkeel.evaluation.audit import Source, audit_guards
from guardkeel.evaluation.runs import read_audit
from guardkeel.guards.pair import pair
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import read_record
from guardkeel.tuning.collapse.cell import read_cell
from guardkeel.tuning.collapse.grid import plans
from guardkeel.tuning.collapse.gridfile import read_grid
from guardkeel.tuning.collapse.making import audit_settings
from guardkeel.tuning.collapse.material import material
from guardkeel.tuning.collapse.run import run
from guardkeel.tuning.log import read_log
from small_tunes import settle
from trained_guards import examples, suite_file

GRID = """
[grid]
guard = "{guard}"
guard_data = ["watched.jsonl"]
judged_on = ["judged.jsonl"]
limit = 24
calibrate = 16
seeds = [0, 1]
layers = [1, 2]
geometry_items = 20
rank = 4

[tune]
steps = 6
batch = 4
every = 2
learning_rate = 1e-2
max_tokens = 1024
dtype = "float32"
device = "cpu"
family = "keel"

[[scenario]]
name = "harbour"
data = ["harmless.jsonl"]

[[arm]]
name = "plain"
family = "main"

[[arm]]
name = "half"
method = "interpolation"
options.interpolation.alpha = 0.5
family = "main"
after = "plain"
"""
NAMES = [f"harbour/{arm}/base/seed-{seed}" for seed in (0, 1) for arm in ("plain", "half")]


@dataclass
class Bench:
    """A finished bench, and how it came about."""

    grid: Path
    out: Path
    made: list[str]
    elsewhere: list[str]
    before: dict[str, bytes]
    first_steps: list[dict]


def files(out: Path) -> dict[str, bytes]:
    """What cells hold."""
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "cells").rglob("*")) if p.is_file()
    }


def write_grid(folder: Path, harbour, extra: str = "") -> Path:
    told = [replace(e, labels=dict.fromkeys(e.labels, "safe"), categories=()) for e in examples(40, 2)]
    write_jsonl(folder / "harmless.jsonl", told)
    suite_file(folder / "watched.jsonl", 30, 3)
    suite_file(folder / "judged.jsonl", 160, 4)
    path = folder / "grid.toml"
    path.write_text(GRID.format(guard=harbour.guard) + extra)
    return path


def _hang(grid: Path, out: Path, mark: Path) -> None:
    """Make two cells, and hang in the fifth step of the third."""
    made = []

    def watch(what, done, total):
        if len(made) == 2 and what.startswith("fine-tune") and done == 5:
            mark.touch()
            time.sleep(600)

    run(read_grid(grid), out, watch=watch, on_cell=lambda cell, audit: made.append(cell.name))


@pytest.fixture(scope="module")
def bench(harbour, tmp_path_factory):
    """A bench whose process was killed in the middle of its third cell, and that was run again."""
    settle()
    folder = tmp_path_factory.mktemp("bench")
    grid, out, mark, made = write_grid(folder, harbour), folder / "out", folder / "hangs", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        first = multiprocessing.get_context("fork").Process(target=_hang, args=(grid, out, mark))
        first.start()
        while not mark.exists():
            assert first.is_alive()
            time.sleep(0.02)
        meanwhile = run(read_grid(grid), out, only=[NAMES[2]])
        first.kill()
        first.join()
        before, steps = files(out), read_log(out / "cells" / NAMES[2] / "tune")
        run(read_grid(grid), out, on_cell=lambda cell, audit: made.append(cell.name))
    return Bench(grid, out, made, meanwhile.elsewhere, before, steps)


def test_a_killed_bench_goes_on_without_redoing_what_is_done(bench):
    assert bench.elsewhere == [NAMES[2]]  # while it was held by the process that hung
    assert bench.made == NAMES[2:]
    after = files(bench.out)
    done = {name for name in bench.before if name.startswith(tuple(NAMES[:2])) or name.endswith("cell.json")}
    assert sum(name.endswith("cell.json") for name in done) == 2
    for name in done:
        assert after[name] == bench.before[name], name
    # the killed fine-tune was taken up at its checkpoint of step 4
    assert [row["step"] for row in bench.first_steps] == [1, 2, 3, 4, 5]
    log = read_log(bench.out / "cells" / NAMES[2] / "tune")
    assert log[:4] == bench.first_steps[:4] and [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]


def test_every_cell_is_an_ordinary_fine_tune_and_an_ordinary_audit(bench):
    for plan in plans(read_grid(bench.grid)):
        folder = bench.out / "cells" / plan.name
        cell = read_cell(folder)
        assert cell is not None and not cell.error and cell.digest == plan.digest
        assert (cell.scenario, cell.arm, cell.seed, cell.kind) == (
            "harbour",
            plan.arm.name,
            plan.seed,
            "guard",
        )
        assert cell.family == "main" and not cell.recalibrated
        tuned = read_record(folder / cell.tune_run)
        assert (tuned.verb, tuned.config["method"], tuned.config["seed"]) == ("tune", plan.method, plan.seed)
        assert cell.tune.after.model_dump() == tuned.results["after"] and cell.tune.steps == 6
        found = read_audit(folder / cell.audit_run)
        assert found.candidate.info.digest == checkpoint_digest(folder / "tune/tuned")
        assert found.geometry[0].cka is not None and {g.layer for g in found.geometry} == {1, 2}
        assert {p.name for p in folder.iterdir()} == {"tune", "audit", "cell.json"}
        assert not list(folder.glob("tune/checkpoint-*"))


def test_the_audit_is_that_of_a_reference_scored_on_the_spot(bench, tmp_path, harbour, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    plan = plans(read_grid(bench.grid))[0]
    folder = bench.out / "cells" / plan.name
    shared = material(plan, plan.config(), lambda *seen: None)
    tuned = folder / "tune" / "tuned"
    audit_guards(
        pair(str(harbour.guard), str(tuned), family="keel", dtype="float32", device="cpu"),
        shared.judged,
        tmp_path / "run",
        sources={
            "reference": Source(reference=str(harbour.guard), digest=checkpoint_digest(harbour.guard)),
            "candidate": Source(reference=str(tuned), digest=checkpoint_digest(tuned)),
        },
        settings=audit_settings(plan),
    )
    for name in ("items.jsonl", "geometry.safetensors"):
        assert (folder / "audit" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name
    assert read_audit(folder / "audit") == read_audit(tmp_path / "run")
    assert len(list((bench.out / "reference").iterdir())) == 1  # once, for all four cells


def test_plain_forgets_and_the_repair_is_half_of_plain(bench):
    from safetensors.torch import load_file

    for seed in (0, 1):
        plain, half = (bench.out / "cells" / f"harbour/{arm}/base/seed-{seed}" for arm in ("plain", "half"))
        weights = [load_file(folder / "tune/tuned/adapter_model.safetensors") for folder in (plain, half)]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            assert (weights[1][name] == (0.5 * tensor if "lora_B" in name else tensor)).all(), name
        assert any(t.any() for n, t in weights[0].items() if "lora_B" in n)
        cell, source = read_cell(half), read_cell(plain)
        assert cell.after == "plain" and cell.tune.notes[0] == f"not trained: {source.name} repaired"
        assert cell.tune.step_seconds == source.tune.step_seconds and cell.tune.before == source.tune.before
        assert source.tune.after.loss < cell.tune.after.loss < cell.tune.before.loss
        assert not (half / "tune/log.jsonl").exists()


def test_what_is_judged_is_not_learned(harbour, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    path = write_grid(tmp_path, harbour)
    plan = plans(read_grid(path))[0]
    judged = material(plan, plan.config(), lambda *seen: None)
    items = [i for suite in judged.judged for i in suite.items()]
    test = [i for i in items if i.split == "test"]
    assert len(test) == 24 and {i.label for i in test} == {"safe", "unsafe"}
    held = [i for i in items if i.split == "calibrate"]
    assert 0 < len(held) <= 16 and {i.label for i in held} == {"safe"}
    # what is in the file of rows too is not judged
    stolen = [replace(i.example, id=f"stolen-{k}", labels={"prompt": "safe"}) for k, i in enumerate(test[:5])]
    write_jsonl(tmp_path / "harmless.jsonl", [*examples(40, 2), *stolen])
    again = material(plan, plan.config(), lambda *seen: None)
    learned = {t.judgement.conversation.text for t in (*again.gathered.task, *again.gathered.aside)}
    texts = {i.example.conversation.text for suite in again.judged for i in suite.items()}
    assert texts.isdisjoint(learned) and learned >= {e.conversation.text for e in stolen}
    assert sum(i.split == "test" for suite in again.judged for i in suite.items()) == 24


BROKEN = """
[[arm]]
name = "burnt"
method = "plain"
seeds = [0]
tune = { learning_rate = 1e30, max_norm = 1e30 }

[[arm]]
name = "burnt-half"
method = "interpolation"
after = "burnt"
seeds = [0]
"""


def test_a_fine_tune_that_is_not_finite_is_a_result_and_not_tried_again(harbour, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    grid, out = read_grid(write_grid(tmp_path, harbour, BROKEN)), tmp_path / "out"
    done = run(grid, out, only=["harbour/burnt*"])
    burnt, half = (read_cell(out / f"cells/harbour/{arm}/base/seed-0") for arm in ("burnt", "burnt-half"))
    assert burnt.error.startswith("step ") and "nan" in burnt.error and burnt.tune is None
    assert half.error.startswith("there is nothing to repair: harbour/burnt/base/seed-0: step ")
    assert (
        done.made == 2 and not done.refused and not (out / "cells/harbour/burnt/base/seed-0/audit").exists()
    )
    assert run(grid, out, only=["harbour/burnt*"]).made == 0
    assert run(grid, out, only=["harbour/burnt*"], retry=True).made == 2


def test_cells_of_another_grid_are_not_mixed_in(bench, cli):
    found = cli("bench", "collapse", "--grid", bench.grid, "--out", bench.out, "--set", "tune.steps=7")
    assert found.code == 2 and "was made under another grid" in found.err and "--out" in found.err


def test_what_cannot_be_made_is_told_and_does_not_stop_the_rest(harbour, tmp_path, cli):
    extra = '[[scenario]]\nname = "lost"\ndata = ["./lost.jsonl"]\n'
    path = write_grid(tmp_path, harbour, extra)
    only = ("--only", "*/plain/base/seed-0", "--set", "tune.steps=1")
    found = cli(
        "bench", "collapse", "--grid", path, "--out", tmp_path / "out", *only, "--no-report", "--json"
    )
    assert found.code == 2
    assert list(found.json["refused"]) == ["lost/plain/base/seed-0"]
    assert f"{tmp_path / 'lost.jsonl'}: no such file" in found.json["refused"]["lost/plain/base/seed-0"]
    assert (found.json["cells"], found.json["made"]) == (1, 1)


def _work(grid, out, queue):
    made = []
    done = run(read_grid(grid), out, on_cell=lambda cell, audit: made.append(cell.name))
    queue.put((made, done.elsewhere))


def test_two_processes_make_each_cell_once(harbour, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
    path, out = write_grid(tmp_path, harbour), tmp_path / "out"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_work, args=(path, out, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    assert sorted(name for made, _ in found for name in made) == sorted(NAMES)
    assert all(made for made, _ in found)  # both did some
    assert run(read_grid(path), out).made == 0


def test_dry_run_lists_cells_with_their_time_and_runs_nothing(bench, harbour, tmp_path, cli):
    done = cli("bench", "collapse", "--grid", bench.grid, "--out", bench.out, "--dry-run", "--json").json
    assert [(c["cell"], c["state"]) for c in done["cells"]] == [(name, "done") for name in NAMES]
    path = write_grid(
        tmp_path, harbour, '[[variant]]\nname = "hot"\narms = ["plain"]\ntune.learning_rate = 0.1\n'
    )
    found = cli("bench", "collapse", "--grid", path, "--out", bench.out, "--dry-run", "--json").json
    assert [c["state"] for c in found["cells"]] == ["done"] * 4 + ["to do"]
    assert found["cells"][-1]["seconds"] == sum(c["seconds"] for c in done["cells"][::2]) / 2
    assert found["scenarios"]["harbour"]["guard data"] > 0
    text = cli("bench", "collapse", "--grid", path, "--out", tmp_path / "none", "--dry-run")
    assert text.code == 0 and "harbour/plain/hot/seed-0" in text.out and "unknown yet" in text.out
    assert not (tmp_path / "none").exists()


def test_the_verb_ends_with_table_and_report(bench, cli):
    found = cli("bench", "collapse", "--grid", bench.grid, "--out", bench.out, "--json")
    assert found.code == 0, found.err
    assert (found.json["cells"], found.json["made"], found.json["failed"]) == (4, 0, {})
    assert {row["arm"] for row in found.json["table"]["rows"]} >= {"plain", "half"}
    assert Path(found.json["report"]).is_file()
    assert json.loads((bench.out / "table.json").read_text())["cells"] == 4
    assert (bench.out / "table.csv").is_file()
    page = cli("bench", "collapse", "--grid", bench.grid, "--out", bench.out)
    assert "task gain kept" in page.out and "4 done, 0 of them now" in page.out
