"""The fused change θ̃ − θ₀ as a LoRA adapter on the reference: truncated SVD module by module, the error reported.

Weights of linear layers get factors, with a rank of their own each (rank_pattern, alpha_pattern; the scaling is 1). A
module whose change LoRA cannot carry (embeddings, norms, a linear layer with a moved bias) and one whose factors would
be larger than its weight are kept whole (modules_to_save). Finished tensors are files of their own until the adapter is
put together, so that a run that was killed goes on after its last tensor.

Departure from PEFT: `add_weighted_adapter` adds the A and the B of several adapters, which makes products of one's B
with another's A; here ΔW is fused and then decomposed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.errors import ModelError
from guardkeel.fusion.lowrank import Factors, factorised, row_basis
from guardkeel.fusion.randomness import generator
from guardkeel.fusion.results import AdapterFit, Module
from guardkeel.models.adapters import WEIGHTS, is_adapter
from guardkeel.models.checks import read_json
from guardkeel.models.loading import task_of
from guardkeel.models.quiet import quiet
from guardkeel.records import atomic_writer, write_json

_PREFIX = "base_model.model."
_ROUNDING = 2.0**-21
"""A fused float32 weight is off by less than this times the weight: a few roundings of 2⁻²⁴ each."""


@dataclass(frozen=True)
class Places:
    """Where the tensors of a checkpoint are in the model that transformers makes of it."""

    modules: Mapping[str, tuple[str, ...]]
    """Module → names of its own tensors."""
    linear: frozenset[str]
    """Modules that are linear layers."""
    tied: Mapping[str, tuple[str, ...]]
    """Stored tensor → names under which the model has it again."""

    def module_of(self, tensor: str) -> str | None:
        """The module that holds a tensor; None where no module has one of that name."""
        module = tensor.rpartition(".")[0]
        return module if tensor in self.modules.get(module, ()) else None

    def takes_factors(self, tensor: str) -> bool:
        """Whether LoRA can carry a change of this tensor."""
        module = self.module_of(tensor)
        alone = tensor not in self.tied and not any(tensor in names for names in self.tied.values())
        return module in self.linear and tensor.endswith(".weight") and alone


def places(folder: Path) -> Places:
    """Read off a model without weights.

    Raises:
        ModelError: the folder is no whole checkpoint, or transformers cannot make its model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    if is_adapter(folder):
        raise ModelError(
            f"{folder}: is an adapter, and an adapter cannot be put on an adapter",
            remedy="write a checkpoint (--output checkpoint), or take a merged reference",
        )
    task = task_of(read_json(folder / "config.json", ""), folder / "config.json")
    auto = AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification
    try:
        with quiet(), torch.device("meta"):
            model = auto.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError, RuntimeError) as e:
        raise ModelError(
            f"{folder / 'config.json'}: transformers cannot make this model, so its linear layers are not known: "
            f"{' '.join(str(e).split())[:200]}",
            remedy="write a checkpoint (--output checkpoint)",
        ) from e
    modules: dict[str, tuple[str, ...]] = {}
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = {f"{name}.{k}": p for k, p in module._parameters.items() if name and p is not None}
        if own:
            modules[name] = tuple(own)
        for tensor, p in own.items():
            names.setdefault(id(p), []).append(tensor)
    linear = frozenset(n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    tied = {same[0]: tuple(same[1:]) for same in names.values() if len(same) > 1}
    return Places(modules, linear, tied)


class Parts:
    """The finished tensors of an adapter, a file each: factors, a whole tensor, or nothing where nothing changed."""

    def __init__(
        self,
        folder: Path,
        where: Places,
        candidates: Sequence[Path],
        *,
        rank: int | None,
        tolerance: float,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """Go on with the parts in a folder, or begin.

        Args:
            folder: of the parts.
            where: the places of the reference's tensors.
            candidates: their folders; the rows of those that are adapters are tried first.
            rank: of all factors, or the tolerance decides.
            tolerance: relative error of a module's change.
            dtype: of what is stored; by default float32 for factors, and what is kept whole is as in the reference.
            seed: of the randomised decomposition.
        """
        self.folder = folder
        self.where = where
        self.adapters = [c for c in candidates if is_adapter(c)]
        self.rank, self.tolerance, self.dtype, self.seed = rank, tolerance, dtype, seed
        self.done = {m["tensor"]: m for m in map(_metadata, sorted(folder.glob("*.safetensors")))}

    def order(self, names: Iterable[str]) -> list[str]:
        """What is still to be done: weights of linear layers last, when it is known which of them are kept whole."""
        left = [n for n in names if n not in self.done]
        return sorted(left, key=lambda n: (self.where.takes_factors(n), n))

    def same(self, name: str) -> None:
        """Note that a tensor is the reference's."""
        self._keep(name, {}, kind="same")

    def add(self, name: str, before: Tensor, fused: Tensor) -> None:
        """Keep the change of one tensor. A change within the rounding of float32 is none.

        Args:
            name: of the tensor.
            before: θ₀ as it is stored.
            fused: θ̃, in float32.

        Raises:
            ModelError: it changed and no module of the model holds it.
        """
        stored, before = before.dtype, before.float()
        delta = fused - before
        change = _norm(delta)
        if not math.isfinite(change):
            raise ModelError(
                f"tensor {name!r} is not finite, as it was or fused",
                remedy="choose a milder setting of the method, or an earlier checkpoint",
            )
        rounding = _ROUNDING * _norm(before)
        if change <= rounding:
            self.same(name)
            return
        module = self.where.module_of(name)
        if module is None:
            raise ModelError(
                f"{name!r} changed and is not the tensor of a module of this model, so no adapter can carry it",
                remedy="leave it out (--skip), or write a checkpoint (--output checkpoint)",
            )
        factors = None
        if self.where.takes_factors(name) and module not in self.whole():
            factors = factorised(
                delta,
                rank=self.rank,
                tolerance=self.tolerance,
                rows=self._rows(module, delta.shape[1]),
                rounding=rounding,
                generator=generator(self.seed, name),
                dtype=self.dtype or torch.float32,
            )
        if factors is None or (self.rank is None and factors.rank * sum(delta.shape) >= delta.numel()):
            self._keep_whole(name, module, fused, self.dtype or stored, change)
        else:
            self._keep_factors(name, module, factors, change)

    def whole(self) -> set[str]:
        """Modules that are kept whole, as far as is known."""
        return {m["module"] for m in self.done.values() if m["kind"] == "whole"}

    def _keep_factors(self, name: str, module: str, factors: Factors, change: float) -> None:
        tensors = {
            f"{_PREFIX}{module}.lora_A.weight": factors.down,
            f"{_PREFIX}{module}.lora_B.weight": factors.up,
        }
        said = {"rank": str(factors.rank), "error": repr(factors.error), "change": repr(change)}
        self._keep(name, tensors, kind="factors", module=module, **said)

    def _keep_whole(self, name: str, module: str, fused: Tensor, dtype: torch.dtype, change: float) -> None:
        kept = fused.to(dtype)
        said = {"error": repr(_norm(kept.float() - fused) / change), "change": repr(change)}
        self._keep(name, {_PREFIX + name: kept}, kind="whole", module=module, **said)

    def _keep(self, name: str, tensors: dict[str, Tensor], **said: str) -> None:
        from safetensors.torch import save

        metadata = {"tensor": name, "module": "", **said}
        with atomic_writer(self.folder / f"{len(self.done):06d}.safetensors") as out:
            out.write(save({k: v.cpu().contiguous() for k, v in tensors.items()}, metadata=metadata))
        self.done[name] = metadata

    def _rows(self, module: str, columns: int) -> Tensor | None:
        """The span of the rows of the candidates' own updates of a module."""
        from safetensors import safe_open

        found: list[Tensor] = []
        for folder in self.adapters:
            key = f"{_PREFIX}{module}.lora_A.weight"
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                if key in file.keys() and file.get_slice(key).get_shape()[-1] == columns:  # noqa: SIM118
                    found.append(file.get_tensor(key))
        return row_basis(found)


def assemble(
    parts: Parts,
    folder: Path,
    read: Callable[[str], Tensor],
    *,
    base: str,
    task: str,
    settings: Mapping[str, Any],
) -> AdapterFit:
    """Put finished tensors together to an adapter folder; all of it or nothing.

    Args:
        parts: of every tensor that the fuse went through.
        folder: replaced.
        read: a tensor of the reference by its name.
        base: what the adapter says it was made on.
        task: causal or classifier.
        settings: guardkeel.json.

    Raises:
        ModelError: nothing changed, or nothing that LoRA can carry.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    said = sorted(parts.done.values(), key=lambda m: m["tensor"])
    factors = [m for m in said if m["kind"] == "factors"]
    whole = _with_ties(parts.whole(), parts.where)
    if not factors:
        raise _nothing_for_lora(said, parts.where)
    tensors: dict[str, Tensor] = {}
    for file in sorted(parts.folder.glob("*.safetensors")):
        tensors |= load_file(file)
    _complete(tensors, whole, parts.where, read, parts.dtype)
    ranks = {m["module"]: int(m["rank"]) for m in factors}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    own = {module: rank for module, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        task_type="CAUSAL_LM" if task == "causal" else "SEQ_CLS",
        inference_mode=True,
        r=usual,
        lora_alpha=usual,
        target_modules=sorted(ranks),
        rank_pattern=own,
        alpha_pattern=own,
        modules_to_save=sorted(whole) or None,
        base_model_name_or_path=base,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        config.save_pretrained(str(temporary))
        written = read_json(temporary / "adapter_config.json", "")
        written |= {"target_modules": sorted(ranks)}
        if whole != parts.whole():
            written["ensure_weight_tying"] = True  # what is tied stays tied
        write_json(temporary / "adapter_config.json", written)
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o644)
        write_json(temporary / "guardkeel.json", dict(settings))
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return _fit(said, sorted(whole), sum(t.numel() for t in tensors.values()))


def _nothing_for_lora(said: list[dict[str, str]], where: Places) -> ModelError:
    """An adapter needs one module with factors at least."""
    whole = [m for m in said if m["kind"] == "whole"]
    large = [m["module"] for m in whole if where.takes_factors(m["tensor"])]
    checkpoint = "write a checkpoint (--output checkpoint)"
    if large:
        return ModelError(
            f"the changes of {len(large)} modules ({large[0]}, …) are of so high a rank that their factors would be "
            "larger than the weights",
            remedy=f"set --rank, allow a larger --tolerance, or {checkpoint}",
        )
    some = f"only what LoRA cannot carry changed ({', '.join(m['module'] for m in whole[:3])})"
    return ModelError(f"{some if whole else 'nothing changed'}: there is no LoRA to write", remedy=checkpoint)


def _with_ties(modules: set[str], where: Places) -> set[str]:
    """Modules together with those that share a weight with them: each gets the new one."""
    found = set(modules)
    for name, others in where.tied.items():
        same = {n.rpartition(".")[0] for n in (name, *others)}
        if same & found:
            found |= same
    return found


def _complete(
    tensors: dict[str, Tensor],
    whole: set[str],
    where: Places,
    read: Callable[[str], Tensor],
    dtype: torch.dtype | None,
) -> None:
    """PEFT reads every tensor of a module that is kept whole: add what is tied to another, or did not change."""
    for name, others in where.tied.items():
        stored = next((n for n in (name, *others) if _PREFIX + n in tensors), None)
        for other in (name, *others) if stored else ():
            tensors.setdefault(_PREFIX + other, tensors[_PREFIX + str(stored)].clone())
    for module in whole:
        for name in where.modules[module]:
            if _PREFIX + name not in tensors:
                tensors[_PREFIX + name] = read(name).to(dtype, copy=True)


def _fit(said: list[dict[str, str]], whole: list[str], values: int) -> AdapterFit:
    changed = [m for m in said if m["kind"] != "same"]
    squares = [(float(m["error"]) * float(m["change"])) ** 2 for m in changed]
    total = sum(float(m["change"]) ** 2 for m in changed)
    return AdapterFit(
        error=(sum(squares) / total) ** 0.5,
        modules=[
            Module(name=m["module"], rank=int(m["rank"]), error=float(m["error"]), change=float(m["change"]))
            for m in changed
            if m["kind"] == "factors"
        ],
        whole=whole,
        values=values,
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())
