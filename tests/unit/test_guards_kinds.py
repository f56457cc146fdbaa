"""What a guard's reference leads to, and guard policies on the way."""

import json
import shutil

import pytest

from guard_doubles import make_adapter
from guardkeel.conversation import Conversation
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Judgement
from guardkeel.guards.kinds import kind_of, other_digest
from guardkeel.guards.load import guard_path, load_checkpoint, load_guard, with_adapter
from guardkeel.guards.pair import pair

BANK = {"name": "bank", "categories": [{"name": "Account takeover"}, {"name": "Mule accounts"}]}
SHOP = 'name = "shop"\n[[categories]]\nname = "Fake goods"\n'
CPU = {"dtype": "float32", "device": "cpu"}
RULES = 'kind = "rules"\nname = "ships"\n[[rules]]\ncategory = "Violence"\nwords = ["ships"]\n'


@pytest.fixture
def checkpoint(tiny_folder, tmp_path):
    def checkpoint(architecture="llama", name="guard", **settings):
        folder = tmp_path / name
        shutil.copytree(tiny_folder(architecture), folder)
        (folder / "guardkeel.json").write_text(json.dumps(settings))
        return folder

    return checkpoint


def shown(guard):
    return guard.grammar.categories


def test_a_policy_of_the_checkpoint_and_one_over_it(checkpoint, tmp_path):
    folder = checkpoint(family="llama-guard-3", policy=BANK)
    assert shown(load_guard(str(folder), **CPU)) == ("Account takeover", "Mule accounts")
    (tmp_path / "shop.toml").write_text(SHOP)
    over = load_guard(str(folder), policy=tmp_path / "shop.toml", **CPU)
    assert shown(over) == ("Fake goods",)
    text = over.grammar.render(Conversation.of("hi"), "prompt", over.tokenizer).text
    assert "S1: Fake goods." in text and "Violent Crimes" not in text
    broken = checkpoint(name="broken", family="llama-guard-3", policy={"name": "x", "strict": True})
    with pytest.raises(ModelError, match=r"policy\.strict"):
        load_guard(str(broken), **CPU)
    path = checkpoint(name="path", family="llama-guard-3", policy="/etc/passwd")
    with pytest.raises(ModelError, match="policy"):  # a table; no file is opened because a checkpoint says so
        load_guard(str(path), **CPU)
    with pytest.raises(ConfigError, match="fixed categories"):
        load_guard(str(checkpoint(name="keel", family="keel", policy=BANK)), **CPU)
    with pytest.raises(ConfigError, match="classifier takes no guard policy"):
        load_guard(str(checkpoint("deberta-v2", "deberta")), policy=tmp_path / "shop.toml", **CPU)


def test_a_policy_of_an_adapter(checkpoint, tmp_path):
    folder = checkpoint(family="llama-guard-3")
    guard = load_checkpoint(str(folder), **CPU)
    own = shown(guard)
    adapter = make_adapter(guard.model, tmp_path / "adapter", base=folder)
    (adapter / "guardkeel.json").write_text(json.dumps({"policy": BANK}))
    with with_adapter(guard, adapter) as tuned:
        assert shown(tuned) == ("Account takeover", "Mule accounts")
    assert shown(guard) == own
    (tmp_path / "shop.toml").write_text(SHOP)
    seen = {role: shown(g) for role, g in pair(str(folder), str(adapter), **CPU)}
    assert seen == {"reference": own, "candidate": ("Account takeover", "Mule accounts")}
    both = {
        role: shown(g) for role, g in pair(str(folder), str(adapter), policy=tmp_path / "shop.toml", **CPU)
    }
    assert set(both.values()) == {("Fake goods",)}


def test_kinds(checkpoint, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    assert kind_of(str(checkpoint())) == "checkpoint" == kind_of("keel-135m")
    assert kind_of(str(rules)) == "rules" == kind_of("rules")
    guard = load_guard(str(rules), threshold=0.25)
    assert (guard.name, guard.threshold) == ("ships", 0.25)
    items = [Judgement("a", Conversation.of("two ships"), "prompt")]
    assert guard.score(items)[0].categories == ("Violence",)
    assert guard_path(str(rules)) == rules and guard_path("rules").is_file()
    before = other_digest("rules", str(rules))
    rules.write_text(RULES.replace("ships", "boats"))
    assert other_digest("rules", str(rules)) != before
    with pytest.raises(ConfigError, match="has no family 'keel'"):
        load_guard(str(rules), family="keel")


def test_a_linear_guard(tmp_path):
    from guardkeel.guards.linear import fit_items

    texts = [f"{'ships' if i % 2 else 'poems'} {i}" for i in range(40)]
    rows = [
        (Judgement(text, Conversation.of(text), "prompt"), "unsafe" if text.startswith("ships") else "safe")
        for text in texts
    ]
    fit_items(rows[:24], rows[24:]).save(tmp_path / "linear")
    reference = str(tmp_path / "linear")
    assert kind_of(reference) == "linear" and guard_path(reference) == tmp_path / "linear"
    found = load_guard(reference).score([rows[1][0], rows[0][0]])
    assert found[0].unsafe > found[1].unsafe
    assert len(other_digest("linear", reference)) == 64
