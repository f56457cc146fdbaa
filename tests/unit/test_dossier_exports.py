"""What leaves a dossier: formats of others, valid by their own schemas, and bundles that a stranger can check."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import pytest

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import Clock, lived, opened
from guardkeel.dossier import dsse, heads
from guardkeel.dossier.bundle import check, write
from guardkeel.dossier.exports import ci, cyclonedx, every_eval_ever, hub, statements
from guardkeel.dossier.kinds import GateDecision, Model, PromptSet, Run
from guardkeel.dossier.standing import standing
from guardkeel.dossier.state import State
from guardkeel.errors import ConfigError
from guardkeel.report.dossier import page

SECRETS = ("tom", "bob", "secret", "Mr Smith", "/home/")


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    dossier, guard = lived(folder / "d", folder / "run", Clock())
    yield dossier, guard, folder
    dossier.store.close()


@pytest.fixture(scope="module")
def bundles(life, tmp_path_factory):
    dossier, _, _ = life
    folder = tmp_path_factory.mktemp("bundles")
    for name, redact in (("whole", False), ("redacted", True)):
        write(dossier, folder / name, lambda s, r=redact: page(s, dossier.now, r), redact=redact)
    return folder


@pytest.fixture(scope="module")
def key(life):
    return [dsse.read_public(life[2] / "d" / "dossier.key.pub")]


def test_statements_are_in_toto_statements(life):
    dossier, guard, _ = life
    attest = pytest.importorskip(
        "in_toto_attestation.v1.statement", reason="in-toto-attestation is not installed"
    )
    from google.protobuf import json_format
    from in_toto_attestation.predicates.vsa.v1 import vsa_pb2
    from in_toto_attestation.v1 import statement_pb2

    state = dossier.state
    decision = state.each(GateDecision)[0]
    first = state.all[0].entry.hash
    made = [
        statements.test_result(state, state.get(Run, "audit-1")),
        statements.verification_summary(state, decision, first),
    ]
    for said in made:
        message = json_format.ParseDict(said, statement_pb2.Statement())
        attest.Statement.copy_from_pb(message).validate()
    older = ("verifier", "verifiedLevels")  # the library's message has no version there, and one level
    predicate = {k: v for k, v in made[1]["predicate"].items() if k not in older}
    summary = json_format.ParseDict(predicate, vsa_pb2.VerificationSummary())
    assert summary.verification_result == "PASSED" and len(summary.input_attestations) == len(decision.inputs)
    assert made[1]["predicate"]["verifiedLevels"] == ["GUARDKEEL_GATE_ALLOW_WITH_SAFEGUARDS"]
    told = made[0]["predicate"]
    assert told["result"] == "WARNED" and told["failedTests"] == []
    assert any("alert" in t for t in told["warnedTests"])
    assert {"name": "bank", "digest": {"sha256": guard.digest}} in made[0]["subject"]


def test_a_rejected_or_failed_decision_is_no_pass(life):
    dossier, _, _ = life
    state = State(s.entry for s in dossier.state.all if s.entry.kind != "approval")
    said = statements.verification_summary(state, state.each(GateDecision)[0], "0" * 64)
    assert said["predicate"]["verificationResult"] == "FAILED"


def test_weight_files_are_subjects_by_their_own_digest(life):
    model = life[1].model_copy(update={"files": {"model.safetensors": "ab" * 32, "config.json": "cd" * 32}})
    found = statements.subject(model)
    assert found[0]["digest"] == {"guardkeelFolderV1": model.digest}
    assert found[1] == {"name": "bank/model.safetensors", "digest": {"sha256": "ab" * 32}}


@pytest.fixture(scope="module")
def eee_schema(tmp_path_factory):
    """The schema of Every Eval Ever 0.3.0 from its wheel. The package asks for Python 3.12; its schema for none."""
    folder = tmp_path_factory.mktemp("eee")
    wanted = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "every-eval-ever==0.3.0"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=120, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip("the wheel of every-eval-ever 0.3.0 cannot be had here")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return json.loads(wheel.read("every_eval_ever/schemas/eval.schema.json"))


def test_every_eval_ever_documents_are_valid(life, eee_schema):
    validators = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    dossier, _, _ = life
    said = every_eval_ever.document(dossier.state, dossier.state.get(Run, "audit-1"), dossier.now)
    validators.Draft7Validator(eee_schema).validate(said)
    assert said["source_metadata"]["evaluator_relationship"] == "third_party"
    found = {r["evaluation_result_id"]: r for r in said["evaluation_results"]}
    assert found["audit-1/*/fpr"]["metric_config"]["lower_is_better"] is True
    assert found["audit-1/*/recall"]["score_details"]["uncertainty"]["num_samples"] > 0
    prompts = next(p for p in dossier.state.each(PromptSet) if p.hub_dataset)
    assert found[f"audit-1/{prompts.id}/auroc"]["source_data"]["hf_repo"] == "keel/suite"


def test_the_bill_of_materials_is_valid(life):
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed"
    )
    from cyclonedx.schema import SchemaVersion

    dossier, guard, _ = life
    for model in (guard, dossier.state.get(Model, "base")):
        said = cyclonedx.bom(dossier.state, model, dossier.now)
        assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(said)) is None
    said = cyclonedx.bom(dossier.state, guard, dossier.now)
    assert said["dependencies"][0]["dependsOn"] == [f"model:{guard.parents[0].digest}"]
    metrics = said["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert any(m["type"] == "recall" and "confidenceInterval" in m for m in metrics)
    assert said["serialNumber"] == cyclonedx.bom(dossier.state, guard, dossier.now)["serialNumber"]


def test_the_model_card_and_eval_results_are_read_by_the_hub_library(life):
    hub_library = pytest.importorskip("huggingface_hub")
    dossier, guard, _ = life
    text = hub.card(dossier.state, guard, standing(dossier.state, guard, dossier.now))
    card = hub_library.ModelCard(text)
    assert card.data.base_model == ["keel/base"] and card.data.license == "apache-2.0"
    assert {r.metric_type for r in card.data.eval_results} == {"recall", "fpr", "f1", "auroc", "unscored"}
    assert "| audit-1 | final | lab (third party) |" in card.text
    files = hub.eval_results(dossier.state, guard)
    parse = getattr(hub_library, "parse_eval_result_entries", None)
    if parse is None:
        pytest.skip("this huggingface_hub knows no .eval_results")
    import yaml

    entries = [e for text in files.values() for e in parse(yaml.safe_load(text))]
    assert entries and {e.dataset_id for e in entries} == {"keel/suite"}


def test_decisions_for_ci(life):
    dossier, _, _ = life
    decision = dossier.state.each(GateDecision)[0]
    bad = decision.trace[0].model_copy(
        update={"rule": "odd | <b>\x07", "outcome": "fail", "reason": "`x` & <script>"}
    )
    decision = decision.model_copy(update={"trace": [*decision.trace, bad], "outcome": "deny"})
    suite = ElementTree.fromstring(ci.junit(decision)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == (str(len(decision.trace)), "1")
    assert [c.tag for c in suite.findall("testcase")[-1]] == ["failure"]
    said = ci.sarif(decision, "dossier/dossier.toml")
    levels = {r["ruleId"]: r["level"] for r in said["runs"][0]["results"]}
    assert levels[bad.rule] == "error" and "none" in levels.values() and "warning" in levels.values()
    assert all(
        r["ruleIndex"] < len(said["runs"][0]["tool"]["driver"]["rules"]) for r in said["runs"][0]["results"]
    )
    summary = ci.summary(decision)
    assert "odd \\| \\<b\\>" in summary and "<script>" not in summary
    for row in (x for x in summary.splitlines() if x.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", row)) == 6
    schema = pytest.importorskip("sarif_pydantic", reason="sarif-pydantic is not installed")
    schema.Sarif.model_validate(said)


def test_a_bundle_verifies_with_only_the_public_key(bundles, key):
    for name in ("whole", "redacted"):
        found = check(bundles / name, key)
        assert found.sound, found.fault
        assert found.signed == found.entries
    alone = check(bundles / "whole")
    assert alone.sound and "not whose it is" in alone.notes[0]


def test_a_bundle_holds_the_rows_that_a_decision_rests_on(bundles, life):
    run = life[0].state.get(Run, "audit-1")
    there = {p.name for p in (bundles / "whole" / "evidence").iterdir()}
    assert run.files["candidate.jsonl"].sha256 in there and run.files["run.json"].sha256 in there
    assert run.files["items.jsonl"].sha256 not in there  # messages only if asked for
    assert "holds messages" in (bundles / "whole" / "README.md").read_text()


def test_texts_come_when_asked_for_and_large_files_never(life, tmp_path):
    dossier, _, _ = life
    run = dossier.state.get(Run, "audit-1")
    sizes = {name: f.bytes for name, f in run.files.items()}
    limit = sorted(sizes.values())[-2]
    made = write(dossier, tmp_path / "b", texts=True, limit=limit)
    there = {p.name for p in (tmp_path / "b" / "evidence").iterdir()}
    assert there == {f.sha256 for f in run.files.values() if f.bytes <= limit}
    assert len(made.left_out) == 1 and f"{max(sizes.values()):,} bytes" in made.left_out[0]
    write(dossier, tmp_path / "all", texts=True)
    assert run.files["items.jsonl"].sha256 in {p.name for p in (tmp_path / "all" / "evidence").iterdir()}


def test_every_changed_added_or_missing_file_is_found(bundles, key, tmp_path):
    whole = bundles / "whole"
    names = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    assert len(names) > 15
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    for name in names:
        data = (whole / name).read_bytes()
        place = len(data) // 2
        (copy / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert not check(copy, key).sound, name
        except Exception as e:
            assert "manifest" in str(e)  # not even an envelope any more
        (copy / name).unlink()
        try:
            assert not check(copy, key).sound, name
        except Exception as e:
            assert "cannot be read" in str(e)
        (copy / name).write_bytes(data)
    (copy / "extra.txt").write_text("x")
    assert "was added" in check(copy, key).fault.problem


def test_a_record_that_was_taken_out_is_named(bundles, key, tmp_path):
    for name in ("whole", "redacted"):
        copy = tmp_path / name
        shutil.copytree(bundles / name, copy)
        lines = (copy / "records.jsonl").read_bytes().splitlines(keepends=True)
        (copy / "records.jsonl").write_bytes(b"".join(lines[:11] + lines[12:]))
        assert check(copy, key).fault.sequence == 12
        (copy / "records.jsonl").write_bytes(
            b"".join([*lines[:7], lines[7].replace(b'"kind"', b'"kinD"'), *lines[8:]])
        )
        assert check(copy, key).fault.sequence == 8
        (copy / "records.jsonl").write_bytes(b"".join(lines[:-2]))
        assert check(copy, key).fault.sequence == len(lines) - 1


def test_another_key_does_not_do(bundles, tmp_path):
    other = dsse.private_key(dsse.new_key(tmp_path / "k")[0]).public_key()
    found = check(bundles / "whole", [other])
    assert not found.sound and "no signature" in found.fault.problem


def test_an_end_that_was_cut_off_with_its_heads_is_found_by_an_older_bundle(bundles, key, life, tmp_path):
    head = json.loads((bundles / "whole" / "heads.jsonl").read_bytes().splitlines()[-1])
    later = heads.read(head, key, "x")
    folder = tmp_path / "short"
    with opened(folder, Clock()) as short:
        write(short, tmp_path / "b")
    found = check(tmp_path / "b", [dsse.read_public(folder / "dossier.key.pub")], [later])
    assert "another dossier" in found.fault.problem


def test_a_redacted_bundle_withholds_what_is_private_everywhere(bundles):
    text = "".join(p.read_text("utf-8") for p in (bundles / "redacted").rglob("*") if p.is_file())
    found = [s for s in SECRETS if re.search(rf"\b{re.escape(s)}\b" if s.isalpha() else re.escape(s), text)]
    assert found == []
    import base64

    payloads = re.findall(r'"payload":\s*"([A-Za-z0-9+/=]+)"', text)
    inner = "".join(base64.b64decode(p).decode() for p in payloads)
    assert payloads and not [s for s in SECRETS if re.search(rf"\b{re.escape(s)}\b", inner)]
    whole = (bundles / "whole" / "records.jsonl").read_text()
    assert all(s in whole for s in SECRETS)
    assert not (bundles / "redacted" / "evidence").exists()


def test_a_bundle_is_whole_or_not_there(life, tmp_path):
    dossier, _, folder = life
    with pytest.raises(ConfigError, match="is not empty"):
        write(dossier, folder)
    with pytest.raises(ZeroDivisionError):
        write(dossier, tmp_path / "b", lambda state: str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    with (
        opened(tmp_path / "unsigned", Clock(), sign=False) as bare,
        pytest.raises(ConfigError, match="no key"),
    ):
        write(bare, tmp_path / "b")
