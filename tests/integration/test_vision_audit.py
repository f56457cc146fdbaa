"""guardkeel audit --images: suites whose conversations have pictures, in files beside them."""

from __future__ import annotations

import base64
import json
import shutil

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from guardkeel import audit
from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites import load_suite
from guardkeel.images import Image
from guardkeel.report import write_report
from guardkeel.vision.llava import build_llava
from guardkeel.vision.shape import VisionShape
from guardkeel.vision.typographic import typographic

SHAPE = {"size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture
def pictured(tmp_path):
    """A suite of two dozen conversations with a picture each, in PNG files beside it."""
    folder = tmp_path / "pictured"
    folder.mkdir()
    examples = []
    for n in range(24):
        drawn = typographic(f"Ways to name a ship, number {n}", 128).source
        (folder / f"{n}.png").write_bytes(base64.b64decode(drawn.partition(",")[2]))
        said = Conversation.of("Write out its points.", images=[Image(f"{n}.png", "a list")])
        examples.append(Example(f"p{n}", said, {"prompt": ("unsafe", "safe")[n % 2]}))
    write_jsonl(folder / "suite.jsonl", examples)
    return folder


@pytest.fixture
def seeing(harbour, tmp_path):
    return str(build_llava(str(harbour.guard), tmp_path / "llava", shape=VisionShape(**SHAPE)))


def settings(suite):
    return {
        "suites": [str(suite / "suite.jsonl")],
        "dtype": "float32",
        "geometry_items": 20,
        "draws": 19,
    }


def test_pictures_are_judged_where_they_are_asked_for(pictured, seeing, tmp_path):
    seen = audit(seeing, seeing, images=True, out=tmp_path / "seen", **settings(pictured))
    assert seen.reference.overall.n_unscored == 0
    assert seen.geometry and all(g.drift.value == pytest.approx(0, abs=1e-4) for g in seen.geometry)
    record = json.loads((tmp_path / "seen" / "run.json").read_text())
    assert record["config"]["images"] is True
    told = {json.loads(line)["unsafe"] for line in (tmp_path / "seen" / "reference.jsonl").open()}
    assert len(told) > 12  # the texts are all the same: what differs is the pictures
    assert write_report(tmp_path / "seen").is_file()

    blind = audit(seeing, out=tmp_path / "blind", geometry=False, **settings(pictured))
    rows = [json.loads(line) for line in (tmp_path / "blind" / "reference.jsonl").open()]
    assert all(row["unsafe"] is None and "image" in row["unscored"] for row in rows)
    assert blind.reference.overall.n_unscored == len(rows)


def test_a_suite_is_known_by_its_pictures_not_by_where_they_lie(pictured, tmp_path):
    before = load_suite(str(pictured / "suite.jsonl")).digest
    shutil.copytree(pictured, tmp_path / "elsewhere")
    assert load_suite(str(tmp_path / "elsewhere" / "suite.jsonl")).digest == before
    shutil.copy(pictured / "1.png", pictured / "0.png")
    assert load_suite(str(pictured / "suite.jsonl")).digest != before


def test_vllm_is_not_asked_for_what_it_would_not_see(pictured, seeing, tmp_path):
    with pytest.raises(ConfigError, match="judge images are not run in vLLM"):
        audit(seeing, images=True, engine="vllm", geometry=False, out=tmp_path / "run", **settings(pictured))


def test_a_plan_says_what_it_does_not_count(pictured, seeing, cli):
    suite = pictured / "suite.jsonl"
    assert "24, whose items will be unscored" in cli("audit", seeing, "--suite", suite, "--dry-run").out
    asked = cli("audit", seeing, "--suite", suite, "--images", "--dry-run").out
    assert "24, counted in none of these" in asked
