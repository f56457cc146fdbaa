"""GGUF files written with llama.cpp's own conventions from tiny models must come back as those models."""

import json
import os
import signal
import subprocess
import sys

import gguf as gguf_py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from guardkeel.errors import ModelError
from guardkeel.models import gguf
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.tiny import make_tiny
from guardkeel.resources import cache_dir

ARCHITECTURES = ["llama", "granite", "gemma2", "gemma3", "qwen2", "qwen3"]
TEXT = "Is this safe? 1234 it's  unsafe\n\n<|im_start|>user é<|im_end|>"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


def permute(weights, heads):
    """convert_hf_to_gguf.py's LlamaModel.permute."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write_gguf(path, folder, architecture, *, pre="gpt-2", skip=(), quantise=None, extra=None, edit=None):
    """A GGUF of a tiny model, named by the gguf package's own table of tensor names."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    w = gguf_py.GGUFWriter(path, architecture)
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        w.add_key_length(config["head_dim"])
    rope = config.get("rope_parameters") or {}
    theta = (
        rope.get("rope_theta") or rope.get("full_attention", {}).get("rope_theta") or config.get("rope_theta")
    )
    w.add_rope_freq_base(theta)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if architecture.startswith("gemma"):
        w.add_sliding_window(config["sliding_window"])
    if architecture == "gemma2":
        w.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        w.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "granite":
        w.add_attention_scale(config["attention_multiplier"])
        w.add_embedding_scale(config["embedding_multiplier"])
        w.add_residual_scale(config["residual_multiplier"])
        w.add_logit_scale(config["logits_scaling"])
    for key, value in (extra or {}).items():
        w.add_string(key, value)
    vocab = {**tokenizer["model"]["vocab"]}
    added = {t["id"]: t for t in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([3 if i in added else 1 for i in range(len(tokens))])
    w.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    names = json.loads((folder / "tokenizer_config.json").read_text())
    w.add_bos_token_id(vocab[names["bos_token"]])
    w.add_eos_token_id(vocab[names["eos_token"]])
    w.add_pad_token_id(vocab[names["pad_token"]])
    w.add_add_bos_token(False)
    w.add_chat_template("{{ messages[0]['content'] }}")
    table = gguf_py.get_tensor_name_map(
        next(k for k, v in gguf_py.MODEL_ARCH_NAMES.items() if v == architecture), config["num_hidden_layers"]
    )
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stem, _, kind = name.rpartition(".")
        values = tensor.to(torch.bfloat16).float().numpy()
        if architecture in ("llama", "granite") and stem.endswith(("q_proj", "k_proj")):
            values = permute(
                values, config["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"]
            )
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        out = f"{table.get_name(stem)}.{kind}"
        if out in skip:
            continue
        if quantise and values.ndim == 2:
            packed = gguf_py.quants.quantize(values, quantise)
            w.add_tensor(out, packed, raw_dtype=quantise)
        else:
            w.add_tensor(out, np.ascontiguousarray(values))
    if edit:
        edit(w)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip(architecture, tmp_path):
    source = make_tiny(architecture, tmp_path / "tiny", seed=3)
    path = write_gguf(tmp_path / "m.gguf", source, architecture)
    folder = gguf.convert_gguf(path, tmp_path / "out")
    expected = {k: v.to(torch.bfloat16) for k, v in load_file(source / "model.safetensors").items()}
    got = load_file(folder / "model.safetensors")
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name

    a, b = load_model(source, "bfloat16", "cpu"), load_model(folder, "bfloat16", "cpu")
    before, after = load_tokenizer(source), load_tokenizer(folder)
    ids = before(TEXT, return_tensors="pt")["input_ids"]
    assert after(TEXT)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(a(ids).logits, b(ids).logits)
    assert (after.bos_token, after.eos_token, after.pad_token) == (
        before.bos_token,
        before.eos_token,
        before.pad_token,
    )
    assert after.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_same_bytes_each_time_and_left_alone_when_there(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama")
    steps = []
    one = gguf.convert_gguf(path, tmp_path / "one", progress=lambda *a: steps.append(a))
    two = gguf.convert_gguf(path, tmp_path / "two")
    assert steps[0] == ("convert weights", 0, 21)
    assert steps[-1] == ("convert weights", 21, 21)
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    path.unlink()
    assert gguf.convert_gguf(path, one) == one
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_shards(tmp_path, monkeypatch):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama")
    whole = gguf.convert_gguf(path, tmp_path / "whole")
    monkeypatch.setattr(gguf, "SHARD_BYTES", 30_000)
    parts = gguf.convert_gguf(path, tmp_path / "parts")
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    merged = {k: v for f in files for k, v in load_file(parts / f).items()}
    single = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in single.values())
    assert all(torch.equal(merged[k], single[k]) for k in single) and merged.keys() == single.keys()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(
            load_model(parts, device="cpu")(ids).logits, load_model(whole, device="cpu")(ids).logits
        )


def test_quantised_weights_are_close(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama", quantise=gguf_py.GGMLQuantizationType.Q8_0)
    got = load_file(gguf.convert_gguf(path, tmp_path / "out") / "model.safetensors")
    for name, tensor in load_file(source / "model.safetensors").items():
        # Q8_0 steps by max/127 in each block of 32; bfloat16 keeps 8 bits of precision.
        assert (got[name].float() - tensor).abs().max() <= tensor.abs().max() * (0.5 / 127 + 2**-8), name


def llama3_factors(folder):
    """llama.cpp's Llama3.1 rope factors: by the published recipe, one frequency at a time."""
    config = json.loads((folder / "config.json").read_text())
    theta, dim = config["rope_parameters"]["rope_theta"], config["head_dim"]
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * np.pi * theta ** (i / dim)
        if wave < 8192 / 4.0:
            factors.append(1.0)
        elif wave > 8192 / 1.0:
            factors.append(8.0)
        else:
            smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, dtype=np.float32)


def test_llama3_long_context_scaling_is_rebuilt(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    recipe = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    config["rope_parameters"] = {**recipe, "rope_theta": 500000.0}
    (source / "config.json").write_text(json.dumps(config))
    factors = llama3_factors(source)
    assert len(set(factors.tolist())) > 1
    path = write_gguf(
        tmp_path / "m.gguf", source, "llama", edit=lambda w: w.add_tensor("rope_freqs.weight", factors)
    )
    folder = gguf.convert_gguf(path, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["rope_scaling"] == recipe
    ids = torch.arange(500)[None]
    with torch.no_grad():
        assert torch.equal(
            load_model(source, device="cpu")(ids).logits, load_model(folder, device="cpu")(ids).logits
        )

    bad = write_gguf(
        tmp_path / "b.gguf", source, "llama", edit=lambda w: w.add_tensor("rope_freqs.weight", factors * 1.5)
    )
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        gguf.convert_gguf(bad, tmp_path / "bad")


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        # SmolLM's texts were cut at each digit before anything else, so the spaces before one stay together.
        ("smollm", ["a", "ĠĠ", "1", "2", "3", "4"]),
        ("gpt-2", ["a", "Ġ", "Ġ1234"]),
        ("llama-bpe", ["a", "Ġ", "Ġ", "123", "4"]),
        ("qwen2", ["a", "Ġ", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_pre_tokenisers(pre, cut, tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama", pre=pre)
    tokenizer = load_tokenizer(gguf.convert_gguf(path, tmp_path / "out"))
    text = "a  1234"
    assert [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)] == cut
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_sentencepiece_vocabulary(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁safe",
        "▁un",
        "▁",
        *"safeun ",
        "sa",
        "fe",
        "safe",
    ]
    path = tmp_path / "m.gguf"
    write_gguf(path, source, "llama")
    fields = {n: f.contents() for n, f in gguf_py.GGUFReader(path).fields.items()}
    writer = gguf_py.GGUFWriter(tmp_path / "sp.gguf", "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", fields[f"llama.{key}"])
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 3 + [0.0] * 256 + [-float(i) for i in range(len(pieces) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((len(pieces), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = load_tokenizer(gguf.convert_gguf(tmp_path / "sp.gguf", tmp_path / "out"))
    assert (
        tokenizer.decode(tokenizer("safe unsafe é")["input_ids"], skip_special_tokens=True) == "safe unsafe é"
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)) == ("<s>", "</s>", len(pieces))
    assert "▁safe" in tokenizer.tokenize("safe")


def test_specials_are_single_tokens_that_text_cannot_lose(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama", pre="smollm")
    tokenizer = load_tokenizer(gguf.convert_gguf(path, tmp_path / "out"))
    ids = tokenizer("<|im_start|>user\nhi<|im_end|>")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"


def test_llama3_gets_its_bos_without_being_told(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    for told, first in ((None, True), (False, False)):
        path = tmp_path / f"{told}.gguf"
        write_gguf(path, source, "llama", pre="llama-bpe")
        reader = gguf_py.GGUFReader(path)
        fields = {n: f.contents() for n, f in reader.fields.items()}
        if told is None:
            del fields["tokenizer.ggml.add_bos_token"]
        out = tmp_path / f"out{told}"
        out.mkdir()
        from guardkeel.models.gguf_tokenizer import write_tokenizer

        write_tokenizer(path, fields, out)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(out)
        assert (tokenizer("hi")["input_ids"][0] == tokenizer.bos_token_id) is first


def test_what_cannot_be_converted_is_named(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    good = write_gguf(tmp_path / "good.gguf", source, "llama")
    out = tmp_path / "out"

    def refused(path, match):
        with pytest.raises(ModelError, match=match) as e:
            gguf.convert_gguf(path, out)
        assert str(path) in e.value.problem
        assert e.value.remedy
        assert not out.exists()
        assert list(tmp_path.glob(".*")) == []

    refused(tmp_path / "missing.gguf", "no such file")
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    refused(text, "not a GGUF file")
    cut = tmp_path / "cut.gguf"
    for keep in (100, 20_000, good.stat().st_size - 1000):
        cut.write_bytes(good.read_bytes()[:keep])
        refused(cut, "cut short")
    refused(
        write_gguf(tmp_path / "pre.gguf", source, "llama", pre="unheard-of"), "pre-tokeniser 'unheard-of'"
    )
    odd = write_gguf(
        tmp_path / "odd.gguf",
        source,
        "llama",
        edit=lambda w: w.add_tensor("blk.0.odd.weight", np.zeros(3, np.float32)),
    )
    refused(odd, r"blk\.0\.odd\.weight")
    yarn = write_gguf(tmp_path / "yarn.gguf", source, "llama", extra={"llama.rope.scaling.type": "yarn"})
    refused(yarn, "rotary scaling 'yarn'")
    other = gguf_py.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    other.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    refused(tmp_path / "mamba.gguf", "architecture 'mamba'")
    bare = gguf_py.GGUFWriter(tmp_path / "bare.gguf", "llama")
    bare.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    bare.write_header_to_file()
    bare.write_kv_data_to_file()
    bare.write_tensors_to_file()
    bare.close()
    refused(tmp_path / "bare.gguf", "GGUF field 'llama.attention.head_count' is missing")
    out.mkdir()
    with pytest.raises(ModelError, match="exists and is not a converted model"):
        gguf.convert_gguf(good, out)


KILLED = """
import sys, time
from guardkeel.models.gguf import convert_gguf
def stop(what, done, total):
    if done == 5:
        print("in the middle", flush=True)
        time.sleep(600)
convert_gguf(sys.argv[1], sys.argv[2], progress=stop)
"""


def test_killed_in_mid_conversion_leaves_no_folder(tmp_path):
    source = make_tiny("llama", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "llama")
    out = tmp_path / "models" / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(out)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in the middle\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert gguf.convert_gguf(path, out) == out
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_gguf_file_is_loaded_through_the_cache(tmp_path):
    source = make_tiny("qwen3", tmp_path / "tiny")
    path = write_gguf(tmp_path / "m.gguf", source, "qwen3")
    model, tokenizer = load_model(path, device="cpu"), load_tokenizer(path)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert len(tokenizer) == model.config.vocab_size
    assert [p.name.startswith("gguf-") for p in (cache_dir() / "models").iterdir()] == [True]
