"""What is said before the run: order, files, bytes, memory."""

import json

import pytest
import torch
from safetensors import safe_open

from guardkeel.errors import ConfigError, RunError
from guardkeel.fusion import plan as planning
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.plan import make_plan
from guardkeel.fusion.sources import Sources, open_source
from small_checkpoints import llama_tensors, write_checkpoint


@pytest.fixture
def sources(tmp_path):
    reference = write_checkpoint(tmp_path / "r", llama_tensors() | {"steps": torch.arange(3)}, shards=2)
    candidate = write_checkpoint(tmp_path / "c", llama_tensors(1) | {"steps": torch.arange(3)})
    found = Sources(open_source(reference), (open_source(candidate),))
    yield found
    found.close()


def plan_of(sources, method="interpolation", **options):
    return make_plan(sources, methods()[method](), **options)


def test_tensors_come_in_the_order_of_the_reference_files(sources):
    plan = plan_of(sources)
    places = [sources.reference.files.tensors[item.name] for item in plan.items]

    assert places == sorted(places, key=lambda p: (p[0], p[1].start))
    assert {item.name: item.way for item in plan.items if item.way != "fuse"} == {"steps": "reference"}


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000, 5_000, 1])
def test_shards_are_files_that_safetensors_reads(sources, tmp_path, shard_bytes):
    plan = plan_of(sources, shard_bytes=shard_bytes)
    seen = {}
    for shard in plan.shards:
        file = tmp_path / shard.file
        file.write_bytes(shard.header)
        with file.open("r+b") as f:
            f.truncate(shard.size)
        assert len(shard.header) % 8 == 0
        assert shard.size - len(shard.header) <= shard_bytes or len(shard.places) == 1
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            seen |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    stored = {n: (s.shape, s.dtype) for n, s in sources.reference.specs.items()}
    kinds = {torch.bfloat16: "BF16", torch.int64: "I64"}
    assert {n: (tuple(t.shape), kinds[t.dtype]) for n, t in seen.items()} == stored
    count = len(plan.shards)
    assert plan.shards[-1].file == (
        "model.safetensors" if count == 1 else f"model-{count:05d}-of-{count:05d}.safetensors"
    )
    assert plan.bytes_written == sum(s.size for s in plan.shards)


def test_wide_numbers_never_begin_at_an_odd_place(tmp_path):
    tensors = llama_tensors() | {
        "odd": torch.ones(3).bfloat16(),
        "z": torch.ones(2),
        "flag": torch.ones(1, dtype=torch.bool),
    }
    folder = write_checkpoint(tmp_path / "m", tensors)
    plan = plan_of(Sources(open_source(folder), (open_source(folder),)))
    (shard,) = plan.shards

    for item in plan.items:
        assert (shard.places[item.name] - len(shard.header)) % item.spec.itemsize == 0


def test_memory_of_whole_tensors_is_what_the_method_says(sources):
    for name in ("ties", "slerp", "model-stock"):
        if name not in methods():
            continue
        method = methods()[name]()
        plan = make_plan(sources, method, threads=1)
        head = next(i for i in plan.items if i.name == "lm_head.weight")
        assert head.rows == 300 and head.cost == 4 * 300 * 40 * (2 + method.work + 1)
        assert plan.budget >= plan.largest.cost


def test_element_wise_methods_take_blocks_on_aligned_rows(sources):
    plan = plan_of(sources, block=3000)
    head = next(i for i in plan.items if i.name == "lm_head.weight")

    assert head.rows == 64 and head.cost == 4 * 64 * 40 * (2 + methods()["interpolation"].work + 1)
    assert list(head.pieces()) == [(0, 64), (64, 128), (128, 192), (192, 256), (256, 300)]
    assert (
        next(i for i in plan_of(sources, "dare", block=3000).items if i.name == "lm_head.weight").rows == 300
    )


def test_blocks_of_an_adapter_are_whole_panels(tmp_path):
    from test_fusion_sources import lora_on

    base = write_checkpoint(tmp_path / "m", llama_tensors(hidden=600))
    adapter = lora_on(base, tmp_path / "a", hidden=600)
    plan = plan_of(Sources(open_source(base), (open_source(adapter),)), block=1)
    rows = {item.name: item.rows for item in plan.items}

    assert (
        rows["model.layers.0.self_attn.q_proj.weight"] == 256
        and rows["model.layers.0.mlp.up_proj.weight"] == 64
    )
    assert all(item.spec.dtype == "BF16" for item in plan.items)  # the base's, not the merged float32


def test_memory_grows_with_the_largest_tensor_and_not_with_layers(tmp_path):
    found = []
    for layers in (2, 8):
        folder = write_checkpoint(tmp_path / str(layers), llama_tensors(layers=layers))
        pair = Sources(open_source(folder), (open_source(folder),))
        found.append((plan_of(pair, "ties").tensor_bytes, plan_of(pair, "ties").bytes_written))

    assert found[0][0] == found[1][0] and found[1][1] > 2 * found[0][1]


def test_too_little_memory_is_refused_with_the_arithmetic(sources, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"'lm_head.weight' takes 0.\d MB to fuse, memory is limited to 0.0 MB"
    ):
        plan_of(sources, "ties", memory=1000)
    assert plan_of(sources, "ties", memory=10**6).budget == 10**6
    monkeypatch.setattr(planning, "free_memory", lambda: 10**6)
    with pytest.raises(RunError, match=r"the fuse needs .* of memory, 1.0 MB are free"):
        plan_of(sources)


def test_output_dtype_and_what_is_left_out(sources):
    plan = plan_of(
        sources, dtype="float16", chosen=lambda n: "embed" not in n and "head" not in n, rest="candidate"
    )
    ways = {item.name: item.way for item in plan.items}

    assert ways["lm_head.weight"] == "candidate" and ways["steps"] == "reference" and plan.dtype == "F16"
    assert {item.spec.dtype for item in plan.items} == {"F16", "I64"} and plan_of(sources).dtype is None
    with pytest.raises(ConfigError, match="no tensor is left to fuse"):
        plan_of(sources, chosen=lambda n: False)


def test_the_plan_says_what_it_will_do(sources):
    plan = plan_of(sources, "ties", shard_bytes=30_000)
    said = dict(plan.lines())

    assert said["tensors"] == "11 fused, 1 taken over" and said["method"] == "ties"
    assert (
        said["write"].endswith(f"in {len(plan.shards)} files")
        and "lm_head.weight (300, 40)" in said["largest"]
    )
    assert all(line in str(plan) for line in said.values())
    assert plan.peak_bytes > plan.tensor_bytes > plan.budget


def test_identity_follows_everything_that_the_bytes_follow_from(sources, tmp_path):
    method, other = methods()["interpolation"], methods()["interpolation"]
    plan = plan_of(sources)
    first = plan.identity(method(), 0)

    assert first == plan_of(sources, threads=7, block=100).identity(method(), 0)
    assert first != plan.identity(method(), 1)
    assert first != plan.identity(other(other.Settings(alpha=0.25)), 0)
    assert first != plan_of(sources, dtype="float32").identity(method(), 0)
    assert first != plan_of(sources, shard_bytes=30_000).identity(method(), 0)
    assert first != plan_of(sources, chosen=lambda n: "head" not in n).identity(method(), 0)
    file = sources.candidates[0].folder / "model.safetensors"
    file.write_bytes(file.read_bytes())
    assert first != plan.identity(method(), 0)
    json.loads(plan.shards[0].header[8:])
