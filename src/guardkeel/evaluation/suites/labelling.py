"""The label of one side of a record, by its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guardkeel.conversation import LABELS, Label, Side
from guardkeel.errors import DataError
from guardkeel.evaluation.suites.mapping import Combine, LabelRule
from guardkeel.evaluation.suites.values import lookup, number, value_key


def label_of(rule: LabelRule, side: Side, fields: Mapping[str, Any]) -> Label | None:
    """The label, or None where the record says nothing.

    Raises:
        DataError: a field is missing, or holds a value that the rule does not name.
    """
    if rule.constant is not None:
        return rule.constant
    if rule.safe_up_to is not None and rule.unsafe_from is not None:
        return _graded(rule, fields, rule.safe_up_to, rule.unsafe_from)
    labels = [_named(rule, side, name, value) for name, value in _present(rule, fields)]
    if rule.combine is not None:
        return _combined(rule.combine, labels, len(rule.field)) or rule.otherwise
    return labels[0] if labels else None


def _present(rule: LabelRule, fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields of a rule that the record has, with their values."""
    found = []
    for name in [rule.field] if isinstance(rule.field, str) else rule.field:
        try:
            found.append((name, lookup(fields, name)))
        except DataError:
            if not rule.optional:
                raise
    return found


def _named(rule: LabelRule, side: Side, name: str, value: Any) -> Label | None:
    known = {value_key(k): v for k, v in (rule.values or {label: label for label in LABELS}).items()}
    key = value_key(value)
    if key in known:
        return known[key]
    if key in map(value_key, rule.skip):
        return None
    if key not in ("", "null"):
        prefixes = [k[:-1] for k in rule.values if k.endswith("*") and key.startswith(k[:-1])]
        if prefixes:
            return rule.values[max(prefixes, key=len) + "*"]
    raise DataError(
        f"unknown label {value!r:.80} in field {name!r}",
        remedy=f"known values are {', '.join(known)}; add it to labels.{side}.values, "
        f"or to labels.{side}.skip to leave such rows out",
    )


def _combined(how: Combine, labels: Sequence[Label | None], fields: int) -> Label | None:
    unsafe, safe = labels.count("unsafe"), labels.count("safe")
    if how == "any":
        return "unsafe" if unsafe else "safe" if safe == fields else None
    return None if unsafe == safe else "unsafe" if unsafe > safe else "safe"


def _graded(rule: LabelRule, fields: Mapping[str, Any], low: float, high: float) -> Label | None:
    skipped = set(map(value_key, rule.skip))
    numbers = [number(v, name) for name, v in _present(rule, fields) if value_key(v) not in skipped]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    if mean <= low:
        return "safe"
    return "unsafe" if mean >= high else None
