import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

import guardkeel
from guardkeel import errors
from guardkeel.errors import DataError, EvidenceError, GuardkeelError, InputError, RunError
from guardkeel.records import (
    Estimate,
    RunRecord,
    atomic_writer,
    environment,
    file_digest,
    read_record,
    value_digest,
    write_json,
    write_record,
    write_text,
)
from guardkeel.taxonomy import AEGIS2, CORE, CROSSWALK, FINE_GRAINED, LLAMA_GUARD_3, home


def record(**fields):
    return RunRecord(verb="audit", started_at="2025-01-01T00:00:00+00:00", **fields)


def test_atomic_writer_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_writer(path) as out:
        out.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o644
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_writer(path) as out:
            out.write(b"two")
            raise error
        assert path.read_bytes() == b"one"
        assert list(path.parent.iterdir()) == [path]


def test_atomic_writer_cleans_up_when_the_target_is_a_folder(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError), atomic_writer(tmp_path / "folder") as out:
        out.write(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_json_refuses_nan_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text() == '{\n "a": "ü",\n "b": 1\n}\n'
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"x": [bad]})
    assert json.loads(path.read_text()) == {"a": "ü", "b": 1}


def test_text_with_lone_surrogates_can_be_written(tmp_path):
    write_text(tmp_path / "t", "a\ud800ü\n")
    assert (tmp_path / "t").read_bytes() == b"a\\ud800\xc3\xbc\n"


def test_record_there_and_back(tmp_path):
    written = record(
        command=["guardkeel", "audit", "caf\udce9"],  # a path that is not UTF-8, as the system gives it
        config={"a": [1, None, "\0\u2028"]},
        results={"estimate": Estimate(value=None, n=0, note="one class").model_dump()},
        timings={"score": 1.5},
    )
    path = write_record(tmp_path / "run", written)
    assert path == tmp_path / "run" / "run.json"
    written.command[2] = "caf\\udce9"
    assert read_record(tmp_path / "run") == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b'{"verb": "audit"}', "field 'started_at': Field required"),
        (b'{"verb": "audit", "started_at": "", "x": 1}', "field 'x': Extra inputs are not permitted"),
        (b'{"verb": "audit", "started_at": "", "seeds": {"a": "b"}}', "field 'seeds.a': "),
        (b'{"verb": "audit", "started_at": "", "schema_version": 99}', "schema version 99"),
    ],
)
def test_records_that_cannot_be_read(text, said, tmp_path):
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(DataError) as error:
        read_record(tmp_path)
    assert error.value.problem.startswith(f"{tmp_path / 'run.json'}: {said}")
    assert error.value.remedy


def test_no_record(tmp_path):
    with pytest.raises(DataError, match="no run record there") as error:
        read_record(tmp_path)
    assert "unfinished" in error.value.remedy
    (tmp_path / "run.json").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_record(tmp_path)


def test_estimate_and_record_refuse_unknown_fields():
    with pytest.raises(ValidationError):
        Estimate(value=1.0, n=1, mean=2)
    with pytest.raises(ValidationError):
        record(extra=1)
    with pytest.raises(ValidationError):
        Estimate(value=1.0, n=1).value = 2.0


def test_digests(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert value_digest({"b": [1, 2], "a": None}) == value_digest({"a": None, "b": [1, 2]})
    assert value_digest("a") != value_digest(["a"])
    assert len(value_digest("\ud800")) == 64


def test_environment():
    versions, hardware = environment()
    assert versions["python"] == sys.version.split()[0]
    assert versions["numpy"]
    assert hardware["cpus"] >= 1
    code = (
        "import sys; from guardkeel.records import environment; v, h = environment(); "
        "assert 'torch' not in sys.modules and 'threads' not in h"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import torch

    assert environment()[1]["threads"] == torch.get_num_threads()


def test_errors_say_problem_and_remedy():
    error = DataError("line 3 is odd", remedy="mend it")
    assert str(error) == "line 3 is odd\n  remedy: mend it"
    assert (error.problem, error.remedy) == ("line 3 is odd", "mend it")
    assert str(RunError("full")) == "full"
    tree = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, GuardkeelError)]
    assert len(tree) == 11
    for kind in tree:
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.exit_code == (3 if kind is EvidenceError else 2)
    assert issubclass(errors.UnsafeFileError, errors.ModelError) and issubclass(errors.PinError, InputError)


def test_taxonomy():
    assert (len(CORE), len(FINE_GRAINED), len(set(AEGIS2))) == (12, 9, 21)
    assert set(CROSSWALK) > set(LLAMA_GUARD_3) and set(CROSSWALK.values()) <= set(AEGIS2)
    assert not set(CROSSWALK) & set(AEGIS2)
    assert home("Privacy") == "PII/Privacy"
    assert home("PII/Privacy") == "PII/Privacy"
    assert home("Weather") == "Weather"


def test_public_names_are_there_and_importing_them_is_light():
    for name in guardkeel.__all__:
        assert getattr(guardkeel, name) is not None
    assert set(guardkeel.__all__) <= set(dir(guardkeel))
    with pytest.raises(AttributeError, match="nothing_here"):
        guardkeel.nothing_here  # noqa: B018
    code = (
        "import sys, guardkeel; from guardkeel import Conversation, Example, RunRecord, Verdict, Guard; "
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
