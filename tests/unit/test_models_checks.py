import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ModelError, UnsafeFileError
from guardkeel.models import headers
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.headers import TensorEntry, check_finite, read_header
from guardkeel.models.tiny import make_tiny


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path):
    return make_tiny("llama", tmp_path / "tiny")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_header_by_hand(tmp_path):
    a = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
    b = {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}
    path = raw(tmp_path / "x.safetensors", {"b": b, "__metadata__": {"format": "pt"}, "a": a}, b"\0" * 10)
    start = path.stat().st_size - 10
    assert read_header(path) == {
        "a": TensorEntry("F32", (2, 1), start, start + 8),
        "b": TensorEntry("BF16", (), start + 8, start + 10),
    }


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        (b"{not json", b"", "not valid JSON"),
        (b"[1]", b"", "not valid JSON"),
        ({"a": 1}, b"", "entry for tensor 'a'"),
        ({"a": {**ONE, "dtype": "F99"}}, b"\0" * 8, "dtype 'F99'"),
        ({"a": {**ONE, "shape": [-2]}}, b"\0" * 8, "entry for tensor 'a'"),
        ({"a": {**ONE, "shape": [3]}}, b"\0" * 8, "in 8 bytes"),
        ({"a": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12, "does not begin where"),
        ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12, "'b' does not begin where"),
        ({"a": ONE}, b"\0" * 7, "cut short"),
        ({"a": ONE}, b"\0" * 9, "too long"),
    ],
)
def test_corrupt_headers(header, data, match, tmp_path):
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ModelError, match=match) as e:
        read_header(path)
    assert str(path) in e.value.problem
    assert e.value.remedy


@pytest.mark.parametrize("data", [b"", b"\x05\0", struct.pack("<Q", 10**9), struct.pack("<Q", 2**63) + b"{}"])
def test_short_files(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="header is cut short or corrupt"):
        read_header(path)


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_header(path)
    with pytest.raises(ModelError, match="no such file"):
        read_header(tmp_path / "missing.safetensors")


def test_pickles_under_a_safetensors_name(tmp_path):
    path = tmp_path / "x.safetensors"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps({"a": [1.0] * 20}, protocol=protocol))
        with pytest.raises(UnsafeFileError, match="a pickle under a safetensors name"):
            read_header(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UnsafeFileError, match="a zip archive"):
        read_header(path)
    # A header of 0x280 bytes begins with the bytes of a pickle; the zeros after them tell them apart.
    entry = json.dumps({"a": ONE}).encode()
    raw(path, entry + b" " * (0x280 - len(entry)), b"\0" * 8)
    assert read_header(path)["a"].shape == (2,)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_not_finite_values_are_found(dtype, bad, tmp_path):
    if dtype is torch.float8_e4m3fn:
        bad = float("nan")  # this format has no infinity
    values = torch.linspace(-400, 400, 1000).to(dtype)
    path = tmp_path / "x.safetensors"
    save_file({"fine": values, "n.ids": torch.tensor([-1, 2**62])}, path)
    check_finite(path)
    broken = values.clone()
    broken[[3, 999]] = torch.tensor(bad).to(dtype)
    save_file({"fine": values, "odd": broken}, path)
    with pytest.raises(ModelError, match="tensor 'odd' has 2 NaN or infinite values of 1,000") as e:
        check_finite(path)
    assert str(path) in e.value.problem


def test_largest_finite_values_pass(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(
        {str(d): torch.tensor([torch.finfo(d).max, torch.finfo(d).min, 0.0], dtype=d) for d in FLOATS}, path
    )
    check_finite(path)


def test_chunks_and_ticks(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "_CHUNK", 64)
    values = torch.zeros(100)
    values[99] = float("nan")
    path = tmp_path / "x.safetensors"
    save_file({"a": values}, path)
    ticks = []
    with pytest.raises(ModelError, match="has 1 NaN"):
        check_finite(path, ticks.append)
    assert ticks == [64] * 6 + [16]


def test_good_checkpoint(tiny):
    steps = []
    checkpoint = check_checkpoint(tiny, progress=lambda *a: steps.append(a))
    stored = load_file(tiny / "model.safetensors")
    assert checkpoint.weight_bytes == sum(t.numel() * 4 for t in stored.values())
    assert checkpoint.parameters == sum(t.numel() for t in stored.values())
    assert checkpoint.files == [tiny / "model.safetensors"]
    assert steps[-1] == ("check weights", checkpoint.weight_bytes, checkpoint.weight_bytes)


def test_nan_names_file_and_tensor_unless_values_are_not_read(tiny):
    path = tiny / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"model\.safetensors.*'model\.norm\.weight'"):
        check_checkpoint(tiny)
    check_checkpoint(tiny, finite=False)


def test_folder_and_config(tiny, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        check_checkpoint(tmp_path / "missing")
    config = tiny / "config.json"
    for value in (None, [], "Llama", [1]):
        edit_json(config, architectures=value)
        with pytest.raises(ModelError, match=r"config\.json: 'architectures' is"):
            check_checkpoint(tiny)
    config.write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        check_checkpoint(tiny)
    config.write_text("[]")
    with pytest.raises(ModelError, match="a list, not a JSON object"):
        check_checkpoint(tiny)
    config.unlink()
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        check_checkpoint(tiny)


def test_weights_that_are_not_there(tiny):
    weights = tiny / "model.safetensors"
    save_file({}, weights)
    with pytest.raises(ModelError, match="it has no tensor"):
        check_checkpoint(tiny)
    weights.unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        check_checkpoint(tiny)
    (tiny / "q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError) as e:
        check_checkpoint(tiny)
    assert str(tiny / "q4.gguf") in e.value.remedy
    (tiny / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"1 shards and no model\.safetensors\.index\.json"):
        check_checkpoint(tiny)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickles_are_refused_by_name(tiny, name):
    (tiny / name).write_bytes(b"")
    check_checkpoint(tiny)  # beside safetensors it is never opened
    (tiny / "model.safetensors").unlink()
    with pytest.raises(UnsafeFileError, match=name) as e:
        check_checkpoint(tiny)
    assert "safe_serialization" in e.value.remedy


def test_shards(tiny):
    tensors = load_file(tiny / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, some in parts.items():
        save_file({n: tensors[n] for n in some}, tiny / file)
    (tiny / "model.safetensors").unlink()
    index = tiny / "model.safetensors.index.json"
    good = {n: f for f, some in parts.items() for n in some}
    index.write_text(json.dumps({"weight_map": good}))
    assert len(check_checkpoint(tiny).files) == 2

    index.write_text(json.dumps({"weight_map": {**good, "more": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match="lacks tensor 'more'"):
        check_checkpoint(tiny)
    index.write_text(json.dumps({"weight_map": {**good, "more": "m.bin"}}))
    with pytest.raises(UnsafeFileError, match=r"m\.bin"):
        check_checkpoint(tiny)
    index.write_text(json.dumps({"weight_map": {**good, "more": "../x.safetensors"}}))
    with pytest.raises(UnsafeFileError, match="could leave its folder"):
        check_checkpoint(tiny)
    for bad in (None, {}, {"a": 1}):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(ModelError, match="'weight_map'"):
            check_checkpoint(tiny)
    index.write_text(json.dumps({"weight_map": good}))
    (tiny / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="1 of 2 shards are missing: model-00002-of-00002"):
        check_checkpoint(tiny)


def test_ties_that_are_stored_twice(tiny):
    edit_json(tiny / "config.json", tie_word_embeddings=True)
    with pytest.raises(ModelError, match="ties lm_head"):
        check_checkpoint(tiny)
    tensors = load_file(tiny / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tiny / "model.safetensors")
    check_checkpoint(tiny)
    del tensors["lm_head.weight"]
    save_file(tensors, tiny / "model.safetensors")
    check_checkpoint(tiny)


def test_vocabulary_beyond_the_embedding(tiny):
    path = tiny / "tokenizer.json"
    value = json.loads(path.read_text())
    rows = json.loads((tiny / "config.json").read_text())["vocab_size"]
    good = dict(value["added_tokens"][0])
    value["added_tokens"].append({**good, "id": rows, "content": "<image_soft_token>"})
    path.write_text(json.dumps(value))
    check_checkpoint(tiny)
    value["added_tokens"].append({**good, "id": rows + 1, "content": "<|verdict|>"})
    path.write_text(json.dumps(value))
    with pytest.raises(
        ModelError, match=rf"1 tokens have no row in the embedding of {rows} rows: '<\|verdict\|>'"
    ) as e:
        check_checkpoint(tiny)
    assert "resize_token_embeddings" in e.value.remedy
    value["added_tokens"] = [{"id": 1}]
    path.write_text(json.dumps(value))
    with pytest.raises(ModelError, match="vocabulary is corrupt"):
        check_checkpoint(tiny)
    # Unigram tokenizers keep a list of [piece, score].
    unigram = {"model": {"type": "Unigram", "vocab": [[f"p{i}", 0.0] for i in range(rows + 1)]}}
    path.write_text(json.dumps(unigram))
    with pytest.raises(ModelError, match=f"'p{rows}' = {rows}"):
        check_checkpoint(tiny)
    path.unlink()
    check_checkpoint(tiny)
