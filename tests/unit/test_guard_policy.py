"""What a guard is asked to look for: read from a file, shown to the guard, kept with the run."""

import json

import pytest

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.errors import ConfigError
from guardkeel.evaluation.run import audit
from guardkeel.guards.guard_policy import PolicyCategory, read_policy
from guardkeel.records import read_record

POLICY = """
name = "bank"
strictness = "permissive"

[[categories]]
name = "Account takeover"
description = "Help with getting into another person's account."
"""


def test_a_policy_is_read(tmp_path):
    (tmp_path / "bank.toml").write_text(POLICY)
    found = read_policy(tmp_path / "bank.toml")
    assert (found.name, found.strictness) == ("bank", "permissive")
    assert found.categories == (
        PolicyCategory(
            name="Account takeover", description="Help with getting into another person's account."
        ),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not TOML"),
        ('strictness = "strict"', "name: Field required"),
        ('name = "x"\nstrictness = "lenient"', "strictness: Input should be 'strict' or 'permissive'"),
        ('name = "x"\ncolour = "red"', "colour: Extra inputs are not permitted"),
        ('name = "x"\n' + '[[categories]]\nname = "A"\n' * 2, "category 'A' is there twice"),
    ],
)
def test_a_policy_that_cannot_be_used(text, said, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_policy(path)
    assert str(path) in error.value.problem
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "absent.toml")


def test_an_audit_asks_under_the_policy_and_keeps_it(tiny_folder, tmp_path):
    texts = [f"Please write poem number {i} about the sea." for i in range(8)]
    rows = [
        Example(str(i), Conversation.of(text), {"prompt": ("safe", "unsafe")[i % 2]})
        for i, text in enumerate(texts)
    ]
    write_jsonl(tmp_path / "items.jsonl", rows)
    (tmp_path / "bank.toml").write_text(POLICY)
    given = {"suites": [str(tmp_path / "items.jsonl")], "geometry": False, "offline": True}
    guard = str(tiny_folder("llama"))
    for folder, more in (("plain", {}), ("asked", {"guard_policy": str(tmp_path / "bank.toml")})):
        audit(guard, out=tmp_path / folder, family="llama-guard-3", **given, **more)
    plain, asked = read_record(tmp_path / "plain").config, read_record(tmp_path / "asked").config
    assert "guard_policy" not in plain
    assert asked["guard_policy"]["categories"][0]["name"] == "Account takeover"
    assert json.dumps(asked["policy"]) == json.dumps(plain["policy"])  # the gate's is another thing
    with pytest.raises(ConfigError, match="fixed categories"):
        audit(guard, out=tmp_path / "keel", family="keel", **given, guard_policy=str(tmp_path / "bank.toml"))
    assert not (tmp_path / "keel" / "run.json").exists()
