"""A small LLaVA around any language model: a vision tower of random weights, a projector, and the model itself.

The picture token is one that the tokenizer has and texts never use, so that the language part keeps its shape and can
be compared, merged and put back with the model it was made from. Where there is none, one is added, and the embedding
grows by its row.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.guards.load import guard_path
from guardkeel.models.loading import load_model, load_tokenizer
from guardkeel.models.quiet import quiet
from guardkeel.models.tiny_vision import square_processor
from guardkeel.models.towers import insert_tower
from guardkeel.records import write_json
from guardkeel.resources import Progress
from guardkeel.vision.shape import VisionShape

SPARE = ("<image>", "<empty_output>", "<|reserved_special_token_0|>", "<unused0>", "[MASK]")
"""Tokens that can stand for a picture, by preference."""
ADDED = "<image>"


def build_llava(
    reference: str,
    folder: str | Path,
    *,
    shape: VisionShape | None = None,
    seed: int = 0,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a LLaVA checkpoint around a language model, in float32; whole or not at all.

    Args:
        reference: the language model: a name, folder or reference; its guardkeel.json goes along.
        folder: replaced.
        shape: of the vision tower.
        seed: of its weights and the projector's.
        offline: never use the network.
        progress: called with (what, done, total).

    Raises:
        ConfigError: the size is no multiple of the patch, or the width of the heads. ModelError, ResourceError: see
            load_model.
    """
    import torch
    import transformers as tf

    shape = shape or VisionShape()
    if shape.size % shape.patch or shape.width % shape.heads:
        raise ConfigError(
            f"size {shape.size} and patch {shape.patch}, width {shape.width} and heads {shape.heads}: not multiples",
            remedy="take a size that is a multiple of the patch, and a width that is one of the heads",
        )
    source = guard_path(reference, progress=progress, offline=offline)
    language, tokenizer = load_model(source, "float32", "cpu", progress=progress), load_tokenizer(source)
    known = tokenizer.get_vocab()
    token = next((t for t in SPARE if t in known), ADDED)
    if token not in known:
        tokenizer.add_tokens([token], special_tokens=True)
        if len(tokenizer) > language.get_input_embeddings().weight.shape[0]:
            with quiet():
                language.resize_token_embeddings(len(tokenizer))
    tied = language.get_output_embeddings().weight is language.get_input_embeddings().weight
    vision = tf.CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.size,
        patch_size=shape.patch,
        attention_dropout=0.0,
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(token),
        image_seq_length=(shape.size // shape.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = tf.LlavaForConditionalGeneration(config).float()
        _spread(model)
    insert_tower(model, language)
    model.generation_config = language.generation_config
    settings = source / "guardkeel.json"
    save_llava(model, tokenizer, square_processor(shape.size), Path(folder), _read(settings))
    return Path(folder)


def save_llava(model: Any, tokenizer: Any, processor: Any, folder: Path, settings: dict[str, Any]) -> None:
    """A whole checkpoint: weights, tokenizer, image processor, guardkeel.json. All of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            processor.save_pretrained(temporary)
        if settings:
            write_json(temporary / "guardkeel.json", settings)
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _spread(model: Any) -> None:
    """Weights of the projector as wide as keeps the features' size, so that the language model sees more than noise."""
    import torch

    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def _read(settings: Path) -> dict[str, Any]:
    return dict(json.loads(settings.read_text())) if settings.is_file() else {}
