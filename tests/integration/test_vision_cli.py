"""guardkeel vision, as it is typed."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

import torch

from guardkeel.cli.vision import register
from guardkeel.conversation import write_jsonl
from guardkeel.errors import ConfigError
from guardkeel.models.loading import load_model
from small_tunes import settle
from trained_guards import examples


@pytest.fixture(scope="module")
def vision():
    settle()
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)

    def call(*arguments, fails=False):
        result = CliRunner().invoke(app, ["vision", *map(str, arguments)])
        if result.exception and not fails and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_help_teaches(vision):
    for verb in ("adapt", "mis", "build", "draw", "extract", "insert"):
        result = vision(verb, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_draw(vision, tmp_path):
    assert vision("draw", tmp_path / "a", "--count", 6, "--kind", "shape", "--size", 32).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "a" / "pairs.jsonl").open()]
    assert len(rows) == 6
    assert all((tmp_path / "a" / row["image"]).is_file() and row["alt"] for row in rows)


def test_a_tower_is_taken_out_and_put_back(vision, tmp_path, tiny_folder):
    language = tiny_folder("llama")
    assert vision("build", language, tmp_path / "llava", "--size", 16, "--patch", 8).exit_code == 0
    assert vision("extract", tmp_path / "llava", tmp_path / "tower").exit_code == 0
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        wanted = load_model(language, "float32", "cpu")(input_ids=ids).logits
        found = load_model(tmp_path / "tower", "float32", "cpu")(input_ids=ids).logits
    assert torch.allclose(wanted, found, atol=1e-5)
    other = tiny_folder("llama", seed=5)
    assert vision("insert", tmp_path / "llava", other, tmp_path / "changed").exit_code == 0
    with torch.no_grad():
        assert torch.allclose(
            load_model(tmp_path / "changed", "float32", "cpu")(input_ids=ids).logits,
            load_model(other, "float32", "cpu")(input_ids=ids).logits,
            atol=1e-5,
        )


def test_adapt_and_then_mis(vision, tmp_path, harbour):
    write_jsonl(tmp_path / "anchor.jsonl", examples(24, 33))
    config = tmp_path / "adapt.toml"
    config.write_text(
        f"""
        pictures = 8
        test_pictures = 2
        kinds = ["shape"]
        guard_data = ["{tmp_path / "anchor.jsonl"}"]
        captions = 0
        typographic = 2
        batch = 2
        looks = 1
        alphas = [0.5]
        geometry_items = 20
        device = "cpu"
        [vision]
        size = 16
        patch = 8
        width = 16
        layers = 1
        heads = 2
        """
    )
    adapt = (
        "adapt",
        harbour.guard,
        "--config",
        config,
        "--suite",
        harbour.suite,
        "--limit",
        12,
        "--steps",
        1,
    )
    result = vision(*adapt, "--out", tmp_path / "run", "--json")
    said = json.loads(result.stdout[result.stdout.index("{") :])
    assert (tmp_path / "run" / "report.html").is_file()
    assert [look["step"] for look in said["results"]["looks"]] == [0, 1]
    again = vision(*adapt, "--out", tmp_path / "run")  # a finished run is shown, not made again
    assert "guessing" in again.output
    assert "α = 0.5" in again.output

    options = ("--set", "pairs=2", "--set", "general=0", "--set", "test_pairs=1", "--set", "reply_tokens=4")
    result = vision(
        "mis", tmp_path / "run" / "adapted", "--steps", 1, "--set", "size=16", "--set", "batch=2", *options,
        "--out", tmp_path / "mis",
    )  # fmt: skip
    assert "ASR" in result.output
    assert (tmp_path / "mis" / "report.html").is_file()


def test_what_is_refused(vision, tmp_path):
    assert "give the folder of a model" in vision("mis", fails=True).output
    with pytest.raises(ConfigError, match="arm = 'soft'"):
        vision("adapt", "--arm", "soft", "--out", tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown key 'arms'"):
        vision("adapt", "--set", "arms=plain", "--out", tmp_path / "run")
