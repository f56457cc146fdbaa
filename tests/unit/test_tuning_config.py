"""The configuration of a fine-tune: what overrides what, what is refused, and that nothing of it drifts."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import pytest

from guardkeel.cli.tune import tune
from guardkeel.errors import ConfigError
from guardkeel.evaluation.suites import available
from guardkeel.records import toml_text
from guardkeel.tuning.check import check
from guardkeel.tuning.config import DEFAULT_METHOD, TuneConfig, read_config
from guardkeel.tuning.gather import AGENTS, AUTO, GUARD_DATA, MONITOR
from guardkeel.tuning.regularisers.registry import METHODS, build
from guardkeel.tuning.run import tune as tune_by_library

ROOT = Path(__file__).resolve().parents[2]
FILE = 'data = ["a.jsonl"]\nsteps = 9\nrank = 4\n[options.kl]\nstrength = 3.0\ntemperature = 2.0\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tune.toml"
    path.write_text(FILE)
    return path


def test_changes_go_over_options_over_the_file(file: Path) -> None:
    given = {"steps": 8, "seed": 3, "rank": None}
    found = read_config(file, given, ["steps=7", "options.kl.strength=1.5", "guard=other"])
    assert (found.data, found.steps, found.seed, found.rank) == (["a.jsonl"], 7, 3, 4)
    assert found.options == {"kl": {"strength": 1.5, "temperature": 2.0}} and found.guard == "other"
    assert found.method == DEFAULT_METHOD


def test_values_are_json_or_words() -> None:
    found = read_config(None, {"data": ["a"]}, ["monitor=[]", "tripwire=true", "method=kl", "unaligned=null"])
    assert (found.monitor, found.tripwire, found.method, found.unaligned) == ([], True, "kl", None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["steps"], "not KEY=VALUE"),
        (["stesp=1"], "unknown key 'stesp'"),
        (["steps=0"], "steps = 0"),
        (["held_out=1"], "held_out = 1"),
        (["adapter=loha"], "adapter = 'loha'"),
        (["data=[]"], "data = []"),
        (["steps.more=1"], "'steps' is not a table"),
        (["options.kl=2"], "options.kl = 2"),
    ],
)
def test_what_is_refused(file: Path, changes: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_config(file, {}, changes)
    assert problem in str(raised.value) and raised.value.remedy


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text("data = [")
    for name, problem in (("odd.toml", "not TOML"), ("none.toml", "cannot be read")):
        with pytest.raises(ConfigError, match=problem) as raised:
            read_config(tmp_path / name, {})
        assert name in str(raised.value)


def test_the_saved_configuration_is_the_same_one(file: Path, tmp_path: Path) -> None:
    config = read_config(file, {"offline": True, "report_to": ["tensorboard"]})
    saved = tmp_path / "config.toml"
    saved.write_text(toml_text(config.model_dump()))
    assert read_config(saved, {}) == config


def test_the_defaults_can_be_used() -> None:
    config = TuneConfig(data=["a.jsonl"])
    check(config)
    assert config.guard_data == config.monitor == [AUTO]
    assert {*GUARD_DATA, *MONITOR, *AGENTS} <= {card.name for card in available()}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_checked_without_data(name: str) -> None:
    config = TuneConfig(data=["a.jsonl"], method=name)
    assert type(check(config)) is type(build(name))
    if METHODS[name].posthoc:
        for adapter in ("dora", "full"):
            with pytest.raises(ConfigError, match="repairs the updates of a LoRA"):
                check(config.model_copy(update={"adapter": adapter}))
    if METHODS[name].needs:
        with pytest.raises(ConfigError, match="made from"):
            check(config.model_copy(update={"guard": "./mine"}))
        check(config.model_copy(update={"guard": "./mine", "unaligned": "./before"}))


def test_every_key_says_what_it_is() -> None:
    for name, field in TuneConfig.model_fields.items():
        text = field.description or ""
        assert text and text.strip(".") == text, name


def test_options_of_the_command_are_keys() -> None:
    """But for those that say what to do with the run."""
    own = {
        "context",
        "config",
        "changes",
        "out",
        "audited",
        "suite",
        "policy",
        "dry_run",
        "as_json",
        "list_methods",
    }
    assert set(inspect.signature(tune).parameters) - own <= set(TuneConfig.model_fields)


def test_the_example_is_a_configuration() -> None:
    path = ROOT / "examples" / "tune.toml"
    config = read_config(path, {})
    check(config)
    assert set(config.options) <= set(config.method.split("+"))
    assert len(tomllib.loads(path.read_text("utf-8"))) >= 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dtype": "float16"}, "too coarse to train in"),
        ({"method": "asft", "adapter": "dora"}, "cannot follow the updates of DoRA"),
        ({"method": "interpolation", "adapter": "full"}, "repairs the updates of a LoRA"),
        ({"method": "asft", "guard": "elsewhere"}, "compares the guard with the model that it was made from"),
    ],
)
def test_the_library_refuses_what_the_command_refuses_and_before_it_reads_anything(config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tune_by_library(**{"data": "no-such-data.jsonl", "out": tmp_path / "run"} | config)
    assert not (tmp_path / "run").exists()
