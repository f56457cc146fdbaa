"""Whether two models read text alike: the vocabulary and the added tokens of their tokenizers, compared as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardkeel.errors import ModelError
from guardkeel.models.checks import read_json

JSON = "tokenizer.json"
_OTHERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_REMEDY = (
    "a token must be the same row of the embedding in all of them: fine-tune from the reference without adding tokens, "
    "or put the reference's tokenizer beside the weights where it was only written differently"
)


def tokenizer_file(folders: Sequence[Path]) -> Path | None:
    """The first tokenizer among the folders of a model; an adapter's own comes before its base's."""
    for folder in folders:
        for name in (JSON, *_OTHERS):
            if (folder / name).is_file():
                return folder / name
    return None


def check_same(reference: Path, other: Path) -> None:
    """Refuse tokenizers that differ in more than how they are written.

    Raises:
        ModelError: naming the first tokens that differ.
    """
    if reference.samefile(other) or reference.read_bytes() == other.read_bytes():
        return
    if reference.name != other.name or reference.name != JSON:
        raise ModelError(f"{other}: not the tokenizer of the reference, {reference}", remedy=_REMEDY)
    ours, theirs = _read(reference), _read(other)
    for what, a, b in zip(("vocabulary", "added tokens", "merges"), ours, theirs, strict=True):
        if a != b:
            odd = sorted(map(str, dict(a.items() ^ b.items())))[:3] if isinstance(a, dict) else []
            named = f": {', '.join(map(repr, odd))}" if odd else ""
            raise ModelError(f"{other}: not the same {what} as in {reference}{named}", remedy=_REMEDY)


def _read(path: Path) -> tuple[dict[Any, Any], dict[Any, Any], Any]:
    found = read_json(path, "")
    model = found.get("model")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab") or {}
    try:
        if isinstance(vocabulary, list):  # Unigram: token and score
            vocabulary = {str(entry[0]): (i, entry[1]) for i, entry in enumerate(vocabulary)}
        added = {str(t["content"]): t["id"] for t in found.get("added_tokens") or []}
        merges = [" ".join(m) if isinstance(m, list) else m for m in model.get("merges") or []]
    except (TypeError, KeyError, IndexError) as e:
        raise ModelError(f"{path}: its vocabulary is corrupt", remedy="fetch or write the file again") from e
    return vocabulary, added, merges
