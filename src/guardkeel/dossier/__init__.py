"""Evidence: what was evaluated, by whom, against what, who decided, and what happened after.

canonical.py chain.py heads.py dsse.py   one text for one value; entries that name the one before; signed heads
kinds/                                   the records
store.py state.py rules.py dossier.py    where entries are kept, what they say, what is refused, the way in
policy.py gate.py standing.py            pre-registered policies, decisions with their trace, where a model stands
imports/                                 run directories and other tools' results into records
regimes/                                 regulation as data: applicability, clocks, drafts
monitoring/                              sequential tests on what a service logs
exports/ bundle.py                       statements, cards, bills of materials, a bundle that a stranger can check
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardkeel.dossier.dossier import Dossier, create, open_dossier
    from guardkeel.dossier.gate import decide
    from guardkeel.dossier.state import State
    from guardkeel.dossier.verifying import Verified, verify

__all__ = ["Dossier", "State", "Verified", "create", "decide", "open_dossier", "verify"]

_WHERE = {
    "Dossier": "dossier", "create": "dossier", "open_dossier": "dossier", "decide": "gate", "State": "state",
    "Verified": "verifying", "verify": "verifying",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """SQLAlchemy is an extra, so names are found when they are asked for."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"guardkeel.dossier.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
