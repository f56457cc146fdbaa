"""A small LLaVA around any language model: a vision tower, a projector of random weights, and the model itself.

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
from guardkeel.pictures import open_picture
from guardkeel.records import write_json
from guardkeel.resources import Progress
from guardkeel.vision.captions import teach_captions
from guardkeel.vision.pairs import pairs
from guardkeel.vision.shape import VisionShape
from guardkeel.vision.tower import clip_config, knows, load_reader

SPARE = ("<image>", "<empty_output>", "<|reserved_special_token_0|>", "<unused0>", "[MASK]")
"""Tokens that can stand for a picture, by preference."""
ADDED = "<image>"


def build_llava(
    reference: str,
    folder: str | Path,
    *,
    shape: VisionShape | None = None,
    captions: int = 0,
    seed: int = 0,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a LLaVA checkpoint around a language model, in float32; whole or not at all.

    Args:
        reference: the language model: a name, folder or reference; its guardkeel.json goes along.
        folder: replaced.
        shape: of the vision tower.
        captions: drawn pictures whose description tower and projector learn to write in the language model's word
            embeddings (see captions.py).
        seed: of weights and drawings.
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
    config = tf.LlavaConfig(
        vision_config=clip_config(shape),
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(token),
        image_seq_length=(shape.size // shape.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    processor = square_processor(shape.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = tf.LlavaForConditionalGeneration(config).float()
        if shape.weights == "drawn" or (shape.weights == "auto" and knows(shape)):
            model.model.vision_tower.load_state_dict(_drawn(shape).state_dict())
        _spread(model, processor, language.get_input_embeddings().weight)
    insert_tower(model, language)
    if captions:

        def watch(done: int, total: int) -> None:
            if progress is not None:
                progress("teach the projector", done, total)

        teach_captions(model, tokenizer, processor, pictures=captions, seed=seed, watch=watch)
    model.generation_config = language.generation_config
    settings = source / "guardkeel.json"
    save_llava(model, tokenizer, processor, Path(folder), _read(settings))
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


def _drawn(shape: VisionShape) -> Any:
    if not knows(shape):
        raise ConfigError(
            f"the vision tower that guardkeel brings has another shape than {shape.model_dump_json()}",
            remedy="leave the shape as it is, or set vision.weights to random",
        )
    return load_reader().tower


def _spread(model: Any, processor: Any, words: Any) -> None:
    """Weights of the projector such that pictures are as large to the language model as its words are.

    Of its two layers the first gets outputs of variance 1, the last outputs of the word embeddings' variance, measured
    on drawn pictures: features some forty times as large, as a trained tower's are, drown what a frozen language model
    adds to them, and nothing is learned from them.
    """
    import torch

    seen = [open_picture(p.image).pixels for p in pairs(24, size=model.config.vision_config.image_size)]
    pixels = processor(images=seen, return_tensors="pt")["pixel_values"]
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        features = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        for layer, wanted in ((projector.linear_1, 1.0), (projector.linear_2, float(words.std()))):
            torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            layer.weight.mul_(wanted / layer(features).std().clamp_min(1e-6))
            layer.bias.zero_()
            features = projector.act(layer(features))


def _read(settings: Path) -> dict[str, Any]:
    return dict(json.loads(settings.read_text())) if settings.is_file() else {}
