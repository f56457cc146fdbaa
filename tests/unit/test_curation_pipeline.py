"""The pipeline: each step once, whole or not at all, resumed after any stop, and a set that others can load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from curation_rows import RECORDS, jsonl
from guardkeel.curation.config import read_config
from guardkeel.curation.pipeline import accept, curate, planned
from guardkeel.curation.rows import read_rows
from guardkeel.curation.steps.jury import JuryResults
from guardkeel.errors import ConfigError, DataError, RunError
from jury_server import conversation, judge, juror_file, rules_file
from remote_server import Server
from trained_guards import sentence, suite_file


def logs(path: Path, count: int = 60) -> Path:
    """Chat logs in which every second one speaks of ships, every third has a reply."""
    import random

    rng = random.Random(11)
    records = []
    for i in range(count):
        messages = [{"role": "user", "content": sentence(rng, "unsafe" if i % 2 else "safe") + f" case{i}"}]
        if i % 3 == 0:
            messages.append({"role": "assistant", "content": sentence(rng, "safe") + f" answer{i}"})
        records.append({"id": f"c{i}", "messages": messages})
    return jsonl(path, records)


@pytest.fixture
def config(tmp_path):
    """A small pipeline without a server."""
    words = {"a": ("ships",), "b": ("ships", "poem")}
    rules = [str(rules_file(tmp_path / f"{name}.toml", *given, name=name)) for name, given in words.items()]
    return {
        "name": "small",
        "source": [
            {"name": "logs", "data": str(logs(tmp_path / "logs.jsonl")), "licence": "internal"},
            {"name": "aegis", "data": str(jsonl(tmp_path / "aegis.jsonl", RECORDS["aegis-2"]))},
        ],
        "dedup": {},
        "map": {},
        "jury": {"juror": [{"guard": r} for r in rules], "quorum": 2, "calibration_items": 20},
        "offline": True,
    }


def make(config, out, **options):
    """Run it; returns the names of the steps that were made."""
    return curate(config, out, **options).made


def test_from_logs_to_a_set(tmp_path, config):
    config["jury"]["calibration"] = [str(suite_file(tmp_path / "people.jsonl", 100))]
    config["export"] = {"also": ["aegis-2"], "title": "Small set", "shard": 20}
    out = tmp_path / "out"
    made = curate(config, out)
    assert made.made == ["source", "dedup", "map", "jury", "split", "export"]
    rows = list(read_rows(out / "steps" / "split" / "rows.jsonl"))
    assert len(rows) == 63 and {r.split for r in rows} == {"fit", "calibrate", "test"}
    judged = [r for r in rows if r.source == "logs"]
    for one in judged:
        assert one.label("prompt") in (None, "safe", "unsafe") and len(one.labels["prompt"].votes) == 2
        assert one.labels["prompt"].source == "jury"
    assert {r.labels["prompt"].source for r in rows if r.source == "aegis"} == {"human"}
    found = JuryResults.model_validate(made.step("jury").results)
    assert found.overall.n == 80 and set(found.by) == {"side", "source"}
    assert found.skills[0].sensitivity.value == 1.0 and found.skills[0].source == "people"
    record = json.loads((out / "run.json").read_text())
    assert record["verb"] == "curate" and record["counts"]["rows"] == 63
    lines = [
        json.loads(line)
        for p in sorted((made.dataset / "also").iterdir())
        for line in p.read_text().splitlines()
    ]
    assert len(lines) == 63 and set(lines[0]) >= {"prompt", "response_label_source"}


def test_the_card_says_what_is_in_the_files(tmp_path, config):
    import pyarrow.parquet

    config["export"] = {"shard": 20, "title": "Small set", "description": "Harbour talk."}
    dataset = curate(config, tmp_path / "out").dataset
    text = (dataset / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (
        front["license"] == "other" and front["size_categories"] == ["n<1K"] and front["language"] == ["en"]
    )
    total = 0
    for entry in front["configs"][0]["data_files"]:
        tables = [pyarrow.parquet.read_table(dataset / p) for p in entry["path"]]
        assert {s for t in tables for s in t["split"].to_pylist()} == {entry["split"]}
        total += sum(t.num_rows for t in tables)
    assert total == 63 and "63 rows" in text
    for word in ("# Small set", "Harbour talk.", "Krippendorff", "internal", "CC BY 4.0", "human"):
        assert word in text
    assert str(tmp_path) not in text  # nothing of this machine


def test_it_loads_with_datasets(tmp_path, config):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    dataset = curate(config, tmp_path / "out").dataset
    loaded = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path / "cache"))
    assert sum(len(part) for part in loaded.values()) == 63
    assert loaded["fit"][0]["messages"][0]["role"] == "user"


def test_only_what_follows_from_a_change_is_made_again(tmp_path, config):
    out = tmp_path / "out"
    make(config, out)
    assert make(config, out) == []
    other = config | {"split": {"proportions": [0.5, 0.2, 0.3]}}
    assert make(other, out) == ["split", "export"]
    assert make(other | {"export": {"title": "New"}}, out) == ["export"]
    assert make(config, out) == ["split", "export"]
    assert make(config, out, redo=["map"]) == ["map"]  # its rows are the same, and so is what follows
    config["jury"]["budget"] = 3.0  # what it may cost changes no label
    assert make(config, out) == []
    logs(tmp_path / "logs.jsonl", 50)
    assert make(config, out)[:3] == ["source", "dedup", "map"]


def test_planning_writes_nothing_and_asks_nobody(tmp_path, config):
    out = tmp_path / "out"
    found = planned(read_config(None, config), out)
    assert [p.state for p in found] == ["to do", *["depends"] * 5] and not out.exists()
    make(config, out, until="map")
    found = planned(read_config(None, config), out)
    assert [p.state for p in found] == ["done", "done", "done", "to do", "depends", "depends"]
    assert [e.to_ask for e in found[3].estimates] == [80, 80] and not (out / "jury.sqlite").exists()


def test_steps_that_are_not_there_are_named(tmp_path, config):
    with pytest.raises(ConfigError, match="no step 'redact'"):
        curate(config, tmp_path / "out", until="redact")
    with pytest.raises(ConfigError, match="unknown key 'sources'"):
        curate(config | {"sources": []}, tmp_path / "out")
    with pytest.raises(ConfigError, match="two sources are named"):
        curate(config | {"source": [config["source"][0]] * 2}, tmp_path / "out")


def test_folders_of_others_are_left_alone(tmp_path, config):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="no curate pipeline's"):
        curate(config, tmp_path / "mine")
    import filelock

    curate(config, tmp_path / "out", until="source")
    with filelock.FileLock(tmp_path / "out" / ".lock"), pytest.raises(RunError, match="another process"):
        curate(config, tmp_path / "out")


def test_a_step_that_fails_leaves_the_old_one_and_no_half(tmp_path, config):
    out = tmp_path / "out"
    make(config, out)
    before = (out / "steps" / "map" / "rows.jsonl").read_bytes()
    broken = config | {"map": {"unknown": "stop", "categories": {"Violence": "Mischief"}}}
    aegis = jsonl(
        tmp_path / "aegis.jsonl", [r | {"violated_categories": "Odd one"} for r in RECORDS["aegis-2"]]
    )
    with pytest.raises(ConfigError, match="category 'Odd one'"):
        curate(broken, out)
    assert (out / "steps" / "map" / "rows.jsonl").read_bytes() == before
    kept = curate(config | {"map": {"unknown": "drop"}}, out)
    assert kept.step("map").results["categories without a home"] == {"Odd one": 3} and aegis.exists()


def test_long_rows_are_counted_or_left_out_never_cut(tmp_path, config):
    made = curate(config | {"limits": {"max_tokens": 16}}, tmp_path / "a", until="limits")
    rows = list(read_rows(tmp_path / "a" / "steps" / "limits" / "rows.jsonl"))
    long = [r for r in rows if any("limits:" in h for h in r.history)]
    assert len(rows) == 63 and len(long) == made.step("limits").counts["too long"] > 0
    dropped = curate(
        config | {"limits": {"max_tokens": 16, "action": "drop"}}, tmp_path / "b", until="limits"
    )
    assert dropped.step("limits").left_out == len(long)


def test_sources_without_rows_say_so(tmp_path, config):
    hidden = [r | {"prompt": "REDACTED", "reconstruction_id_if_redacted": 1} for r in RECORDS["aegis-2"]]
    jsonl(tmp_path / "aegis.jsonl", hidden)
    with pytest.raises(DataError, match=r"no rows \(3 records left out\)"):
        curate(config | {"source": [config["source"][1]]}, tmp_path / "out")


def test_paid_jurors_need_a_budget_or_a_yes(tmp_path, config):
    with Server(judge) as server:
        file = str(juror_file(tmp_path / "judge.toml", server.url))
        config["jury"]["juror"].append({"guard": file, "price": {"input": 1000.0}})
        with pytest.raises(ConfigError, match="there is no budget"):
            curate(config, tmp_path / "out")
        config["jury"]["budget"] = 0.5
        with pytest.raises(ConfigError, match="more than its budget"):
            curate(config, tmp_path / "out")
        assert not server.requests
        del config["jury"]["budget"]
        made = curate(config, tmp_path / "out", on_cost=accept)
        results = made.step("jury").results
        assert len(server.requests) == 80 == results["requests"]["judge"] and results["spent"]["judge"] > 0


KILLED = """
import json, sys
from guardkeel.curation.pipeline import curate
curate(json.loads(sys.argv[1]), sys.argv[2])
"""


def test_kill_9_loses_at_most_what_was_on_its_way(tmp_path, config):
    def slow(request):
        time.sleep(0.02)
        return judge(request)

    with Server(slow) as server:
        file = str(juror_file(tmp_path / "judge.toml", server.url, concurrency=4))
        config["jury"]["juror"].append({"guard": file})
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path / "out")], env=environment
        )
        begun = time.monotonic()
        while len(server.requests) < 25 and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        first = [conversation(r) for r in server.requests]
        assert 25 <= len(first) < 80
        made = curate(config, tmp_path / "out")
        second = [conversation(r) for r in server.requests][len(first) :]
    assert len(set(first) & set(second)) <= 4 and len(set(first) | set(second)) == 80
    assert made.made == ["jury", "split", "export"]  # the steps before were finished
    assert not list((tmp_path / "out" / "steps").glob(".*"))


def test_every_key_is_documented():
    from guardkeel.curation import config as tables

    docs = Path(__file__).resolve().parents[2] / "docs"
    text = "\n".join(
        (docs / page).read_text("utf-8") for page in ("curate.md", "adjudicate.md", "train-guard.md")
    )
    models = [v for v in vars(tables).values() if isinstance(v, type) and issubclass(v, tables.BaseModel)]
    keys = {key for model in models if model.__module__ == tables.__name__ for key in model.model_fields}
    missing = [k for k in keys if not re.search(rf"(^|[`\[ {{]){k}(`| =|\])", text, re.MULTILINE)]
    assert sorted(missing) == []
