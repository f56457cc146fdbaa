"""guardkeel: keep guard models upright while they are fine-tuned."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name → module; resolved on first use so that `import guardkeel` stays free of torch.
_PUBLIC = {
    "Conversation": "conversation",
    "Turn": "conversation",
    "ToolCall": "conversation",
    "Example": "conversation",
    "Estimate": "records",
    "RunRecord": "records",
    "Guard": "guards",
    "Judgement": "guards",
    "Verdict": "guards",
    "load_guard": "guards",
    "load_suite": "evaluation.suites",
    "audit": "evaluation.run",
    "tune": "tuning.run",
    "fuse": "fusion.run",
    "sweep": "fusion.sweep.run",
    "curate": "curation.pipeline",
    "Keeper": "tuning.keeper",
    "guard_probes": "tuning.probes",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - strings all


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"guardkeel.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'guardkeel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
