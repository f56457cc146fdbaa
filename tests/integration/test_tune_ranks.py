"""A fine-tune in two processes goes the way that it goes in one: same steps, same decisions, same guard."""

import json
import signal
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from guardkeel.conversation import write_jsonl
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Judgement
from guardkeel.guards.load import load_guard
from guardkeel.records import read_record
from guardkeel.tuning.check import check
from guardkeel.tuning.config import read_config
from guardkeel.tuning.estimate import estimate
from guardkeel.tuning.log import read_log
from guardkeel.tuning.points import read_points
from guardkeel.tuning.ranks import Ranks, _asked, here
from guardkeel.tuning.regularisers.registry import METHODS
from guardkeel.tuning.run import run
from rank_processes import known, start
from small_tunes import settle
from trained_guards import examples
from tune_processes import kill

HELD = {
    "method": "fwssr-adaptive+replay",
    "options": {"fwssr-adaptive": {"every": 1, "refresh": 2, "rank": 8}},
}
# Nine rows to learn in batches of four: the third batch has one row, and the second process none of it.
UNEVEN = {"most": 10, "adapter": "full", "learning_rate": 1e-3, "monitor": []}
ONE = {
    "held": HELD,
    "plain": UNEVEN | {"method": "plain"},
    "kl": UNEVEN | {"method": "kl", "checkpointing": True, "accumulation": 2, "steps": 2},
    "tripped": {"method": "plain", "tripwire": True, "learning_rate": 1e-2, "steps": 8},
}
TWO = {
    "held": "held",
    "plain": "plain",
    "kl-fsdp": "kl",
    "tripped-fsdp": "tripped",
    "taken-up-fsdp": "held",
    "killed-fsdp": "held",
}
"""Runs in two processes, and the run in one that each must equal; two were begun, or are ended, in one."""


@pytest.fixture(scope="module")
def configured(harbour, tmp_path_factory):
    """configured(name) → the configuration of a run as a dictionary."""
    settle()
    folder = tmp_path_factory.mktemp("ranks")
    write_jsonl(folder / "task.jsonl", examples(40, 31, labels=("safe",)))
    swapped = {"safe": "unsafe", "unsafe": "safe"}
    rows = [replace(e, labels={s: swapped[v] for s, v in e.labels.items()}) for e in examples(40, 32)]
    write_jsonl(folder / "reversed.jsonl", rows)
    write_jsonl(folder / "anchor.jsonl", examples(5, 33))
    write_jsonl(folder / "watch.jsonl", examples(80, 34))

    def make(name):
        given = {
            "guard": str(harbour.guard), "data": [str(folder / "task.jsonl")], "steps": 4, "every": 2, "batch": 4,
            "guard_data": [str(folder / "anchor.jsonl")], "monitor": [str(folder / "watch.jsonl")],
            "monitor_items": 16, "learning_rate": 5e-3, "max_tokens": 1024, "device": "cpu", "dtype": "float32",
        }  # fmt: skip
        if name.startswith("tripped"):
            given["data"] = [str(folder / "reversed.jsonl")]
        sharding = {"sharding": "fsdp" if name.endswith("-fsdp") else "none"}
        return given | ONE[TWO.get(name, name)] | sharding

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        yield make


@pytest.fixture(scope="module")
def one(configured, tmp_path_factory):
    """one(name) → the folder of that run in one process."""
    home = tmp_path_factory.mktemp("one")

    def folder(name):
        if not (home / name).exists():
            run(read_config(None, configured(name)), home / name)
        return home / name

    return folder


@pytest.fixture(scope="module")
def two(configured, tmp_path_factory):
    """(the folder of all runs in two processes, their exit codes)."""
    home = tmp_path_factory.mktemp("two")
    alone = configured("held") | {"sharding": "auto"}
    kill(alone, home / "taken-up-fsdp", "step", 3)
    codes = start({name: configured(name) for name in TWO}, home, kill={"killed-fsdp": 3})
    return home, codes


def weights(folder):
    [file] = (folder / "tuned").glob("*.safetensors")
    return load_file(file)


def length(tensors):
    return float(sum(t.double().square().sum() for t in tensors) ** 0.5)


def same(folder, other, guard):
    """Steps, looks, results and weights are those of the other up to rounding."""
    ours, theirs = weights(folder), weights(other)
    before = load_file(guard / "model.safetensors")
    assert ours.keys() == theirs.keys()
    moved = length(t - before[n] if n in before else t for n, t in theirs.items())
    assert moved > 0 and length(ours[n] - t for n, t in theirs.items()) < 1e-3 * moved
    for line, said in zip(read_log(folder), read_log(other), strict=True):
        assert line == {k: pytest.approx(v, rel=1e-3, abs=1e-5) for k, v in said.items()} | {
            "seconds": line["seconds"]
        }
    for point, said in zip(read_points(folder), read_points(other), strict=True):
        assert (point.step, point.n, point.worse, point.better) == (
            said.step,
            said.n,
            said.worse,
            said.better,
        )
        assert point.threshold == pytest.approx(said.threshold, rel=1e-3)
        assert point.auroc.value == pytest.approx(said.auroc.value, abs=1e-3)
        for layer, that in zip(point.geometry, said.geometry, strict=True):
            assert layer.cka.value == pytest.approx(that.cka.value, abs=1e-3)
    mine, its = read_record(folder), read_record(other)
    for key in ("steps", "stopped", "trained", "method"):
        assert mine.results[key] == its.results[key]
    assert mine.results["after"]["loss"] == pytest.approx(its.results["after"]["loss"], rel=1e-3)
    assert mine.inputs == its.inputs
    for name in ("adapter_config.json", "config.json", "tokenizer.json"):
        if (other / "tuned" / name).exists():
            assert (folder / "tuned" / name).read_bytes() == (other / "tuned" / name).read_bytes()


@pytest.mark.parametrize("name", [n for n in TWO if not n.startswith("killed")])
def test_two_processes_are_one(name, one, two, harbour):
    home, _ = two
    same(home / name, one(TWO[name]), harbour.guard)
    ours, theirs = (of[name] for of in known(home))
    assert ours["steps"] == theirs["steps"], "both know the same numbers, λ among them, bit for bit"
    mine, its = (json.loads(json.dumps(of["results"])) for of in (ours, theirs))
    for key in ("steps", "stopped", "before", "after", "threshold", "monitor"):
        assert mine[key] == its[key]
    assert read_record(home / name).counts["processes"] == 2
    assert {p.name for p in (home / name).iterdir()} == {p.name for p in one(TWO[name]).iterdir()}


def test_the_runs_had_something_to_lose(one, two):
    """λ moved, a batch was shared unevenly, and the tripwire stopped a run: equality above is no accident."""
    rows = read_log(one("held"))
    assert len({row["fwssr-adaptive.lambda"] for row in rows}) > 2
    assert read_record(one("plain")).counts["task rows"] == 9
    tripped = read_record(one("tripped"))
    assert tripped.results["stopped"].startswith("tripwire") and tripped.results["steps"] >= 2


def test_a_process_is_killed_and_one_goes_on_alone(one, two, configured, harbour):
    home, codes = two
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0, "the other cannot go on, and ends"
    folder = home / "killed-fsdp"
    assert not (folder / "run.json").exists() and (folder / "checkpoint-2").exists()
    run(read_config(None, configured("held")), folder)
    same(folder, one("held"), harbour.guard)


def test_what_is_left_is_an_ordinary_guard(one, two):
    home, _ = two
    asked = [Judgement(e.id, e.conversation, "prompt") for e in examples(4, 77)]
    for name in ("taken-up-fsdp", "kl-fsdp"):
        guard, other = (load_guard(str(f / "tuned"), device="cpu") for f in (home / name, one(TWO[name])))
        assert (guard.family, guard.threshold) == (other.family, pytest.approx(other.threshold, rel=1e-3))
        for v, w in zip(guard.score(asked), other.score(asked), strict=True):
            assert v.unsafe == pytest.approx(w.unsafe, rel=1e-3)
    assert json.loads((home / "kl-fsdp/tuned/config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]


# --- what one process knows of the others, without any


@pytest.fixture
def launched(monkeypatch):
    """launched(rank, size, **variables) is what a launcher says in the environment."""

    def say(rank=0, size=2, **variables):
        _asked.cache_clear()
        said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost"} | variables
        for key, value in said.items():
            monkeypatch.setenv(key, str(value))

    yield say
    _asked.cache_clear()


def test_shares_add_up_to_the_batch():
    for size in (1, 2, 3, 5):
        for count in (1, 2, 4, 7):
            batch = list(range(10, 10 + count))
            ranks = [Ranks(rank, size) for rank in range(size)]
            parts = [r.parts(batch) for r in ranks]
            # the mean over processes of their mean rows is the mean row
            means = [sum(w * row for row, w in part) / len(part) for part in parts]
            assert sum(means) / size == pytest.approx(sum(batch) / count)
            assert sorted(row for part in parts for row, w in part if w) == batch
            shares = [r.share(batch) for r in ranks]
            assert [row for share in shares for row in share][:count] == batch
            assert len({len(share) for share in shares}) == 1
            dealt = [r.deal(batch) for r in ranks]
            assert sorted(b for deal in dealt for b, counts in deal if counts) == batch
            assert len({len(deal) for deal in dealt}) == 1
    assert Ranks(0, 1).parts([3, 4]) == [(3, 1.0), (4, 1.0)]


def test_the_launcher_is_believed(launched, monkeypatch):
    assert here() == Ranks()
    launched(1, 2)
    found = here("auto", device="cpu")
    assert (found.rank, found.size, found.local, found.first, found.sharded) == (1, 2, 1, False, False)
    launched(0, 4, ACCELERATE_USE_FSDP="true", FSDP_OFFLOAD_PARAMS="true", ACCELERATE_USE_CPU="true")
    found = here("auto")
    assert (found.sharded, found.offload, found.device) == (True, True, "cpu")
    assert not here("none").sharded and not here("none").offload


@pytest.mark.parametrize(
    ("options", "variables", "problem"),
    [
        ({"sharding": "fsdp"}, None, "no launcher"),
        ({"offload": True}, {}, "nothing is sharded"),
        ({"batch": 5}, {}, "equal shares of batch 5"),
        ({"sharding": "fsdp", "method": "kl+ewc"}, {}, "method 'ewc' needs whole weights"),
        ({"sharding": "fsdp", "method": "interpolation"}, {}, "method 'interpolation' needs whole weights"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision 'bf16'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(options, variables, problem, launched):
    if variables is not None:
        launched(**variables)
    with pytest.raises(ConfigError, match=problem):
        check(read_config(None, {"data": ["none.jsonl"], "device": "cpu"} | options))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_runs_in_processes_that_hold_all_weights(method, launched):
    launched()
    check(read_config(None, {"data": ["none.jsonl"], "method": method, "device": "cpu", "unaligned": "x"}))


def test_a_plan_is_of_one_process(configured, launched):
    alone = estimate(read_config(None, configured("plain")))
    launched()
    shared, sharded = (
        estimate(read_config(None, configured("plain") | {"sharding": s})) for s in ("none", "fsdp")
    )
    assert (alone.processes, shared.processes, sharded.processes) == (1, 2, 2)
    assert sharded.sharded and not shared.sharded
    assert alone.memory > shared.memory and (shared.steps, shared.rows) == (alone.steps, alone.rows)
    held = 4 * alone.parameters + 16 * alone.trained
    assert shared.memory - sharded.memory < held / 2
