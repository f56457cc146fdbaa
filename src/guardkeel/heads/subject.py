"""What a study looks at: a guard, or a plain chat model, under one face.

Both turn items into prompts for a sweep, and answer items while some heads are ablated. An answer is a number at or
above `threshold` where the guard flags an item (P(unsafe)), or the chat model refuses it (1, else 0), and NaN where
there is none. So recall reads as the share of unsafe prompts that are refused, FPR as that of harmless ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from guardkeel.errors import ConfigError
from guardkeel.evaluation.scoring import score
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.load import base_path, guard_path, load_checkpoint
from guardkeel.heads.config import HeadsConfig
from guardkeel.heads.material import messages
from guardkeel.heads.prompts import Prompt, chat_prompts, guard_prompts
from guardkeel.heads.refusal import refuses
from guardkeel.heads.sweep import Floats
from guardkeel.models.adapters import is_adapter
from guardkeel.models.devices import model_facts
from guardkeel.models.loading import checkpoint_digest, load_model, load_tokenizer
from guardkeel.records import value_digest, write_json
from guardkeel.resources import Progress
from guardkeel.results import GuardInfo

Told = Callable[[int, int], None]


class Subject(Protocol):
    """See the module."""

    name: str
    family: str
    model: Any
    threshold: float
    template: str
    """Digest of what stands around a message."""

    def prompts(self, items: Sequence[SuiteItem]) -> list[Prompt]:
        """Items as it reads them, up to the place in question."""
        ...

    def answers(self, items: Sequence[SuiteItem], role: str, folder: Path, watch: Told) -> Floats:
        """(items,); what was answered under this role before is taken up from the folder."""
        ...


class GuardSubject:
    """A guard at its verdict."""

    def __init__(self, guard: CausalGuard, items: Sequence[SuiteItem] = ()) -> None:
        self.guard, self.model = guard, guard.model
        self.name, self.family, self.threshold = guard.name, guard.family, guard.threshold
        around = [guard.grammar.render(i.judgement.conversation, i.side, guard.tokenizer) for i in items[:1]]
        self.template = value_digest([guard.family, [[r.prefix, r.suffix] for r in around]])

    def prompts(self, items: Sequence[SuiteItem]) -> list[Prompt]:
        """See Subject."""
        return guard_prompts(self.guard, [i.judgement for i in items])

    def answers(self, items: Sequence[SuiteItem], role: str, folder: Path, watch: Told) -> Floats:
        """P(unsafe)."""
        asked: list[Judgement] = [i.judgement for i in items]
        return score(self.guard, asked, folder, role, watch=watch).scores


class ChatSubject:
    """A chat model and its replies, which it keeps by role in `said`, for other judges."""

    family = "chat"
    threshold = 0.5

    def __init__(self, model: Any, tokenizer: Any, name: str, *, tokens: int = 48, system: str = "") -> None:
        self.model, self.tokenizer, self.name, self.tokens, self.system = (
            model,
            tokenizer,
            name,
            tokens,
            system,
        )
        self.template = value_digest([str(tokenizer.chat_template or ""), system])
        self.said: dict[str, list[str]] = {}

    def prompts(self, items: Sequence[SuiteItem]) -> list[Prompt]:
        """See Subject."""
        asked: list[Any] = []
        for item in items:
            turns = messages(item.example.conversation)
            bare = len(turns) == 1
            asked.append(turns[0]["content"] if bare else turns)
        ids = [i.judgement.id for i in items]
        return chat_prompts(self.tokenizer, asked, ids=ids, system=self.system)

    def answers(self, items: Sequence[SuiteItem], role: str, folder: Path, watch: Told) -> Floats:
        """1 where it refuses."""
        from guardkeel.heads.generation import replies

        path = folder / "progress" / f"{role}.json"
        ids = [i.judgement.id for i in items]
        said = _kept(path, ids)
        if said is None:
            said = replies(self.model, self.tokenizer, self.prompts(items), tokens=self.tokens, watch=watch)
            write_json(path, {"ids": ids, "replies": said})
        self.said[role] = said
        refused = [refuses(text) for text in said]
        return np.array([np.nan if r is None else float(r) for r in refused])


def _kept(path: Path, ids: Sequence[str]) -> list[str] | None:
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return held["replies"] if isinstance(held, dict) and held.get("ids") == list(ids) else None


def located(reference: str, *, progress: Progress | None = None, offline: bool | None = None) -> str:
    """The reference, or the tuned guard in it where it is a run of tune."""
    folder = Path(reference)
    if (folder / "run.json").is_file() and (folder / "tuned").is_dir():
        return str(folder / "tuned")
    return reference


def digest_of(reference: str, *, progress: Progress | None = None, offline: bool | None = None) -> str:
    """sha256 of a model's files, and of its base's where it is an adapter.

    Raises:
        ConfigError: it has no files here. ResourceError, ModelError: they cannot be had or used.
    """
    path = guard_path(located(reference), progress=progress, offline=offline)
    own = checkpoint_digest(path)
    return value_digest([own, checkpoint_digest(base_path(path))]) if is_adapter(path) else own


def open_subject(
    reference: str, config: HeadsConfig, items: Sequence[SuiteItem] = (), progress: Progress | None = None
) -> Subject:
    """Load a guard or a chat model. A LoRA adapter is merged where that is exact enough: in float32.

    Raises:
        ConfigError: it is no causal language model, or its family is not known.
    """
    where = located(reference)
    if config.chat:
        path = guard_path(where, progress=progress, offline=config.offline)
        model = load_model(path, config.dtype, config.device, progress=progress)
        tokenizer = load_tokenizer(path)
        name = short_name(reference)
        return ChatSubject(merged(model), tokenizer, name, tokens=config.reply_tokens, system=config.system)
    said: Any = config.model_dump(include={"family", "threshold", "dtype", "device", "max_tokens", "offline"})
    try:
        guard = load_checkpoint(where, progress=progress, **said)
    except ConfigError as e:
        if "family" in e.problem and config.family is None:
            raise ConfigError(
                e.problem, remedy=f"{e.remedy}; or look at it as a chat model with --chat"
            ) from e
        raise
    if not isinstance(guard, CausalGuard):
        raise ConfigError(
            f"{reference}: a sequence classifier has no verdict position and no causal attention",
            remedy="give a guard that writes its verdict, or a chat model with --chat",
        )
    guard.model = merged(guard.model)
    guard.name = short_name(reference) if where != reference else guard.name
    return GuardSubject(guard, items)


def merged(model: Any) -> Any:
    """The model with its LoRA put into its weights, which is several times faster to sweep; in 16 bits as it is."""
    import torch

    if hasattr(model, "peft_config") and model.dtype == torch.float32:
        return model.merge_and_unload().eval()
    return model


def short_name(reference: str) -> str:
    """A short name for a model without one."""
    parts = [p for p in Path(reference.split("@", 1)[0]).parts if p not in ("/", "tuned", "tune")]
    return parts[-1] if parts else reference


def info(subject: Subject, reference: str, digest: str) -> GuardInfo:
    """What results say of it."""
    facts = model_facts(subject.model)
    return GuardInfo(
        name=subject.name,
        reference=reference,
        family=subject.family,
        threshold=subject.threshold,
        digest=digest,
        parameters=facts["parameters"],
        dtype=facts["dtype"],
        device=facts["device"],
    )
