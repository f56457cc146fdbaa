"""Tiny random models that see images, for tests: real architectures, real processors, no download.

Two layers of 32 hidden units that read, one of 16 that sees 28-pixel squares (Qwen2-VL: any shape).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError
from guardkeel.models.quiet import quiet
from guardkeel.models.tiny import tiny_tokenizer

SIDE, PATCH = 28, 7
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": PATCH,
}

Ids = Callable[[str], int]


def make_tiny_vision(architecture: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny random model that sees, its tokenizer and its image processor; the same arguments, the same bytes.

    Raises:
        ConfigError: the architecture is none of VISION.
    """
    if architecture not in VISION:
        raise ConfigError(f"no tiny {architecture!r} that sees", remedy=f"use one of {', '.join(VISION)}")
    import torch

    make, tokens = VISION[architecture]
    tokenizer = tiny_tokenizer("qwen2" if architecture == "qwen2-vl" else "llama")
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    text = _TEXT | {
        "vocab_size": len(tokenizer) + (0 if architecture != "mllama" else -1),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = make(text, tokenizer.convert_tokens_to_ids)
        for name, p in model.named_parameters():  # pictures must matter as much as words do
            if p.dim() > 1 and (
                "vision" in name or "visual" in name or "projector" in name or "connector" in name
            ):
                torch.nn.init.normal_(p, std=0.3)
            elif "cross_attn" in name and "gate" in name:
                torch.nn.init.ones_(p)
    folder = Path(folder)
    with quiet():
        model.eval().save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    if processor is not None:
        processor.save_pretrained(str(folder))
    return folder


def _llava(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_VISION),
        text_config=tf.LlamaConfig(**text),
        image_token_id=ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return tf.LlavaForConditionalGeneration(config), square_processor(SIDE)


def _qwen2_vl(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = tf.Qwen2VLConfig(
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=text | {"rope_parameters": rope},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip
    processor = _pil("Qwen2VLImageProcessor")(
        patch_size=PATCH, merge_size=2, min_pixels=(2 * PATCH) ** 2, max_pixels=(6 * PATCH) ** 2
    )
    return tf.Qwen2VLForConditionalGeneration(config), processor


def _idefics3(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    return _tiled(tf.Idefics3Config, tf.Idefics3ForConditionalGeneration, "Idefics3ImageProcessor", text, ids)


def _smolvlm(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    return _tiled(tf.SmolVLMConfig, tf.SmolVLMForConditionalGeneration, "SmolVLMImageProcessor", text, ids)


def _tiled(config: Any, model: Any, processor: str, text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    made = config(
        vision_config=_VISION,
        text_config=tf.LlamaConfig(**text),
        image_token_id=ids("<image>"),
        scale_factor=2,
        pad_token_id=text["pad_token_id"],
    )
    tiles = _pil(processor)(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return model(made), tiles


def _llama4(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    reads = text | {
        "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 1, "num_experts_per_tok": 1,
        "attention_chunk_size": 2048, "moe_layers": [],
    }  # fmt: skip
    sees = _VISION | {
        "intermediate_size": 64, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
        "pixel_shuffle_ratio": 0.5,
    }  # fmt: skip
    config = tf.Llama4Config(text_config=reads, vision_config=sees, image_token_index=ids("<|patch|>"))
    return tf.Llama4ForConditionalGeneration(config), None


def _mllama(text: dict[str, Any], ids: Ids) -> tuple[Any, Any]:
    import transformers as tf

    sees = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
        "intermediate_size": 32, "image_size": SIDE, "patch_size": PATCH, "vision_output_dim": 32,
        "intermediate_layers_indices": [0], "max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    config = tf.MllamaConfig(
        text_config=text | {"cross_attention_layers": [1]},
        vision_config=sees,
        image_token_index=ids("<|image|>"),
    )
    processor = _pil("MllamaImageProcessor")(size={"height": SIDE, "width": SIDE}, max_image_tiles=2)
    return tf.MllamaForConditionalGeneration(config), processor


def square_processor(side: int) -> Any:
    """Pictures stretched to a square, in the numbers that CLIP's vision towers take."""
    return _pil("CLIPImageProcessor")(
        size={"height": side, "width": side}, do_center_crop=False, crop_size={"height": side, "width": side}
    )


def _pil(name: str) -> Any:
    """An image processor's class in the form that needs Pillow alone."""
    import transformers

    from guardkeel.pictures import pillow

    pillow()
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


VISION: dict[str, tuple[Callable[[dict[str, Any], Ids], tuple[Any, Any]], tuple[str, ...]]] = {
    "llava": (_llava, ("<image>",)),
    "qwen2-vl": (_qwen2_vl, ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")),
    "idefics3": (_idefics3, ("<image>", "<fake_token_around_image>", "<global-img>")),
    "smolvlm": (_smolvlm, ("<image>", "<fake_token_around_image>", "<global-img>")),
    "llama4": (_llama4, ("<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>")),
    "mllama": (_mllama, ("<|image|>",)),
}
"""How each is made, and the tokens that its tokenizer gets beside those of tiny_tokenizer."""
