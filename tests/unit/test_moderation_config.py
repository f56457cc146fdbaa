"""moderation.toml: what is taken and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardkeel.errors import ConfigError
from guardkeel.moderation import config, policies
from guardkeel.moderation.config import StoreConfig, read_config, store_url

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
LEAST = '[[expert]]\nguard = "rules"\n'


def read(tmp_path, text, *changes):
    file = tmp_path / "moderation.toml"
    file.write_text(text)
    return read_config(file, changes=changes)


def test_least_file_has_safe_defaults(tmp_path):
    found = read(tmp_path, LEAST)
    assert found.policy.unscored == "closed"
    assert found.server.host == "127.0.0.1"
    assert found.store.texts is False
    assert found.logs.texts is False
    assert found.learner.unsolicited == 0
    assert found.proxy.check_input and found.proxy.check_output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST + "[servr]\nport = 1\n", "unknown key 'servr'"),
        (LEAST + "cots = 2\n", "unknown key 'expert.0.cots'"),
        ("[server]\nport = 1\n", "expert"),
        ("expert = []\n", "expert"),
        (LEAST + '[server]\nhost = "0.0.0.0"\n', "there are no keys"),
        (f'{LEAST}name = "a"\n{LEAST}name = "a"\n', "two experts have one name"),
        (LEAST + 'name = "a b"\n', "expert.0.name"),
        (LEAST + "timeout = 0\n", "expert.0.timeout"),
        (LEAST + '[learner]\ncontexts = ["category", "side"]\n', "category must be the last part"),
        (LEAST + '[learner]\ncontexts = ["side", "side"]\n', "has a part twice"),
        (LEAST + '[learner]\nloss = "zero-one"\n', "learner.loss"),
        (LEAST + '[proxy]\nupstream = "ftp://host"\n', "is no address"),
        (LEAST + '[proxy]\nupstream = "http://user:word@host/v1"\n', "must hold no user"),
        (LEAST + '[policy]\nunscored = "safe"\n', "policy.unscored"),
        (LEAST + '[[policy.categories]]\nname = "a"\nopenai = ["illegal"]\n', "no key 'illegal'"),
        (LEAST + '[[policy.categories]]\nname = "a"\npatterns = ["(a+)+b"]\n', "no bound"),
        (LEAST + '[[policy.categories]]\nname = "a"\n[[policy.categories]]\nname = "a"\n', "there twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        read(tmp_path, text)


def test_no_password_of_an_address_is_shown(tmp_path):
    text = LEAST + '[server]\nhost = "0.0.0.0"\n[store]\nurl = "postgresql://u:word@db/x"\n'
    for broken in (text, LEAST + '[proxy]\nupstream = "http://u:word@host"\n'):
        with pytest.raises(ConfigError) as refused:
            read(tmp_path, broken)
        assert "word@" not in str(refused.value)


def test_other_machines_need_keys_or_a_word(tmp_path):
    open_host = LEAST + '[server]\nhost = "0.0.0.0"\n'
    assert read(tmp_path, open_host + 'keys = "keys.json"\n').server.keys == "keys.json"
    assert read(tmp_path, open_host, "server.no_keys=true").server.no_keys


def test_paths_are_looked_for_beside_the_file_first(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "ships.toml").write_text("")
    (tmp_path / "conf" / "m.toml").write_text('[[expert]]\nguard = "ships.toml"\n')
    monkeypatch.chdir(tmp_path)
    found = read_config(tmp_path / "conf" / "m.toml")
    assert found.reference("ships.toml") == str(tmp_path / "conf" / "ships.toml")
    assert found.reference("keel-135m") == "keel-135m"


def test_store_url_comes_from_the_environment_where_it_says_so(tmp_path, monkeypatch):
    said = StoreConfig(url_env="SOME_URL")
    monkeypatch.delenv("SOME_URL", raising=False)
    with pytest.raises(ConfigError, match="SOME_URL is not set"):
        store_url(said, tmp_path)
    monkeypatch.setenv("SOME_URL", "postgresql+psycopg://u:secret@db/guard")
    assert store_url(said, tmp_path) == "postgresql+psycopg://u:secret@db/guard"
    assert store_url(StoreConfig(), tmp_path) == f"sqlite:///{tmp_path}/moderation.db"
    assert store_url(StoreConfig(url="sqlite:////srv/log.db"), tmp_path) == "sqlite:////srv/log.db"


def test_every_key_is_documented():
    text = DOCS.read_text("utf-8")
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    tables = [m for m in vars(config).values() if isinstance(m, type) and issubclass(m, config.Table)]
    for table in (*tables, policies.Policy, policies.CategoryRule):
        assert set(table.model_fields) <= rows, table


def test_example_of_the_documentation_can_be_read(tmp_path):
    text = DOCS.read_text("utf-8")
    blocks = [b.split("```")[0] for b in text.split("```toml\n")[1:]]
    assert len(blocks) == 4
    first = blocks[0].replace('[policy]\nstrictness = "strict"\n', "")
    for rest in blocks[1:]:
        assert read(tmp_path, first + rest).experts[1].cost == 0.01


def test_example_of_replicas_can_be_read(monkeypatch):
    """The compose file's replicas: their configuration is one, and what it names is mounted."""
    import yaml

    monkeypatch.delenv("DATABASE_URL", raising=False)
    folder = DOCS.parents[1] / "examples" / "serve"
    found = read_config(folder / "moderation.toml")
    services = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    guards = {name: s for name, s in services.items() if name.startswith("guard-")}
    caddy = (folder / "Caddyfile").read_text("utf-8")
    assert len(guards) == 2
    for name, service in guards.items():
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        assert {"/etc/guardkeel/moderation.toml", f"/etc/guardkeel/{found.server.keys}"} <= mounted
        assert f"{name}:{found.server.port}" in caddy
        url = service["environment"][found.store.url_env]
        monkeypatch.setenv("DATABASE_URL", url.replace("${POSTGRES_PASSWORD:?}", "x"))
        assert store_url(found.store, folder).startswith("postgresql+psycopg://guardkeel:x@db/")
        grace = int(service["stop_grace_period"].rstrip("s"))
        assert grace > found.server.drain_seconds + found.server.shutdown_seconds
