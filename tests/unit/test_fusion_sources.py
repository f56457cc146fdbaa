"""What a fuse reads: the same numbers as transformers and peft, without ever holding a model."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ModelError, UnsafeFileError
from guardkeel.fusion.sources import open_source
from guardkeel.fusion.tensorfile import TensorFiles
from small_checkpoints import llama_tensors, weights_of, write_checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_full_checkpoint_is_read_as_it_is_stored(tmp_path, shards, dtype):
    tensors = llama_tensors(dtype=dtype)
    folder = write_checkpoint(tmp_path / "m", tensors, shards=shards)

    with open_source(folder) as source:
        assert source.specs.keys() == tensors.keys() and source.changed is None
        for name, tensor in tensors.items():
            assert torch.equal(source.read(name), tensor) and source.read(name).dtype == dtype
        rows = torch.empty(7, 40)
        source.fill("lm_head.weight", 11, rows)
        assert torch.equal(rows, tensors["lm_head.weight"][11:18].float())
        values = torch.empty(5)
        source.fill("model.norm.weight", 3, values)
        assert torch.equal(values, tensors["model.norm.weight"][3:8].float())


def test_large_tensors_are_read_chunk_by_chunk(tmp_path):
    wide = torch.randn(1100, 700).bfloat16()  # 1.5 MB: three chunks
    save_file({"w": wide, "b": torch.tensor(3.0)}, tmp_path / "x.safetensors")
    files = TensorFiles.of(tmp_path / "x.safetensors")
    out = torch.empty(1100, 700)

    files.fill("w", 0, out)
    files.fill("b", 0, scalar := torch.empty(1))

    assert torch.equal(out, wide.float()) and scalar.item() == 3.0
    stored = bytearray().join(map(bytes, files.raw("w")))
    assert torch.equal(torch.frombuffer(stored, dtype=torch.bfloat16).view(1100, 700), wide)
    assert torch.equal(files.read("w", 5, 9), wide[5:9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, dtype, bad):
    tensors = llama_tensors(dtype=dtype)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = tensors[name][60, 1] = bad
    folder = write_checkpoint(tmp_path / "m", tensors)

    with open_source(folder) as source:
        source.fill(name, 10, torch.empty(20, 40))  # rows without one
        with pytest.raises(ModelError) as caught:
            source.fill(name, 50, torch.empty(31, 40))
    assert f"{folder / 'model.safetensors'}: tensor {name!r} has 2 NaN or infinite values" in str(
        caught.value
    )


def test_a_sum_that_overflows_is_not_taken_for_inf(tmp_path):
    big = torch.full((64, 64), 3e38)
    save_file({"w": big}, tmp_path / "x.safetensors")
    out = torch.empty(64, 64)

    TensorFiles.of(tmp_path / "x.safetensors").fill("w", 0, out)

    assert torch.equal(out, big)


def test_damaged_checkpoints_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", llama_tensors(), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-10])
    with pytest.raises(
        ModelError, match=r"model-00002-of-00002.safetensors: the file has .* it is cut short"
    ):
        open_source(folder)
    shard.write_bytes(b"\x80\x02}q\x00" + whole)
    with pytest.raises(UnsafeFileError, match="pickle"):
        open_source(folder)
    shard.unlink()
    with pytest.raises(ModelError, match="1 of 2 shards are missing"):
        open_source(folder)
    shard.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.norm.weight"', '"model.form.weight"'))
    with pytest.raises(ModelError, match=r"lacks tensor 'model.form.weight'"):
        open_source(folder)


def test_file_cut_short_while_it_is_read_is_an_error_with_a_name(tmp_path):
    folder = write_checkpoint(tmp_path / "m", llama_tensors())
    with open_source(folder) as source:
        file = folder / "model.safetensors"
        last = max(source.specs, key=lambda n: source.files.tensors[n][1].start)
        with file.open("r+b") as f:
            f.truncate(file.stat().st_size - 2)
        with pytest.raises(ModelError, match=f"model.safetensors: cut short in tensor '{last}'"):
            source.read(last)


def test_a_tied_head_is_the_embedding_and_no_tensor_of_its_own(tmp_path):
    tensors = llama_tensors(head=False)
    tied = write_checkpoint(tmp_path / "tied", tensors, tie_word_embeddings=True)
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    stored = write_checkpoint(tmp_path / "stored", twice, tie_word_embeddings=True)

    for folder in (tied, stored):
        with open_source(folder) as source:
            assert source.tied == "model.embed_tokens.weight" and "lm_head.weight" not in source.specs
            assert torch.equal(source.read("lm_head.weight"), tensors["model.embed_tokens.weight"])
    with open_source(write_checkpoint(tmp_path / "untied", llama_tensors())) as source:
        assert source.tied is None


def peft_model(architecture, config, tiny_folder, tmp_path, edit=None):
    """A base and an adapter with random weights on disk, and the weights that peft makes of both in float32."""
    import transformers as tf
    from peft import LoraConfig, get_peft_model

    if architecture == "gpt2":
        base = tmp_path / "gpt2"
        torch.manual_seed(0)
        tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)).save_pretrained(base)
    else:
        base = tiny_folder(architecture)
    auto = tf.AutoModelForSequenceClassification if architecture == "bert" else tf.AutoModelForCausalLM
    model = get_peft_model(auto.from_pretrained(base, dtype=torch.float32), LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(p + torch.randn_like(p) * 0.05)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    model = type(model).from_pretrained(auto.from_pretrained(base, dtype=torch.float32), adapter)
    merged = model.merge_and_unload()
    return base, adapter, {n: p.detach() for n, p in merged.state_dict().items()}


ATTENTION = ["q_proj", "v_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "plain": ("llama", {"r": 4, "lora_alpha": 12, "target_modules": ATTENTION}),
    "rslora": ("llama", {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        "qwen2",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 6},
            "alpha_pattern": {"layers.0.mlp.*": 1, "v_proj": 5},
        },
    ),
    "dora": ("mistral", {"r": 3, "use_dora": True, "target_modules": ATTENTION}),
    "conv1d": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d dora": ("gpt2", {"r": 4, "use_dora": True, "target_modules": ["c_fc"], "fan_in_fan_out": True}),
    "classifier": ("bert", {"r": 4, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "bias": ("qwen2", {"r": 4, "lora_bias": True, "target_modules": ["q_proj"]}),
    "biases": ("qwen2", {"r": 4, "bias": "all", "target_modules": ["q_proj"]}),
    "embedding": ("llama", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "embedding dora": ("llama", {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "whole": (
        "llama",
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_is_merged_as_peft_merges_it(kind, tiny_folder, tmp_path):
    architecture, config = ADAPTERS[kind]
    base, adapter, merged = peft_model(architecture, config, tiny_folder, tmp_path)

    with open_source(adapter, base=base) as source, open_source(base) as plain:
        assert source.changed and source.specs.keys() == plain.specs.keys()
        for name in source.specs:
            ours = source.read(name)
            if name in source.changed:
                assert torch.allclose(ours.float(), merged[name], rtol=1e-6, atol=1e-7), name
            else:
                assert torch.equal(ours, plain.read(name)), name
                assert torch.equal(ours, merged[name])
        moved = {n for n in source.specs if not torch.equal(source.read(n).float(), plain.read(n).float())}
    assert moved and moved <= source.changed


def lora_on(base, folder, *, rank=4, hidden=40, seed=3, settings=None, tensors=None):
    """An adapter on the q_proj of both layers of `llama_tensors`."""
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    made = {}
    for i in range(2):
        at = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        made[f"{at}.lora_A.weight"] = torch.randn(rank, hidden, generator=g) * 0.1
        made[f"{at}.lora_B.weight"] = torch.randn(hidden, rank, generator=g) * 0.1
    save_file(made | (tensors or {}), folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(said | (settings or {})))
    return folder


def test_panels_give_the_numbers_of_the_whole(tmp_path):
    tensors = llama_tensors(hidden=600)
    base = write_checkpoint(tmp_path / "m", tensors)
    adapter = lora_on(base, tmp_path / "a", hidden=600, rank=5)
    name = "model.layers.1.self_attn.q_proj.weight"

    with open_source(adapter) as source:
        whole, panel = source.read(name), source.panel(name)
        assert panel == 256 and source.panel("lm_head.weight") == 1
        parts = []
        for first in range(0, 600, panel):
            parts.append(torch.empty(min(panel, 600 - first), 600))
            source.fill(name, first, parts[-1])
        assert torch.equal(torch.cat(parts), whole)
        assert source.specs[name].dtype == "F32" and source.stored[name] == "BF16"
        assert source.changed == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    a, b = (
        load_file(adapter / "adapter_model.safetensors")[
            f"base_model.model.model.layers.1.self_attn.q_proj.lora_{x}.weight"
        ]
        for x in "AB"
    )
    assert torch.allclose(whole, tensors[name].float() + 8 / 5 * b.double().mm(a.double()).float(), atol=1e-6)


def test_adapter_names_its_base_and_a_caller_may_name_another(tmp_path):
    base = write_checkpoint(tmp_path / "m", llama_tensors())
    other = write_checkpoint(tmp_path / "other", llama_tensors(1))
    adapter = lora_on("m", tmp_path / "a")

    with open_source(adapter) as source:
        assert source.base.samefile(base) and not source.base_given
    with open_source(adapter, base=other) as source:
        assert source.base == other and source.base_given
        assert torch.equal(source.read("model.norm.weight"), weights_of(other)["model.norm.weight"])
    with pytest.raises(ModelError, match="is an adapter itself"):
        open_source(adapter, base=lora_on(base, tmp_path / "b"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_dora": True}, "of a DoRA has no magnitudes"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path, settings, said):
    base = write_checkpoint(tmp_path / "m", llama_tensors())
    with pytest.raises(ModelError, match=said):
        open_source(lora_on(base, tmp_path / "a", settings=settings))


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    base = write_checkpoint(tmp_path / "m", llama_tensors())
    at = "base_model.model.model.layers"
    with pytest.raises(
        ModelError, match=r"A \(4, 41\) and B \(41, 4\), which do not fit the base's \(40, 40\)"
    ):
        open_source(lora_on(base, tmp_path / "a", hidden=41))
    pair = {
        f"{at}.7.self_attn.q_proj.lora_{x}.weight": torch.ones(s) for x, s in (("A", (4, 40)), ("B", (40, 4)))
    }
    with pytest.raises(ModelError, match=r"the base has no tensor 'model.layers.7.self_attn.q_proj.weight'"):
        open_source(lora_on(base, tmp_path / "b", tensors=pair))
    half = {f"{at}.0.mlp.up_proj.lora_A.weight": torch.ones(4, 40)}
    with pytest.raises(ModelError, match="has only lora_A"):
        open_source(lora_on(base, tmp_path / "c", tensors=half))
    with pytest.raises(ModelError, match=r"the base has no tensor 'model.extra.weight'"):
        open_source(
            lora_on(base, tmp_path / "d", tensors={"base_model.model.model.extra.weight": torch.ones(2)})
        )
    nan = {f"{at}.0.mlp.up_proj.lora_A.weight": torch.full((4, 40), float("nan"))}
    with pytest.raises(ModelError, match="160 NaN or infinite values"):
        open_source(lora_on(base, tmp_path / "e", tensors=nan))


def test_an_adapter_that_unties_what_is_tied_is_refused(tmp_path):
    base = write_checkpoint(tmp_path / "m", llama_tensors(head=False), tie_word_embeddings=True)
    new = {"base_model.model.model.embed_tokens.weight": torch.ones(300, 40)}
    with pytest.raises(ModelError, match=r"changes 'model.embed_tokens.weight'; the base ties"):
        open_source(lora_on(base, tmp_path / "a", tensors=new))
    head = {
        f"base_model.model.lm_head.lora_{x}.weight": torch.ones(s)
        for x, s in (("A", (4, 40)), ("B", (300, 4)))
    }
    with pytest.raises(ModelError, match=r"changes 'lm_head.weight'; the base ties"):
        open_source(lora_on(base, tmp_path / "b", tensors=head))
    with open_source(
        lora_on(base, tmp_path / "c", tensors=new, settings={"ensure_weight_tying": True})
    ) as source:
        assert torch.equal(source.read("lm_head.weight"), torch.ones(300, 40))


def test_gguf_is_read_through_its_conversion(tiny_folder, tmp_path):
    from test_models_gguf import write_gguf

    folder = tiny_folder("qwen3")
    with (
        open_source(write_gguf(tmp_path / "m.gguf", folder, "qwen3")) as source,
        open_source(folder) as plain,
    ):
        assert source.specs.keys() == plain.specs.keys()
        for name in plain.specs:
            assert torch.equal(source.read(name).float(), plain.read(name).bfloat16().float())


def test_header_of_a_checkpoint_is_all_that_opening_reads(tmp_path):
    """Weights of one petabyte are opened at once: nothing but the header is there."""
    folder = write_checkpoint(tmp_path / "m", llama_tensors())
    header = {"w": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with file.open("r+b") as f:
        f.truncate(8 + len(text) + 2**42)

    with open_source(folder) as source:
        assert source.specs["w"].values == 2**40
