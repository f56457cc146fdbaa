"""Pictures for a loaded model by way of token ids, and their features kept so that they are computed once.

Every picture gets a run of ids beyond the vocabulary, one for each place that its features take. Rows of ids may then
be padded, batched, cached and taught as if they were text alone; when the model is called, those ids are replaced by
the picture's features. So one picture under many questions costs its vision tower once, whichever rows it is in.

Pictures are told apart by their pixels. Features are kept up to `room` bytes, the least recently used go first, and
all go when a weight of the vision part has changed. Where gradients are on and the vision part is trained, they are
computed anew with gradients; the prepared pixels are what is kept then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ConfigError
from guardkeel.images import Image
from guardkeel.models.eyes import Eyes, Mllama, Prepared
from guardkeel.pictures import open_picture

ROOM = 1 << 30


@dataclass(frozen=True)
class Shown:
    """A picture that ids stand for: `ids` take the places of the picture token in `text`."""

    image: Image
    digest: str
    text: str
    ids: range


@dataclass(frozen=True)
class _Run:
    """`count` places of a picture from its place `start` on, which begin at a column of a row."""

    column: int
    shown: Shown
    start: int
    count: int


class Sight:
    """Shows pictures to a model; the model must be called through `input_ids`, with or without them.

    Args:
        model: the whole vision-language model. A hook is put on it, which `close` takes off.
        eyes: of that model.
        room: bytes of features, and as many again of prepared pixels, that are kept.
        allow_addresses: see open_picture.
        strict: see open_picture.
    """

    def __init__(
        self, model: Any, eyes: Eyes, *, room: int = ROOM, allow_addresses: bool = False, strict: bool = True
    ) -> None:
        self.model, self.eyes, self.room = model, eyes, room
        self.opening = {"allow_addresses": allow_addresses, "strict": strict}
        self.computed = 0
        """How often the vision tower was run."""
        self.first = int(model.get_input_embeddings().weight.shape[0])
        """The first id that is a picture's."""
        self._next = self.first
        self._named: dict[Image, Shown] = {}
        self._shown: dict[str, Shown] = {}
        self._starts: list[Shown] = []
        self._pixels = _Kept(room)
        self._features = _Kept(room)
        self._versions: list[int] = []
        language = {id(p) for p in (*_language(model).parameters(), model.get_output_embeddings().weight)}
        self._weights = [p for p in model.parameters() if id(p) not in language]
        self._handle = model.register_forward_pre_hook(self._place, with_kwargs=True)

    def show(self, image: Image) -> Shown:
        """Ids for a picture; the same for the same pixels.

        Raises:
            DataError, ConfigError: it cannot be opened. ModelError: it cannot be prepared.
        """
        if image not in self._named:
            picture = open_picture(image, **self.opening)
            known = self._shown.get(picture.digest)
            if known is None:
                prepared = self.eyes.prepare(picture.pixels)
                ids = range(self._next, self._next + prepared.tokens)
                self._next = ids.stop
                known = Shown(image, picture.digest, prepared.text, ids)
                self._shown[picture.digest] = known
                self._starts.append(known)
                self._pixels.keep(picture.digest, prepared, _bytes(prepared.inputs.values()))
            self._named[image] = known
        return self._named[image]

    def features(self, shown: Shown) -> Tensor:
        """A picture's features, (places, hidden), from what is kept or from the vision tower."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._weights):
            self.computed += 1
            return self.eyes.features(self._prepared(shown))
        versions = [weight._version for weight in self._weights]
        if versions != self._versions:
            self._features.clear()
            self._versions = versions
        found = self._features.get(shown.digest)
        if found is None:
            self.computed += 1
            with torch.inference_mode(False), torch.no_grad():  # what is kept may be met by gradients later
                found = self.eyes.features(self._prepared(shown))
            self._features.keep(shown.digest, found, _bytes([found]))
        return found  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Drop every feature that is kept."""
        self._features.clear()

    def close(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def __enter__(self) -> Sight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, shown: Shown) -> Prepared:
        found = self._pixels.get(shown.digest)
        if found is None:
            picture = open_picture(shown.image, **self.opening)
            if picture.digest != shown.digest:
                raise ConfigError(
                    f"{shown.image.shown}: the picture has changed since it was first read",
                    remedy="leave files alone while they are being judged",
                )
            found = self.eyes.prepare(picture.pixels)
            self._pixels.keep(shown.digest, found, _bytes(found.inputs.values()))
        return found  # type: ignore[no-any-return]

    def _place(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before every forward: the ids of pictures become their features."""
        ids = kwargs.get("input_ids")
        if ids is None:
            return None
        places = ids >= self.first
        if not bool(places.any()):
            return None
        rows = self._rows(ids, places)
        plain = ids.masked_fill(places, self.eyes.token_id)
        shown = {run.shown.digest: run.shown for runs in rows for run in runs}
        once = {digest: self.features(one) for digest, one in shown.items()}
        if isinstance(self.eyes, Mllama):
            looked = {n: once[run.shown.digest] for n, runs in enumerate(rows) for run in runs}
            more = self.eyes.looking(self._prepared_rows(rows), looked, ids)
            return args, kwargs | {"input_ids": plain} | more
        features = torch.cat(
            [once[r.shown.digest][r.start : r.start + r.count] for runs in rows for r in runs]
        )
        embedded = model.get_input_embeddings()(plain)
        embedded = embedded.masked_scatter(places[..., None], features.to(embedded.dtype))
        found = {**kwargs, "input_ids": None, "inputs_embeds": embedded}
        if not self.eyes.goes_on:
            found["position_ids"] = self.eyes.positions(_positions(kwargs, ids), self._prepared_rows(rows))
        return args, found

    def _rows(self, ids: Tensor, places: Tensor) -> list[list[_Run]]:
        """The pictures, or parts of them, of each row. A prefix that rows share may end within a picture."""
        rows: list[list[_Run]] = []
        for row, held in zip(ids.tolist(), places.any(1).tolist(), strict=True):
            runs: list[_Run] = []
            column = 0
            while held and column < len(row):
                if row[column] < self.first:
                    column += 1
                    continue
                shown = self._starts[bisect_right(self._starts, row[column], key=lambda s: s.ids.start) - 1]
                end = column + 1
                while end < len(row) and row[end] == row[end - 1] + 1 and row[end] in shown.ids:
                    end += 1
                runs.append(_Run(column, shown, row[column] - shown.ids.start, end - column))
                column = end
            rows.append(runs)
        return rows

    def _prepared_rows(self, rows: list[list[_Run]]) -> list[list[tuple[int, Prepared]]]:
        return [[(run.column, self._prepared(run.shown)) for run in runs] for runs in rows]


class _Kept:
    """Values by name up to a number of bytes; what was used longest ago goes first."""

    def __init__(self, room: int) -> None:
        self.room, self.held = room, 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, name: str) -> Any:
        if name not in self._values:
            return None
        self._values.move_to_end(name)
        return self._values[name][0]

    def keep(self, name: str, value: Any, size: int) -> None:
        self._values[name] = (value, size)
        self.held += size
        while self.held > self.room and self._values:
            _, (_, gone) = self._values.popitem(last=False)
            self.held -= gone

    def clear(self) -> None:
        self._values.clear()
        self.held = 0


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _positions(kwargs: dict[str, Any], ids: Tensor) -> Tensor:
    """The text positions that the caller gave, or those that the mask says."""
    given, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
    if given is not None:
        return given  # type: ignore[no-any-return]
    if mask is None:
        mask = torch.ones_like(ids)
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _language(model: Any) -> Any:
    """The part of the model that reads."""
    from guardkeel.models.towers import LANGUAGE

    kind = model.config.model_type
    where = LANGUAGE.get(kind) or ("language_model" if kind == "llama4" else "model.language_model")
    return model.get_submodule(where)
