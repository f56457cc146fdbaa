"""What cannot be used is refused with exit code 2, naming file, value and remedy, before anything is scored."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.evaluation import audit as audit_module
from trained_guards import examples


@pytest.fixture
def refused(audit, tmp_path, monkeypatch):
    """refused(*arguments) → what the command said, having scored nothing and written no run."""

    def never(*args, **options):
        raise AssertionError("something was scored")

    monkeypatch.setattr(audit_module, "score", never)

    def run(*arguments, **options):
        found = audit(*arguments, "--out", tmp_path / "run", **options)
        assert found.code == 2, found.err
        assert found.out == "" and found.err.count("error: ") == 1 and "remedy: " in found.err
        assert "Traceback" not in found.err
        assert not (tmp_path / "run" / "run.json").exists()
        return found.err

    return run


@pytest.fixture
def copied(harbour, tmp_path):
    """The trained guard, to be damaged."""
    return shutil.copytree(harbour.guard, tmp_path / "damaged")


def suite(tmp_path, *lines, name="bad.jsonl"):
    path = tmp_path / name
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )
    return path


def good(number=0, **changes):
    return examples(number + 1, 3)[number].to_row() | changes


# Data


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": "a", "messages"', "not JSON"),
        (b"[1, 2]", "a record must be an object or a text, not list"),
        (b'{"id": "a", "messages": [{"role": "user", "content": "\xff"}]}', "not utf-8 (invalid start byte"),
        (good(labels={"prompt": "harmful"}), "unknown label 'harmful' for side 'prompt'"),
        (good(labels={"question": "safe"}), "unknown side 'question' in labels"),
        (good(labels="safe"), "labels must be an object, not 'safe'"),
        (good(toxicity=0.3), "unknown field 'toxicity'"),
        (good(messages=[{"role": "robot", "content": "hi"}]), "unknown role 'robot'"),
        (good(messages=[]), "messages must be a non-empty list"),
        (good(id=""), "field 'id' must be a non-empty string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_named_by_file_and_number(refused, tmp_path, line, said):
    path = suite(tmp_path, good(0), good(1), line)
    error = refused(suite=path)
    assert f"{path}:3: " in error and said in error


def test_files_that_are_not_there_or_empty(refused, tmp_path):
    assert f"{tmp_path}/none.jsonl: no such file" in refused(suite=tmp_path / "none.jsonl")
    assert f"{tmp_path}: is a folder" in refused(suite=tmp_path)
    assert "suite 'empty' has no examples" in refused(suite=suite(tmp_path, name="empty.jsonl"))
    assert "suite 'bare' has no labels" in refused(suite=suite(tmp_path, good(labels={}), name="bare.jsonl"))
    table = tmp_path / "table.csv"
    table.write_text("text,label\nhello,safe\n")
    assert "without a card only guardkeel's JSONL can be read" in refused(suite=table)


def test_ids_that_come_twice(refused, tmp_path):
    path = suite(tmp_path, good(0, id="same"), good(1, id="same"))
    assert "the id 'same' is there twice" in refused(suite=path)


def test_a_label_on_a_side_that_is_not_there(refused, tmp_path):
    path = suite(tmp_path, good(0, id="x", labels={"response": "safe"}))
    assert "'x' is labelled on side 'response' but has no such turn" in refused(suite=path)


def test_a_suite_without_a_test_split(refused, tmp_path):
    suite(tmp_path, *(good(i) for i in range(6)), name="data.jsonl")
    card = tmp_path / "card.toml"
    card.write_text('[suite]\nname = "lessons"\nreference = "data.jsonl"\n[splits]\nfixed = "fit"\n')
    error = refused(suite=card)
    assert "suite 'lessons': the test split has no items" in error and "it has fit 6" in error


def test_a_suite_given_twice(refused, harbour):
    assert "suite 'mine' is given twice" in refused("--suite", harbour.suite)


def test_an_unknown_suite_suggests_names(refused, cli):
    error = refused("--suite", "advbnch")
    assert "unknown suite 'advbnch'" in error and "did you mean advbench" in error
    assert "did you mean keel-domain" in cli("suites", "keel-domian").err


# Checkpoints


def test_nan_weights_are_named(refused, copied, harbour):
    tensors = load_file(copied / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    for error in (refused(guard=copied), refused("--against", copied)):
        assert (
            f"{copied / 'model.safetensors'}: tensor 'model.layers.1.mlp.up_proj.weight' has 1 NaN" in error
        )
        assert "take an earlier checkpoint" in error


def test_a_nan_adapter_is_named(refused, harbour, tmp_path):
    adapter = shutil.copytree(harbour.forgetful, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = sorted(tensors)[5]
    tensors[name][0, 0] = torch.inf
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    assert f"tensor {name!r} has 1 NaN or infinite values" in refused("--against", adapter)


def test_damaged_and_missing_weights(refused, copied):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"{weights}: the file has" in (error := refused(guard=copied)) and "cut short" in error
    weights.write_bytes(b"\x10" + bytes(7) + b"not a json head!" + whole)
    assert f"{weights}: the safetensors header" in refused(guard=copied)
    weights.unlink()
    assert f"{copied}: no safetensors weights" in refused(guard=copied)
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    error = refused(guard=copied)
    assert "its weights are pickles (pytorch_model.bin), which can run code when read" in error
    weights.write_bytes(pickle.dumps({"a": [1] * 100}, protocol=4))
    assert "a pickle under a safetensors name" in refused(guard=copied)


def test_damaged_configurations(refused, copied, harbour):
    (copied / "guardkeel.json").write_text('{"family": "keel", "treshold": 0.4}')
    error = refused(guard=copied)
    assert f"{copied / 'guardkeel.json'}: treshold: Extra inputs are not permitted" in error
    (copied / "guardkeel.json").write_text('{"family": "keel", "threshold": 4}')
    assert "threshold" in refused(guard=copied)
    (copied / "guardkeel.json").write_text("{}")
    assert "which guard family this model belongs to is not known" in refused(guard=copied)
    assert "unknown guard family 'kiel'" in refused("--family", "kiel")
    (copied / "config.json").write_text("{")
    assert f"{copied / 'config.json'}: not valid JSON" in refused(guard=copied)
    assert "no such file or folder" in refused(guard=copied / "nowhere")
    assert "no such file or folder" in refused("--against", copied / "nowhere")
    assert "not a model folder and not a GGUF file" in refused(guard=harbour.suite)


def test_an_adapter_that_does_not_fit(refused, harbour, tmp_path):
    adapter = shutil.copytree(harbour.forgetful, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    assert "peft_type is 'IA3'" in refused("--against", adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors | {name: torch.zeros(8, 31)}, adapter / "adapter_model.safetensors")
    assert "has shape (8, 31), which does not fit the base's" in refused("--against", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({}))
    assert "its weights are pickles (adapter_model.bin)" in refused("--against", adapter)


# Options, configurations, policies


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("limit", "--set 'limit': not KEY=VALUE"),
        ("limit=0", "limit = 0: Input should be greater than or equal to 1"),
        ("limit=many", "limit = 'many': Input should be a valid integer"),
        ("threshold=1.5", "threshold = 1.5: Input should be less than or equal to 1"),
        ("threshold=NaN", "threshold = nan"),
        ("draws=3", "draws = 3: Input should be greater than or equal to 19"),
        ("suites=mine", "suites = 'mine': Input should be a valid list"),
        ("suites=[]", "suites = []: List should have at least 1 item"),
        ("dtype=int8", "dtype 'int8' is not known"),
        ("device=abacus", "device 'abacus' is not known"),
        ("colour=red", "unknown key 'colour'"),
        ("max_tokens=3", "max_tokens = 3"),
    ],
)
def test_values_that_are_off(refused, change, said):
    assert said in refused("--set", change)


def test_an_unknown_key_lists_those_there_are(refused, tmp_path, harbour):
    file = tmp_path / "audit.toml"
    file.write_text("limt = 3\n")
    error = refused("--config", file)
    assert f"{file}: unknown key 'limt'" in error and "limit" in error.split("remedy")[1]
    file.write_text("limit = = 3\n")
    assert f"{file}: not TOML" in refused("--config", file)
    assert f"{tmp_path / 'none.toml'}: cannot be read" in refused("--config", tmp_path / "none.toml")


def test_bad_policies(refused, cli, tmp_path):
    file = tmp_path / "gate.toml"
    file.write_text("[non_inferiority.margins]\nrecal = 0.1\n")
    error = refused("--policy", file)
    assert (
        f"{file}: unknown key 'non_inferiority.margins.recal'" in error
        and "write 'recall' for 'recal'" in error
    )
    file.write_text("[completeness]\nmin_safe = -1\n")
    assert "key 'completeness.min_safe' is -1" in refused("--policy", file)
    assert "cannot be read" in refused("--policy", tmp_path / "none.toml")
    assert cli("gate", tmp_path, "--policy", file).code == 2


def test_broken_run_directories(cli, tmp_path, harbour, audit):
    run = tmp_path / "run"
    assert audit("--limit", 5, "--out", run).code == 0
    (run / "items.jsonl").write_text("{\n")
    found = cli("report", run)
    assert found.code == 2 and f"{run / 'items.jsonl'}:1: not JSON" in found.err
    (run / "items.jsonl").unlink()
    assert f"{run / 'items.jsonl'}: cannot be read" in cli("report", run).err
    (run / "run.json").write_text("{")
    for verb in ("report", "gate"):
        found = cli(verb, run)
        assert found.code == 2 and f"{run / 'run.json'}: " in found.err
    assert f"{tmp_path}/run.json: no run record there" in cli("report", tmp_path).err


def test_messages_that_do_not_fit_are_unscored_in_a_plan_too(cli, harbour, tmp_path):
    """Tool calls are never shortened: one that is too long has no verdict, and stops neither plan nor run."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x " * 4000}}
    rows = [
        good(
            i,
            messages=[
                {"role": "user", "content": f"go {i}"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ],
            labels={"trajectory": "safe"},
            group="g",
        )
        for i in range(3)
    ]
    suite(tmp_path, *rows, name="data.jsonl")
    card = tmp_path / "card.toml"
    card.write_text('[suite]\nname = "calls"\nreference = "data.jsonl"\n[splits]\nfixed = "test"\n')
    words = ["audit", harbour.guard, "-s", card, "--no-geometry", "--dtype", "float32"]
    assert cli(*words, "--dry-run").code == 0
    found = cli(*words, "--json", "--out", tmp_path / "run")
    overall = found.json["results"]["reference"]["overall"]
    assert found.code == 0 and overall["n"] == overall["n_unscored"] == 3
