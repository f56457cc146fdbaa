"""The language tower of a model that sees images: taken out as a causal language model, and put back.

A vision-language model is a vision tower, a connector and a language model. The last is an ordinary causal language
model whose weights adaptation changes, so whatever audits, tunes, fuses or takes apart a language model can be done to
it. `language_tower` shares the weights: what is trained in one has changed in the other.

Of Qwen2-VL the tower is a Qwen2 model: its rotary positions come in three (time, height, width), which are one and the
same for text, where they are Qwen2's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError
from guardkeel.models.quiet import quiet
from guardkeel.records import write_json

LANGUAGE = {
    "llava": "model.language_model",
    "qwen2_vl": "model.language_model",
    "qwen2_5_vl": "model.language_model",
    "idefics3": "model.text_model",
    "smolvlm": "model.text_model",
}
"""Where kinds of models (config.model_type) keep the body of their language model."""

HEAD = "lm_head.weight"


def has_tower(config: dict[str, Any]) -> bool:
    """Whether a config.json is of a model whose tower is known here."""
    return config.get("model_type") in LANGUAGE


def language_tower(model: Any) -> Any:
    """The language model of a loaded vision-language model, as a …ForCausalLM that shares its weights.

    Raises:
        ModelError: of this kind of model the tower is not known, or it does not fit its language model's class.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    body = _body(model)
    config = _causal_config(model)
    with quiet(), init_empty_weights(include_buffers=False):
        tower = AutoModelForCausalLM.from_config(config)
    weights = {f"{tower.base_model_prefix}.{n}": w for n, w in body.state_dict(keep_vars=True).items()}
    weights[HEAD] = model.get_output_embeddings().weight
    missing, unused = tower.load_state_dict(weights, strict=False, assign=True)
    if missing or unused:
        raise ModelError(
            f"{type(model).__name__}: its language model is no {type(tower).__name__}: "
            f"{', '.join([*missing, *unused][:3])}",
            remedy="only language models that transformers has as causal models of their own can be taken out",
        )
    tower.to(device=model.device)
    tower.train(model.training)
    tower.generation_config = model.generation_config
    return tower


def insert_tower(model: Any, tower: Any) -> None:
    """Copy a causal language model's weights into the language part of a vision-language model.

    Raises:
        ModelError: names or shapes differ; nothing has been changed then.
    """
    ours = dict(language_tower(model).named_parameters())
    theirs = dict(tower.named_parameters())
    wrong = [n for n in sorted(ours.keys() | theirs.keys()) if _shape(ours, n) != _shape(theirs, n)]
    if wrong:
        raise ModelError(
            f"{type(tower).__name__} does not fit the language part of {type(model).__name__}: {', '.join(wrong[:3])}",
            remedy="insert a model made from this one's own tower",
        )
    import torch

    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(theirs[name])


def extract_tower(
    model: Any, tokenizer: Any, folder: str | Path, settings: dict[str, Any] | None = None
) -> Path:
    """Write the language tower as a checkpoint of its own, with the tokenizer and, where given, guardkeel.json.

    The tokenizer's picture tokens stay in it: they never come up in texts.
    """
    folder = Path(folder)
    with quiet():
        language_tower(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if settings:
        write_json(folder / "guardkeel.json", settings)
    return folder


def vision_parameters(model: Any) -> dict[str, Any]:
    """The parameters that are not the language model's: vision tower and connector, by name."""
    language = {id(p) for p in _body(model).parameters()} | {id(model.get_output_embeddings().weight)}
    return {name: p for name, p in model.named_parameters() if id(p) not in language}


def _body(model: Any) -> Any:
    kind = getattr(model.config, "model_type", "")
    if kind not in LANGUAGE:
        raise ModelError(
            f"{type(model).__name__} (model_type {kind!r}): where its language model is, is not known",
            remedy=f"kinds are {', '.join(LANGUAGE)}",
        )
    return model.get_submodule(LANGUAGE[kind])


def _causal_config(model: Any) -> Any:
    """The configuration of the tower's own class."""
    import transformers

    text = model.config.get_text_config(decoder=True)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if not str(text.model_type).startswith("qwen2"):
        config = type(text).from_dict(text.to_dict())
    else:
        known = transformers.Qwen2Config().to_dict()
        said = json.loads(text.to_json_string(use_diff=False))
        config = transformers.Qwen2Config(
            **{
                k: v
                for k, v in said.items()
                if k in known and k not in ("model_type", "rope_scaling", "rope_parameters")
            }
        )
        _plain_rope(config, text)
    config.tie_word_embeddings = tied
    config.dtype = model.dtype
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(model.config, name, None))
    return config


def _plain_rope(config: Any, text: Any) -> None:
    """The base of the rotary positions, without the sections into which three of them are put together."""
    said = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    theta = said.get("rope_theta", getattr(text, "rope_theta", 10000.0))
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    else:  # before transformers 5
        config.rope_theta, config.rope_scaling = theta, None


def _shape(weights: dict[str, Any], name: str) -> Any:
    return weights[name].shape if name in weights else None
