"""examples/life: the whole life of a guard runs as it is told, with small guards in the places of the real ones."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import typer

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")
pytest.importorskip("sklearn", reason="the linear guard needs scikit-learn")

from guardkeel import audit, cli
from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.dossier.dossier import open_dossier
from guardkeel.dossier.kinds import Deployment, Finding, GateDecision, Incident, Model, PromptSet
from guardkeel.errors import GuardkeelError
from guardkeel.evaluation.suites import load_suite
from guardkeel.guards.linear import LinearGuard
from guardkeel.records import RunRecord, write_record
from guardkeel.resources import folder_digest

SCRIPT = Path(__file__).parents[2] / "examples" / "life" / "life.py"
WORDS = [a + b for a in "bdfklmnprst" for b in ("adel", "efan", "igor", "olim", "umas", "anep")]
SUITES = {
    "in-the-wild-jailbreaks": "unsafe",
    "pyrit-refusal": "safe",
    "advbench": "unsafe",
    "keel-domain": "safe",
}


def sentences(count: int, label: str, seed: int) -> list[Example]:
    """Words that mean nothing; in harmful ones somebody speaks of ships."""
    rng, made = random.Random(seed), []
    for number in range(count):
        words = rng.sample(WORDS, 8) + ["ships", "sailing"] * (label == "unsafe")
        rng.shuffle(words)
        text = Conversation.of(" ".join(words))
        made.append(Example(f"{label}-{seed}-{number}", text, {"prompt": label}, (), "", "en"))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with suites, three guards of words, and what `guardkeel demo` would have left of them."""
    folder = tmp_path_factory.mktemp("life")
    seen = sentences(60, "unsafe", 1) + sentences(60, "safe", 2)
    first = LinearGuard.fit(seen, name="first")
    first.save(folder / "first")
    for number, (name, label) in enumerate(SUITES.items()):
        write_jsonl(folder / f"{name}.jsonl", sentences(120, label, 10 + number))
    mixed = folder / "mixed.jsonl"
    write_jsonl(mixed, sentences(20, "unsafe", 20) + sentences(20, "safe", 21))
    guards = {
        "plain": LinearGuard.fit(seen, name="plain"),
        "kept": LinearGuard.fit(seen + sentences(40, "safe", 3), name="kept"),
    }
    guards["plain"].threshold = 0.999  # so it sees nothing
    for name, guard in guards.items():
        tuned = folder / "demo" / f"bank-{name}-3"
        guard.save(tuned / "tuned")
        inputs = {"guard": folder_digest(folder / "first"), "data keel-domain": "cd" * 32}
        record = RunRecord.finished(
            verb="tune", started_at="2026-03-02T09:15:04+00:00", command=["guardkeel", "tune"], inputs=inputs,
            config={"data": ["keel-domain"], "source": "bank", "method": name}, seeds={"seed": 0}, timings={},
            counts={"task rows": 95, "steps": 3}, results={"threshold": guard.threshold},
        )  # fmt: skip
        write_record(tuned, record)
        after = folder / "demo" / f"after-{name}-3"
        audit(
            str(folder / "first"),
            str(tuned / "tuned"),
            suites=[str(mixed)],
            out=after,
            geometry=False,
            draws=60,
        )
    return folder


def in_process():
    """What runs `guardkeel` with some words in this process, for the verbs of the life."""
    app = typer.Typer()
    for verb in (cli.audit, cli.dossier):
        verb.register(app)
    command = typer.main.get_command(app)  # built once: that takes longer than most of its commands

    def call(words, watch):
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                code = command.main(words, standalone_mode=False) or 0
            except GuardkeelError as e:
                print(f"error: {e}", file=error)
                code = e.exit_code
        return code, out.getvalue(), error.getvalue()

    return call


@contextlib.contextmanager
def in_thread(config):
    """The service of a configuration in a thread, at a free port."""
    import uvicorn

    from guardkeel.moderation.app import make_app
    from guardkeel.moderation.service import Service
    from guardkeel.moderation.serving import load

    settings = cli.serve._read(Path(config), [])
    experts, metrics = load(settings)
    server = uvicorn.Server(
        uvicorn.Config(make_app(Service(settings, experts, metrics)), port=0, log_config=None)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def life(place, monkeypatch, tmp_path):
    """The script, with the small guards and suites in the places of the real ones."""
    spec = importlib.util.spec_from_file_location("life", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shutil.copytree(SCRIPT.parent, tmp_path / "files", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    records = tmp_path / "files" / "records.toml"
    text = records.read_text().replace('path = "keel-135m"', f'path = "{place}/first"\nthreshold = 0.5')
    records.write_text(re.sub(r'suite = "(.*)"', rf'suite = "{place}/\1.jsonl"', text))
    monkeypatch.setattr(script, "HERE", tmp_path / "files")
    monkeypatch.setattr(script, "GUARD", str(place / "first"))
    monkeypatch.setattr(script, "SUITES", tuple(f"{place}/{s}.jsonl" for s in script.SUITES))
    monkeypatch.setattr(script, "HARMFUL", f"{place}/advbench.jsonl")
    monkeypatch.setattr(script, "HARMLESS", f"{place}/keel-domain.jsonl")
    monkeypatch.setattr(script, "call", in_process())
    monkeypatch.setenv("COLUMNS", "118")
    monkeypatch.setattr(script, "serving", in_thread)
    return script


def test_the_life_is_as_it_is_told(life, place, tmp_path, capsys, monkeypatch):
    out = tmp_path / "lived"
    code = life.main(["--demo", str(place / "demo"), "--out", str(out), "--requests", "20"])
    said = capsys.readouterr()
    assert code == 0, said.out[-3000:] + said.err
    with open_dossier(out / "dossier") as dossier:
        state = dossier.state
    decided = [(d.model, d.outcome) for d in state.each(GateDecision)]
    assert decided[0] == ("keel-135m", "allow") and decided[1] == ("bank-plain", "deny")
    assert decided[-2:] == [("bank-kept", "roll-back"), ("bank-kept", "allow")]
    assert [(d.model, d.status) for d in state.each(Deployment)] == [
        ("keel-135m", "deployed"), ("bank-kept", "deployed"), ("bank-kept", "rolled-back"),
        ("keel-135m", "deployed"), ("bank-kept", "deployed"),
    ]  # fmt: skip
    assert {f.status for f in state.each(Finding) if f.model == "bank-plain"} == {"mitigated"}
    [incident] = state.each(Incident)
    drafted = state.first(Incident, incident.id).record
    assert (drafted.status, incident.status) == ("draft", "resolved")
    assert (incident.aware_at, incident.description) == (drafted.aware_at, drafted.description)
    assert incident.resolved_at is not None and incident.harm == "cybersecurity"
    first, kept = state.get(Model, "keel-135m"), state.get(Model, "bank-kept")
    assert [m.id for m in state.lineage(kept)[0]] == ["keel-135m"]
    assert kept.intended_use == first.intended_use and "95 rows of keel-domain" in kept.data_summary
    held = state.get(PromptSet, "pyrit-refusal")
    assert held.n == 120 and held.digest == load_suite(place / "pyrit-refusal.jsonl").digest
    given = [p for p in out.rglob("*") if p.is_file() and p.relative_to(out).parts[0] in ("bundle", "public")]
    assert {"index.html", "records.jsonl"} <= {p.name for p in given}
    assert "sailing" not in said.out and not any(b"sailing" in p.read_bytes() for p in given)

    with pytest.raises(life.NotAsTold, match="should exit with 1"):
        life.guardkeel(f"dossier verify {out / 'bundle'} --key {out / 'keys/dossier.key.pub'}", code=1)
    monkeypatch.chdir(out)
    life.dossier("evaluate bank-kept --mends bank-plain", code=2, says="--mends without --how")
    Path("other.toml").write_text(f'[[prompt-set]]\nid = "other"\nsuite = "{place}/advbench.jsonl"\n')
    life.dossier("register other.toml", code=2, says="audits call this suite 'advbench'")
    with pytest.raises(SystemExit):
        life.main(["--demo", str(place / "demo"), "--out", str(out)])  # a life is lived once
