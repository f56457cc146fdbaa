"""What it saves to compute a picture's features once and ask many questions of it.

    python benchmarks/vision.py [--model FOLDER] [--family keel] [--pictures 4] [--questions 1 2 4 8 16]

Judges questions × pictures with a guard over images in three ways: features computed anew for every question; features
kept; and the keys and values of a picture kept for its questions as well (the default). Prints seconds (of processor
time on a CPU), the ratios to computing anew, how far verdicts are apart, and how often the vision tower was run.
Without a model a LLaVA of random weights is made whose vision tower is as large as SigLIP-base's (86 M parameters, 576
places a picture) and whose language model is the embedded guard's base in shape (SmolLM2-135M).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Blank, Judgement, Step
from guardkeel.guards.keel import Keel
from guardkeel.guards.load import load_checkpoint
from guardkeel.models.sight import Sight
from guardkeel.vision.pairs import pairs

WAYS = {"anew": (0, False), "features": (1 << 30, False), "keys": (1 << 30, True)}


class AnyToken(Blank):
    vocabulary = 300

    def step(self, tokenise: Any, written: str) -> Step:
        return Step(
            tuple(tokenise(written)),
            tuple(range(1, self.vocabulary, 2)),
            tuple(range(0, self.vocabulary, 2)),
            {},
        )


class Scored(Keel):
    """keel with many tokens as verdicts: a made model's scores then differ from item to item."""

    def blanks(self, side: Any) -> tuple[Blank, ...]:
        return (AnyToken(safe=("safe",), unsafe=("unsafe",)),)


def make(folder: Path, side: int, layers: int) -> Path:
    import torch
    import transformers as tf

    from guardkeel.models.tiny import tiny_tokenizer
    from guardkeel.models.tiny_vision import square_processor

    tokenizer = tiny_tokenizer("llama")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    vision = tf.SiglipVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        image_size=side,
        patch_size=16,
    )
    text = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    tf.LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square_processor(side).save_pretrained(folder)
    (folder / "guardkeel.json").write_text(json.dumps({"family": "keel"}))
    return folder


def measure(guard: Any, items: list[Judgement], way: str) -> tuple[float, list[float | None], int]:
    room, guard.share_pictures = WAYS[way]
    guard.token_budget = 1  # one question a forward: within one, a picture is never computed twice
    guard.sight.close()
    guard.sight = Sight(guard.model, guard.sight.eyes, room=room)
    clock = time.process_time if guard.model.device.type == "cpu" else time.perf_counter
    started = clock()
    verdicts = guard.score(items, categories=False)
    return clock() - started, [v.unsafe for v in verdicts], guard.sight.computed


def compared(guard: Any, items: list[Judgement]) -> dict[str, Any]:
    found = {way: measure(guard, items, way) for way in WAYS}
    seconds, wanted, _ = found["anew"]
    said: dict[str, Any] = {}
    for way, (took, scores, towers) in found.items():
        both = [(a, b) for a, b in zip(scores, wanted, strict=True) if a is not None and b is not None]
        said |= {
            f"{way}_s": round(took, 2),
            f"{way}_ratio": round(seconds / took, 2),
            f"{way}_towers": towers,
            f"{way}_apart": max((abs(a - b) for a, b in both), default=None),
        }
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--family", default=None)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--side", type=int, default=384, help="of the made model's pictures, a multiple of 16"
    )
    parser.add_argument("--layers", type=int, default=12, help="of the made model's vision tower")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or make(Path(scratch), arguments.side, arguments.layers)
        guard: Any = load_checkpoint(str(folder), family=arguments.family, images=True, max_tokens=4096)
        if arguments.model is None:
            AnyToken.vocabulary = len(guard.tokenizer)
            guard.grammar = Scored()
        images = [p.image for p in pairs(arguments.pictures)]

        def items(count: int) -> list[Judgement]:
            return [
                Judgement(
                    f"{i}/{q}", Conversation.of(f"Question {q}: what is this?", images=[image]), "prompt"
                )
                for i, image in enumerate(images)
                for q in range(count)
            ]

        measure(guard, items(1)[:1], "keys")  # warm up
        for count in arguments.questions:
            print(json.dumps({"pictures": len(images), "questions": count} | compared(guard, items(count))))


if __name__ == "__main__":
    main()
