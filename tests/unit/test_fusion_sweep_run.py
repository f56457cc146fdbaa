"""A sweep from end to end on a tiny classifier guard: endpoints, resuming, failures, several candidates, the choice."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ConfigError, DataError, ModelError
from guardkeel.evaluation.scoring import read_verdict
from guardkeel.evaluation.selection import select
from guardkeel.evaluation.suites import load_suite
from guardkeel.fusion.sweep import run as running
from guardkeel.fusion.sweep import scoring
from guardkeel.fusion.sweep.candidates import TaskData
from guardkeel.fusion.sweep.config import PointGroup
from guardkeel.fusion.sweep.estimate import plan
from guardkeel.fusion.sweep.reading import read_sweep
from guardkeel.fusion.sweep.run import run
from guardkeel.fusion.sweep.task import Task
from guardkeel.guards.load import load_checkpoint
from guardkeel.tuning.data import read_file
from guardkeel.tuning.learned import measure
from small_tunes import settle
from sweeps import harmed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The damaged guard, and a finished and confirmed sweep of it."""
    torch.set_num_threads(1)
    settle()
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(folder / "cache"))
        made = harmed(folder)
        yield made, run(made.config(), folder / "out"), folder / "out"


def verdicts(path):
    return {row["id"]: read_verdict(row) for row in map(json.loads, path.read_text().splitlines())}


def test_endpoints_say_what_the_guards_themselves_say_and_what_audits_record(place):
    made, results, out = place
    suite = load_suite(str(made.suite))
    judged = [i.judgement for i in select([suite]) if i.split == "calibrate"]
    for path, point, audit in (
        (made.guard, results.points[0], out / "audit" / "reference.jsonl"),
        (made.damaged, results.points[1], out / "damaged" / "damaged" / "candidate.jsonl"),
    ):
        guard = load_checkpoint(str(path), dtype="float32", device="cpu")
        said = verdicts(out / "points" / point.id / "verdicts.jsonl")
        assert list(said.values()) == guard.score(judged)
        recorded = verdicts(audit)
        assert len(said) == len(judged) > 20
        assert all(abs(recorded[i].unsafe - v.unsafe) < 1e-6 for i, v in said.items())
    start, end = results.points[:2]
    assert (start.gain.value, end.gain.value) == (0, 1)
    assert start.change.value == 0 and end.change.value < -0.2
    assert start.weights is None and end.weights.shares == [1] and end.weights.cosines == [pytest.approx(1)]


def test_the_written_choice_is_what_was_swept_and_is_audited_as_it_ships(place):
    _, results, out = place
    found, point = results.confirmation, results.point(results.choice.chosen)
    assert found.as_swept < 1e-6
    settings = json.loads((out / "fused" / "guardkeel.json").read_text())
    assert settings["threshold"] == found.threshold == point.moved
    assert settings["provenance"]["point"] == point.id
    guard = load_checkpoint(str(out / "fused"))
    assert guard.threshold == point.moved
    (suite,) = [s for s in found.suites if s.suite != "*"]
    assert suite.n > 20 and suite.damaged["damaged"] < suite.reference
    assert suite.change.value == pytest.approx(suite.repaired - suite.reference)
    recorded = json.loads((out / "audit" / "run.json").read_text())
    assert recorded["results"]["candidate"]["info"]["threshold"] == found.threshold
    assert found.repaired.decision == recorded["results"]["decision"]["decision"]
    assert not (out / "reference").exists() and not (out / "plan.json").exists()


def test_the_record_is_read_back_and_a_finished_sweep_is_not_overwritten(place):
    made, results, out = place
    record, again = read_sweep(out)
    assert again == results and record.verb == "fuse-sweep"
    assert record.counts["points"] == len(results.points) == 6
    assert set(record.inputs) == {"guard reference", "guard damaged", "task of damaged", "suite mine"}
    assert any(p.front for p in results.points)
    assert (
        results.diagnostics.whole == results.point(results.choice.chosen).weights
        and results.diagnostics.layers
    )
    with pytest.raises(ConfigError, match="finished run"):
        run(made.config(), out)
    with pytest.raises(DataError, match="not a sweep"):
        read_sweep(out / "audit")


def test_the_models_weights_are_as_they_were_after_all_points(place, tmp_path, monkeypatch):
    made, _, _ = place
    kept = {}
    loading = running.load_checkpoint

    def load(*args, **options):
        guard = loading(*args, **options)
        kept[guard] = {n: t.clone() for n, t in guard.model.state_dict().items()}
        return guard

    monkeypatch.setattr(running, "load_checkpoint", load)
    run(made.config(confirm=False), tmp_path / "out")
    ((guard, before),) = kept.items()  # loaded once
    assert all(torch.equal(t, before[n]) for n, t in guard.model.state_dict().items())


def test_a_killed_sweep_goes_on_where_it_was_and_comes_to_the_same(place, tmp_path, monkeypatch):
    made, results, _ = place
    out, asked = tmp_path / "out", []
    score = scoring.score

    def dies(guard, items, folder, role, **options):
        asked.append(folder.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return score(guard, items, folder, role, **options)

    monkeypatch.setattr(scoring, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        run(made.config(confirm=False), out)
    assert not (out / "run.json").exists()
    # Another rule and more points may be asked for meanwhile; other suites or guards may not.
    with pytest.raises(ConfigError, match="unfinished run with other"):
        run(made.config(limit=10, confirm=False), out)
    more = made.config(alphas=[0.5, 0.25], keep="never", confirm=False)
    again = run(more, out)
    done = {p.id for p in again.points}
    assert len(again.points) == 7 and len(asked) == 4 + 4 and set(asked[:3]) < done
    assert asked[3] in asked[4:]  # the one that was killed
    same = {p.id: p.model_copy(update={"seconds": 0, "front": False}) for p in results.points}
    found = {p.id: p.model_copy(update={"seconds": 0, "front": False}) for p in again.points}
    assert same.items() <= found.items()


def test_a_point_that_cannot_be_made_is_named_and_the_others_go_on(place, tmp_path):
    made, _, _ = place
    wild = PointGroup(method="task-arithmetic", grid={"scale": [1e38, 0.3]})
    results = run(made.config(point=[wild], confirm=False), tmp_path / "out")
    (failed,) = results.failed
    assert failed.name == "task-arithmetic scale=1e+38" and failed.reason
    assert {"task-arithmetic scale=0.3", "reference", "damaged"} <= {p.name for p in results.points}


def test_several_candidates_have_a_gain_each(place, tmp_path):
    made, _, _ = place
    other = tmp_path / "other"
    shutil.copytree(made.damaged, other)
    tensors = load_file(other / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"] * 1.1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = made.config(
        candidates=[str(made.damaged), f"second={other}"], point=[PointGroup(method="linear")], confirm=False
    )
    results = run(config, tmp_path / "out")
    assert results.candidates == ["damaged", "second"]
    first, second = results.points[1:3]
    assert [p.name for p in (first, second)] == ["damaged", "second"]
    assert first.gains[0].by_loss.value == 1 == second.gains[1].by_loss.value
    for p in results.points:
        assert p.gain.value == pytest.approx(sum(g.by_loss.value for g in p.gains) / 2)
    assert len(results.diagnostics.whole.shares) == 2


def test_where_nothing_may_be_chosen_nothing_is_written(place, tmp_path):
    made, _, _ = place
    masks = PointGroup(method="random-mask", grid={"keep": [0.0]})  # all of it is the reference again
    config = made.config(alphas=[0.01], keeps=[0.02], point=[masks], fallback="none")
    results = run(config, tmp_path / "out")
    assert not results.choice.satisfied and results.choice.chosen is None and results.confirmation is None
    assert results.choice.considered == 3 and not (tmp_path / "out" / "fused").exists()
    (none,) = [p for p in results.points if p.name.startswith("random-mask keep=0 ")]
    assert none.control == "random mask"
    assert none.gain.value == 0 and none.change.value == 0 and none.weights.shares == [0]


def test_what_is_said_of_a_task_is_what_a_fine_tune_says_of_it(place):
    made, _, _ = place
    guard = load_checkpoint(str(made.guard), dtype="float32", device="cpu")
    task = Task.of("damaged", TaskData(read_file(made.task).targets, ""), guard)
    rows = task.ask(guard.model, 0.5, {})
    told = measure(guard.model, task.learner, task.lessons, 0.5)
    assert told.n == rows.losses.size == 30
    assert told.loss == pytest.approx(rows.losses.mean()) and told.accuracy == rows.right.mean()


def test_what_stops_a_sweep_is_said_before_anything_is_scored(place, tmp_path):
    made, _, _ = place
    with pytest.raises(ConfigError, match="what it was tuned on is not known"):
        run(made.config(task=[]), tmp_path / "out")
    with pytest.raises(ConfigError, match="2 tasks for 1"):
        run(made.config(task=[str(made.task)] * 2), tmp_path / "out")
    with pytest.raises(ConfigError, match="no such file"):
        run(made.config(point=[PointGroup(method="somf", extras={"mask": "absent"})]), tmp_path / "out")
    with pytest.raises(ModelError):
        run(made.config(candidates=[str(tmp_path)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_plan_lists_the_points_with_their_time_and_memory(place):
    made, results, _ = place
    found = plan(made.config())
    assert [p.name for p in found.points] == [p.name for p in results.points]
    assert found.items == sum(s.n for s in results.suites) and found.task_rows == 30 and found.audits == 2
    assert 0 < found.kept < found.memory and found.seconds > 0
    assert plan(made.config(keep="never", confirm=False)).audits == 0
