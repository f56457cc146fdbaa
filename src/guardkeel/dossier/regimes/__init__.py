"""Regulation as data files: whether it seems to apply and why, what would be due when, drafts of reports.

Nothing here claims that a regime applies, or that it was complied with.
"""

from guardkeel.dossier.regimes.applying import applicability
from guardkeel.dossier.regimes.regime import DISCLAIMER, Regime, load, regimes

__all__ = ["DISCLAIMER", "Regime", "applicability", "load", "regimes"]
