"""guardkeel curate, as a person types it: plan, stop, go on, change, pay, and read what went wrong."""

from __future__ import annotations

import json

import pytest
import tomli_w

from curation_rows import RECORDS, jsonl
from guardkeel.conversation import read_jsonl
from guardkeel.curation.config import read_config
from guardkeel.curation.rows import read_rows
from jury_server import judge, juror_file, rules_file
from remote_server import Server


@pytest.fixture
def pipeline(harbour, tmp_path):
    """pipeline(**tables) writes a pipeline file over the trained guard's own suite, with that guard as a juror."""
    unlabelled = [
        {"id": e.id, "messages": e.conversation.to_messages()} for e in list(read_jsonl(harbour.suite))[:40]
    ]
    logs = jsonl(tmp_path / "logs.jsonl", unlabelled)
    rules = rules_file(tmp_path / "rules.toml", "ships")

    def write(**tables):
        base = {
            "name": "harbour-talk",
            "source": [{"name": "logs", "data": str(logs), "licence": "MIT"}],
            "dedup": {},
            "map": {},
            "jury": {
                "juror": [{"guard": str(harbour.guard), "name": "tiny"}, {"guard": str(rules)}],
                "quorum": 1,
            },
        }
        path = tmp_path / "pipeline.toml"
        path.write_bytes(tomli_w.dumps(base | tables).encode())
        return path

    return write


def test_a_guard_with_weights_labels_logs_end_to_end(cli, pipeline, harbour):
    file = pipeline()
    planned = cli("curate", file, "--out", "out", "--dry-run")
    assert planned.code == 0 and "nothing was run" in planned.out and "depends on" in planned.out
    stopped = cli("curate", file, "--out", "out", "--until", "map")
    assert stopped.code == 0 and "steps/map/rows.jsonl" in stopped.out
    planned = cli("curate", file, "--out", "out", "--dry-run")
    assert "juror tiny: 48 items, 0 known, 48 to ask" in planned.out
    made = cli("curate", file, "--out", "out", "--json")
    assert made.code == 0 and made.json["made"] == ["jury", "split", "export"]
    rows = list(read_rows("out/steps/split/rows.jsonl"))
    truth = {f"logs/{e.id}": e.labels["prompt"] for e in read_jsonl(harbour.suite)}
    agreed = [r.label("prompt") == truth[r.id] for r in rows if r.label("prompt")]
    assert len(agreed) >= 30 and sum(agreed) / len(agreed) > 0.9  # the tiny guard has really learned it
    assert {v.by for r in rows for v in r.labels["prompt"].votes} == {"tiny", "rules"}
    again = cli("curate", file, "--out", "out")
    assert again.code == 0 and again.err.count("as it was") == 6 and "out/dataset" in again.out
    changed = cli("curate", file, "--out", "out", "--set", "split.proportions=[1, 0, 0]", "--json")
    assert changed.json["made"] == ["split", "export"]
    counts = changed.json["steps"][-1]["counts"]
    assert counts == {"fit": 40}


def test_paid_jurors_need_a_budget_or_yes(cli, pipeline, tmp_path):
    with Server(judge) as server:
        juror = {"guard": str(juror_file(tmp_path / "judge.toml", server.url)), "price": {"input": 500.0}}
        rules = {"guard": str(tmp_path / "rules.toml")}
        file = pipeline(jury={"juror": [juror, rules], "quorum": 2, "currency": "EUR"})
        refused = cli("curate", file, "--out", "out")
        assert refused.code == 2 and "there is no budget" in refused.err and "--yes" in refused.err
        assert "juror judge: 48 items, 0 known, 48 to ask: about" in refused.err and not server.requests
        done = cli("curate", file, "--out", "out", "--yes", "--json")
        spent = done.json["steps"][3]["results"]["spent"]["judge"]
        assert done.code == 0 and len(server.requests) == 48 and spent > 0
        card = (tmp_path / "home" / "out" / "dataset" / "README.md").read_text()
        assert "| judge | rules |" in card
        cli(
            "curate",
            file,
            "--out",
            "elsewhere",
            "--set",
            f"jury.cache={tmp_path}/home/out/jury.sqlite",
            "--yes",
        )
        assert len(server.requests) == 48  # another folder, the same questions


def test_the_example_is_a_pipeline(cli, tmp_path):
    printed = cli("curate", "--example")
    path = tmp_path / "pipeline.toml"
    path.write_text(printed.out)
    config = read_config(path, {})
    assert config.jury is not None and len(config.jury.juror) == 3 and config.export.also == ["aegis-2"]
    for word in ("[limits]", "[redact]", "[split]"):
        assert word in printed.out


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"sorce": []}, "unknown key 'sorce'"),
        ({"source": [{"name": "x", "data": "nosuch.jsonl"}]}, "no such file or folder"),
        ({"source": [{"name": "x"}]}, "give either data or suite"),
        ({"jury": {"juror": [{"guard": "nosuch.toml"}], "quorum": 1}}, "nosuch.toml: no such file"),
        ({"export": {"also": ["aegis-9"]}}, "unknown format 'aegis-9'"),
        ({"split": {"against": ["nosuch"]}}, "unknown suite 'nosuch'"),
        ({"source": [{"name": "x", "suite": "keel-contrast", "part": "train"}]}, "part"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(cli, pipeline, tables, problem):
    failed = cli("curate", pipeline(**tables), "--out", "out")
    assert failed.code == 2 and problem in failed.err and "remedy" in failed.err
    assert "Traceback" not in failed.err


def test_bad_records_name_file_line_and_value(cli, pipeline, tmp_path):
    path = jsonl(
        tmp_path / "bad.jsonl", [RECORDS["aegis-2"][0], RECORDS["aegis-2"][0] | {"prompt_label": "maybe"}]
    )
    file = pipeline(
        source=[{"name": "x", "data": str(path)}], jury={"juror": [{"guard": "rules"}], "quorum": 1}
    )
    failed = cli("curate", file, "--out", "out")
    assert failed.code == 2 and f"{path}:2: field 'prompt_label': unknown label 'maybe'" in failed.err
    file = pipeline(
        source=[{"name": "x", "data": str(path), "on_error": "reject"}],
        jury={"juror": [{"guard": "rules"}], "quorum": 1},
    )
    kept = cli("curate", file, "--out", "out", "--until", "source")
    assert kept.code == 0 and "1 rows, 1 left out" in kept.err
    rejected = json.loads((tmp_path / "home" / "out" / "steps" / "source" / "rejected.jsonl").read_text())
    assert rejected["where"] == f"{path}:2"


def test_no_pipeline_is_said(cli):
    failed = cli("curate")
    assert failed.code == 2 and "--example" in failed.err
    assert cli("curate", "--help").code == 0
