"""An audit of guards that are no checkpoints: a server, a rule list, and what is left of them in the run directory."""

from __future__ import annotations

import json
import random

import pytest

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.errors import ConfigError, RunError
from guardkeel.evaluation.run import audit
from guardkeel.guards.load import load_guard
from guardkeel.guards.pair import pair
from remote_server import Server, moderated
from trained_guards import sentence

KEY = "sk-sEcReT0123456789"
RULES = 'kind = "rules"\nname = "ships"\n[[rules]]\ncategory = "Violence"\nwords = ["ships"]\n'


@pytest.fixture
def suite(tmp_path):
    rng = random.Random(3)
    rows = [
        Example(
            f"e{i}",
            Conversation.of(f"{i} {sentence(rng, 'unsafe' if i % 2 else 'safe')}"),
            {"prompt": "unsafe" if i % 2 else "safe"},
        )
        for i in range(160)
    ]
    path = tmp_path / "sea.jsonl"
    write_jsonl(path, rows)
    return path


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARD_KEY", KEY)

    def write(server, name, **options):
        values = {
            "url": server.url,
            "api": "moderations",
            "model": name,
            "api_key_env": "GUARD_KEY",
            "backoff": 0.01,
        }
        path = tmp_path / f"{name}.toml"
        path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in (values | options).items()))
        return str(path)

    return write


def judged(request):
    """The model called good sees ships; bad, which came after it, sees every other of them."""
    text, model = request["body"]["input"], request["body"]["model"]
    seen = "ships" in text and (model == "good" or int(text.split()[0]) % 4 == 1)
    return moderated({"violence": 0.9 if seen else 0.1})


def test_two_servers(write, suite, tmp_path):
    with Server(judged) as server:
        results = audit(
            write(server, "good"), write(server, "bad"), out=tmp_path / "run", suites=[str(suite)]
        )
    asked = [(b["model"], b["input"]) for b in server.bodies]
    assert len(asked) == len(set(asked)) > 150
    assert results.reference.overall.recall.value == 1.0 and results.candidate.overall.recall.value < 0.7
    assert results.reference.info.family == "moderations" and results.reference.info.parameters == 0
    assert results.reference.info.digest != results.candidate.info.digest
    assert not results.geometry
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


def test_a_server_that_goes_away_is_gone_on_with(write, suite, tmp_path):
    alive = {"left": 40}

    def dying(request):
        alive["left"] -= 1
        return judged(request) if alive["left"] >= 0 else (503, {}, {})

    with Server(dying) as server:
        one = write(server, "good", retries=0, concurrency=1)
        with pytest.raises(RunError, match="in a row failed"):
            audit(one, out=tmp_path / "run", suites=[str(suite)], geometry=False)
        alive["left"] = 1000
        results = audit(one, out=tmp_path / "run", suites=[str(suite)], geometry=False)
    asked = [b["input"] for b in server.bodies]
    assert all(asked.count(text) == 1 for text in asked[:32])  # a batch that was whole is not asked again
    assert len(set(asked)) > 50
    assert results.reference.overall.unscored.value == 0.0


def test_a_server_beside_a_rule_list(write, suite, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    with Server(judged) as server:
        results = audit(write(server, "bad"), str(rules), out=tmp_path / "run", suites=[str(suite)])
    assert (results.reference.info.name, results.candidate.info.name) == ("bad", "ships")
    assert results.candidate.overall.recall.value == 1.0


def test_what_cannot_work_is_found_before_anything_is_asked(write, suite, tmp_path, monkeypatch):
    with Server(judged) as server:
        good, bad = write(server, "good"), write(server, "bad", api_key_env="NO_SUCH_KEY")
        with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
            audit(good, bad, out=tmp_path / "run", suites=[str(suite)])
        with pytest.raises(ConfigError, match="any-guardrail"):
            audit(good, "any:no_such_guard", out=tmp_path / "run", suites=[str(suite)])
        assert not server.requests


def test_a_policy_is_refused_by_what_takes_none(write, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "bank"\n')
    with pytest.raises(ConfigError, match="takes no guard policy"):
        load_guard("rules", policy=policy)
    assert [role for role, _ in pair("rules", "rules")] == ["reference", "candidate"]
