"""One reviewer's verdict on one served item, as the log keeps it, and with what weight it teaches.

Feedback is partial: only some items are ever labelled. It is one-sided as well: people appeal when they are blocked
and stay silent when harm got through, so an ensemble that learns from appeals alone hears of false alarms only and
drifts permissive. Two remedies, both in the weight of a row (Horvitz & Thompson 1952; apple tasting, Helmbold,
Littlestone & Long 2000):

    audited      drawn at random with a logged probability q ≥ floor:  weight floor / q
    unsolicited  an appeal or report, its probability unknown:         weight `unsolicited` · floor, 0 by default

The expected weighted loss is floor times the loss over *all* served items, whatever q depended on, as long as it did
not depend on the outcome. Weights lie in [0, 1], and so regret bounds hold as they stand for the weighted sum; divided
by the floor, for all served items in expectation. With full feedback q = 1 and floor = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from guardkeel.errors import DataError

Context = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feedback:
    """A row of the log.

    Args:
        sequence: the number under which the store acknowledged it, unique and rising: the log's canonical order.
        advice: each expert's calibrated P(unsafe) as it was when the item was served; None (or NaN) where it abstained.
        unsafe: the outcome.
        propensity: the logged probability q of this item's audit; None for what came unasked.
        context: the path of the item's tables, coarse to fine, as it was served.
    """

    sequence: int
    advice: tuple[float | None, ...]
    unsafe: bool
    propensity: float | None
    context: Context = ()

    def __post_init__(self) -> None:
        # NaN differs from itself; None does not, and rows are compared
        plain = tuple(None if a is None or math.isnan(a) else float(a) for a in self.advice)
        object.__setattr__(self, "advice", plain)
        for a in plain:
            if a is not None and not 0 <= a <= 1:
                raise DataError(
                    f"feedback {self.sequence}: advice {a!r}", remedy="give P(unsafe) in [0, 1], or None"
                )
        if self.propensity is not None and not 0 < self.propensity <= 1:
            raise DataError(
                f"feedback {self.sequence}: propensity {self.propensity!r}",
                remedy="log the probability of the audit, in (0, 1], or None for what came unasked",
            )


def weight_of(feedback: Feedback, floor: float, unsolicited: float) -> float:
    """The weight of a row in [0, 1]; DataError for a propensity under the floor."""
    q = feedback.propensity
    if q is None:
        return unsolicited * floor
    if q < floor * (1 - 1e-9):
        raise DataError(
            f"feedback {feedback.sequence}: propensity {q!r} is under the floor of {floor!r}",
            remedy="set the floor to the smallest probability that the audit policy can log",
        )
    return min(1.0, floor / q)
