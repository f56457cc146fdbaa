import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from guardkeel.errors import ModelError, ResourceError, UnsafeFileError
from guardkeel.models.adapters import adapter_base, attach_adapter, check_adapter, is_adapter
from guardkeel.models.loading import base_folder, load_model, load_tokenizer
from guardkeel.models.tiny import make_tiny

IDS = torch.tensor([[5, 60, 70, 80]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")


@pytest.fixture
def tiny(tmp_path):
    return make_tiny("llama", tmp_path / "tiny")


def make_adapter(base, folder, seed=0, **options):
    """A LoRA adapter with weights that matter, written by peft."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "query", "value"], **options
        )
        model = get_peft_model(load_model(base, "float32", "cpu"), config)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.5)
    model.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_attach_switch_and_take_off(tiny, tmp_path):
    one, two = make_adapter(tiny, tmp_path / "one"), make_adapter(tiny, tmp_path / "two", seed=1)
    assert is_adapter(one) and not is_adapter(tiny)
    assert adapter_base(one) == str(tiny)
    plain = load_model(tiny, "float32", "cpu")
    expected = logits(plain)
    model = attach_adapter(plain, one, "one")
    with_one = logits(model)
    assert not torch.allclose(with_one, expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    model = attach_adapter(model, two, "two")
    with_two = logits(model)
    assert not torch.allclose(with_two, with_one)
    model.set_adapter("one")
    assert torch.equal(logits(model), with_one)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    with pytest.raises(ModelError, match="named 'two' is already attached"):
        attach_adapter(model, two, "two")


def test_trainable(tiny, tmp_path):
    adapter = make_adapter(tiny, tmp_path / "one")
    model = attach_adapter(load_model(tiny, "float32", "cpu"), adapter, "mine", trainable=True)
    assert model.training
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_adapter_folder_is_loaded_on_its_base(tiny, tmp_path):
    adapter = make_adapter(tiny, tmp_path / "one")
    expected = logits(attach_adapter(load_model(tiny, "float32", "cpu"), adapter))
    assert torch.equal(logits(load_model(adapter, "float32", "cpu")), expected)
    assert len(load_tokenizer(adapter)) == len(load_tokenizer(tiny))

    config = json.loads((adapter / "adapter_config.json").read_text())
    for said, found in (("tiny", True), ("", False), ("no/such", False)):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": said}))
        if found:  # a relative path is meant from beside the adapter
            assert base_folder(adapter) == tiny
        else:
            with pytest.raises((ModelError, ResourceError), match=r"does not name its base|no/such"):
                load_model(adapter)
    assert torch.equal(logits(load_model(adapter, "float32", "cpu", base=tiny)), expected)


def test_classifier_head_in_an_adapter(tmp_path):
    from transformers import BertForSequenceClassification

    base = make_tiny("bert", tmp_path / "bert")
    adapter = make_adapter(base, tmp_path / "one", task_type="SEQ_CLS")
    assert any("classifier" in n for n in check_adapter(adapter))
    model = attach_adapter(load_model(base, "float32", "cpu"), adapter)
    assert isinstance(model.get_base_model(), BertForSequenceClassification)
    three = make_tiny("bert", tmp_path / "three", labels=("a", "b", "c"))
    with pytest.raises(ModelError, match=r"'classifier\.bias' has shape \(2,\), the base has \(3,\)"):
        attach_adapter(load_model(three, "float32", "cpu"), adapter)


def test_wrong_base_is_named(tiny, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    adapter = make_adapter(tiny, tmp_path / "one")
    config = LlamaConfig.from_pretrained(tiny)
    config.hidden_size, config.head_dim = 48, 12
    with pytest.raises(ModelError, match=r"lora_A.*does not fit the base's .*q_proj' of 48 × 48") as e:
        attach_adapter(LlamaForCausalLM(config), adapter)
    assert str(tiny) in e.value.remedy
    config = LlamaConfig.from_pretrained(tiny)
    config.num_key_value_heads = 4
    with pytest.raises(ModelError, match=r"lora_B.*v_proj' of 32 × 32"):
        attach_adapter(LlamaForCausalLM(config), adapter)
    with pytest.raises(ModelError, match=r"the base has no module \'model\.layers\.1"):
        attach_adapter(load_model(make_tiny("llama", tmp_path / "l1", layers=1), device="cpu"), adapter)
    with pytest.raises(ModelError, match="the base has no module"):
        attach_adapter(load_model(make_tiny("bert", tmp_path / "bert"), device="cpu"), adapter)


def test_damaged_adapters(tiny, tmp_path):
    adapter = make_adapter(tiny, tmp_path / "one")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors, said = load_file(weights), json.loads(config.read_text())

    broken = {k: v.clone() for k, v in tensors.items()}
    name = sorted(broken)[0]
    broken[name][0, 0] = float("nan")
    save_file(broken, weights)
    with pytest.raises(ModelError, match="has 1 NaN") as e:
        check_adapter(adapter)
    assert name in e.value.problem

    save_file(tensors, weights)
    config.write_text(json.dumps({**said, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="peft_type is 'IA3'"):
        check_adapter(adapter)
    config.write_text(json.dumps({**said, "r": 8}))
    with pytest.raises(ModelError, match="peft could not attach the adapter"):
        attach_adapter(load_model(tiny, "float32", "cpu"), adapter)
    config.write_text(json.dumps(said))
    weights.unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        check_adapter(adapter)
    torch.save(tensors, adapter / "adapter_model.bin")
    with pytest.raises(UnsafeFileError, match=r"adapter_model\.bin"):
        check_adapter(adapter)
    with pytest.raises(ModelError, match=r"adapter_config\.json: no such file"):
        adapter_base(tiny)
