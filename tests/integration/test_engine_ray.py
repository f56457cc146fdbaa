"""Guards on Ray: the verdicts, files and geometry of one process, whatever becomes of the workers.

One Ray for the module. RAY_ADDRESS names one that is there already.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'guardkeel[ray]')")

from guard_doubles import items, make_adapter  # noqa: E402
from guardkeel.engines.moments import Sample, summed  # noqa: E402
from guardkeel.engines.on_ray import spread  # noqa: E402
from guardkeel.engines.opening import open_guard, open_pair  # noqa: E402
from guardkeel.engines.settings import EngineSettings  # noqa: E402
from guardkeel.engines.worker import Actor  # noqa: E402
from guardkeel.errors import ConfigError, ModelError, RunError  # noqa: E402
from guardkeel.evaluation.scoring import score  # noqa: E402

ON_RAY, HERE = EngineSettings(engine="ray", workers=2), EngineSettings()
OPTIONS = {"family": "keel", "dtype": "float32", "device": "cpu", "token_budget": 512}
ITEMS = [replace(item, id=f"{k}-{item.id}") for k in range(6) for item in items()]
SAMPLE, LAYERS = range(0, len(ITEMS), 5), (1, 2)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        address = os.environ.get("RAY_ADDRESS", "local")
        more = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
        ray.init(address, log_to_driver=False, **(more if address == "local" else {}))
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def guards(tiny_folder, tiny_loaded, tmp_path_factory):
    """The folders of a guard and of an adapter on it."""
    folder = tiny_folder("llama")
    return folder, make_adapter(tiny_loaded("llama")[0], tmp_path_factory.mktemp("tuned"), base=folder)


@pytest.fixture(scope="module")
def local(guards, tmp_path_factory):
    """Reference and candidate scored in this process: (scored, run directory) by role."""
    out = tmp_path_factory.mktemp("local")
    return {
        role: (score(guard, ITEMS, out, role, layers=LAYERS, sample=SAMPLE), out)
        for role, guard in open_pair(HERE, *map(str, guards), **OPTIONS)
    }


def files(folder, role):
    """What each batch's file says, without how long it took."""
    found = {}
    for path in sorted((folder / "progress").glob(f"{role}-*.npz")):
        with np.load(path) as stored:
            head = json.loads(stored["head"].tobytes())
            found[path.name] = ({k: v for k, v in head.items() if k != "seconds"}, stored["hidden"].tobytes())
    return found


def lose(name="ray::MapWorker"):
    """Kill one process of a pool, as want of memory would."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.info["cmdline"] and process.info["cmdline"][0].startswith(name):
                os.kill(process.pid, signal.SIGKILL)
                return process.pid
    return None


def test_the_same_files_though_a_worker_is_lost(guards, local, tmp_path):
    wanted, there = local["candidate"]
    # A run that was begun in one process goes on here: some batches are finished, one file is damaged.
    shutil.copytree(there, tmp_path, dirs_exist_ok=True)
    names = sorted(p.name for p in (tmp_path / "progress").glob("candidate-*.npz"))
    for name in names[4:]:
        (tmp_path / "progress" / name).unlink()
    (tmp_path / "progress" / names[0]).write_bytes(b"damaged")
    kept = {n: (tmp_path / "progress" / n).stat().st_mtime_ns for n in names[1:4]}
    lost, seen = [], []

    def watch(done, total):
        seen.append(done)
        if len(seen) == 3 and not lost:  # some batches have come: the workers are at it
            lost.append(lose())

    *_, (role, guard) = open_pair(ON_RAY, *map(str, guards), **OPTIONS)
    found = score(guard, ITEMS, tmp_path, role, layers=LAYERS, sample=SAMPLE, watch=watch)
    assert lost[0] is not None
    assert found.verdicts == wanted.verdicts
    np.testing.assert_array_equal(found.hidden, wanted.hidden)
    assert files(tmp_path, "candidate") == files(there, "candidate")  # every batch once, to the bit
    assert seen == sorted(set(seen)) and seen[-1] == len(ITEMS)
    assert kept == {n: (tmp_path / "progress" / n).stat().st_mtime_ns for n in kept}  # none was judged again
    # And the other way: what was judged on Ray is taken up here, and nothing is left to do.
    (tmp_path / "progress" / names[-1]).unlink()
    for role, guard in open_pair(HERE, *map(str, guards), **OPTIONS):
        again = None
        if role == "candidate":
            again = score(guard, ITEMS, tmp_path, role, layers=LAYERS, sample=SAMPLE)
    assert again.verdicts == wanted.verdicts


def test_sums_of_activations_are_those_of_the_activations_kept(guards, local):
    from guardkeel.geometry.layer import measure_layer
    from guardkeel.geometry.streaming import measure_moments

    cells = [(k % 2, k % 3 == 0) for k in SAMPLE]
    sample = Sample(0, [ITEMS[k] for k in SAMPLE], cells, LAYERS)
    x, y = (local[role][0].hidden for role in ("reference", "candidate"))
    unsafe = np.array([u for _, u in cells])
    for engine in (HERE, ON_RAY):
        found = summed(engine, *map(str, guards), sample, **OPTIONS)
        for k, layer in enumerate(LAYERS):
            of_sums = measure_moments(layer, found[k], paired=True, rank=4)
            of_items = measure_layer(layer, x[k], y[k], unsafe, rank=4, draws=19)
            assert of_sums.drift.value == pytest.approx(of_items.drift.value, rel=1e-4)
            assert of_sums.cka.estimate.value == pytest.approx(of_items.cka.estimate.value, abs=1e-4)


class Doomed(Actor):
    """Dies of one of its parts, each time."""

    def work(self, part):
        if part == "the end":
            os.kill(os.getpid(), signal.SIGKILL)
        yield part


def test_what_kills_every_worker_stops_the_run(cluster):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    came = []
    once_more = ON_RAY.model_copy(update={"workers": 1, "worker_retries": 1})
    with pytest.raises(RunError, match="Ray gave up") as e:
        for answer in spread(once_more, Doomed, (), ["one", "the end"]):
            came.append(answer)  # noqa: PERF402 - what came before the error is wanted
    assert came == ["one"] and "goes on where it stopped" in e.value.remedy


def test_errors_are_those_of_one_process(guards, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(guards[0], gone)
    guard_file = gone / "guardkeel.json"
    guard_file.write_text('{"threshold": 7}')
    with pytest.raises(ModelError) as here:
        open_guard(HERE, str(gone), **OPTIONS)
    with pytest.raises(ModelError) as there:
        open_guard(ON_RAY, str(gone), **OPTIONS)
    assert (there.value.problem, there.value.remedy) == (here.value.problem, here.value.remedy)
    with pytest.raises(ConfigError, match=r"64 CPU each: the cluster has"):
        open_guard(EngineSettings(engine="ray", worker_cpus=64), str(guards[0]), **OPTIONS)
