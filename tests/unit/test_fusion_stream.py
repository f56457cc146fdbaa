"""The same bytes however they are made: threads, blocks, order, memory or file, in one go or after a kill."""

import json

import pytest
import torch
from pydantic import Field

from fuse_processes import fuse, growth, kill
from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion.methods.base import Method, Settings
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.plan import make_plan
from guardkeel.fusion.sources import Sources, open_source
from guardkeel.fusion.stream import estimate, fused, run
from guardkeel.fusion.tensorfile import TensorFiles
from guardkeel.models.checks import check_checkpoint
from small_checkpoints import llama_tensors, weights_of, write_checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path):
    """A reference in two shards, and two tunings of it."""
    frozen = {"steps": torch.arange(5), "flag": torch.tensor(True), "scale": torch.tensor(2.5).bfloat16()}
    reference = write_checkpoint(tmp_path / "r", llama_tensors(hidden=37) | frozen, shards=2)
    (reference / "generation_config.json").write_text('{"do_sample": false}')
    (reference / "guardkeel.json").write_text('{"family": "keel"}')
    (reference / "preprocessor_config.json").write_text("{}")
    (reference / "trainer_state.json").write_text("{}")
    (reference / "notes.bin").write_bytes(b"x")
    others = [write_checkpoint(tmp_path / f"c{i}", llama_tensors(i, hidden=37) | frozen) for i in (1, 2)]
    return [reference, *others]


def opened(folders, unaligned=None, **extras):
    first, *others = map(open_source, folders)
    return Sources(first, tuple(others), unaligned and open_source(unaligned), extras)


def written(folders, out, method, seed=0, **planned):
    """Bytes of the shards that a run writes."""
    sources = opened(folders)
    run(make_plan(sources, method, **planned), method, out, seed=seed)
    sources.close()
    return [p.read_bytes() for p in sorted(out.glob("*.safetensors"))]


def chosen(count, extras=False):
    """Every method that takes so many candidates, with its default settings."""
    return [
        n
        for n, m in methods().items()
        if m.least <= count and (m.most is None or count <= m.most) and bool(m.extras) is extras
    ]


def test_output_is_a_checkpoint_with_all_that_belongs_to_the_reference(folders, tmp_path):
    method = methods()["interpolation"](methods()["interpolation"].Settings(alpha=0.25))
    sources = opened(folders[:2])
    said = []
    made = run(
        make_plan(sources, method, shard_bytes=20_000),
        method,
        tmp_path / "out",
        files={"guardkeel.json": b'{"family": "fused"}'},
        progress=lambda *a: said.append(a),
    )

    checkpoint = check_checkpoint(made.folder)
    assert len(checkpoint.files) > 1 and made.fused == 11 and made.taken == 2 and made.unchanged == 1
    assert sorted(p.name for p in made.folder.iterdir() if p.suffix == ".json") == [
        "config.json", "generation_config.json", "guardkeel.json", "model.safetensors.index.json",
        "preprocessor_config.json", "tokenizer.json",
    ]  # fmt: skip
    assert not (made.folder / "notes.bin").exists()
    assert (made.folder / "guardkeel.json").read_text() == '{"family": "fused"}'
    assert (made.folder / "config.json").read_bytes() == (folders[0] / "config.json").read_bytes()
    before, after, result = map(weights_of, (folders[0], folders[1], made.folder))
    for name, tensor in before.items():
        assert result[name].dtype == tensor.dtype and result[name].shape == tensor.shape
        if tensor.dtype == torch.bfloat16:
            exact = torch.lerp(tensor.double(), after[name].double(), 0.25).bfloat16()
            assert torch.allclose(result[name].double(), exact.double(), rtol=0.008, atol=1e-9), name
            assert (result[name] == exact).float().mean() > 0.98
        else:
            assert torch.equal(result[name], tensor)
    assert (
        said[-1][0] == "fuse" and [d for _, d, _ in said] == sorted(d for _, d, _ in said) and len(said) == 14
    )


@pytest.mark.parametrize("name", sorted({*chosen(1), *chosen(2)}))
def test_bytes_do_not_depend_on_threads_blocks_order_or_shards(folders, tmp_path, name):
    if methods()[name].needs_unaligned:
        pytest.skip("see the next test")
    method = methods()[name]()
    given = folders if name in chosen(2) else folders[:2]
    first = written(given, tmp_path / "a", method, threads=1)

    assert written(given, tmp_path / "b", method, threads=5, block=64) == first
    assert written(given, tmp_path / "c", method, threads=2, block=5000, memory=10**6) == first
    with_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert written(given, tmp_path / "d", method, threads=3) == first and torch.get_num_threads() == 3
    torch.set_num_threads(with_threads)
    written(given, tmp_path / "e", method, shard_bytes=9_000)
    ours, theirs = weights_of(tmp_path / "a"), weights_of(tmp_path / "e")
    assert all(torch.equal(ours[n], theirs[n]) for n in ours) and len(first) == 1


@pytest.mark.parametrize("name", sorted({*chosen(1), *chosen(2)}))
def test_in_memory_it_is_the_same_bit_for_bit(folders, tmp_path, name):
    method = methods()[name]()
    given = folders if name in chosen(2) else folders[:2]
    before = write_checkpoint(
        tmp_path / "before",
        llama_tensors(9, hidden=37)
        | {k: v for k, v in weights_of(folders[0]).items() if k in ("steps", "flag", "scale")},
    )
    sources = opened(given, before if method.needs_unaligned else None)
    run(make_plan(sources, method, block=64, dtype="float32"), method, tmp_path / "out", seed=4)
    stored = weights_of(tmp_path / "out")

    found = dict(fused(sources, method, seed=4))
    assert found.keys() == {n for n, t in stored.items() if t.is_floating_point()}
    assert all(t.dtype == torch.float32 and torch.equal(t, stored[n]) for n, t in found.items())
    (only,) = fused(sources, method, ["lm_head.weight"], seed=4, threads=1)
    assert only[0] == "lm_head.weight" and torch.equal(only[1], stored["lm_head.weight"])


def test_draws_follow_from_the_seed(folders, tmp_path):
    method = methods()["dare"]()
    one, same, other = (
        written(folders[:2], tmp_path / x, method, seed=s) for x, s in (("a", 1), ("b", 1), ("c", 2))
    )

    assert one == same != other


def test_endpoints_are_the_inputs_byte_for_byte(folders, tmp_path):
    kind = methods()["interpolation"]
    for alpha, folder in ((0.0, folders[0]), (1.0, folders[1])):
        written(folders[:2], tmp_path / str(alpha), kind(kind.Settings(alpha=alpha)))
        ours, theirs = weights_of(tmp_path / str(alpha)), weights_of(folder)
        assert all(
            torch.equal(ours[n].view(torch.uint8), theirs[n].view(torch.uint8))
            for n in theirs
            if theirs[n].dim()
        )


class Wrong(Method):
    """Changes what it must not be asked about."""

    name = "wrong"
    summary = "for tests"

    def fuse(self, tensors, generator=None):
        return tensors.reference + 1


def test_what_is_alike_in_all_models_is_copied_and_not_fused(tmp_path):
    tensors, tuned = llama_tensors(), llama_tensors(1)
    tuned["lm_head.weight"] = tensors["lm_head.weight"].clone()
    tensors["model.norm.weight"][:2] = tuned["model.norm.weight"][:2] = torch.tensor([-0.0, 0.0])
    zero = {"zero": torch.tensor([0.0, -0.0]).bfloat16()}
    pair = [write_checkpoint(tmp_path / "r", tensors | zero), write_checkpoint(tmp_path / "c", tuned | zero)]
    written(pair, tmp_path / "out", Wrong())
    result = weights_of(tmp_path / "out")

    for name in ("lm_head.weight", "zero"):
        assert torch.equal(result[name].view(torch.int16), (tensors | zero)[name].view(torch.int16))
    assert torch.equal(result["model.norm.weight"], (tensors["model.norm.weight"].float() + 1).bfloat16())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_cast_at_the_end_to_nearest_even(tmp_path, dtype):
    class Ties(Method):
        name, summary, elementwise = "halves", "for tests", True

        def fuse(self, tensors, generator=None):
            return (
                torch.full_like(tensors.reference, 1 + 2**-8)
                + torch.arange(tensors.reference.shape[-1]) * 2**-7
            )

    pair = [write_checkpoint(tmp_path / f, {"w": torch.full((2, 4), v)}) for f, v in (("r", 0.0), ("c", 1.0))]
    written(pair, tmp_path / "out", Ties(), dtype=dtype)
    (result,) = weights_of(tmp_path / "out").values()
    halves = {"bfloat16": [1.0, 1.015625, 1.015625, 1.03125]}.get(
        dtype, [1 + 2**-8 + k * 2**-7 for k in range(4)]
    )

    assert result.dtype == getattr(torch, dtype) and result.tolist() == [halves] * 2
    said = json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"]
    assert said == (dtype if dtype != "float32" else "bfloat16")  # float32 is what the reference holds


def test_mixed_dtypes_give_the_references(folders, tmp_path):
    wide = {n: t.float() if t.is_floating_point() else t for n, t in weights_of(folders[1]).items()}
    other = write_checkpoint(tmp_path / "wide", wide)
    method = methods()["task-arithmetic"]()

    assert written([folders[0], other], tmp_path / "a", method) == written(
        folders[:2], tmp_path / "b", method
    )


def test_adapters_of_mixed_rank_fused_are_their_merged_checkpoints_fused(tmp_path):
    from test_fusion_sources import lora_on

    base = write_checkpoint(tmp_path / "m", llama_tensors(hidden=40))
    adapters = [lora_on(base, tmp_path / f"a{rank}", rank=rank, seed=rank) for rank in (4, 7)]
    merged = []
    for adapter in adapters:
        with open_source(adapter) as source:
            tensors = {n: source.read(n).float() for n in source.specs}
        merged.append(write_checkpoint(tmp_path / f"merged-{adapter.name}", tensors))
    method = methods()["ties"]()

    assert written([base, *adapters], tmp_path / "x", method) == written(
        [base, *merged], tmp_path / "y", method
    )
    sources = opened([base, *adapters])
    made = run(make_plan(sources, method), method, tmp_path / "z")
    assert made.fused == 2 and made.unchanged == 9


def test_tensors_left_out_come_from_where_they_are_wanted(folders, tmp_path):
    method = methods()["interpolation"]()
    left = {"chosen": lambda n: "mlp" in n}
    written(folders[:2], tmp_path / "kept", method, **left)
    written(folders[:2], tmp_path / "taken", method, rest="candidate", **left)
    before, after, kept, taken = map(
        weights_of, (folders[0], folders[1], tmp_path / "kept", tmp_path / "taken")
    )

    for name in before:
        if "mlp" not in name:
            assert torch.equal(kept[name], before[name]) and torch.equal(taken[name], after[name])
        else:
            assert torch.equal(kept[name], taken[name]) and not torch.equal(kept[name], before[name])


class Scaled(Method):
    """θ₀ + the extras that have a value a row or a value an element; for tests of what comes with a block."""

    class Settings(Settings):
        """One setting."""

        by: float = Field(default=2.0, description="for tests")

    name, summary, elementwise, extras = "scaled", "for tests", True, ("element", "row", "column")

    def fuse(self, tensors, generator=None):
        each = tensors.extras
        return tensors.reference + self.settings.by * each["element"] * each["row"] * each["column"]


def test_extras_are_cut_with_the_rows_they_belong_to(tmp_path):
    from safetensors.torch import save_file

    pair = [write_checkpoint(tmp_path / f, {"w": torch.randn(200, 200)}) for f in "rc"]
    values = {"element": torch.rand(200, 200) > 0.5, "row": torch.rand(200, 1), "column": torch.rand(200)}
    for name, value in values.items():
        save_file({"w": value}, tmp_path / f"{name}.safetensors")
    sources = opened(pair, **{n: TensorFiles.of(tmp_path / f"{n}.safetensors") for n in values})
    method = Scaled()
    run(make_plan(sources, method, block=64), method, tmp_path / "out")
    expected = weights_of(pair[0])["w"] + 2 * values["element"] * values["row"] * values["column"]

    assert torch.equal(weights_of(tmp_path / "out")["w"], expected)
    assert torch.equal(dict(fused(sources, method))["w"], expected)


class Rows:
    """Collects the rows that were seen."""

    def __init__(self):
        self.seen, self.pieces = {}, 0

    def piece(self, tensors, fused):
        self.pieces += 1
        return tensors.name, tensors.candidates[0].clone(), fused.clone()

    def tensor(self, name, pieces):
        assert {n for n, _, _ in pieces} == {name}
        self.seen[name] = [torch.cat([p[i] for p in pieces]) for i in (1, 2)]


def test_an_observer_sees_every_fused_row_once_and_in_order(folders, tmp_path):
    sources, rows, method = opened(folders[:2]), Rows(), methods()["interpolation"]()
    run(make_plan(sources, method, block=64, threads=3), method, tmp_path / "out", observer=rows)
    after, result = weights_of(folders[1]), weights_of(tmp_path / "out")

    assert rows.pieces > len(rows.seen) and "steps" not in rows.seen and "scale" not in rows.seen
    for name, (candidate, fused_rows) in rows.seen.items():
        assert torch.equal(candidate.view(after[name].shape), after[name].float())
        assert torch.equal(fused_rows.view(result[name].shape).bfloat16(), result[name])


@pytest.mark.parametrize("where", ["reference", "candidate", "frozen", "result"])
@pytest.mark.parametrize("name", ["interpolation", "ties"])
def test_what_is_not_finite_ends_the_run_and_leaves_nothing(folders, tmp_path, where, name):
    bad = "model.layers.1.mlp.down_proj.weight"
    for folder in (
        folders[:1] if where == "reference" else folders[1:2] if where == "candidate" else folders[:2]
    ):
        tensors = weights_of(folder)
        if where == "result":
            tensors[bad] = tensors[bad].float()
            tensors[bad][0, :3] = 1e5
        else:
            tensors[bad][5, 6] = float("nan")
        for old in folder.glob("model*"):
            old.unlink()
        write_checkpoint(folder, tensors)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError) as caught:
        written(folders[:2], tmp_path / "runs" / "out", methods()[name](), dtype="float16")

    said = {
        "result": f"fused, tensor {bad!r} has 3 values that float16 cannot hold",
        "candidate": f"{folders[1]}/model.safetensors: tensor {bad!r} has 1 NaN",
    }
    assert said.get(where, f"{folders[0]}/model.safetensors: tensor {bad!r} has 1 NaN") in str(caught.value)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_output_that_is_there_is_left_alone(folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        written(folders[:2], tmp_path / "out", methods()["interpolation"]())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["interpolation", "dare"])
def test_killed_at_any_moment_it_goes_on_and_writes_the_same_bytes(folders, tmp_path, name):
    method = methods()[name]()
    whole = written(folders[:2], tmp_path / "whole", method, shard_bytes=20_000)
    out = tmp_path / "runs" / "out"
    out.parent.mkdir()

    done = 0
    for after in (1, 4, 0):  # 0: all is written and nothing has its name
        kill(folders[:2], out, name, after, shard_bytes=20_000)
        unfinished = out.parent / ".out.unfinished"
        finished = (
            len((unfinished / "journal.jsonl").read_text().split()) - 4
        )  # the first line has four words
        assert not out.exists() and finished >= done + after
        done = finished
    assert done == 14
    _, made = fuse(folders[:2], out, name, {"shard_bytes": 20_000})

    assert made.resumed == 14 and made.fused == 0
    assert [p.read_bytes() for p in sorted(out.glob("*.safetensors"))] == whole
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["interpolation", "ties"])
def test_memory_is_what_the_plan_says_and_does_not_grow_with_layers(tmp_path, name):
    grown = []
    for layers in (3, 24):
        at = tmp_path / str(layers)
        pair = [
            write_checkpoint(at / str(i), llama_tensors(i, layers=layers, hidden=512, vocabulary=8000))
            for i in (0, 1)
        ]
        found, said = growth(pair, at / "out", name, threads=2)
        assert 0 < found <= said
        grown.append(found)

    assert grown[1] <= grown[0] + 12e6  # while the checkpoints grow by 70 MB


def test_time_is_estimated_from_a_piece(folders):
    sources, method = opened(folders[:2]), methods()["ties"]()

    assert 0 < estimate(make_plan(sources, method), method) < 60
