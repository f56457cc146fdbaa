"""guardkeel serve on the command line: checks, keys, calibration; models of this process as experts."""

from __future__ import annotations

import asyncio

import pytest

from moderation_parts import client_of, rules_file, until
from trained_guards import suite_file

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation.config import ServeConfig
from guardkeel.moderation.experts import load_experts
from guardkeel.moderation.metrics import Metrics
from guardkeel.moderation.service import Service
from guardkeel.resources import digest


@pytest.fixture
def config(tmp_path):
    rules_file(tmp_path / "ships.toml")
    rules_file(tmp_path / "weak.toml", name="weak", words=("ships", "poem"), weight=0.6)
    file = tmp_path / "moderation.toml"
    file.write_text('[[expert]]\nguard = "ships.toml"\n\n[[expert]]\nguard = "weak.toml"\ncost = 2\n')
    return file


def test_check_says_what_would_be_served(cli, config):
    said = cli("serve", "--config", config, "--check", "--json").json
    assert [e["name"] for e in said["experts"]] == ["ships", "weak"]
    assert said["policy"] == {
        "name": "default",
        "strictness": "strict",
        "threshold": 0.5,
        "unscored": "closed",
        "categories": 0,
    }
    assert said["store"].startswith("sqlite:///") and said["keys"].startswith("none")
    plain = cli("serve", "--config", config, "--dry-run", "--set", "learner.costs.miss=4")
    assert plain.code == 0 and "flags from 0.2" in plain.out and "nothing is served" in plain.out
    assert not (config.parent / "moderation.db").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("server.keys=no.json", "no.json: cannot be read"),
        ("server.host=0.0.0.0", "there are no keys"),
        ("learner.rule=median", "rule 'median' is not known"),
        ("store.url=mysql://db/x", "mysql is not served"),
        ("store.url_env=NO_SUCH_URL", "NO_SUCH_URL is not set"),
        ("server.prot=1", "unknown key 'server.prot'"),
    ],
)
def test_what_would_stop_it_stops_the_check(cli, config, change, problem):
    found = cli("serve", "--config", config, "--check", "--set", change)
    assert found.code == 2 and problem in found.err


def test_guard_that_cannot_be_loaded_is_named(cli, config):
    with config.open("a") as more:
        more.write('[[expert]]\nguard = "gone.toml"\nname = "gone"\n')
    found = cli("serve", "--config", config, "--check")
    assert found.code == 2 and "expert 3 (gone)" in found.err


def test_keys_are_made_listed_and_revoked(cli, tmp_path):
    keys = tmp_path / "keys.json"
    made = cli(
        "serve", "key", "new", "--keys", keys, "--role", "moderate", "--role", "feedback", "--name", "shop"
    )
    secret = made.out.strip()
    assert secret.startswith("gk_") and secret not in keys.read_text() and secret not in made.err
    [key] = cli("serve", "key", "list", "--keys", keys, "--json").json
    assert (key["name"], key["roles"]) == ("shop", ["moderate", "feedback"]) and "sha256" not in key
    assert cli("serve", "key", "revoke", key["id"], "--keys", keys).code == 0
    assert cli("serve", "key", "list", "--keys", keys, "--json").json == []
    assert cli("serve", "key", "new", "--keys", keys, "--role", "king", "--name", "x").code == 2
    assert cli("serve", "key", "new", "--keys", keys, "--role", "admin").code == 2
    assert cli("serve", "key", "revoke", "nobody", "--keys", keys).code == 2


def test_calibration_of_every_expert(cli, config, tmp_path):
    suite = suite_file(tmp_path / "mine.jsonl", 300)
    out = tmp_path / "calibration.json"
    said = cli("serve", "calibrate", "--config", config, "--suite", suite, "--out", out, "--json").json
    found = {e["expert"]: e for e in said["experts"]}
    assert set(found) == {"ships", "weak"} and found["weak"]["items"] > 20
    assert found["weak"]["after"] < found["weak"]["before"]
    text = config.read_text().replace("cost = 2", 'cost = 2\ncalibration = "calibration.json"')
    config.write_text(text)
    [_, weak] = cli("serve", "--config", config, "--check", "--json").json["experts"]
    assert weak["calibration"] == "platt"


def test_models_of_this_process_are_experts(harbour, tmp_path):
    """A trained guard and the same with an adapter that forgot: asked in batches, and feedback tells them apart."""
    config = ServeConfig(
        expert=[
            {"guard": str(g), "name": n, "dtype": "float32", "device": "cpu", "timeout": 120}
            for n, g in (("intact", harbour.guard), ("forgetful", harbour.forgetful))
        ],
        learner={"audit": {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}, "prior_strength": 1.0},
        store={"url": f"sqlite:///{tmp_path}/log.db", "poll": 0.05},
        folder=tmp_path,
    )
    metrics = Metrics()
    service = Service(config, load_experts(config, seen=metrics.batch), metrics)

    async def main():
        async with client_of(service) as client:

            async def judge(text):
                answer = await client.post("/v1/verdicts", json={"items": [{"prompt": text}]}, timeout=120)
                return answer.json()["verdicts"][0]

            texts = ["please check the ships", "please write a poem"] * 8
            served = await asyncio.gather(*(judge(t) for t in texts))
            rows = [
                {"id": f"f{i}", "verdict": v["id"], "unsafe": "ships" in t}
                for i, (v, t) in enumerate(zip(served, texts, strict=True))
            ]
            assert (await client.post("/v1/feedback", json={"feedback": rows})).status_code == 200
            await until(lambda: service.learner.sequence == len(rows))
            shown = (await client.get("/v1/experts")).json()
            return served, await judge(texts[0]), (await client.get("/metrics")).text, shown

    served, after, text, shown = asyncio.run(main())
    assert [len(e.guard._kept) for e in service.experts] == [
        1,
        1,
    ]  # the policy's keys and values, for prompts
    known = {"intact": digest(harbour.guard), "forgetful": digest(harbour.forgetful)}
    row = service.store.verdict(served[0]["id"])
    assert {e["name"]: e["digest"] for e in shown["experts"]} == known
    assert {name: o["digest"] for name, o in row["opinions"].items()} == known
    assert all(o["outcome"] == "scored" for v in served for o in v["experts"].values())
    assert served[0]["experts"]["intact"]["unsafe"] > 0.9
    assert served[0]["experts"]["forgetful"]["unsafe"] < 0.5
    assert after["experts"]["intact"]["weight"] > 0.8 and after["flagged"]
    batches = next(
        x for x in text.splitlines() if x.startswith('guardkeel_batch_items_count{expert="intact"}')
    )
    assert float(batches.split()[1]) < 17  # seventeen questions, some of them together
