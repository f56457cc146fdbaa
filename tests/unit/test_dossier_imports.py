"""Run directories and other tools' results as records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import Clock, basics, digest, lived, opened
from guardkeel.dossier.findings import closed, findings
from guardkeel.dossier.imports import foreign
from guardkeel.dossier.imports.common import Under
from guardkeel.dossier.imports.rows import compared
from guardkeel.dossier.imports.run_directory import audit, made_model
from guardkeel.dossier.kinds import EvalSpec, Exposure, Finding, Model, PromptSet, Result, Run, Threshold
from guardkeel.dossier.registering import example, read_file, read_tables, taxonomy
from guardkeel.errors import ConfigError, DataError, EvidenceError
from guardkeel.evaluation.imports import Reading
from guardkeel.evaluation.runs import read_audit
from guardkeel.guards.kinds import other_digest
from guardkeel.records import RunRecord, read_record, value_digest, write_record
from run_directories import write_run

FIXTURES = Path(__file__).parents[1] / "fixtures" / "imports"


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    dossier, guard = lived(folder / "d", folder / "run", Clock())
    yield dossier, guard, folder
    dossier.store.close()


def test_an_audit_gives_a_run_with_its_results_and_files(life):
    dossier, _, folder = life
    run = dossier.state.get(Run, "audit-1")
    found = read_audit(folder / "run")
    assert run.role == "candidate" and run.decision == found.decision.decision
    assert {"run.json", "items.jsonl", "candidate.jsonl"} <= run.files.keys()
    assert [s.id for s in run.prompt_sets] == [s.name for s in found.suites]
    recall = dossier.state.get(Result, "audit-1/*/recall")
    want = found.candidate.overall.recall
    assert (recall.value, recall.low, recall.high, recall.n) == (want.value, want.low, want.high, want.n)
    assert recall.rows == "candidate.jsonl"
    kinds = {r.slice for r in dossier.state.results("audit-1")}
    assert {"*", found.suites[0].name, "side=prompt"} <= kinds
    changes = [r for r in dossier.state.results("audit-1") if r.metric == "recall change" and r.slice == "*"]
    assert changes[0].direction == "higher" and changes[0].low is not None
    assert all(r.why for r in dossier.state.results("audit-1") if r.value is None)


def test_an_audit_of_another_guard_or_another_threshold_is_refused(life):
    dossier, guard, folder = life
    other = dossier.state.get(Model, "base").model_copy(update={"id": "nobody", "digest": digest("x")})
    moved = guard.model_copy(update={"id": "moved", "threshold": 0.123})
    on = guard.model_copy(update={"id": "on", "base": digest("base")})
    for model in (other, moved, on):
        dossier.record([model], "ada")
    for name, said in (("nobody", "did not judge model"), ("moved", "with threshold"), ("on", "with base")):
        with pytest.raises(DataError, match=said):
            audit(dossier.state, folder / "run", Under("final", "lab", name))


def test_unregistered_sets_are_taken_for_development_and_asked_about_for_assurance(tmp_path):
    write_run(tmp_path / "run", items=60, layers=0)
    found = read_audit(tmp_path / "run")
    info = found.candidate.info
    with opened(tmp_path / "d", Clock()) as dossier:
        specs = [EvalSpec(id="a", form="assurance"), EvalSpec(id="d", form="development")]
        dossier.record(
            [*basics(), *specs, Model(id="m", digest=info.digest, threshold=info.threshold)], "ada"
        )
        with pytest.raises(DataError, match="is not registered") as caught:
            audit(dossier.state, tmp_path / "run", Under("a", "lab", "m"))
        assert found.suites[0].digest in caught.value.remedy and "held_out" in caught.value.remedy
        made = audit(dossier.state, tmp_path / "run", Under("d", "team", "m"))
        assert any("not held out" in n for n in made.notes)
        sets = [r for r in made.records if isinstance(r, PromptSet)]
        assert len(sets) == len(found.suites) and not any(s.held_out for s in sets)


def test_a_fine_tune_gives_a_model_with_its_lineage_and_exposes_its_data(tmp_path):
    tuned = tmp_path / "bank-tune" / "tuned"
    tuned.mkdir(parents=True)
    (tuned / "adapter_model.safetensors").write_bytes(b"weights")
    (tuned / "adapter_config.json").write_text("{}")
    inputs = {"guard": digest("guard"), "data bank": digest("hidden 1")}
    record = RunRecord(
        verb="tune", started_at="2026-03-01T13:00:00+00:00", inputs=inputs, results={"threshold": 0.31}
    )
    write_record(tuned.parent, record)
    with opened(tmp_path / "d", Clock()) as dossier:
        dossier.record(basics(), "ada")
        made = made_model(dossier.state, tuned.parent, "tuned", ["tom"])
        model, seen = made.records
        assert isinstance(model, Model) and isinstance(seen, Exposure)
        assert (
            model.base == inputs["guard"]
            and model.threshold == 0.31
            and model.parents[0].relation == "adapter"
        )
        assert model.files.keys() == {"adapter_model.safetensors", "adapter_config.json"}
        assert (seen.prompt_set, seen.to) == ("hidden", "training")
        with pytest.raises(DataError, match="makes no model"):
            made_model(dossier.state, write_run(tmp_path / "audit", items=30, layers=0), "x", ["tom"])
        (tuned.parent / "tuned").rename(tmp_path / "elsewhere")
        with pytest.raises(DataError, match="is not there"):
            made_model(dossier.state, tuned.parent, "tuned", ["tom"])


def test_two_audits_are_compared_row_by_row(life):
    dossier, _, folder = life
    dossier.record(
        audit(dossier.state, folder / "run", Under("final", "lab", "base", id="audit-base")).records, "eve"
    )
    made = compared(dossier.state, "audit-base", "audit-1")
    pooled = next(c for c in made if (c.slice, c.metric) == ("*", "recall"))
    want = next(
        t for t in read_audit(folder / "run").comparison.tests if (t.suite, t.metric) == ("*", "recall")
    )
    assert (pooled.worse, pooled.better, pooled.n) == (want.worse, want.better, want.n)
    assert pooled.difference == pytest.approx(want.difference.value)
    dossier.record(made, "eve")
    rows = folder / "run" / "candidate.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(kept + b"\n")
    with pytest.raises(EvidenceError, match="not what it was"):
        compared(dossier.state, "audit-base", "audit-1")
    rows.write_bytes(kept)


def test_thresholds_give_findings_and_a_retest_closes_them(life):
    dossier, guard, _ = life
    made = findings(dossier.state, guard)
    assert [f.level for f in made] == ["alert"] and "below 0.999" in made[0].what
    dossier.record(made, "eve")
    assert findings(dossier.state, guard) == []
    run = dossier.state.get(Run, "audit-1")
    assert closed(dossier.state, made[0], "eve", run, "trained again") is None
    lower = dossier.state.get(Threshold, made[0].threshold).model_copy(update={"value": 0.1})
    dossier.record([lower], "ada")
    both = closed(dossier.state, made[0], "eve", run, "moved the line")
    dossier.record(both, "eve")
    assert dossier.state.get(Finding, made[0].id).status == "mitigated"


@pytest.fixture
def plain(tmp_path):
    with opened(tmp_path / "d", Clock()) as dossier:
        dossier.record([*basics(), EvalSpec(id="other", form="development", prompt_sets=["hidden"])], "ada")
        yield dossier


@pytest.mark.parametrize(
    ("path", "tool", "reading"),
    [
        ("inspect/tiny-guard.json", "inspect_ai", Reading(scorer="p_unsafe")),
        ("inspect/tiny-guard.eval", "inspect_ai", Reading(scorer="p_unsafe")),
        ("lm-eval/samples_tiny_guard_choice_2026-11-22T00-46-32.483388.jsonl", "other", None),
    ],
)
def test_logs_of_other_tools_are_measured_from_their_rows(plain, path, tool, reading):
    made = foreign.read(plain.state, FIXTURES / path, Under("other", "team", "guard"), reading)
    run, *numbers = made.records
    assert run.tool == tool and run.status == "completed" and run.files
    found = {r.metric: r for r in numbers if r.slice == "*"}
    assert found["recall"].n + found["fpr"].n + found["recall"].n_unscored == 4
    plain.store.clock.later(days=400)
    plain.record(made.records, "ada")


def test_unscored_samples_of_a_log_stay_unscored(plain):
    path = FIXTURES / "inspect/tiny-guard.json"
    made = foreign.read(plain.state, path, Under("other", "team", "guard"), Reading(scorer="p_unsafe"))
    unscored = next(
        r for r in made.records if isinstance(r, Result) and r.metric == "unscored" and r.slice == "*"
    )
    assert unscored.value == 0.25 and unscored.n_unscored == 1


def test_figures_without_rows_come_with_the_interval_of_their_error(plain, tmp_path):
    log = json.loads((FIXTURES / "lm-eval/results_2026-11-22T00-46-32.483388.json").read_text())
    log["results"]["tiny_guard_choice"]["acc_stderr,none"] = 0.1
    path = tmp_path / "results_2026-11-22T00-46-32.483388.json"
    path.write_text(json.dumps(log))
    made = foreign.read(plain.state, path, Under("other", "team", "guard"))
    assert made.records[0].tool == "lm-eval" and made.records[0].tool_version == "0.4.13"
    found = {(r.slice, r.metric): r for r in made.records[1:]}
    acc = found["tiny_guard_choice", "acc"]
    assert acc.n == 4 and acc.value == 0.5 and acc.low == pytest.approx(0.5 - 0.196, abs=1e-3)
    assert found["tiny_guard_text", "exact_match"].low is None


def test_a_log_that_ended_in_an_error_is_an_errored_run_without_scores(plain, tmp_path):
    log = json.loads((FIXTURES / "inspect/tiny-guard.json").read_text())
    log |= {"status": "error", "error": {"message": "CUDA out of memory"}}
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    made = foreign.read(plain.state, path, Under("other", "team", "guard"))
    assert len(made.records) == 1
    assert made.records[0].status == "errored" and "CUDA" in made.records[0].errors


def test_geh_needs_labels_and_says_so(plain):
    with pytest.raises(DataError, match="no gold labels"):
        foreign.read(plain.state, FIXTURES / "geh", Under("other", "team", "guard"))
    ids = [
        json.loads(x)["sample_id"]
        for x in (FIXTURES / "geh/datasets/tiny/predictions.jsonl").read_text().splitlines()
    ]
    labels = {i: "unsafe" if n % 2 else "safe" for n, i in enumerate(ids)}
    made = foreign.read(
        plain.state, FIXTURES / "geh", Under("other", "team", "guard"), Reading(labels=labels)
    )
    assert made.records[0].tool == "geh" and len(made.records[0].files) >= 3


def test_records_files_fill_in_digests_and_fingerprints(plain, tmp_path):
    (tmp_path / "hidden.jsonl").write_text("{}\n")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "r.toml").write_text(
        '[[model]]\nid = "m"\npath = "w"\n[[prompt-set]]\nid = "h"\nversion = "1"\nfile = "hidden.jsonl"\n'
        '[[assessment]]\nid = "a"\nmodel = "m"\nscope = "s"\n[[monitor-plan]]\nid = "p"\nmodel = "m"\nstreams = []\n'
    )
    made = {r.id: r for r in read_file(tmp_path / "r.toml", plain.state, plain.now)}
    assert made["a"].fingerprint == made["m"].fingerprint == made["p"].fingerprint
    assert made["m"].location.endswith("/w") and len(made["h"].digest) == 64
    plain.record(made.values(), "ada")
    (tmp_path / "w" / "model.safetensors").write_bytes(b"y")
    again = next(r for r in read_file(tmp_path / "r.toml", plain.state, plain.now) if r.id == "m")
    assert again.fingerprint != made["m"].fingerprint


def test_guards_that_are_no_folders_have_the_digest_that_audits_give_them(plain, tmp_path):
    (tmp_path / "guard.toml").write_text(
        'url = "http://localhost:1"\napi = "completions"\nmodel = "m"\nfamily = "llama-guard-3"\ntokenizer = "tokens"\n'
    )
    (tmp_path / "r.toml").write_text(
        '[[model]]\nid = "served"\npath = "guard.toml"\n[[model]]\nid = "listed"\npath = "rules"\n'
    )
    served, listed = read_file(tmp_path / "r.toml", plain.state, plain.now)
    assert served.digest == other_digest("server", str(tmp_path / "guard.toml")) and served.location == ""
    assert listed.digest == other_digest("rules", "rules") and listed.location.endswith(".toml")


def test_records_files_are_read_strictly(plain, tmp_path):
    for text, said in (
        ("[[thing]]\nid = 'x'", "unknown kind 'thing'"),
        ("[[model]]\ndigest = 'x'", "has no id"),
        (
            "[[evaluator]]\nid = 'x'\nparty = 'first'\ncolour = 1",
            "unknown key 'colour'|independent_of_development",
        ),
        ("[[finding]]\nid = 'x'", "names no model"),
        ("id =", "not TOML"),
    ):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises((ConfigError, DataError), match=said):
            read_file(tmp_path / "r.toml", plain.state, plain.now)
    with pytest.raises(ConfigError, match="unknown taxonomy"):
        taxonomy("nothing", plain.state, plain.now)


def test_what_ships_can_be_registered(plain):
    for name, count in (("aegis-2", 21), ("ailuminate", 12), ("nist-ai-600-1", 12)):
        assert len(plain.record(taxonomy(name, plain.state, plain.now), "ada")) == count
    import tomllib

    tables = tomllib.loads(example())
    for row in tables["model"]:
        row["digest"] = digest(row.pop("path"))
    assert plain.record(read_tables(tables, plain.state, plain.now, "example"), "ada")


def test_an_audit_under_a_guard_policy_is_of_a_model_with_it(tmp_path):
    write_run(tmp_path / "run", items=40, layers=0)
    record = read_record(tmp_path / "run")
    policy = {"name": "strict", "categories": []}
    write_record(
        tmp_path / "run", record.model_copy(update={"config": {**record.config, "guard_policy": policy}})
    )
    info = read_audit(tmp_path / "run").candidate.info
    with opened(tmp_path / "d", Clock()) as dossier:
        model = Model(id="m", digest=info.digest, threshold=info.threshold)
        dossier.record([*basics(), EvalSpec(id="d", form="development"), model], "ada")
        with pytest.raises(DataError, match="with guard_policy"):
            audit(dossier.state, tmp_path / "run", Under("d", "team", "m"))
        dossier.record([model.model_copy(update={"guard_policy": value_digest(policy)})], "ada")
        assert audit(dossier.state, tmp_path / "run", Under("d", "team", "m")).records
