"""The tokenizer inside a GGUF file → tokenizer.json and tokenizer_config.json.

Byte-level BPE is rebuilt piece by piece from the vocabulary and merges, with the pre-tokeniser that
`tokenizer.ggml.pre` names: a wrong one splits digits or spaces differently from what the model was
trained on, and nothing fails. SentencePiece vocabularies go through transformers' own converter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# llama.cpp's names for how a line of models splits text before BPE. One that is not here is refused.
_LLAMA3_NAMES = {"llama-bpe", "llama3", "llama-v3"}
_REGEX = {**dict.fromkeys(_LLAMA3_NAMES, _LLAMA3), "qwen2": _QWEN2}
_DIGITS = {"smollm", "refact", "command-r", "starcoder"}
_PLAIN = {"gpt-2"}

_CONTROL, _USER_DEFINED = 3, 4


def write_tokenizer(path: Path, fields: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer files of a GGUF's fields into `folder`."""
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        _write_bpe(path, fields, folder)
    elif kind == "llama":
        _write_sentencepiece(path, folder)
    else:
        raise ModelError(
            f"{path}: GGUF tokenizer {kind!r} is not supported",
            remedy="use the model's safetensors checkpoint with its tokenizer files",
        )


def _write_bpe(path: Path, fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    merges = [tuple(m.split(" ", 1)) for m in fields["tokenizer.ggml.merges"]]
    pre = str(fields.get("tokenizer.ggml.pre", ""))
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=pre in _LLAMA3_NAMES)
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in _REGEX)
    if pre in _REGEX:
        split = pre_tokenizers.Split(Regex(_REGEX[pre]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif pre in _DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]
        )
    elif pre in _PLAIN:
        tokenizer.pre_tokenizer = byte_level
    else:
        raise ModelError(
            f"{path}: GGUF pre-tokeniser {pre!r} is not supported",
            remedy="use the model's safetensors checkpoint with its tokenizer files",
        )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    named = _named_tokens(fields, tokens)
    # llama.cpp adds it for Llama 3 without being told; transformers wants it written down.
    if fields.get("tokenizer.ggml.add_bos_token", pre in _LLAMA3_NAMES) and "bos_token" in named:
        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    length = next((int(v) for k, v in fields.items() if k.endswith(".context_length")), None)
    config: dict[str, Any] = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(i): {
                "content": t,
                "special": k == _CONTROL,
                "normalized": False,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
            for i, (t, k) in enumerate(zip(tokens, types, strict=True))
            if k in (_CONTROL, _USER_DEFINED)
        },
    }
    if length:
        config["model_max_length"] = length
    if fields.get("tokenizer.chat_template"):
        config["chat_template"] = fields["tokenizer.chat_template"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
    )
    special = json.dumps(named, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "special_tokens_map.json").write_text(special, "utf-8")


def _named_tokens(fields: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    named = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        value = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if value is not None and 0 <= int(value) < len(tokens):
            named[f"{ours}_token"] = tokens[int(value)]
    return named


def _write_sentencepiece(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as e:  # the converter raises many kinds; the problem is always this file's tokenizer
        raise ModelError(
            f"{path}: its tokenizer cannot be converted ({e})",
            remedy="use the model's safetensors checkpoint",
        ) from e
    tokenizer.save_pretrained(str(folder))
