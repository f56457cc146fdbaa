"""What a checkpoint folder must be before anything in it is loaded: no pickles, nothing missing or broken.

Shapes, names and vocabulary are compared from headers alone; only `finite` reads the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError, UnsafeFileError
from guardkeel.models.headers import TensorEntry, check_finite, read_header
from guardkeel.resources import Progress
from guardkeel.resources.reference import PICKLES, check_member_name

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
AGAIN = "fetch the checkpoint again"
WRITE_AGAIN = "fetch or write the file again"

_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight")

# Gemma 3's tokenizer has one id more than the embedding of its text models: it marks an image, never text.
_NEVER_IN_TEXT = {"<image_soft_token>"}


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: its parsed config.json, and where each tensor is (name → file, entry)."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[Path, TensorEntry]]

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({file for file, _ in self.tensors.values()})

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.end - entry.start for _, entry in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        total = 0
        for _, entry in self.tensors.values():
            count = 1
            for n in entry.shape:
                count *= n
            total += count
        return total


def check_checkpoint(
    folder: str | Path, *, finite: bool = True, progress: Progress | None = None
) -> Checkpoint:
    """Check a transformers folder: configuration, weight files, shards, values, tokenizer.

    Args:
        folder: the checkpoint.
        finite: also read all weights and refuse NaN and Inf.
        progress: called with ("check weights", bytes done, bytes in all).

    Raises:
        UnsafeFileError: the weights are pickles, by name or by content.
        ModelError: anything else that is missing, damaged or does not fit, naming the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder", remedy="give the folder that holds config.json and the weights"
        )
    config = read_json(folder / "config.json", "a transformers checkpoint has it beside its weights")
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ModelError(
            f"{folder / 'config.json'}: 'architectures' is {names!r}",
            remedy="it must name the model class, as save_pretrained writes it",
        )
    checkpoint = Checkpoint(folder, config, _tensors(folder))
    _check_ties(checkpoint)
    _check_vocabulary(checkpoint)
    if finite:
        done, total = 0, checkpoint.weight_bytes

        def tick(n: int) -> None:
            nonlocal done
            done += n
            if progress:
                progress("check weights", done, total)

        for file in checkpoint.files:
            check_finite(file, tick)
    return checkpoint


def read_json(path: Path, why: str) -> dict[str, Any]:
    """A JSON object from a file of a model folder."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise ModelError(f"{path}: no such file", remedy=why) from e
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not valid JSON ({e})", remedy=WRITE_AGAIN) from e
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a {type(value).__name__}, not a JSON object", remedy=WRITE_AGAIN)
    return value


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder whose weights are only there as pickles; call it when it has no safetensors."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES)
    if found:
        raise UnsafeFileError(
            f"{folder}: its weights are pickles ({', '.join(found[:3])}), which can run code when read",
            remedy="load it where that is safe, and save_pretrained(safe_serialization=True) it",
        )


def _tensors(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / SINGLE).is_file():
        tensors = {name: (folder / SINGLE, entry) for name, entry in read_header(folder / SINGLE).items()}
        if not tensors:
            raise ModelError(f"{folder / SINGLE}: it has no tensor", remedy=WRITE_AGAIN)
        return tensors
    refuse_pickles(folder)
    gguf = sorted(folder.glob("*.gguf"))
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:
        raise ModelError(f"{folder}: {len(shards)} shards and no {INDEX}", remedy=AGAIN)
    remedy = (
        f"give the GGUF file itself: {gguf[0]}"
        if gguf
        else f"a checkpoint has {SINGLE} or {INDEX} and its shards"
    )
    raise ModelError(f"{folder}: no safetensors weights", remedy=remedy)


def _sharded(folder: Path) -> dict[str, tuple[Path, TensorEntry]]:
    index = folder / INDEX
    weight_map = read_json(index, "").get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(f, str) for f in weight_map.values())
    ):
        raise ModelError(f"{index}: 'weight_map' is not a table of tensors and files", remedy=AGAIN)
    files = sorted(set(weight_map.values()))
    for file in files:
        check_member_name(file, str(index))
        if Path(file).suffix != ".safetensors":
            raise UnsafeFileError(
                f"{index}: shard {file!r} is not safetensors",
                remedy="write the checkpoint with safe_serialization=True",
            )
    missing = [f for f in files if not (folder / f).is_file()]
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:5])}",
            remedy=AGAIN,
        )
    headers = {file: read_header(folder / file) for file in files}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise ModelError(
                f"{folder / file}: it lacks tensor {name!r}, which {INDEX} puts there",
                remedy=AGAIN,
            )
    return {name: (folder / file, headers[file][name]) for name, file in weight_map.items()}


def _check_ties(checkpoint: Checkpoint) -> None:
    """Tied embeddings that are stored twice must be stored alike, or one of them would be lost unseen."""
    if not checkpoint.config.get("tie_word_embeddings"):
        return
    head = checkpoint.tensors.get("lm_head.weight")
    embedding = checkpoint.tensors.get("model.embed_tokens.weight")
    if not head or not embedding:
        return
    a, b = _bytes_of(*head), _bytes_of(*embedding)
    if head[1].shape != embedding[1].shape or any(x != y for x, y in zip(a, b, strict=False)):
        raise ModelError(
            f"{checkpoint.folder}: config.json ties lm_head to the embedding; the stored weights differ",
            remedy="if the model was trained untied set tie_word_embeddings to false; else write it again",
        )


def _bytes_of(file: Path, entry: TensorEntry) -> Any:
    with file.open("rb") as f:
        f.seek(entry.start)
        left = entry.end - entry.start
        while left:
            chunk = f.read(min(4 * 1024**2, left))
            left -= len(chunk)
            yield chunk


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    """Every id of tokenizer.json must have a row in the embedding."""
    path = checkpoint.folder / "tokenizer.json"
    rows = next(
        (e.shape[0] for n, (_, e) in checkpoint.tensors.items() if n.endswith(_EMBEDDINGS) and e.shape), None
    )
    if rows is None or not path.is_file():
        return
    tokenizer = read_json(path, "")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocab, dict):
        ids.update(vocab)
    elif isinstance(vocab, list):
        ids.update({str(entry[0]): i for i, entry in enumerate(vocab)})
    try:
        ids.update({t["content"]: t["id"] for t in tokenizer.get("added_tokens") or []})
        beyond = sorted((i, t) for t, i in ids.items() if i >= rows and t not in _NEVER_IN_TEXT)
    except (TypeError, KeyError) as e:
        raise ModelError(f"{path}: its vocabulary is corrupt", remedy=WRITE_AGAIN) from e
    if beyond:
        raise ModelError(
            f"{path}: {len(beyond)} tokens have no row in the embedding of {rows:,} rows: "
            + ", ".join(f"{t!r} = {i}" for i, t in beyond[:3]),
            remedy="use the tokenizer of this model, or resize_token_embeddings before saving",
        )
