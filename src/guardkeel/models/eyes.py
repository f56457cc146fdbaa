"""How each kind of model takes pictures: from pixels to what stands for them in the prompt, and to their features.

- llava: one square of (size / patch)² features, an <image> each;
- qwen2_vl, qwen2_5_vl: patches of its own shape, merged 2 × 2, <|vision_start|> <|image_pad|>… <|vision_end|>, with
  rotary positions in three directions;
- idefics3, smolvlm: tiles and the whole, as the processor cuts it, <row_1_col_1> <image>… <global-img> <image>…;
- llama4 (Llama Guard 4): one square tile, <|image_start|><|image|> <|patch|>… <|image_end|>;
- mllama (Llama Guard 3 Vision): tiles that cross-attention looks at, one picture a conversation, <|image|>.

Pictures are prepared by the checkpoint's own image processor in its Pillow form, which needs no torchvision and gives
the same numbers everywhere. Llama 4's processor exists for torchvision alone, so its pictures are prepared here, as
that processor does where it may make one tile (max_patches = 1): larger pictures are seen less sharply than it could.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.models.quiet import quiet


@dataclass(frozen=True)
class Prepared:
    """A picture as its model wants it.

    `inputs` are tensors for the vision tower; `text` stands for the picture in the prompt and holds the picture token
    `tokens` times; `grid` is (rows, columns) of the features, where positions need it.
    """

    inputs: dict[str, Tensor]
    text: str
    tokens: int
    grid: tuple[int, int] = (0, 0)


class Eyes:
    """The image part of a loaded model. Features of a picture are (tokens, hidden)."""

    goes_on: ClassVar[bool] = True
    """Whether more tokens may be fed after a picture without saying again where it was."""
    most: ClassVar[int | None] = None
    """Pictures that one conversation may have."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self.model, self.processor = model, processor
        config = model.config
        self.token_id = int(getattr(config, "image_token_id", None) or config.image_token_index)
        self.token = str(tokenizer.convert_ids_to_tokens(self.token_id))

    def prepare(self, pixels: Any) -> Prepared:
        """From an RGB picture of PIL. ModelError where the processor cannot take it."""
        raise NotImplementedError

    def features(self, prepared: Prepared) -> Tensor:
        """What the language model is shown, with gradients where they are on."""
        inputs = {k: v.to(self.model.device) for k, v in prepared.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        out = self.model.get_image_features(**inputs)
        found = getattr(out, "pooler_output", out)  # before transformers 5 the features themselves
        found = found if isinstance(found, Tensor) else torch.cat(list(found))
        return found.reshape(-1, found.shape[-1])

    def positions(self, positions: Tensor, pictures: list[list[tuple[int, Prepared]]]) -> Tensor:
        """Rotary positions of rows whose pictures begin at these columns; `positions` (rows, length) are a text's."""
        return positions

    def _processed(self, pixels: Any, **options: Any) -> dict[str, Any]:
        try:
            with quiet():
                return dict(self.processor(images=pixels, return_tensors="pt", **options))
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as e:
            said = " ".join(str(e).split())[:200]
            raise ModelError(
                f"a picture of {getattr(pixels, 'size', '?')} pixels cannot be prepared for "
                f"{type(self.model).__name__}: {said}",
                remedy="give it another shape",
            ) from e


class Llava(Eyes):
    """LLaVA (arXiv:2304.08485): one vision tower with fixed squares, a projector."""

    def prepare(self, pixels: Any) -> Prepared:
        """See Eyes."""
        vision = self.model.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        whole = getattr(self.model.config, "vision_feature_select_strategy", "default") == "full"
        if whole and "siglip" not in vision.model_type:
            tokens += 1  # the class token stays
        found = self._processed(pixels)
        return Prepared({"pixel_values": found["pixel_values"]}, self.token * tokens, tokens)


class Qwen2VL(Eyes):
    """Qwen2-VL (arXiv:2409.12191): any shape, and rotary positions in time, height and width."""

    goes_on = False

    def prepare(self, pixels: Any) -> Prepared:
        """See Eyes."""
        found = self._processed(pixels)
        merge = self.model.config.vision_config.spatial_merge_size
        _, rows, columns = (int(n) for n in found["image_grid_thw"][0])
        grid = rows // merge, columns // merge
        inputs = {k: found[k] for k in ("pixel_values", "image_grid_thw")}
        tokens = grid[0] * grid[1]
        return Prepared(inputs, f"<|vision_start|>{self.token * tokens}<|vision_end|>", tokens, grid)

    def positions(self, positions: Tensor, pictures: list[list[tuple[int, Prepared]]]) -> Tensor:
        """A picture of r × c at position p takes (p, p + row, p + column); the text goes on at p + max(r, c)."""
        three = positions.expand(3, *positions.shape).clone()
        for row, shown in enumerate(pictures):
            saved = 0
            for column, one in shown:
                rows, columns = one.grid
                end = column + one.tokens
                begin = int(positions[row, column]) - saved
                cells = torch.arange(one.tokens, device=positions.device)
                three[0, row, column:end] = begin
                three[1, row, column:end] = begin + cells // columns
                three[2, row, column:end] = begin + cells % columns
                saved += one.tokens - max(rows, columns)
                three[:, row, end:] = positions[row, end:] - saved
        return three


class Idefics3(Eyes):
    """Idefics3 (arXiv:2408.12637) and SmolVLM (arXiv:2504.05299): tiles, shuffled to fewer features, and the whole."""

    def prepare(self, pixels: Any) -> Prepared:
        """See Eyes."""
        found = self._processed([[pixels]], return_row_col_info=True)
        config = self.model.config
        each = (
            config.vision_config.image_size // config.vision_config.patch_size
        ) ** 2 // config.scale_factor**2
        rows, columns = (int(found[k][0][0]) for k in ("rows", "cols"))
        fake, places = "<fake_token_around_image>", self.token * each
        text = "".join(
            "".join(f"{fake}<row_{r}_col_{c}>{places}" for c in range(1, columns + 1)) + "\n"
            for r in range(1, rows + 1)
        )
        text += ("\n" if text else "") + f"{fake}<global-img>{places}{fake}"
        inputs = {k: v for k, v in found.items() if k in ("pixel_values", "pixel_attention_mask")}
        return Prepared(inputs, text, each * (rows * columns + 1))


class Llama4(Eyes):
    """Llama 4 and Llama Guard 4: one tile; see the module."""

    def prepare(self, pixels: Any) -> Prepared:
        """See Eyes: as large as fits the tile without being stretched, black below and right of it, 0 … 1 → −1 … 1."""
        from PIL import Image, ImageOps

        vision = self.model.config.vision_config
        side = vision.image_size
        small = ImageOps.contain(pixels, (side, side), Image.Resampling.BILINEAR)
        tile = Image.new("RGB", (side, side))
        tile.paste(small, (0, 0))
        values = torch.from_numpy(np.asarray(tile, np.float32).transpose(2, 0, 1).copy()) / 127.5 - 1
        tokens = int((side // vision.patch_size) ** 2 * vision.pixel_shuffle_ratio**2)
        text = f"<|image_start|><|image|>{self.token * tokens}<|image_end|>"
        return Prepared({"pixel_values": values[None]}, text, tokens)

    def features(self, prepared: Prepared) -> Tensor:
        """See Eyes."""
        pixels = prepared.inputs["pixel_values"].to(self.model.device, self.model.dtype)
        out = self.model.get_image_features(pixel_values=pixels)
        states = getattr(out, "last_hidden_state", out)
        found: Tensor = self.model.multi_modal_projector(states.reshape(-1, states.shape[-1]))
        return found


class Mllama(Eyes):
    """Llama 3.2 Vision and Llama Guard 3 Vision: features, (tiles · patches, hidden), are for cross-attention."""

    goes_on = False
    most = 1

    def prepare(self, pixels: Any) -> Prepared:
        """See Eyes."""
        found = self._processed(pixels)
        tiles = int(np.asarray(found["num_tiles"]).reshape(-1)[0])
        inputs = {k: found[k] for k in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
        return Prepared(inputs, self.token, 1, (tiles, found["pixel_values"].shape[2]))

    def features(self, prepared: Prepared) -> Tensor:
        """See Eyes."""
        inputs = {k: v.to(self.model.device) for k, v in prepared.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        inner = self.model.model
        states = inner.vision_model(**inputs).last_hidden_state
        found: Tensor = inner.multi_modal_projector(states)
        return found.reshape(-1, found.shape[-1])

    def looking(
        self, pictures: list[list[tuple[int, Prepared]]], features: dict[int, Tensor], ids: Tensor
    ) -> dict[str, Tensor]:
        """What cross-attention gets: the features of each row's picture, which its tokens see from its place on.

        `features` are by row. A row without a picture sees nothing.
        """
        like = next(iter(features.values()))
        tiles = next(one.grid[1] for shown in pictures for _, one in shown)
        states = like.new_zeros(len(pictures), *like.shape)
        mask = torch.zeros(*ids.shape, 1, tiles, dtype=torch.long, device=ids.device)
        for row, shown in enumerate(pictures):
            for column, one in shown:
                states[row] = features[row]
                mask[row, column:, 0, : one.grid[0]] = 1
        return {"cross_attention_states": states, "cross_attention_mask": mask}


KINDS: dict[str, type[Eyes]] = {
    "llava": Llava,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "llama4": Llama4,
    "mllama": Mllama,
}

_FILES = ("preprocessor_config.json", "processor_config.json")


def has_eyes(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a kind known here and brings what its pictures are prepared with."""
    kind = config.get("model_type")
    return kind in KINDS and (kind == "llama4" or any((folder / name).is_file() for name in _FILES))


def eyes_of(model: Any, tokenizer: Any, folder: str | Path) -> Eyes:
    """The eyes of a loaded model, with the image processor in its folder.

    Raises:
        ModelError: the kind is not known, or there is no image processor that can be used here.
    """
    kind = model.config.model_type
    if kind not in KINDS:
        raise ModelError(
            f"{type(model).__name__}: how a model of kind {kind!r} takes pictures is not known",
            remedy=f"kinds are {', '.join(KINDS)}",
        )
    return KINDS[kind](model, None if kind == "llama4" else _processor(Path(folder)), tokenizer)


def _processor(folder: Path) -> Any:
    from guardkeel.pictures import pillow

    pillow()  # says what to install
    import transformers

    form = {"backend": "pil"} if int(transformers.__version__.partition(".")[0]) >= 5 else {"use_fast": False}
    try:
        with quiet():
            return transformers.AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, **form)
    except (ValueError, OSError, ImportError, KeyError, TypeError) as e:
        said = " ".join(str(e).split())[:300]
        lacking = "torchvision" in said
        raise ModelError(
            f"{folder}: no usable image processor: {said}",
            remedy="this kind of processor needs torchvision: pip install torchvision"
            if lacking
            else "put the model's preprocessor_config.json beside config.json",
        ) from e
