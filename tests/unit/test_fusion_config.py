"""The configuration of a fuse: sizes, patterns, what is refused."""

from pathlib import Path

import pytest

from guardkeel.errors import ConfigError
from guardkeel.fusion.config import FuseConfig, read_config, size_in_bytes
from guardkeel.fusion.inputs import method_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512MiB", 2**29),
        ("1.5 gb", 15 * 10**8),
        ("1000", 1000),
        ("20K", 20_000),
        ("2TiB", 2**41),
    ],
)
def test_sizes_are_read(text, size):
    assert size_in_bytes(text) == size
    assert FuseConfig(candidates=["a"], shard_size=text).shard_bytes == size


@pytest.mark.parametrize("text", ["", "GB", "4 gigabytes", "-1GB", "999", "1e9", "4PB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match=r"shard_size = .*write it as 4GB"):
        read_config(None, {"candidates": ["a"], "shard_size": text})


def test_patterns_choose_tensors():
    plain = FuseConfig(candidates=["a"])
    assert plain.chosen("lm_head.weight")
    some = FuseConfig(candidates=["a"], only=["model.layers.*"], skip=["*.self_attn.*", "*norm.weight"])
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ]
    assert [some.chosen(n) for n in names] == [True, False, False]
    assert FuseConfig(candidates=["a"], skip=["*embed_tokens*"]).chosen("lm_head.weight")


def test_a_file_is_read_and_overridden(tmp_path):
    path = tmp_path / "fuse.toml"
    path.write_text('candidates = ["a", "b"]\nmethod = "ties"\n[options.ties]\ndensity = 0.2\n')
    found = read_config(path, {"reference": "ref", "candidates": None}, ["options.ties.scale=0.4", "seed=3"])
    assert (found.candidates, found.reference, found.seed) == (["a", "b"], "ref", 3)
    assert found.options == {"ties": {"density": 0.2, "scale": 0.4}}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            'candidates = ["a"]\nalpha = 1',
            r"fuse.toml: unknown key 'alpha'\n  remedy: keys are .*candidates.*method",
        ),
        ("candidates = []", r"fuse.toml: candidates = \[\]: List should have at least 1 item"),
        ("seed = 1", r"fuse.toml: candidates = .*: Field required"),
        (
            'candidates = ["a"]\noutput = "gguf"',
            r"output = 'gguf': Input should be 'checkpoint' or 'adapter'",
        ),
        ('candidates = ["a"]\ndtype = "int8"', r"dtype = 'int8': .*is none of float32, bfloat16, float16"),
        ('candidates = ["a"]\ntolerance = 1.0', r"tolerance = 1.0: Input should be less than 1"),
        ('candidates = ["a"]\nrank = 0', r"rank = 0: Input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_used_is_named(table, problem, tmp_path):
    path = tmp_path / "fuse.toml"
    path.write_text(table)
    with pytest.raises(ConfigError, match=problem):
        read_config(path, {})


def test_every_key_is_described():
    assert [k for k, f in FuseConfig.model_fields.items() if not f.description] == []


def test_the_documented_file_can_be_read(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "fuse.md").read_text("utf-8")
    path = tmp_path / "fuse.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0])
    found = read_config(path, {})
    assert found.method == "ties" and len(found.candidates) == 3
    method_of(found)
