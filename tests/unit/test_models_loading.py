import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ConfigError, ModelError, RunError, UnsafeFileError
from guardkeel.models import devices
from guardkeel.models.devices import (
    check_memory,
    cpu_has_bf16,
    free_memory,
    is_out_of_memory,
    pick_device,
    pick_dtype,
)
from guardkeel.models.loading import checkpoint_digest, load_model, load_tokenizer, task_of
from guardkeel.models.tiny import ARCHITECTURES, CLASSIFIERS, make_tiny, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path):
    return make_tiny("llama", tmp_path / "tiny")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tiny_model_loads_and_tells_texts_apart(architecture, tmp_path):
    folder = make_tiny(architecture, tmp_path / "m")
    model, tokenizer = load_model(folder, "float32", "cpu"), load_tokenizer(folder)
    assert not model.training
    assert next(model.parameters()).dtype is torch.float32
    outputs = []
    for text in ("Is this safe?", "Is this unsafe?"):
        batch = tokenizer(text, return_tensors="pt")
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            outputs.append(model(**batch).logits.reshape(-1, model(**batch).logits.shape[-1])[-1])
    assert (outputs[0] - outputs[1]).abs().max() > 0.01
    classifier = architecture in CLASSIFIERS
    assert outputs[0].shape == ((2,) if classifier else (len(tokenizer),))
    if classifier:
        assert model.config.id2label == {0: "safe", 1: "unsafe"}


def test_tiny_is_deterministic_and_seeded(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    digests = [
        checkpoint_digest(make_tiny("qwen3", tmp_path / str(i), seed=s)) for i, s in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match="no tiny 'gpt9'"):
        make_tiny("gpt9", tmp_path / "x")


def test_tiny_tokenizer_renders_templates():
    tokenizer = tiny_tokenizer("llama")
    chat = [{"role": "user", "content": "safe or unsafe?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nsafe or unsafe?<|eot_id|>"
    )
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    for special in ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        assert tokenizer.tokenize(special) == [special]
    assert tokenizer.tokenize("safe") == ["safe"] and tokenizer.tokenize("unsafe") == ["unsafe"]
    assert tokenizer.decode(tokenizer("日本 é 😀")["input_ids"]) == "日本 é 😀"
    chatml = tiny_tokenizer("qwen3").apply_chat_template(chat, tokenize=False)
    assert chatml == "<|im_start|>user\nsafe or unsafe?<|im_end|>\n"


def test_tied_embeddings_are_one_tensor(tmp_path):
    folder = make_tiny("qwen3", tmp_path / "m")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_model(folder, device="cpu")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_loading_does_not_chatter(tiny, capfd):
    load_model(tiny, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_task_and_architecture(tiny, tmp_path):
    assert task_of({"architectures": ["LlamaForCausalLM"]}, tiny) == "causal"
    assert task_of({"architectures": ["BertForSequenceClassification"]}, tiny) == "classifier"
    edit_json(tiny / "config.json", architectures=["LlamaModel"])
    with pytest.raises(ModelError, match="'LlamaModel' is neither"):
        load_model(tiny)
    edit_json(tiny / "config.json", architectures=["NewForCausalLM"], model_type="not-yet")
    with pytest.raises(ModelError, match="does not know model_type 'not-yet'") as e:
        load_model(tiny)
    assert "pip install -U transformers" in e.value.remedy


def test_remote_code_is_not_run(tiny, tmp_path):
    marker = tmp_path / "ran"
    (tiny / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    edit_json(tiny / "config.json", model_type="evil", auto_map=auto)
    with pytest.raises(ModelError, match="brings its own Python code, which is not run"):
        load_model(tiny)
    assert not marker.exists()


def test_missing_weights_are_never_random(tiny):
    path = tiny / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights of LlamaForCausalLM are not in it: model\.layers\.1\.mlp\.up_proj"
    ):
        load_model(tiny, device="cpu")


def test_unused_weights_are_told(tiny):
    path = tiny / "model.safetensors"
    save_file({**load_file(path), "score.weight": torch.zeros(2, 32)}, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"1 stored weights are not part of LlamaForCausalLM: score\.weight"):
        load_model(tiny, device="cpu")
    save_file(
        {**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)},
        path,
        metadata={"format": "pt"},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(tiny, device="cpu")
    assert not any("inv_freq" in str(w.message) for w in caught)


def test_weights_of_another_shape(tiny):
    edit_json(tiny / "config.json", intermediate_size=80)
    with pytest.raises(ModelError, match="could not load it") as e:
        load_model(tiny, device="cpu")
    assert "config.json" in e.value.remedy


def test_pickles_never_reach_torch(tiny):
    torch.save(load_file(tiny / "model.safetensors"), tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    with pytest.raises(UnsafeFileError):
        load_model(tiny)


def test_paths(tmp_path, tiny):
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "missing")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ModelError, match="not a model folder and not a GGUF file"):
        load_model(tmp_path / "file.txt")


def test_tokenizer_errors(tiny):
    (tiny / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tiny)
    (tiny / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not valid JSON"):
        load_tokenizer(tiny)
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tiny)


def test_dtype_and_device(tiny, tmp_path):
    assert pick_dtype("bf16") == pick_dtype("bfloat16") == "bfloat16"
    assert pick_dtype("auto", "cuda:1") == "bfloat16"
    assert pick_dtype("auto", "cpu") == ("bfloat16" if cpu_has_bf16() else "float32")
    with pytest.raises(ConfigError, match="dtype 'int4' is not known"):
        load_model(tiny, "int4")
    assert pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device 'tpu9' is not known"):
        pick_device("tpu9")
    if torch.cuda.is_available():
        assert pick_device() == "cuda"
    else:
        assert pick_device() == "cpu"
        with pytest.raises(ConfigError, match="no CUDA device"):
            pick_device("cuda:0")
    info = tmp_path / "cpuinfo"
    for text, expected in (
        ("processor : 0\nflags : fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: amx_bf16 amx_tile\n", True),
        ("Features : fp asimd bf16\n", True),
        ("flags : fpu avx2\n", False),
        ("", False),
    ):
        info.write_text(text)
        assert cpu_has_bf16(info) is expected
    assert cpu_has_bf16(tmp_path / "missing") is False


def test_memory(tmp_path, monkeypatch, tiny):
    free = free_memory("cpu", cgroup=tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 150\n")
    assert free_memory("cpu", cgroup=tmp_path) == 250
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory("cpu", cgroup=tmp_path) > 250
    with pytest.raises(RunError, match=r"big: out of memory on cpu: needs 1000000\.0 GB") as e:
        check_memory(10**15, "cpu", "big")
    assert "smaller model" in e.value.remedy
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**55)
    assert is_out_of_memory(real.value)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    with pytest.raises(RunError, match="tiny: out of memory"):
        load_model(tiny, "float32", "cpu")


def test_digest_follows_the_weights(tiny):
    before = checkpoint_digest(tiny)
    (tiny / "README.md").write_text("not counted")
    assert checkpoint_digest(tiny) == before
    path = tiny / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint_digest(tiny) != before
