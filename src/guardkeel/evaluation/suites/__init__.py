"""Suites: named, versioned, hashed sets of labelled conversations with splits.

readers.py          files → raw rows
mapping.py          how raw rows become examples, declared as data
applying.py         raw rows → examples, as declared; with values.py and labelling.py
near_duplicates.py  which texts are nearly the same
splits.py           fit / calibrate / test without shared texts
card.py             what a suite is; its TOML file
suite.py            Suite, SuiteItem, joint splits
registry.py         suites by name; entry points
loading.py          a name, path or reference → a suite
cards/, data/       the built-in ones
"""

from guardkeel.evaluation.suites.card import SuiteCard, read_card
from guardkeel.evaluation.suites.loading import find_card, load_suite
from guardkeel.evaluation.suites.mapping import Mapping
from guardkeel.evaluation.suites.registry import available, present
from guardkeel.evaluation.suites.splits import SPLITS, Split
from guardkeel.evaluation.suites.suite import Suite, SuiteItem, split_many

__all__ = [
    "SPLITS",
    "Mapping",
    "Split",
    "Suite",
    "SuiteCard",
    "SuiteItem",
    "available",
    "find_card",
    "load_suite",
    "present",
    "read_card",
    "split_many",
]
