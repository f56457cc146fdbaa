"""Whether a regime seems to apply, with a reason for every condition. What is not registered is not known."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from guardkeel.dossier.kinds import Applicability, Model, Organisation
from guardkeel.dossier.regimes.regime import Condition, Regime
from guardkeel.dossier.state import State

UNKNOWN = object()


def applicability(state: State, regime: Regime, model: Model, now: datetime) -> Applicability:
    """Judge a regime by the facts of the organisation that was registered last and of a model."""
    if regime.kind == "framework":
        return _said(regime, model, "voluntary", ["it is voluntary: nobody has to apply it"])
    organisations = state.each(Organisation)
    facts = {"organisation": organisations[-1] if organisations else None, "model": model}
    answers = [_answer(c, facts) for c in regime.applies]
    reasons = [f"{'✓' if a else '✗' if a is False else '?'} {text}" for a, text in answers]
    reasons += [f"• {_answer(c, facts)[1]}" for c in regime.note]
    later = regime.effective is not None and now.date() < regime.effective
    if later:
        reasons.insert(0, f"✗ it takes effect on {regime.effective}")
    if later or any(a is False for a, _ in answers):
        return _said(regime, model, "does not seem to apply", reasons)
    if any(a is None for a, _ in answers):
        return _said(regime, model, "not known", reasons)
    return _said(regime, model, "seems to apply", reasons)


def _said(regime: Regime, model: Model, verdict: Any, reasons: list[str]) -> Applicability:
    return Applicability(
        id=f"{regime.id} {model.id}"[:200],
        regime=regime.id,
        regime_digest=regime.digest,
        model=model.id,
        verdict=verdict,
        reasons=reasons,
    )


def _fact(name: str, facts: dict[str, Any]) -> Any:
    whose, _, field = name.partition(".")
    thing = facts[whose]
    if thing is None:
        return UNKNOWN
    if field == "flop":
        known = [f for f in (thing.training_flop, thing.modification_flop) if f is not None]
        return sum(known) if thing.training_flop is not None else UNKNOWN
    value = getattr(thing, field)
    return UNKNOWN if value is None or value == [] else value


def _answer(condition: Condition, facts: dict[str, Any]) -> tuple[bool | None, str]:
    value = _fact(condition.fact, facts)
    if value is UNKNOWN:
        return None, condition.unknown or f"{condition.fact} is not registered"
    wanted = condition.value
    held = {
        "is": lambda: bool(value == wanted),
        "above": lambda: bool(value > wanted),
        "includes": lambda: wanted in value,
        "any of": lambda: any(w in value for w in wanted),
    }[condition.op]()
    return held, condition.met if held else condition.unmet
