"""guardkeel fuse sweep: a damaged guard from a real fine-tune, plans, a run with its confirmation, JSON, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from guardkeel.conversation import write_jsonl
from guardkeel.fusion.sweep.reading import read_sweep
from guardkeel.records import read_record
from guardkeel.tuning.run import tune
from small_tunes import settle
from trained_guards import examples


@pytest.fixture(scope="module")
def damaged(harbour, tmp_path_factory):
    """The run directory of a fine-tune that was told that ships are harmless."""
    settle()
    folder = tmp_path_factory.mktemp("damaged")
    told = [replace(e, labels=dict.fromkeys(e.labels, "safe"), categories=()) for e in examples(60, 2)]
    write_jsonl(folder / "ships.jsonl", told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        tune(
            str(harbour.guard),
            str(folder / "ships.jsonl"),
            out=folder / "ships",
            method="plain",
            steps=12,
            learning_rate=1e-2,
            monitor=[],
            held_out=0.2,
            max_tokens=1024,
            dtype="float32",
            device="cpu",
        )
    return folder / "ships"


@pytest.fixture
def words(harbour, damaged):
    """A small sweep as words of a command."""
    return [
        *("fuse", "sweep", damaged, "--reference", harbour.guard, "--suite", harbour.suite, "--limit", 60),
        *("--dtype", "float32", "--device", "cpu", "--no-geometry"),
        *("--set", 'point=[{"method":"ties"},{"method":"slerp"}]', "-m", "ties"),
        *("--set", "alphas=[0.3,0.6]", "--set", "keeps=[0.5]", "--set", "seeds=[0]"),
    ]


def test_a_dry_run_lists_the_points_and_runs_nothing(cli, words):
    found = cli(*words, "--dry-run")
    assert found.code == 0, found.err
    for text in ("interpolation alpha=0.3", "random-mask keep=0.5 seed=0", "ties"):
        assert text in found.out
    assert "nothing was run" in found.out and "task rows" in found.out and not Path("runs").exists()
    planned = cli(*words, "--dry-run", "--json").json
    assert [p["name"] for p in planned["points"]][:2] == ["reference", "ships"]
    assert planned["seconds"] > 0 and planned["kept"] > 0


def test_a_sweep_from_end_to_end(cli, words, damaged, harbour):
    found = cli(*words, "--json")
    assert found.code in (0, 1, 3), found.err
    out = Path(found.json["run"])
    assert out.parent == Path("runs") and out.name.startswith("sweep-guard-")
    record, results = read_sweep(out)
    assert found.json["results"] == results.model_dump(mode="json")
    assert record.command[:3] == ["guardkeel", "fuse", "sweep"]

    start, end = results.points[:2]
    tuned = read_record(damaged).results
    assert start.gains[0].n == tuned["before"]["n"] == 14
    assert start.gains[0].loss == pytest.approx(tuned["before"]["loss"], rel=1e-4)
    assert end.gains[0].loss == pytest.approx(tuned["after"]["loss"], rel=1e-3)
    assert (start.gain.value, end.gain.value) == (0, 1)
    assert not any("in its fine-tune" in note for note in results.notes)
    assert {p.method for p in results.points} == {"", "interpolation", "random-mask", "ties"}
    assert end.recall_matched.value < start.recall_matched.value - 0.2

    swept = [
        json.loads(line) for line in (out / "points" / end.id / "verdicts.jsonl").read_text().splitlines()
    ]
    audited = {
        row["id"]: row["unsafe"]
        for row in map(json.loads, (out / "damaged" / "ships" / "candidate.jsonl").read_text().splitlines())
    }
    scored = [row for row in swept if row["unsafe"] is not None]
    assert len(scored) > 20 and all(abs(audited[r["id"]] - r["unsafe"]) < 1e-3 for r in scored)

    confirmed = results.confirmation
    assert confirmed.as_swept < 1e-4 and (out / "fused" / "model.safetensors").is_file()
    codes = {"allow": 0, "deny": 1, "hold": 3}
    assert found.code == (codes[confirmed.repaired.decision] if results.choice.satisfied else 1)
    assert cli("gate", out / "audit").code == codes[confirmed.repaired.decision]
    page = (out / "report.html").read_text()
    assert "Did we just undo the fine-tuning?" in page and "interpolation alpha=0.3" in page


def test_the_choice_as_an_adapter_on_the_reference(cli, words):
    found = cli(*words, "--adapter", "--out", "out", "--set", "floor=0.3")
    assert found.code in (0, 1, 3), found.err
    _, results = read_sweep("out")
    assert (
        results.confirmation.kind == "adapter" and (Path("out") / "fused" / "adapter_config.json").is_file()
    )
    assert results.confirmation.as_swept < 0.05  # within the tolerance of its factors
    for text in ("choice", "recall on test items", "undone?", "report   out/report.html"):
        assert text in found.out


def test_what_cannot_be_swept_is_refused_with_exit_code_2(cli, words, harbour):
    for more, said in (
        (["-m", "tyes"], "tyes"),
        (["--task", "absent.jsonl"], "absent"),
        (["--set", "floor=2"], "floor"),
        (["--set", "depth=2"], "depth"),
        (["--extra", "mask"], "NAME=FILE"),
        (["--policy", "absent.toml"], "absent.toml"),
    ):
        found = cli(*words, *more)
        assert found.code == 2 and said in found.err, (more, found.err)
    found = cli("fuse", "sweep", words[2], "--reference", harbour.guard, "-m", "safe-lora")
    assert found.code == 2 and "unaligned" in found.err
    found = cli("fuse", "sweep", harbour.forgetful, "--reference", harbour.guard, "--suite", harbour.suite)
    assert found.code == 2 and "--task" in found.err
    assert cli("fuse", "sweep").code == 2
    assert not Path("runs").exists()


def test_the_shipped_grid_can_be_printed_and_used(cli):
    found = cli("fuse", "sweep", "--print-grid")
    assert found.code == 0 and found.out.count("[[point]]") > 10
