"""What methods need beside weights: how the inputs of a guard's linear layers are spread over guard conversations.

    safe-hessian     H = (2/n) Σ x xᵀ, (in, in), over safe and unsafe safety data (Safe Delta, arXiv:2505.12038)
    harmful-norms    ‖x_j‖₂ = √(Σ x_j²), (in,), over harmful data (Antidote, arXiv:2408.09600; Wanda, arXiv:2306.11695)

x is what the layer reads at one token; sums go over all n tokens of all conversations in the guard's own template,
padding left out, in float32 (squares in float64), and are kept as float32. There is one for the weight (out, in) of
every linear layer inside the blocks, under the tensor's name. The released codes divide H, and the squared norms, by
the number of conversations and let an answer follow each; what both methods choose is the same when these are scaled,
and a guard's answer is a few tokens of hundreds.

Two things save work and change nothing but rounding: the policy that all conversations begin with is run once and
counts as often as there are conversations, and layers that read the very same tensor (q, k and v) share one sum. What
is held at once is bounded by measuring some layers at a time, in as many passes as it takes; each pass goes into the
file as soon as it is done, and a killed run goes on after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ConfigError, DataError, ModelError, RunError
from guardkeel.fusion.growing import Growing, metadata
from guardkeel.fusion.tensorfile import TensorFiles
from guardkeel.guards.base import Judgement
from guardkeel.guards.batching import plan
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.encoding import Encoder, NotSharedError
from guardkeel.guards.load import AnyGuard, base_path, guard_path, load_checkpoint
from guardkeel.guards.prefix import KeyValues, encode_prefix, forward, left_padded, reusable
from guardkeel.models.adapters import is_adapter
from guardkeel.models.devices import free_memory
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import file_digest, value_digest
from guardkeel.tuning.data import read_data
from guardkeel.tuning.gather import balanced
from guardkeel.tuning.probes import plain_name
from guardkeel.tuning.targets import Target

Kind = Literal["safe-hessian", "harmful-norms"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Watch = Callable[[str, int, int | None], None]


def measured(
    kind: str,
    guard: str,
    guard_data: Sequence[str],
    path: Path,
    *,
    most: int = 200,
    memory: int | None = None,
    data: str | None = None,
    offline: bool | None = None,
    watch: Watch = lambda what, done, total: None,
    **options: Any,
) -> dict[str, Any]:
    """Measure an extra of a guard by its reference, on guard data as of a fine-tune; see `measure`.

    Args:
        kind: which.
        guard: whose activations are looked at.
        guard_data: files, suites (of which the `fit` split is taken) or references.
        path: the file.
        most: use at most this many conversations, labels in balance.
        memory: bytes that the sums may take at once.
        data: the folder that data: references start from.
        offline: never use the network.
        watch: told (what, conversations done, all of them).
        options: of load_checkpoint.

    Returns:
        What was written: kind, file, sha256, tensors, conversations, tokens.

    Raises:
        GuardkeelError: naming what is wrong, where, and the remedy.
    """
    wanted: Kind | None = next((k for k in KINDS if k == kind), None)
    if wanted is None:
        raise ConfigError(f"unknown extra {kind!r}", remedy=f"extras that are measured: {', '.join(KINDS)}")
    found = [read_data(name, data=data, offline=offline, progress=watch) for name in guard_data]
    if any(d.kind != "guard" for d in found):
        raise DataError(
            f"{', '.join(guard_data)}: guard data need labels, these are instructions", remedy="label them"
        )
    judgements = chosen(wanted, balanced([t for d in found for t in d.targets], most))
    folder = guard_path(guard, progress=watch, offline=offline)
    inputs = {"guard": checkpoint_digest(folder)}
    if is_adapter(folder):
        inputs["base"] = checkpoint_digest(base_path(folder, watch, offline))
    loaded = load_checkpoint(guard, offline=offline, progress=watch, **options)
    measure(loaded, judgements, path, wanted, memory=memory, inputs=inputs, watch=watch)
    return {
        "kind": kind,
        "file": str(path),
        "sha256": file_digest(path),
        "tensors": len(TensorFiles.of(path).specs),
        "conversations": len(judgements),
        "tokens": int(metadata(path)["tokens"]),
    }


def chosen(kind: Kind, targets: Sequence[Target]) -> list[Judgement]:
    """The conversations that an extra is measured on: all, or those labelled unsafe; DataError where none is."""
    found = [t.judgement for t in targets if kind == "safe-hessian" or t.label == "unsafe"]
    if not found:
        raise DataError(
            f"{kind}: none of {len(targets)} conversations is labelled unsafe",
            remedy="give harmful ones as well",
        )
    return found


def measure(
    guard: AnyGuard,
    judgements: Sequence[Judgement],
    path: Path,
    kind: Kind,
    *,
    memory: int | None = None,
    inputs: Mapping[str, str] | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Path:
    """Measure one kind of extra of a loaded guard, with or without an adapter on it.

    Args:
        guard: as it is to be looked at.
        judgements: the conversations, each in the guard's own template, over-long messages shortened.
        path: the safetensors file; one of the same measurement is left as it is.
        kind: which.
        memory: bytes that the sums may take at once; default: half of what is free.
        inputs: digests of what the guard and the data are, to tell one measurement from another.
        watch: told (what, conversations done, all of them), in each pass.

    Raises:
        DataError: a conversation cannot be read by the guard.
        ConfigError: the file is of another measurement.
        ModelError: a layer cannot be measured.
        RunError: one block's sums alone take more than `memory`.
    """
    texts = [[j.id, j.side, j.conversation.to_messages()] for j in judgements]
    layers = _layers(guard.model)
    digest = value_digest([kind, texts, guard.facts, dict(inputs or {}), sorted(layers)])
    if path.exists():
        if metadata(path).get("digest") == digest:
            return path
        raise ConfigError(f"{path}: an extra of another guard or other data", remedy="choose another file")
    read = _Reading(guard, judgements)
    owners = _owners(layers, read)
    widths = {name: _width(name, layers[name]) for name in layers if owners[name] == name}
    limit = free_memory(str(guard.model.device)) // 2 if memory is None else memory
    groups = _groups(widths, kind, limit)
    order = [(name, owner) for owner in widths for name in layers if owners[name] == owner]
    shapes = {name: (widths[o], widths[o]) if kind == "safe-hessian" else (widths[o],) for name, o in order}
    file = Growing(path, shapes, {"kind": kind, "digest": digest, "tokens": str(read.tokens)})
    for i, group in enumerate(groups):
        if set(group) <= file.held:
            continue
        sums = _Sums({name: layers[name] for name in group}, kind)
        what = kind if len(groups) == 1 else f"{kind}, pass {i + 1} of {len(groups)}"
        with sums.watching():
            for done in read.all(sums):
                watch(what, done, len(judgements))
        made = sums.finished(read.tokens)
        file.add({name: made[owner] for name, owner in order if owner in made})
    file.finish()
    return path


def open_extras(files: Mapping[str, Path]) -> Extras:
    """Files of extras, by their names, for reading tensor by tensor; see Extras."""
    return Extras(files)


class Extras:
    """Called with a tensor's name it gives what there is for that tensor, by the extra's name; nothing is kept.

    Raises:
        ModelError: a file is missing, cut short or corrupt.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = {extra: TensorFiles.of(path) for extra, path in files.items()}

    def __call__(self, name: str) -> Mapping[str, Tensor]:
        """The extras of a tensor."""
        return {extra: file.read(name) for extra, file in self._files.items() if name in file.specs}

    def names(self, extra: str) -> frozenset[str]:
        """The tensors that have this extra."""
        return frozenset(self._files[extra].specs)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class _Reading:
    """Conversations in token ids, run through the guard batch by batch; the same batches every time."""

    def __init__(self, guard: AnyGuard, judgements: Sequence[Judgement]) -> None:
        self.guard, self.model = guard, guard.model
        self.prefix: list[int] = []
        self.segments: list[list[int]] = []
        if isinstance(guard, ClassifierGuard):
            self.rows = self._classified(guard, judgements)
        else:
            self.rows = self._rendered(guard, judgements)
        self.tokens = len(self.rows) * len(self.prefix) + sum(map(len, self.rows))
        self.batches = plan([len(row) for row in self.rows], guard.token_budget)

    def all(self, sums: _Sums) -> Iterator[int]:
        """Run everything under the sums; tells how many conversations are done."""
        prefix: KeyValues | None = None
        if self.prefix:
            sums.next(times=len(self.rows))
            with torch.no_grad():
                prefix = encode_prefix(self.model, self.prefix)
        done = 0
        for picks in self.batches:
            self.run(picks, prefix, sums)
            done += len(picks)
            yield done

    def run(self, picks: Sequence[int], prefix: KeyValues | None, sums: _Sums) -> None:
        """One batch, whose padding the sums leave out."""
        rows, device = [self.rows[i] for i in picks], self.model.device
        with torch.no_grad():
            if not self.segments:
                ids, mask = left_padded(rows, 0, device)
                sums.next(keep=mask.bool())
                forward(self.model, prefix, ids, mask)
                return
            width = max(map(len, rows))
            ids, segments, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
            for i, pick in enumerate(picks):
                ids[i, : len(rows[i])], mask[i, : len(rows[i])] = torch.tensor(rows[i]), 1
                segments[i, : len(rows[i])] = torch.tensor(self.segments[pick])
            extra = {"token_type_ids": segments.to(device)} if self._takes_segments else {}
            sums.next(keep=mask.bool().to(device))
            self.model(input_ids=ids.to(device), attention_mask=mask.to(device), **extra)

    @property
    def _takes_segments(self) -> bool:
        return isinstance(self.guard, ClassifierGuard) and self.guard.takes_segments

    def _rendered(self, guard: Any, judgements: Sequence[Judgement]) -> list[list[int]]:
        encoder = Encoder(guard.grammar, guard.tokenizer, max_tokens=guard.max_tokens)
        if guard.share_prefix and reusable(guard.model.config):
            encoder.share(judgements)
        try:
            rows = [_encoded(encoder, j) for j in judgements]
        except NotSharedError:
            encoder = Encoder(guard.grammar, guard.tokenizer, max_tokens=guard.max_tokens)
            rows = [_encoded(encoder, j) for j in judgements]
        self.prefix = encoder.prefix_ids
        return rows

    def _classified(self, guard: ClassifierGuard, judgements: Sequence[Judgement]) -> list[list[int]]:
        rows = []
        for j in judgements:
            encoded = guard.encode(j)
            if isinstance(encoded, str):
                raise DataError(f"conversation {j.id!r}: {encoded}", remedy="repair or drop the row")
            ids, segments = (list(column) for column in zip(*encoded[0], strict=True))
            rows.append(ids)
            self.segments.append(segments)
        return rows


class _Sums:
    """Σ x xᵀ or Σ x² of the inputs of some layers, while they are watched."""

    def __init__(self, layers: Mapping[str, Any], kind: Kind) -> None:
        self.layers, self.kind = dict(layers), kind
        self.totals: dict[str, Tensor] = {}
        self._keep: Tensor | None = None
        self._times = 1

    def next(self, *, keep: Tensor | None = None, times: int = 1) -> None:
        """Of the forward to come: which tokens are real (all, where it is None), and how often each counts."""
        self._keep, self._times = keep, times

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add up what the layers read in the block."""
        handles = [
            layer.register_forward_pre_hook(lambda module, inputs, name=name: self.add(name, inputs[0]))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, name: str, read: Tensor) -> None:
        """Add the tokens of one input, (…, in)."""
        x = read.detach().reshape(-1, read.shape[-1])
        if self._keep is not None:
            if len(x) != self._keep.numel():
                raise ModelError(
                    f"layer {name!r} reads {len(x)} tokens of a batch of {self._keep.numel()}",
                    remedy="layers that read only some tokens (experts) cannot be measured",
                )
            x = x[self._keep.reshape(-1)]
        if self.kind == "safe-hessian":
            x = x.float()
            if name not in self.totals:
                self.totals[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            self.totals[name].addmm_(x.T, x, alpha=self._times)
        else:
            squares = x.double().square().sum(0) * self._times
            self.totals[name] = self.totals[name] + squares if name in self.totals else squares

    def finished(self, tokens: int) -> dict[str, Tensor]:
        """The extras, on the CPU in float32; frees the sums. ModelError where one is not finite."""
        made = {}
        for name in self.layers:
            total = self.totals.pop(name)
            value = total.mul_(2 / tokens) if self.kind == "safe-hessian" else total.sqrt()
            if not bool(value.isfinite().all()):
                raise ModelError(
                    f"{self.kind} of {name!r} is not finite", remedy="measure with dtype bfloat16 or float32"
                )
            made[name] = value.float().cpu()
        return made


def _layers(model: Any) -> dict[str, Any]:
    """The linear layers inside the blocks, by the name of their weight in the checkpoint; of adapted ones the base."""
    found = blocks(model)
    where = next(name for name, module in model.named_modules() if module is found)
    return {
        f"{plain_name(f'{where}.{name}')}.weight": module
        for name, module in found.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in f".{name}"
    }


def _owners(layers: Mapping[str, Any], read: _Reading) -> dict[str, str]:
    """For each layer the first that reads the very same tensor as it does, seen in a forward of the shortest row."""
    seen: dict[str, Tensor] = {}  # all of them are held until the end: an address is then one tensor's alone

    def look(name: str) -> Any:
        def keep(module: Any, inputs: Any) -> None:
            seen[name] = inputs[0]

        return keep

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    shortest = min(range(len(read.rows)), key=lambda i: (len(read.rows[i]), i))
    try:
        read.run([shortest], None, _Sums({}, "harmful-norms"))
    finally:
        for handle in handles:
            handle.remove()
    silent = sorted(layers.keys() - seen.keys())
    if silent:
        raise ModelError(
            f"layer {silent[0]!r} does not run in every forward",
            remedy="layers that read only some tokens (experts) cannot be measured",
        )
    first: dict[int, str] = {}
    return {name: first.setdefault(id(seen[name]), name) for name in layers}


def _groups(widths: Mapping[str, int], kind: Kind, limit: int) -> list[list[str]]:
    """The layers in order, cut where the sums of those before would take more than `limit` bytes."""
    groups: list[list[str]] = []
    held = limit + 1
    for name, width in widths.items():
        size = 4 * width * width if kind == "safe-hessian" else 8 * width
        if size > limit:
            raise RunError(
                f"{kind} of {name!r} alone takes {size / 1e6:,.0f} MB, the limit is {limit / 1e6:,.0f} MB",
                remedy="allow more memory, or run on a larger machine",
            )
        if held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def _width(name: str, layer: Any) -> int:
    if layer.weight.ndim != 2:
        raise ModelError(f"{name!r} is no matrix", remedy="measure a model whose weights are not quantised")
    return int(layer.in_features)


def _encoded(encoder: Encoder, judgement: Judgement) -> list[int]:
    try:
        return encoder.encode(judgement).ids
    except NotSharedError:
        raise
    except ConfigError as e:
        raise DataError(f"conversation {judgement.id!r}: {e.problem}", remedy=e.remedy) from e
