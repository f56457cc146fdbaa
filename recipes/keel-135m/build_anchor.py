"""Choose the texts of the built-in suite keel-anchor from our own texts.

    python recipes/keel-135m/build_anchor.py --out src/guardkeel/evaluation/suites/data/keel-anchor.jsonl

200 pairs of prompts, one harmful and one not, spread evenly over the categories, and 100 ordinary prompts, spread
over their forms. Within a category or form the order is that of sha256 of the text, so the same texts give the same
file. Whatever is the same as or a near-duplicate of a text of another built-in suite, or of one chosen before, is left
out. Prints counts and digests only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from guardkeel.conversation import Conversation, Example, write_jsonl
from guardkeel.evaluation.suites import available, load_suite
from guardkeel.evaluation.suites.near_duplicates import UnionFind, join
from guardkeel.evaluation.suites.splits import comparable
from guardkeel.evaluation.suites.suite import judged_texts
from guardkeel.records import file_digest

NAME = "keel-anchor"
PAIRS, ORDINARY = 200, 100
TEXTS = Path(__file__).parent / "texts"

# Common words tell the languages of the texts apart well enough; what has none of them is English slang or code.
WORDS = {
    "en": "the a to my i of and is in me you for it that with was at be have this",
    "de": "der die das und ist ich nicht mir mit ein eine wir für auf den dem sie wie zu",
    "es": "el la los que de y en un una mi me no por para con se lo cómo qué es al",
    "fr": "le la les des ne et est je pas un une mon pour dans que de ce il on au ma",
}

Row = dict[str, Any]
Unit = tuple[Row, ...]
"""A pair (harmful, harmless), or one ordinary prompt."""


def rows(path: Path) -> list[Row]:
    """The rows of one file of texts."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def is_prompt(row: Row) -> bool:
    """Whether a row is judged by what the user says."""
    return not row.get("a") and not row.get("t")


def pairs(folder: Path) -> Iterator[Unit]:
    """Pairs of prompts, the harmful one first."""
    for path in sorted(folder.glob("pairs_*.jsonl")):
        found: dict[int, list[Row]] = defaultdict(list)
        for row in rows(path):
            found[row["p"]].append(row)
        for pair in found.values():
            if all(map(is_prompt, pair)):
                yield tuple(sorted(pair, key=lambda r: r["y"] != "unsafe"))


def ordinary(folder: Path) -> Iterator[Unit]:
    """Ordinary prompts."""
    for path in sorted(folder.glob("benign_*.jsonl")):
        yield from ((row,) for row in rows(path) if is_prompt(row))


def others() -> list[str]:
    """What the other built-in suites judge."""
    names = [card.name for card in available() if card.name != NAME]
    return [text for name in names for e in load_suite(name).examples for text in judged_texts(e)]


def distinct(units: Iterable[Unit], known: Iterable[str]) -> list[Unit]:
    """The units without those that resemble a known text, and one of those that resemble each other."""
    ordered = sorted(units, key=_order)
    texts = [(0, text) for text in known]
    texts += [(i, row["u"]) for i, unit in enumerate(ordered, 1) for row in unit]
    sets = UnionFind(len(ordered) + 1)  # 0 stands for all that is known
    join([comparable(text) for _, text in texts], sets, [i for i, _ in texts])
    return [unit for i, unit in enumerate(ordered, 1) if sets.find(i) == i]


def spread(units: Iterable[Unit], key: Callable[[Row], str], count: int) -> list[Unit]:
    """`count` units, one of each kind in turn."""
    queues: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=_order, reverse=True):
        queues[key(unit[0])].append(unit)
    chosen: list[Unit] = []
    while len(chosen) < count:
        if not any(queues.values()):
            raise SystemExit(f"only {len(chosen)} of {count} texts are left")
        chosen += [queues[kind].pop() for kind in sorted(queues) if queues[kind]]
    return chosen[:count]


def _order(unit: Unit) -> str:
    return hashlib.sha256(unit[0]["u"].encode()).hexdigest()


def language(text: str) -> str:
    """The language of a text, by how many of its words are common in it."""
    words = comparable(text).split()
    return max(WORDS, key=lambda name: sum(w in WORDS[name].split() for w in words))


def examples(units: Iterable[Unit]) -> Iterator[Example]:
    """Examples with ids in order; the two of a pair share their group."""
    number = 0
    for index, unit in enumerate(units, 1):
        for row in unit:
            number += 1
            yield Example(
                id=f"anchor-{number:04}",
                conversation=Conversation.of(row["u"]),
                labels={"prompt": row["y"]},
                categories=(row["c"],) if row["y"] == "unsafe" else (),
                source="pair" if len(unit) == 2 else "ordinary",
                language=language(row["u"]),
                group=f"pair-{index:03}" if len(unit) == 2 else "",
            )


def main() -> None:
    """Write the file and print its counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--own", type=Path, default=TEXTS, help="folder of our own texts")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    known, found = others(), list(pairs(args.own))
    left = distinct(found, known)
    chosen = spread(left, lambda row: row["c"], PAIRS)
    benign = list(ordinary(args.own))
    apart = distinct(benign, [*known, *(row["u"] for pair in found for row in pair)])
    made = list(examples([*chosen, *spread(apart, lambda row: row["f"], ORDINARY)]))
    write_jsonl(args.out, made)
    print("pairs", len(found), "distinct", len(left), "ordinary", len(benign), "distinct", len(apart))
    print("categories", dict(sorted(Counter(e.categories[0] for e in made if e.categories).items())))
    print("rows", len(made), "sha256", file_digest(args.out))


if __name__ == "__main__":
    main()
