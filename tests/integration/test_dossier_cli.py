"""A guard's life on the command line: registered, gated, approved, deployed, watched, checked by a stranger."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from dossier_cases import digest
from guardkeel.cli import dossier
from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.runs import read_audit
from guardkeel.records import read_record, write_record
from run_directories import write_run

POLICY = """
name = "release"
[[threshold]]
metric = "recall"
min = 0.5
[[threshold]]
metric = "fpr"
max = 0.4
[require]
audits = false
max_unscored = 0.5
[release]
safeguards = ["a person reads what it lets through"]
"""


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    made.command("other")(lambda: None)
    dossier.register(made)
    return made


@pytest.fixture(scope="module")
def site(app, tmp_path_factory):
    """A folder with a dossier, and `say`: run a command there, and give its exit code and what it printed."""
    folder = tmp_path_factory.mktemp("site")
    runner = CliRunner()

    def say(*words, code=0, here=True):
        where = ["--dossier", str(folder / "dossier")] if here else []
        done = runner.invoke(app, ["dossier", *words, *where])
        if isinstance(done.exception, GuardkeelError):
            found = (done.exception.exit_code, str(done.exception))
        else:
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            found = (done.exit_code, done.output)
        assert found[0] == code, found[1]
        return found[1]

    say("init", str(folder / "dossier"), "--title", "The guard of the bank", here=False)
    return folder, say


@pytest.fixture(scope="module")
def registered(site):
    folder, say = site
    (folder / "policy.toml").write_text(POLICY)
    said = say("register", "--policy", str(folder / "policy.toml"))
    assert "threshold  release/recall launch min" in said
    assert "nothing new" in say("register", "--policy", str(folder / "policy.toml"))
    run = write_run(folder / "audit", items=240, collapse=0.0, layers=2)
    record = read_record(run)
    later = datetime.now(UTC) + timedelta(seconds=2)  # after the policy was registered
    record.results["candidate"]["info"]["digest"] = digest("bank")
    write_record(
        run, record.model_copy(update={"started_at": later.isoformat(), "finished_at": later.isoformat()})
    )
    found = read_audit(run)
    lines = [
        '[[organisation]]\nid = "us"\nname = "The Bank"\nregions = ["eu"]',
        '[[person]]\nid = "bob"\nroles = ["risk"]',
        '[[risk-domain]]\nid = "harm"\ntitle = "Missed harm"',
        '[[evaluator]]\nid = "lab"\nparty = "third"\nindependent_of_development = true\npeople = ["eve"]',
        f'[[model]]\nid = "base"\ndigest = "{found.reference.info.digest}"\nthreshold = 0.5\ntrainers = ["tom"]',
        f'[[model]]\nid = "bank"\ndigest = "{digest("bank")}"\nthreshold = {found.candidate.info.threshold}\n'
        f'trainers = ["tom"]\nparents = [{{ digest = "{found.reference.info.digest}", relation = "fine-tune" }}]',
        *(
            f'[[prompt-set]]\nid = "{s.name}"\nversion = "{s.version}"\ndigest = "{s.digest}"\nheld_out = true'
            for s in found.suites
        ),
        f'[[eval-spec]]\nid = "final"\nform = "assurance"\ndomains = ["harm"]\n'
        f"prompt_sets = {json.dumps([s.name for s in found.suites])}",
    ]
    (folder / "records.toml").write_text("\n".join(lines) + "\n")
    say("register", str(folder / "records.toml"), "--taxonomy", "ailuminate", "--as", "ada")
    return folder, say


@pytest.fixture(scope="module")
def released(registered):
    folder, say = registered
    assert "no assurance run of bank" in say("gate", "bank", code=3)
    said = say(
        "import",
        str(folder / "audit"),
        "--spec",
        "final",
        "--evaluator",
        "lab",
        "--model",
        "bank",
        "--as",
        "eve",
    )
    assert "run  audit" in said
    (folder / "assessment.toml").write_text('scope = "all"\nresidual = [{ domain = "harm", risk = "low" }]\n')
    say("assess", "bank", str(folder / "assessment.toml"))
    assert "no open findings" in say("evaluate", "bank")
    ci = [
        "--junit",
        folder / "gate.xml",
        "--sarif",
        folder / "gate.sarif",
        "--summary",
        folder / "summary.md",
    ]
    said = say("gate", "bank", *map(str, ci))
    assert "allow" in said and "decision bank 20" in said
    assert "made model 'bank'" in say("approve", "bank", "--as", "tom", code=2)
    assert "may not be deployed: nobody has approved it" in say("deploy", "bank", code=2)
    say("approve", "bank", "--as", "bob", "--reason", "read it")
    say("deploy", "bank", "--place", "production")
    return folder, say


def test_ci_files_are_written(released):
    folder, _ = released
    assert (folder / "gate.xml").read_text().startswith("<?xml")
    assert json.loads((folder / "gate.sarif").read_text())["version"] == "2.1.0"
    assert "## Gate: allow" in (folder / "summary.md").read_text()


def test_what_there_is_is_shown(released):
    _, say = released
    said = say("show")
    assert "may run" in said and "gate-decision" in said
    assert json.loads(say("show", "--json"))["may_run"]["bank"] is True
    history = json.loads(say("show", "model", "bank"))
    assert history[0]["trainers"] == ["tom"]
    assert "audit" in say("show", "run")
    assert "unknown kind" in say("show", "thing", code=2)


def test_a_stranger_checks_a_bundle(released, tmp_path):
    folder, say = released
    say("export", str(tmp_path / "bundle"))
    say("export", str(tmp_path / "public"), "--redacted")
    key = ["--key", str(folder / "dossier" / "dossier.key.pub")]
    for name in ("bundle", "public"):
        assert "sound" in say("verify", str(tmp_path / name), *key, here=False)
    assert "checked by keys that the bundle itself names" in say(
        "verify", str(tmp_path / "bundle"), here=False
    )
    head = ["--head", str(tmp_path / "bundle" / "heads.jsonl")]
    assert (
        json.loads(say("verify", str(folder / "dossier"), *key, *head, "--json", here=False))["sound"] is True
    )
    records = tmp_path / "bundle" / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b"Missed harm", b"Missed hare"))
    assert "not sound" in say("verify", str(tmp_path / "bundle"), *key, here=False, code=1)
    assert "--head without --key" in say("verify", str(tmp_path / "public"), *head, here=False, code=2)


def test_a_dossier_that_was_tampered_with_is_not_sound(released, tmp_path):
    folder, say = released
    shutil.copytree(folder / "dossier", tmp_path / "copy")
    base = sqlite3.connect(tmp_path / "copy" / "dossier.db")
    base.executescript("DROP TRIGGER entries_no_update; UPDATE entries SET id = 'x' WHERE sequence = 5;")
    base.close()
    said = say("verify", str(tmp_path / "copy"), here=False, code=1)
    assert "entry 5" in said


def test_drafts_and_applicability(released):
    _, say = released
    assert "## 7.7" in say("draft", "model-report", "bank")
    assert "Transparency report" in say("draft", "transparency-report", "bank")
    assert "Govern" in say("draft", "risk-profile")
    said = say("draft", "applicability", "bank", "--record")
    assert "does not seem to apply" in said and "no legal advice" in said
    assert "unknown report" in say("draft", "poem", "bank", code=2)


def test_drift_opens_a_finding_that_ends_the_release_and_an_incident_has_clocks(released, tmp_path):
    folder, say = released
    plan = """
[[monitor-plan]]
id = "in production"
model = "bank"
since = 2026-01-01T00:00:00Z
streams = [
  { name = "flagged", measure = "unsafe rate", baseline = 0.1, tolerance = 0.02, level = "launch" },
]
"""
    (folder / "plan.toml").write_text(plan)
    say("register", str(folder / "plan.toml"))
    start = datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    for name, every, code in (("calm", 10, 0), ("drift", 3, 1)):
        rows = [
            {"id": f"v{i}", "created": start + i, "unsafe": 0.5, "flagged": i % every == 0}
            for i in range(900)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        said = say("monitor", "bank", "--log", str(tmp_path / f"{name}.jsonl"), code=code)
        assert ("changed" in said) == (name == "drift")
    shown = json.loads(say("show", "--json"))
    assert shown["may_run"]["bank"] is False
    assert "roll-back" in say("gate", "bank", code=1)
    say("deploy", "bank", "--place", "production", "--roll-back")
    now = datetime.now(UTC)
    (folder / "incident.toml").write_text(
        f'title = "Too many flags"\nmodel = "bank"\naware_at = {now.isoformat()}\n'
        'harm = "health"\nstatus = "contained"\n'
    )
    said = say("incident", str(folder / "incident.toml"))
    assert "eu-gpai-code" in said and "due" in said
    assert "Measure 9.2 (1)" in say("incident", "--draft", "incident")
    say("incident", "--sent", "incident", "--form", "initial")
    states = {(c["regime"], c["what"]): c["state"] for c in json.loads(say("incident", "--json"))}
    assert states["eu-gpai-code", "initial, other serious harm"] == "reported"


def test_a_waiver_lets_a_held_rule_by_until_its_day(registered):
    _, say = registered
    rule = "form assurance"
    assert "made model 'base'" in say(
        "waive", "base", rule, "--until", "7d", "--reason", "x", "--as", "tom", code=2
    )
    say("waive", "base", rule, "--until", "7d", "--reason", "shown elsewhere", "--as", "eve")
    assert "waived    form assurance" in say("gate", "base", "--dry-run", code=3)
    for bad in ("soon", "2026-01-31T12:00:00"):
        say("waive", "base", rule, "--until", bad, "--reason", "x", "--as", "eve", code=2)


def test_a_key_is_made_once_and_a_person_registered_with_it(registered, tmp_path):
    _, say = registered
    say("key", str(tmp_path / "carol.key"), here=False)
    public = (tmp_path / "carol.key.pub").read_text()
    (tmp_path / "carol.toml").write_text(f"[[person]]\nid = \"carol\"\npublic_key = '''{public}'''\n")
    say("register", str(tmp_path / "carol.toml"))
    assert "a file already" in say("key", str(tmp_path / "carol.key"), here=False, code=2)


def test_what_is_missing_is_said(site, tmp_path):
    _, say = site
    assert "nothing to register" in say("register", code=2)
    assert "[[eval-spec]]" in say("register", "--example")
    assert "[require]" in say("register", "--policy-example")
    assert "is not there" in say("import", str(tmp_path / "nowhere"), code=2)
    (tmp_path / "x.json").write_text("{}")
    assert "--spec, --evaluator or --model is missing" in say("import", str(tmp_path / "x.json"), code=2)
    assert "no model 'nobody'" in say("gate", "nobody", code=2)


def test_help_teaches(app):
    runner = CliRunner()
    verbs = ("init", "register", "import", "assess", "evaluate", "gate", "approve", "waive", "deploy", "incident",
             "show", "monitor", "export", "draft", "verify", "serve")  # fmt: skip
    for verb in verbs:
        said = runner.invoke(app, ["dossier", verb, "--help"]).output
        assert "guardkeel dossier" in said or verb == "assess", verb
