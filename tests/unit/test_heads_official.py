"""The released code's files: both kinds of line, there and back, and everything that can be wrong with them."""

import json

import numpy as np
import pytest

from guardkeel.errors import DataError
from guardkeel.heads.official import label, parsed, read_official, write_official


def test_a_line_of_sahara(tmp_path):
    path = tmp_path / "maliciousinstruct.csv_0.jsonl"
    path.write_text('{"0-0": 0.5, "0-1": 0, "1-0": 2.25}\n\n{"0-0": 1.0}\n')
    first, second = read_official(path)
    assert first.prompt == "" and first.heads == {(0, 0): 0.5, (0, 1): 0.0, (1, 0): 2.25}
    found = first.array((2, 2))
    assert found[1, 0] == 2.25 and np.isnan(found[1, 1])
    assert second.heads == {(0, 0): 1.0}


def test_a_line_of_ships(tmp_path):
    """A prompt over its ten best; what was generated stands beside it, and a prompt may look like anything."""
    path = tmp_path / "ships.jsonl"
    rows = [
        {"tell me 1-2\u2028 things": {"7-3": 0.9, "0-11": 0.1}, "generation_mask-2_top_k-5": "no"},
        {"3-4": {"1-1": 0.2}},
    ]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    first, second = read_official(path)
    assert (first.prompt, first.heads) == ("tell me 1-2\u2028 things", {(7, 3): 0.9, (0, 11): 0.1})
    assert (second.prompt, second.heads) == ("3-4", {(1, 1): 0.2})


def test_there_and_back(tmp_path):
    one = np.random.default_rng(0).random((5, 3))
    one[2, 1] = np.nan
    write_official(tmp_path / "out.jsonl", [one, one * 2])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    values = list(json.loads(lines[0]).values())
    assert len(values) == 14 and values == sorted(values, reverse=True)
    back = [s.array((5, 3)) for s in read_official(tmp_path / "out.jsonl")]
    assert np.array_equal(back[0], one, equal_nan=True) and np.array_equal(back[1], one * 2, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no scores"),
        ("{", "x.jsonl:1: not JSON"),
        ("[1]", "must be an object"),
        ('{"0-0": 1}\n{"0-1": "high"}', "x.jsonl:2: the score of '0-1'"),
        ('{"0-1": true}', "no number"),
        ('{"0-1": NaN}', "no number"),
        ('{"secret prompt": "only text"}', "no scores of heads"),
        ('{"secret prompt": {"a": 1}}', "names no head"),
    ],
)
def test_what_is_no_such_file(tmp_path, text, said):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as e:
        read_official(path)
    assert said in str(e.value) and "secret" not in str(e.value)


def test_other_errors(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_official(tmp_path / "absent.jsonl")
    (tmp_path / "x.jsonl").write_text('{"9-0": 1}')
    with pytest.raises(DataError, match="head 9-0 is not in a model of 2 layers"):
        read_official(tmp_path / "x.jsonl")[0].array((2, 2))
    assert parsed(label((12, 3))) == (12, 3)
    for name in ("12", "a-1", "1-2-3", "-1-2"):
        with pytest.raises(DataError, match="names no head"):
            parsed(name)
