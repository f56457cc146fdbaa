"""A linear model as a guard: TF-IDF of word and character n-grams, logistic regression. The cheap trained baseline.

    text   = side marker + what is judged (`judged_text`), folded to lower case
    x      = [words: 1- and 2-grams | characters: 3- to 5-grams within words], each hashed into 2^18 columns,
             log(1 + count) · idf, each block of length one
    P      = 1 / (1 + exp(−(a · (w·x + b) + c)))

w and b are fitted on `fit` items (L2, classes balanced), a and c on `calibrate` items (Platt 1999). Columns are
hashed, so the folder holds numbers and no piece of anyone's text: `linear.json` and `linear.safetensors`, never a
pickle. Weights are rounded to float32 before anything is scored, so a guard that is loaded again scores the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guardkeel.conversation import SIDES, Conversation, Example, Label, Side
from guardkeel.errors import DataError, ModelError
from guardkeel.guards.base import Batch, Guard, Judgement, Verdict
from guardkeel.guards.judged import BLIND, judged_text
from guardkeel.records import atomic_writer, write_json

FAMILY = "linear"
SETTINGS, WEIGHTS = "linear.json", "linear.safetensors"
BATCH = 256
MAX_CHARS = 50_000
"""Of one text; a longer one loses its middle, and the words lost are counted."""
FEWEST = 8
"""Items of each label that fitting and calibrating need."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


class LinearSettings(BaseModel):
    """What the features are; `linear.json` holds it beside the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: int = Field(default=2**18, ge=2**8, le=2**22, description="hashed columns of each block")
    words: tuple[int, int] = Field(default=(1, 2), description="word n-grams, from and to")
    characters: tuple[int, int] = Field(default=(3, 5), description="character n-grams, from and to")
    strength: float = Field(default=4.0, gt=0, description="C of the logistic regression: 1 / L2 penalty")

    @model_validator(mode="after")
    def _ranges(self) -> LinearSettings:
        for low, high in (self.words, self.characters):
            if not 1 <= low <= high <= 8:
                raise ValueError(f"n-grams go from 1 to 8, not from {low} to {high}")
        return self


class LinearFile(BaseModel):
    """`linear.json`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["linear"] = "linear"
    name: str = Field(default=FAMILY, min_length=1)
    threshold: float = Field(default=0.5, ge=0, le=1)
    settings: LinearSettings = LinearSettings()
    sha256: str = Field(default="", description="of linear.safetensors")
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Everything learned: `idf` and `weights` have shape (2 · columns,); `scale` and `shift` are Platt's a and c."""

    idf: np.ndarray[Any, np.dtype[np.float32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    bias: float
    scale: float = 1.0
    shift: float = 0.0


class Labelled(Protocol):
    """A suite's item: something to judge and its gold label."""

    @property
    def judgement(self) -> Judgement: ...  # noqa: D102
    @property
    def label(self) -> Label: ...  # noqa: D102


class SplitSuite(Protocol):
    """What fitting needs of a suite. Suites that are split together (`split_many`) leak nothing into each other."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def items(self, split: Any = None) -> Sequence[Labelled]: ...  # noqa: D102


@dataclass
class LinearGuard(Guard):
    """A fitted linear guard."""

    fitted: Fitted
    settings: LinearSettings = field(default_factory=LinearSettings)
    name: str = FAMILY
    threshold: float = 0.5
    provenance: dict[str, Any] = field(default_factory=dict)

    family = FAMILY

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard."""
        return {
            "parameters": int(self.fitted.weights.size) + 3,
            "dtype": "float32",
            "device": "cpu",
            **self.settings.model_dump(mode="json"),
        }

    @classmethod
    def fit(
        cls,
        examples: Iterable[Example],
        *,
        calibrate: Iterable[Example] = (),
        settings: LinearSettings | None = None,
        name: str = FAMILY,
    ) -> LinearGuard:
        """Fit on labelled conversations, each labelled side an item; see `fit_items`."""
        return fit_items(_sides(examples), _sides(calibrate), settings=settings, name=name)

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard: items in their order. It knows no categories and shows no layers."""
        for number, start in enumerate(range(0, len(items), BATCH)):
            if number not in skip:
                indices = list(range(start, min(start + BATCH, len(items))))
                yield Batch(number, indices, self._judge([items[i] for i in indices]))

    def _judge(self, items: Sequence[Judgement]) -> list[Verdict]:
        documents = [_document(i.conversation, i.side) for i in items]
        margins = self._margins([text for text, _ in documents])
        return [
            Verdict(None, unscored=BLIND if item.conversation.images else "the text is empty")
            if item.conversation.images or not text
            else Verdict(self._chance(margin), dropped=dropped)
            for item, (text, dropped), margin in zip(items, documents, margins, strict=True)
        ]

    def _margins(self, texts: Sequence[str]) -> Floats:
        f = self.fitted
        rows = _weighted(_counts(texts, self.settings), f.idf)
        return np.asarray(rows @ f.weights.astype(np.float64) + f.bias, dtype=np.float64)

    def _chance(self, margin: float) -> float:
        z = self.fitted.scale * margin + self.fitted.shift
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))

    def save(self, folder: str | Path) -> Path:
        """Write linear.safetensors, then linear.json, which names its digest."""
        from safetensors.numpy import save

        folder = Path(folder)
        tensors = {
            "idf": self.fitted.idf,
            "weights": self.fitted.weights,
            "scalars": np.array([self.fitted.bias, self.fitted.scale, self.fitted.shift]),
        }
        data = save(tensors)
        with atomic_writer(folder / WEIGHTS) as out:
            out.write(data)
        said = LinearFile(
            name=self.name,
            threshold=self.threshold,
            settings=self.settings,
            sha256=hashlib.sha256(data).hexdigest(),
            provenance=self.provenance,
        )
        write_json(folder / SETTINGS, said.model_dump(mode="json"))
        return folder


def fit_items(
    fit: Sequence[tuple[Judgement, Label]],
    calibrate: Sequence[tuple[Judgement, Label]] = (),
    *,
    settings: LinearSettings | None = None,
    name: str = FAMILY,
) -> LinearGuard:
    """Fit on items of both labels and calibrate on others, so that P(unsafe) is what it says.

    Without calibrate items scores are the regression's own, which were balanced over labels; provenance says so.
    Items without text are left out.

    Raises:
        DataError: too few items of a label.
    """
    from sklearn.linear_model import LogisticRegression

    settings = settings or LinearSettings()
    texts, labels = _documents(fit, "fit")
    counts = _counts(texts, settings)
    seen = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = (np.log((1 + len(texts)) / (1 + seen)) + 1).astype(np.float32)
    model = LogisticRegression(
        C=settings.strength, class_weight="balanced", solver="liblinear", random_state=0, max_iter=1000
    ).fit(_weighted(counts, idf), labels)
    fitted = Fitted(idf, model.coef_[0].astype(np.float32), float(model.intercept_[0]))
    guard = LinearGuard(fitted, settings, name)
    guard.provenance = {"fit": _numbers(labels), "calibrate": "none: probabilities are not calibrated"}
    if calibrate:
        held, truth = _documents(calibrate, "calibrate")
        platt = LogisticRegression(C=1e6, max_iter=1000).fit(guard._margins(held)[:, None], truth)
        scale, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
        guard.fitted = Fitted(fitted.idf, fitted.weights, fitted.bias, scale, shift)
        guard.provenance["calibrate"] = _numbers(truth)
    return guard


def fit_linear(
    suites: Sequence[SplitSuite],
    out: str | Path,
    *,
    settings: LinearSettings | None = None,
    name: str = FAMILY,
) -> LinearGuard:
    """Fit on the `fit` items of suites, calibrate on their `calibrate` items, write the folder `out`.

    A suite without such items adds none. Give suites that were split together (`split_many`): then no text of any
    suite's `test` items, nor a near-duplicate of one, has been seen.

    Raises:
        DataError: too few items of a label over all suites.
    """
    found: dict[str, list[tuple[Judgement, Label]]] = {"fit": [], "calibrate": []}
    told: dict[str, Any] = {}
    for suite in suites:
        told[suite.name] = {"digest": suite.digest}
        for split, rows in found.items():
            try:
                items = suite.items(split)
            except DataError:  # it has none there
                items = ()
            rows += [(item.judgement, item.label) for item in items]
            told[suite.name][split] = len(items)
    guard = fit_items(found["fit"], found["calibrate"], settings=settings, name=name)
    guard.provenance["suites"] = told
    guard.save(out)
    return guard


def open_guard(folder: str | Path, *, name: str | None = None, threshold: float | None = None) -> LinearGuard:
    """Load a folder that `save` wrote (or its linear.json).

    Raises:
        ModelError: a file is missing or damaged, does not match the other, or holds numbers that are not finite.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == SETTINGS else folder
    remedy = f"take {SETTINGS} and {WEIGHTS} as they were written, or fit again"
    try:
        said = LinearFile.model_validate_json((folder / SETTINGS).read_bytes())
        data = (folder / WEIGHTS).read_bytes()
    except OSError as e:
        raise ModelError(f"{e.filename}: cannot be read ({e.strerror})", remedy=remedy) from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise ModelError(f"{folder / SETTINGS}: {where}: {first['msg']}", remedy=remedy) from e
    if said.sha256 and hashlib.sha256(data).hexdigest() != said.sha256:
        raise ModelError(f"{folder / WEIGHTS}: is not the file that {SETTINGS} names", remedy=remedy)
    fitted = _read(data, folder / WEIGHTS, 2 * said.settings.columns, remedy)
    at = said.threshold if threshold is None else threshold
    return LinearGuard(fitted, said.settings, name or said.name, at, said.provenance)


def is_linear(path: str | Path) -> bool:
    """Whether a folder, or a linear.json, says that it is a linear guard. Never raises."""
    path = Path(path)
    path = path / SETTINGS if path.is_dir() else path
    try:
        found = json.loads(path.read_bytes()) if path.name == SETTINGS else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") == FAMILY


def _read(data: bytes, path: Path, columns: int, remedy: str) -> Fitted:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as e:
        raise ModelError(f"{path}: is not safetensors ({e})", remedy=remedy) from e
    for key, kind, shape in (
        ("idf", "<f4", (columns,)),
        ("weights", "<f4", (columns,)),
        ("scalars", "<f8", (3,)),
    ):
        found = tensors.get(key)
        if found is None or found.dtype != np.dtype(kind) or found.shape != shape:
            said = "missing" if found is None else f"{found.dtype} {found.shape}"
            raise ModelError(f"{path}: {key} is {said}, not {np.dtype(kind)} {shape}", remedy=remedy)
        if not np.isfinite(found).all():
            raise ModelError(f"{path}: {key} holds NaN or infinity", remedy=remedy)
    bias, scale, shift = map(float, tensors["scalars"])
    return Fitted(tensors["idf"], tensors["weights"], bias, scale, shift)


def _sides(examples: Iterable[Example]) -> list[tuple[Judgement, Label]]:
    return [
        (Judgement(f"{e.id}#{side}", e.conversation, side), e.labels[side])
        for e in examples
        for side in SIDES
        if side in e.labels
    ]


def _documents(items: Sequence[tuple[Judgement, Label]], split: str) -> tuple[list[str], list[int]]:
    rows = [(_document(j.conversation, j.side)[0], int(label == "unsafe")) for j, label in items]
    rows = [(text, label) for text, label in rows if text]
    labels = [label for _, label in rows]
    for value, word in ((1, "unsafe"), (0, "safe")):
        if labels.count(value) < FEWEST:
            raise DataError(
                f"{labels.count(value)} {word} items to {split} a linear guard on; at least {FEWEST} are needed",
                remedy="add suites or examples that have such items, or change their splits",
            )
    return [text for text, _ in rows], labels


def _numbers(labels: Sequence[int]) -> dict[str, int]:
    return {"unsafe": sum(labels), "safe": len(labels) - sum(labels)}


def _document(conversation: Conversation, side: Side) -> tuple[str, int]:
    """The text with its side's marker, which no message can hold, and the number of words dropped."""
    text = judged_text(conversation, side).replace("\x00", " ").lower()
    if not text.strip():
        return "", 0
    dropped = 0
    if len(text) > MAX_CHARS:
        head, tail = text[: MAX_CHARS // 2], text[-MAX_CHARS // 2 :]
        dropped = max(1, len(text.split()) - len(head.split()) - len(tail.split()))
        text = f"{head} {tail}"
    return f"\x00{side} {text}", dropped


def _counts(texts: Sequence[str], settings: LinearSettings) -> Any:
    """Hashed n-gram counts, a sparse matrix of shape (texts, 2 · columns)."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    if not texts:
        return csr_matrix((0, 2 * settings.columns))
    same = {"n_features": settings.columns, "alternate_sign": False, "norm": None, "lowercase": False}
    words = HashingVectorizer(ngram_range=settings.words, token_pattern=r"\x00?\w+", **same)  # noqa: S106
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=settings.characters, **same)
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # lone surrogates
    unmarked = [text.partition(" ")[2] for text in clean]
    return hstack([words.transform(clean), characters.transform(unmarked)], format="csr")


def _weighted(counts: Any, idf: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """log(1 + count) · idf with each of the two blocks at length one; shape as `counts`."""
    from scipy.sparse import hstack
    from sklearn.preprocessing import normalize

    rows = counts.astype(np.float64)
    rows.data = np.log1p(rows.data)
    rows = rows.multiply(idf.astype(np.float64)[None, :]).tocsr()
    middle = rows.shape[1] // 2
    return hstack([normalize(rows[:, :middle]), normalize(rows[:, middle:])], format="csr")
