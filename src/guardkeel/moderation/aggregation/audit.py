"""Which served items a reviewer should look at: at random, with a probability that is logged.

Whatever else is reviewed, only random audits with known probabilities say how the ensemble does on what nobody
complains about. The probability of an item's audit is

    q = max(floor, base + (1 − base) · focus · disagreement),    base = `flagged` or `allowed` by the decision

It may depend on all that is known when the item is served and must not depend on its outcome. `floor` keeps weights
1 / q from growing without bound; give the same floor to the Aggregator. Where every blocked item is reviewed anyway,
say flagged = 1: those rows are then audits too.
"""

from __future__ import annotations

from dataclasses import dataclass

from guardkeel.errors import ConfigError
from guardkeel.moderation.aggregation.aggregator import Mixture


@dataclass(frozen=True, slots=True)
class AuditPolicy:
    """Probabilities of an audit; all in [0, 1], the floor positive."""

    floor: float = 0.02
    flagged: float = 0.05
    allowed: float = 0.02
    focus: float = 0.2

    def __post_init__(self) -> None:
        for name in ("floor", "flagged", "allowed", "focus"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "floor" and value == 0):
                raise ConfigError(
                    f"audit {name} is {value!r}", remedy="give a probability; the floor must not be 0"
                )

    def propensity(self, mixture: Mixture) -> float:
        """q of an item, to be logged whether it is drawn or not; unscored items count as flagged."""
        base = self.allowed if mixture.flagged is False else self.flagged
        return max(self.floor, base + (1 - base) * self.focus * mixture.disagreement)

    @staticmethod
    def drawn(propensity: float, uniform: float) -> bool:
        """Whether an item is audited, given a number that is uniform on [0, 1) and independent of all else."""
        return uniform < propensity
