"""What cannot be fused is refused by name, before a weight is read."""

import json

import pytest
import torch

from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion.methods.registry import methods
from guardkeel.fusion.preflight import preflight
from guardkeel.fusion.sources import Sources, open_source
from guardkeel.fusion.tensorfile import TensorFiles
from small_checkpoints import llama_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reference(tmp_path):
    return write_checkpoint(tmp_path / "reference", llama_tensors())


def checked(reference, *candidates, method=None, unaligned=None):
    opened = [open_source(f) for f in (reference, *candidates)]
    before = open_source(unaligned) if unaligned else None
    return preflight(Sources(opened[0], tuple(opened[1:]), before), method and methods()[method]())


def test_tunings_of_one_model_pass_without_a_word(tmp_path, reference):
    one = write_checkpoint(tmp_path / "one", llama_tensors(1), shards=2)

    assert checked(reference, one, one, method="ties") == ()


def test_what_is_worth_knowing_is_told(tmp_path):
    tensors = llama_tensors(head=False)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    reference = write_checkpoint(tmp_path / "r", tensors, tie_word_embeddings=True)
    wide = write_checkpoint(
        tmp_path / "c", llama_tensors(1, head=False, dtype=torch.float32), tie_word_embeddings=True, tokens=()
    )

    notes = " | ".join(checked(reference, wide))

    assert f"no tokenizer beside {wide}" in notes
    assert f"mixed dtypes: {reference} is BF16, {wide} is F32" in notes
    assert f"{reference} stores 9 tensors as BF16, 1 as F32" in notes
    assert "model.embed_tokens.weight is the output head too (tied)" in notes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', the reference's is 'llama'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8, the reference's is 4"),
        ({"rope_theta": 5e5}, "rope theta is 500000.0, the reference's is 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope scaling is"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}}, "rope scaling is"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be fused"),
    ],
)
def test_configurations_that_make_other_models_are_refused(tmp_path, config, said):
    reference = write_checkpoint(tmp_path / "r", llama_tensors(), num_attention_heads=4)
    other = write_checkpoint(tmp_path / "c", llama_tensors(1), **({"num_attention_heads": 4} | config))
    with pytest.raises(ModelError, match=said) as caught:
        checked(reference, other)
    assert str(other) in str(caught.value)


def test_one_configuration_written_by_two_versions_passes(tmp_path):
    old = write_checkpoint(tmp_path / "r", llama_tensors(), rope_scaling=None)
    new = write_checkpoint(
        tmp_path / "c",
        llama_tensors(1),
        rope_theta=None,
        rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
        use_cache=False,
        transformers_version="9",
    )
    config = json.loads((new / "config.json").read_text())
    del config["rope_theta"]
    (new / "config.json").write_text(json.dumps(config))

    assert checked(old, new) == ()


def test_labels_of_a_classifier_mean_the_same(tmp_path):
    kind = {"architectures": ["LlamaForSequenceClassification"]}
    a = write_checkpoint(tmp_path / "a", llama_tensors(), id2label={"0": "safe", "1": "unsafe"}, **kind)
    b = write_checkpoint(tmp_path / "b", llama_tensors(1), id2label={"0": "unsafe", "1": "safe"}, **kind)
    with pytest.raises(ModelError, match="id2label"):
        checked(a, b)


def test_tensors_must_be_there_and_of_one_shape(tmp_path, reference):
    lacking = llama_tensors(1)
    del lacking["model.norm.weight"]
    with pytest.raises(ModelError, match=r"lacks 1 tensor: 'model.norm.weight'"):
        checked(reference, write_checkpoint(tmp_path / "a", lacking))
    more = llama_tensors(1) | {"model.more": torch.ones(2)}
    with pytest.raises(ModelError, match=r"has 1 tensor: 'model.more', and the reference does not"):
        checked(reference, write_checkpoint(tmp_path / "b", more))
    wider = llama_tensors(1) | {"model.norm.weight": torch.ones(41).bfloat16()}
    with pytest.raises(ModelError, match=r"'model.norm.weight' has shape \(41,\), the reference \(40,\)"):
        checked(reference, write_checkpoint(tmp_path / "c", wider))
    counted = llama_tensors(1) | {"model.norm.weight": torch.ones(40, dtype=torch.int32)}
    with pytest.raises(ModelError, match=r"'model.norm.weight' is stored as I32, the reference's as BF16"):
        checked(reference, write_checkpoint(tmp_path / "d", counted))
    double = llama_tensors(1) | {"model.norm.weight": torch.ones(40, dtype=torch.float64)}
    with pytest.raises(ModelError, match=r"'model.norm.weight' is stored as F64, which is not fused"):
        checked(reference, write_checkpoint(tmp_path / "e", double))


def test_vocabularies_of_other_sizes_are_refused_with_what_to_do(tmp_path, reference):
    other = write_checkpoint(tmp_path / "c", llama_tensors(1, vocabulary=301))
    with pytest.raises(ModelError, match="vocab_size is 301") as caught:
        checked(reference, other)
    assert "resize_token_embeddings" in caught.value.remedy
    unsaid = write_checkpoint(tmp_path / "u", llama_tensors(1, vocabulary=301), vocab_size=300)
    with pytest.raises(
        ModelError, match=r"'model.embed_tokens.weight' has shape \(301, 40\)|'lm_head.weight'"
    ) as caught:
        checked(reference, unsaid)
    assert "vocabularies differ in size" in caught.value.remedy


@pytest.mark.parametrize("first", ["tied", "own"])
def test_a_head_on_one_side_only_is_fine_where_it_is_the_embedding(tmp_path, first):
    bare, own = llama_tensors(1, head=False), llama_tensors(0, head=False)
    own["lm_head.weight"] = own["model.embed_tokens.weight"].clone()
    folders = {
        "tied": write_checkpoint(tmp_path / "tied", bare, tie_word_embeddings=True),
        "own": write_checkpoint(tmp_path / "own", own, tie_word_embeddings=False),
    }
    reference = folders.pop(first)
    (other,) = folders.values()

    assert any("it is the same" in note for note in checked(reference, other))

    own["lm_head.weight"][299, 39] += 1
    write_checkpoint(tmp_path / "own", own, tie_word_embeddings=False)
    with pytest.raises(
        ModelError, match=r"has a lm_head.weight of its own; in .*tied the embedding is the head"
    ):
        checked(reference, other)


def tokenizer(folder, vocabulary, added=(), merges=(), **written):
    said = {"model": {"vocab": vocabulary, "merges": list(merges)}, "added_tokens": list(added)} | written
    (folder / "tokenizer.json").write_text(json.dumps(said))


def test_tokenizers_must_give_the_same_ids(tmp_path, reference):
    other = write_checkpoint(tmp_path / "c", llama_tensors(1))
    special = [{"content": "<s>", "id": 2}]
    tokenizer(reference, {"a": 0, "b": 1}, special, [["a", "b"]])
    tokenizer(other, {"b": 1, "a": 0}, special, ["a b"], truncation={"max_length": 5})

    assert checked(reference, other) == ()

    tokenizer(other, {"a": 1, "b": 0}, special, [["a", "b"]])
    with pytest.raises(ModelError, match=r"tokenizer.json: not the same vocabulary as in .*: 'a', 'b'"):
        checked(reference, other)
    tokenizer(other, {"a": 0, "b": 1}, [*special, {"content": "<new>", "id": 3}], [["a", "b"]])
    with pytest.raises(ModelError, match=r"not the same added tokens as in .*: '<new>'") as caught:
        checked(reference, other)
    assert "without adding tokens" in caught.value.remedy
    tokenizer(other, {"a": 0, "b": 1}, special)
    with pytest.raises(ModelError, match="not the same merges"):
        checked(reference, other)


def adapter_on(base, folder):
    from test_fusion_sources import lora_on

    return lora_on(base, folder)


def test_an_adapter_made_on_another_base_is_refused(tmp_path, reference):
    other = write_checkpoint(tmp_path / "other", llama_tensors(1))
    copy = write_checkpoint(tmp_path / "copy", llama_tensors())
    strange, same = adapter_on(other, tmp_path / "a"), adapter_on(copy, tmp_path / "b")

    assert checked(reference, same) == ()  # other folder, same bytes
    assert checked(adapter_on(reference, tmp_path / "safe"), same) == ()  # two adapters on one base
    with pytest.raises(ModelError, match=f"{strange}: the adapter was made on {other}"):
        checked(reference, strange)
    given = Sources(open_source(reference), (open_source(strange, base=other),))
    assert preflight(given) == ()


def test_a_method_gets_what_it_needs(tmp_path, reference):
    one = write_checkpoint(tmp_path / "one", llama_tensors(1))
    with pytest.raises(ConfigError, match="interpolation takes 1 candidate, 2 are given"):
        checked(reference, one, one, method="interpolation")
    with pytest.raises(ConfigError, match="resta needs the model that the reference was made from"):
        checked(reference, one, method="resta")
    assert checked(reference, one, method="resta", unaligned=one) == ()
    with pytest.raises(ConfigError, match="antidote needs harmful-norms for the tensors"):
        checked(reference, one, method="antidote")


def test_extras_of_another_model_are_refused(tmp_path, reference):
    from safetensors.torch import save_file

    save_file({"model.layers.99.mlp.up_proj.weight": torch.ones(40)}, tmp_path / "norms.safetensors")
    extras = {"harmful-norms": TensorFiles.of(tmp_path / "norms.safetensors")}
    sources = Sources(open_source(reference), (open_source(reference),), extras=extras)
    with pytest.raises(ModelError, match=r"harmful-norms of 'model.layers.99.mlp.up_proj.weight'"):
        preflight(sources)
