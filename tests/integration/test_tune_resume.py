"""A fine-tune that was killed, and repeated, ends as one that was not: the same weights, bit for bit."""

import json
import shutil
from dataclasses import replace

import pytest

from guardkeel.conversation import write_jsonl
from guardkeel.errors import ConfigError
from guardkeel.records import read_record
from guardkeel.tuning.config import read_config
from guardkeel.tuning.keeper import DONE
from guardkeel.tuning.log import read_log
from guardkeel.tuning.run import run
from small_tunes import settle
from trained_guards import examples
from tune_processes import kill

STEPS, EVERY = 6, 2
METHODS = {
    "plain": {"method": "plain"},
    "fwssr-adaptive": {
        "method": "fwssr-adaptive",
        "options": {"fwssr-adaptive": {"every": 1, "refresh": 2, "rank": 8}},
    },
    "lisa": {"method": "lisa", "options": {"lisa": {"task_steps": 2, "align_steps": 1}}},
    "full": {"method": "fwssr-adaptive+replay", "adapter": "full", "learning_rate": 1e-3},
    "accumulated": {"method": "fwssr-adaptive", "accumulation": 2, "batch": 2},
}


@pytest.fixture(scope="module")
def place(harbour, tmp_path_factory):
    """A folder with the data; the cache is the harbour's."""
    settle()
    folder = tmp_path_factory.mktemp("resume")
    write_jsonl(folder / "task.jsonl", examples(60, 31, labels=("safe",)))
    reversed_ = [
        replace(
            e, labels={s: {"safe": "unsafe", "unsafe": "safe"}[v] for s, v in e.labels.items()}, categories=()
        )
        for e in examples(60, 32)
    ]
    write_jsonl(folder / "reversed.jsonl", reversed_)
    write_jsonl(folder / "anchor.jsonl", examples(20, 33))
    write_jsonl(folder / "watch.jsonl", examples(160, 34))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        yield folder


@pytest.fixture(scope="module")
def configured(place, harbour):
    """configured(**options) → the configuration as a dictionary."""

    def make(**options):
        given = {
            "guard": str(harbour.guard), "data": [str(place / "task.jsonl")],
            "guard_data": [str(place / "anchor.jsonl")], "monitor": [str(place / "watch.jsonl")],
            "monitor_items": 24, "steps": STEPS, "every": EVERY, "batch": 4, "learning_rate": 5e-3,
            "max_tokens": 1024, "device": "cpu", "dtype": "float32", "warmup": 0.4, "decay": True,
        }  # fmt: skip
        return given | options

    return make


@pytest.fixture(scope="module")
def whole(place, configured):
    """whole(name) → the directory of that run without a stop."""
    made = {}

    def folder(name, **options):
        if name not in made:
            made[name] = place / "whole" / name / "run"
            run(read_config(None, configured(**options)), made[name])
        return made[name]

    return folder


def timeless(value):
    """Without what a clock says."""
    if isinstance(value, dict):
        return {
            k: timeless(v) for k, v in value.items() if k not in ("seconds", "step_seconds", "peak_memory")
        }
    return [timeless(v) for v in value] if isinstance(value, list) else value


def lines(path):
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def same(folder, other):
    assert {p.name for p in folder.iterdir()} == {p.name for p in other.iterdir()}
    weights = {p.name: p.read_bytes() for p in (folder / "tuned").iterdir()}
    assert weights == {p.name: p.read_bytes() for p in (other / "tuned").iterdir()}
    for name in ("log.jsonl", "monitor.jsonl"):
        assert lines(folder / name) == lines(other / name), name
    for name in ("regulariser.safetensors", "config.toml"):
        if (other / name).exists():
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = read_record(folder), read_record(other)
    assert timeless(ours.results) == timeless(theirs.results)
    assert (ours.inputs, ours.config, ours.counts) == (theirs.inputs, theirs.config, theirs.counts)


def checkpoints(folder):
    """step → whether it is whole."""
    return {int(p.name[11:]): (p / DONE).exists() for p in folder.glob("checkpoint-*")}


@pytest.mark.parametrize("name", ["fwssr-adaptive", "full", "accumulated"])  # the others are killed below
def test_kill_9_in_mid_training(name, configured, whole, tmp_path):
    folder, config = tmp_path / "run", configured(**METHODS[name])
    kill(config, folder, "step", 5)
    assert checkpoints(folder) == {4: True} and len(read_log(folder)) == 5
    assert not (folder / "tuned").exists() and not (folder / "run.json").exists()
    run(read_config(None, config), folder)
    same(folder, whole(name, **METHODS[name]))
    assert [row["step"] for row in read_log(folder)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("moment", "step", "held"),
    [
        ("step", 1, {}),  # before the first checkpoint
        ("checkpoint", 4, {2: True, 4: False}),  # in the middle of the second
        ("point", 4, {2: True}),  # after the look, before the checkpoint
        ("end", STEPS, {6: True}),  # trained, not recorded
    ],
)
def test_kill_9_at_odd_moments(moment, step, held, configured, whole, tmp_path):
    folder, config = tmp_path / "run", configured(**METHODS["fwssr-adaptive"])
    kill(config, folder, moment, step)
    assert checkpoints(folder) == held
    run(read_config(None, config), folder)
    same(folder, whole("fwssr-adaptive", **METHODS["fwssr-adaptive"]))


def test_twice_killed(configured, whole, tmp_path):
    folder, config = tmp_path / "run", configured(**METHODS["lisa"])
    kill(config, folder, "checkpoint", 2)
    assert checkpoints(folder) == {2: False}  # the very first
    kill(config, folder, "checkpoint", 6)
    assert checkpoints(folder) == {4: True, 6: False}
    run(read_config(None, config), folder)
    same(folder, whole("lisa", **METHODS["lisa"]))


@pytest.mark.parametrize("moment", ["return", "step"])
def test_a_collapse_that_was_killed_rolls_back_all_the_same(moment, place, configured, whole, tmp_path):
    """The good checkpoint is not the latest one, and must outlive the kill."""
    options = {
        "method": "plain", "data": [str(place / "reversed.jsonl")], "learning_rate": 1e-2, "warmup": 0.0,
        "steps": 20, "every": 2, "batch": 8, "tripwire": True, "decay": False,
    }  # fmt: skip
    other = whole("collapse", **options)
    result = read_record(other).results
    tripped = int(result["stopped"].split()[3].rstrip(":"))
    good = result["steps"]
    assert 0 < good < tripped
    folder, config = tmp_path / "run", configured(**options)
    kill(config, folder, moment, tripped if moment == "step" else 0)
    assert good in checkpoints(folder)
    run(read_config(None, config), folder)
    same(folder, other)


# --- whose folder it is


@pytest.fixture
def stopped(configured, whole, place, tmp_path):
    """A run that died after its second checkpoint."""
    kept = place / "stopped"
    if not kept.exists():
        kill(configured(method="plain"), kept, "step", 3)
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"method": "replay"}, {"learning_rate": 1e-4}, {"steps": 7}, {"monitor": []}]
)
def test_another_run_is_not_begun_over_it(stopped, configured, change):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="unfinished run with other guards, data or settings"):
        run(read_config(None, configured(**{"method": "plain"} | change)), stopped)
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_before_the_first_checkpoint_another_run_may_take_the_folder(configured, whole, tmp_path):
    folder = tmp_path / "run"
    kill(configured(method="replay", seed=3, held_out=0.5), folder, "step", 1)
    run(read_config(None, configured(**METHODS["plain"])), folder)
    same(folder, whole("plain", **METHODS["plain"]))


def test_a_finished_run_is_not_overwritten(configured, whole):
    folder = whole("plain", **METHODS["plain"])
    before = (folder / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a finished run"):
        run(read_config(None, configured(**METHODS["plain"])), folder)
    assert (folder / "run.json").read_bytes() == before
