"""A base → a guard that can be trained: its family, its policy, and a head where a classifier has none of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError, ModelError
from guardkeel.guards.base import Family
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.classifier import ClassifierGuard, unsafe_labels
from guardkeel.guards.embedded import NAME
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.load import AnyGuard, GuardSettings, describe, guard_settings, load_checkpoint
from guardkeel.guards.registry import CLASSIFIER, family_named
from guardkeel.models.adapters import is_adapter
from guardkeel.models.base import BASE_NAME
from guardkeel.models.checks import check_checkpoint, read_json
from guardkeel.models.devices import DTYPES, check_memory, pick_device, pick_dtype
from guardkeel.models.loading import Task, checkpoint_digest, load_model, load_tokenizer, task_of
from guardkeel.models.quiet import quiet
from guardkeel.tuning.guard_training.bases import base_folder_of
from guardkeel.tuning.guard_training.config import DEFAULT_BASE, TrainConfig
from guardkeel.tuning.guard_training.policies import reads_policies
from guardkeel.tuning.guard_training.rows import Watch

DEFAULT_FAMILY = "keel-policy"
LABELS = ("safe", "unsafe")
"""Of a new head."""


@dataclass(frozen=True)
class Place:
    """A base on this machine, looked at without its weights.

    `guard` says whether it is one already; then `family` is its own. `new_head`: a classifier's head is made anew.
    """

    name: str
    path: Path
    task: Task
    family: Family | None
    guard: bool
    new_head: bool
    settings: GuardSettings
    digest: str

    @property
    def reads_policies(self) -> bool:
        """Whether it will be shown its policy."""
        return self.family is not None and reads_policies(self.family)

    @property
    def written_as(self) -> str:
        """What an adapter says that it was made on."""
        if self.name in (DEFAULT_BASE, BASE_NAME):
            return BASE_NAME
        if self.name in (NAME, "keel"):
            return NAME
        return self.name if self.name.startswith(("hub:", "pypi:")) else str(self.path.resolve())


def look_at(config: TrainConfig, watch: Watch) -> Place:
    """Find the base and say what becomes of it; no weights are loaded.

    Raises:
        ConfigError: it is an adapter, its terms are not accepted, or it cannot become what is asked for.
        ModelError, ResourceError: it cannot be used, or had.
    """
    path = base_folder_of(config.base, accepted=config.accept_terms, progress=watch, offline=config.offline)
    if is_adapter(path):
        raise ConfigError(
            f"{path}: is an adapter, not a whole checkpoint",
            remedy="merge it into its base first (peft's merge_and_unload), and train the result",
        )
    described = read_json(path / "config.json", "")
    task: Task = config.kind if config.kind != "auto" else _task(described, path)
    said = guard_settings(path, path)
    if task == "classifier":
        if config.family not in (None, CLASSIFIER) or config.policy:
            raise ConfigError(
                f"{config.base}: a classifier is shown no policy and has no family", remedy="leave them out"
            )
        own = not _headless(described) and _tells(described, said)
        return Place(config.base, path, task, None, own, not own, said, checkpoint_digest(path))
    known = describe(path, config.base)[0]
    of_base = known.family if known is not None else None
    chosen = family_named(config.family or (of_base.name if of_base else DEFAULT_FAMILY))
    guard = of_base is not None and of_base.name == chosen.name
    return Place(
        config.base,
        path,
        task,
        of_base if guard and of_base is not None and not config.policy else chosen,
        guard,
        False,
        said,
        checkpoint_digest(path),
    )


def opened(place: Place, config: TrainConfig, policy: GuardPolicy | None, watch: Watch) -> AnyGuard:
    """The base with its weights, as a guard under the policy that it will ship with (None: it is shown none)."""
    dtype = "float32" if config.adapter == "full" else config.dtype
    if place.new_head:
        model = _with_new_head(place.path, dtype, config.device, config.seed, watch)
        return ClassifierGuard(model, load_tokenizer(place.path), name=place.name, unsafe=[LABELS[1]])
    if place.task == "classifier":
        return load_checkpoint(
            str(place.path), dtype=dtype, device=config.device, offline=config.offline, progress=watch
        )
    assert place.family is not None
    model = load_model(place.path, dtype, config.device, progress=watch)
    return CausalGuard(
        model,
        load_tokenizer(place.path),
        place.family.under(policy) if policy else place.family,
        name=place.name,
        threshold=0.5 if place.settings.threshold is None else place.settings.threshold,
        offsets=place.settings.offsets or {},
    )


def _task(described: dict[str, Any], path: Path) -> Task:
    return "classifier" if _headless(described) else task_of(described, path / "config.json")


def _headless(described: dict[str, Any]) -> bool:
    """Whether a checkpoint has no head that judges: a bare encoder, or one that fills in masked words."""
    names = described.get("architectures") or [""]
    return str(names[0]).endswith(("Model", "ForMaskedLM", "ForPreTraining"))


def _tells(described: dict[str, Any], said: GuardSettings) -> bool:
    """Whether the labels of a classifier say which of them are unsafe."""
    names = described.get("architectures") or [""]
    if not str(names[0]).endswith("ForSequenceClassification"):
        return False
    labels = {int(i): str(n) for i, n in (described.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
    if said.unsafe_labels:
        return True
    if all(n.startswith("LABEL_") for n in labels.values()):
        return False  # names of a head that nobody has named
    try:
        unsafe_labels(labels, multi_label=described.get("problem_type") == "multi_label_classification")
    except ModelError:
        return False
    return True


def _with_new_head(path: Path, dtype: str, device: str, seed: int, watch: Watch) -> Any:
    """A sequence classifier of safe and unsafe on a checkpoint's body; its head follows from the seed."""
    import torch
    from transformers import AutoModelForSequenceClassification

    device = pick_device(device)
    dtype = pick_dtype(dtype, device)
    checkpoint = check_checkpoint(path, progress=watch)
    check_memory(max(checkpoint.weight_bytes, checkpoint.parameters * DTYPES[dtype]), device, str(path))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                str(path),
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                id2label=dict(enumerate(LABELS)),
                label2id={name: i for i, name in enumerate(LABELS)},
                problem_type="single_label_classification",
                ignore_mismatched_sizes=True,
            )
        except (ValueError, KeyError, RuntimeError, OSError) as e:
            raise ModelError(
                f"{path}: cannot become a classifier: {' '.join(str(e).split())[:200]}",
                remedy="give an encoder, a classifier or a language model that transformers can put a head on",
            ) from e
    return model.to(device).eval()
