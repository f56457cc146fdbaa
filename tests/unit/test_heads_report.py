"""The page and the pictures of a study: what they say, that names are text, and every shape that a study has."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.heads.outputs import read_heads
from guardkeel.report.heads import write_heads_report, write_heatmap
from guardkeel.report.heads_charts import distribution, heatmap, sizes
from guardkeel.report.heads_words import headline
from heads_runs import HOSTILE, write_heads


def test_a_page_in_full(tmp_path):
    page = write_heads_report(write_heads(tmp_path / "run")).read_text()
    for text in (
        "THEY CARRY IT",
        "Of 270 heads",
        "Recall",
        "heads of the same layers",
        "Which heads moved",
        "360.0 MB",
    ):
        assert text in page
    assert HOSTILE not in page and "&lt;img src=x" in page
    assert page.count("<svg") - page.count("<svg class") >= 9
    assert len(re.findall(r' id="([^"]+)"', page)) == len(set(re.findall(r' id="([^"]+)"', page)))
    assert "style=" not in page.replace("<style>", "")  # the policy forbids it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": 0.0}, "NOT TOLD APART"),
        ({"chat": True}, "attack success"),
        ({"screened": True}, "Screened:"),
        ({"against": False, "layers": 2, "heads": 1}, "Of 2 heads"),
        ({"layers": 80, "heads": 64}, "Of 5120 heads"),
    ],
)
def test_every_shape(tmp_path, options, said):
    page = write_heads_report(write_heads(tmp_path / "run", **options)).read_text()
    assert said in page
    if options.get("chat"):
        assert "Refusal of unsafe" in page and "The phrase judge" in page
    if options.get("layers") == 80:
        assert len(page) < 8e6 and page.count("<title") < 200  # cells of so many heads have no title each


def test_the_headline_follows_the_numbers(tmp_path):
    _, results, _ = read_heads(write_heads(tmp_path / "a", loss=0.6))
    said = headline(results)
    assert "recall goes from 100% to 40.0%" in said.sentence and "FPR stays at 0%" in said.sentence
    whole = results.effect.trial("found", 3)
    whole.unscored.after = 0.9
    said = headline(results)
    assert said.badge == "VERDICT BREAKS" and "90.0% of items are left without an answer" in said.sentence
    assert f"Without {', '.join(whole.heads[:2])} recall goes from 100% to 60.0%" in said.sentence
    results.effect = None
    assert headline(results).badge == "RANKED"
    results.overlaps = []
    assert "no benign prompts" in headline(results).why


def test_the_map_as_a_file(tmp_path):
    svg = write_heatmap(write_heads(tmp_path / "run")).read_text()
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    cells = [e for e in root.iter(f"{name}rect") if e.get("class") == "cell"]
    assert len(cells) == 270 and root.find(f"{name}style") is not None
    assert max(float(c.get("fill-opacity")) for c in cells) == 1
    assert HOSTILE not in svg


def test_depth_and_direction_of_cells():
    values = np.array([[4.0, -1.0], [np.nan, 0.0]])
    svg = str(heatmap("m", "t", values, "nats", group=[(0, 0)]))
    assert svg.count('class="cell neg"') == 1 and svg.count('class="cell-not"') == 1
    assert re.findall(r'fill-opacity="([^"]+)"', svg) == [
        "1",
        "0.52",
        "0.05",
    ]  # √ of the share
    assert "0-0: 4" in svg and svg.count("cell-ring") == 1
    assert "nothing was swept" in str(heatmap("m", "t", np.full((2, 2), np.nan), "nats"))


def test_charts_of_nothing():
    assert distribution("d", "nats", {"unsafe": np.zeros((2, 2))}) is None
    assert distribution("d", "nats", {"unsafe": np.array([[1.0]])}) is not None


def test_sizes_hold_found_and_controls(tmp_path):
    _, results, _ = read_heads(write_heads(tmp_path / "run"))
    svg = str(sizes("s", results.effect, "recall", "Recall"))
    assert svg.count('class="dot ref"') == 3 and svg.count("<polygon") == 2
    assert "3: −50.0" in svg


def test_another_run_is_refused(tmp_path):
    folder = write_heads(tmp_path / "run")
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(record.replace('"verb": "heads"', '"verb": "tune"'))
    with pytest.raises(DataError, match="a run of 'tune'"):
        write_heads_report(folder)
    (folder / "run.json").write_text(record.replace('"layers": 30', '"layers": "many"'))
    with pytest.raises(DataError, match=r"results\.layers"):
        write_heads_report(folder)
