"""A fuse by several processes: the same bytes, one failed worker stops all, a killed one loses nothing finished."""

import os
import signal
from pathlib import Path

import pytest

import fuse_processes
from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion import processes
from guardkeel.fusion.config import read_config
from guardkeel.fusion.diagnostics import Journal
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.plan import make_plan
from guardkeel.fusion.processes import LostWorkerError
from guardkeel.fusion.sources import Sources, open_source
from guardkeel.fusion.stream import run
from small_checkpoints import llama_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def quickly_started(tmp_path, monkeypatch):
    """Workers off a server that has torch loaded."""
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processes, "START", "forkserver")
    assert fuse_processes._context.get_start_method() == "forkserver"


@pytest.fixture
def pair(tmp_path):
    return [write_checkpoint(tmp_path / n, llama_tensors(i, layers=3)) for i, n in enumerate("rc")]


def planned(folders, method, count, **options):
    first, *others = map(open_source, folders)
    return make_plan(Sources(first, tuple(others)), method, processes=count, shard_bytes=20_000, **options)


def written(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["interpolation", "dare"])
def test_bytes_and_diagnostics_do_not_depend_on_processes(pair, tmp_path, name):
    method, found = methods()[name](), []
    for count in (1, 2, 3):
        out = tmp_path / str(count)
        told, journal = [], Journal(tmp_path / f"{count}.jsonl", {})
        plan = planned(pair, method, count)
        made = run(plan, method, out, observer=journal, progress=lambda *a, told=told: told.append(a))
        journal.read()
        found.append((written(out), {n: x.gram for n, x in journal.lines.items()}, made.fused, made.taken))
        assert [d for _, d, _ in told] == sorted(d for _, d, _ in told)
        assert (made.workers > 0) == (count > 1)
        assert told[-1][1] == sum(item.spec.bytes for item in plan.items)

    assert found[0] == found[1] == found[2] and len(found[0][0]) > 1 and found[0][2] == 15


def test_plan_says_so_many_times_the_memory(pair):
    method = methods()["ties"]()
    one, three = (planned(pair, method, count, threads=2) for count in (1, 3))

    assert three.tensor_bytes == 3 * one.tensor_bytes and three.needed > three.tensor_bytes
    assert one.needed == one.tensor_bytes and "3 processes, in each 2 threads" in str(three)
    assert one.identity(method, 0) == three.identity(method, 0)  # either goes on with what the other left


class Ends(Method):
    """Kills its process on a tensor, once; or raises there."""

    name, summary, elementwise = "ends", "for tests", True
    mark: Path
    kill: bool

    def fuse(self, tensors, generator=None):
        if tensors.name == "model.layers.2.mlp.up_proj.weight" and not self.mark.exists():
            self.mark.touch()
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ModelError("the tensor is bad")
        return tensors.candidates[0].clone()


def ends(mark, kill):
    made = Ends()
    made.mark, made.kill = mark, kill
    return made


def test_a_failed_worker_stops_all_and_leaves_nothing(pair, tmp_path):
    method, out = ends(tmp_path / "mark", kill=False), tmp_path / "runs" / "out"
    out.parent.mkdir()
    with pytest.raises(ModelError, match="the tensor is bad"):
        run(planned(pair, method, 2), method, out)

    assert list(out.parent.iterdir()) == []


def test_after_a_killed_worker_the_run_goes_on_with_another_number(pair, tmp_path):
    method, out = ends(tmp_path / "mark", kill=True), tmp_path / "runs" / "out"
    out.parent.mkdir()
    with pytest.raises(LostWorkerError, match="was killed") as caught:
        run(planned(pair, method, 2), method, out)
    assert "repeat the command" in str(caught.value) and not out.exists()

    made = run(planned(pair, method, 1), method, out)
    run(planned(pair, method, 1), method, tmp_path / "whole")
    assert made.resumed > 0 and written(out) == written(tmp_path / "whole")


def test_after_a_kill_of_the_parent_it_goes_on(pair, tmp_path):
    """Its workers were spawned, as users' are: the other tests' come off a server."""
    out = tmp_path / "runs" / "out"
    out.parent.mkdir()
    fuse_processes.kill(pair, out, "dare", 3, processes=2, shard_bytes=20_000)
    assert not out.exists()
    _, made = fuse_processes.fuse(pair, out, "dare", {"processes": 2, "shard_bytes": 20_000})
    fuse_processes.fuse(pair, tmp_path / "whole", "dare", {"shard_bytes": 20_000})

    assert made.resumed >= 3 and written(out) == written(tmp_path / "whole")


def test_an_adapter_is_made_by_one_process():
    with pytest.raises(ConfigError, match="an adapter is made by one process"):
        read_config(None, {"candidates": ["x"], "output": "adapter", "processes": 2})
