r"""A rule list as a guard: named categories with words and regular expressions. The plainest of baselines.

One TOML file:

    kind = "rules"
    name = "my-rules"
    threshold = 0.5

    [[rules]]
    category = "Guns and Illegal Weapons"    # a name of the home taxonomy, or of another
    weight = 0.9
    words = ["pipe bomb", "make ... explosive*"]
    patterns = ['\b(?:3d|home) ?print(?:ed|ing)? (?:gun|pistol)']

P(unsafe) = 1 − Π (1 − weight) over the rules that match, so one rule of weight 1 decides alone. A *word* is a phrase
of whole words; `*` ends a word in anything, `...` stands for up to five words. Words meet the text folded to lower
case with all that is no letter, digit or `_` as spaces; *patterns* meet it in lower case with white space as one
space. Case never matters, so `\S`, `\W` and the like keep their meaning.

Time is bounded, whoever wrote the list. Python's `re` backtracks, so `(a+)+b` can run for years. A pattern is
refused unless the steps that it can take at one place, counted from its parse tree (`_cost`), are at most
`MOST_STEPS`: repetition has an upper end, back-references are not taken. A text longer than `max_chars` loses its
middle, and the words lost are counted. So no text costs more than MOST_STEPS · max_chars steps a pattern, and in
practice almost all places are left after one.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.conversation import normalised
from guardkeel.errors import ConfigError
from guardkeel.guards.base import Batch, Guard, Judgement, Verdict
from guardkeel.guards.judged import BLIND, judged_text
from guardkeel.records import value_digest
from guardkeel.taxonomy import home

FAMILY = "rules"
DEFAULT_RULES = Path(__file__).parent / "data" / "rules" / "default.toml"

MOST_STEPS = 10_000
"""Of a pattern, at one place of the text, in the worst case."""
GAP = 5
"""Words that `...` may stand for, at most."""
BATCH = 256


class Rule(BaseModel):
    """What one category is recognised by, and how much a match says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0, le=1)
    words: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class RuleList(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rules"]
    name: str = Field(default="rules", min_length=1)
    threshold: float = Field(default=0.5, gt=0, le=1)
    max_chars: int = Field(default=50_000, ge=100, le=1_000_000)
    rules: tuple[Rule, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class _Compiled:
    category: str
    weight: float
    words: re.Pattern[str] | None
    patterns: tuple[re.Pattern[str], ...]

    def matches(self, words: str, text: str) -> bool:
        return (self.words is not None and self.words.search(words) is not None) or any(
            p.search(text) for p in self.patterns
        )


class RuleGuard(Guard):
    """A guard that knows words, and nothing else."""

    family = FAMILY

    def __init__(self, rules: RuleList, *, name: str | None = None, threshold: float | None = None) -> None:
        """Compile the rules; raises ConfigError naming the rule that cannot be used, and why."""
        self.name = name or rules.name
        self.threshold = rules.threshold if threshold is None else threshold
        self.rules = rules
        self._compiled = [_compile(rule, f"rules.{i}") for i, rule in enumerate(rules.rules)]

    @property
    def facts(self) -> dict[str, Any]:
        """See Guard. A rule list is its own weights, so its digest is here."""
        said = self.rules.model_dump(mode="json", exclude={"name", "threshold"})
        return {"parameters": 0, "dtype": "", "device": "cpu", "rules": value_digest(said)}

    def batches(
        self,
        items: Sequence[Judgement],
        *,
        layers: Sequence[int] = (),
        categories: bool = True,
        skip: Collection[int] = (),
    ) -> Iterator[Batch]:
        """See Guard: items in their order; there are no layers to show."""
        for number, start in enumerate(range(0, len(items), BATCH)):
            if number not in skip:
                indices = list(range(start, min(start + BATCH, len(items))))
                yield Batch(number, indices, [self.judge(items[i], categories) for i in indices])

    def judge(self, item: Judgement, categories: bool = True) -> Verdict:
        """The verdict of one item; categories, the weightiest first, are named from the threshold on."""
        if item.conversation.images:
            return Verdict(None, unscored=BLIND)
        whole = judged_text(item.conversation, item.side)
        if not whole.strip():
            return Verdict(None, unscored="the text is empty")
        kept, dropped = _bounded(whole, self.rules.max_chars)
        words = f" {normalised(kept)} "
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", kept).lower())
        found = [rule for rule in self._compiled if rule.matches(words, text)]
        unsafe = 1.0 - prod(1.0 - rule.weight for rule in found)
        names: dict[str, None] = {}
        if categories and unsafe >= self.threshold:
            names = dict.fromkeys(r.category for r in sorted(found, key=lambda r: -r.weight))
        return Verdict(min(1.0, max(0.0, unsafe)), categories=tuple(names), dropped=dropped)


def open_guard(
    path: str | Path = DEFAULT_RULES, *, name: str | None = None, threshold: float | None = None
) -> RuleGuard:
    """Read a rule list; by default the small one that comes along.

    Raises:
        ConfigError: the file cannot be read, is not TOML, has an unknown or wrong field, or a pattern that is wrong
            or may be slow.
    """
    path = Path(path)
    try:
        rules = RuleList.model_validate(tomllib.loads(path.read_bytes().decode("utf-8")))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror or e})", remedy="check the path") from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: not TOML ({e})", remedy="check the file at that place") from e
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "rules"
        raise ConfigError(
            f"{path}: {place}: {first['msg']}",
            remedy='write kind = "rules" and [[rules]] with category, weight, words and patterns',
        ) from e
    try:
        return RuleGuard(rules, name=name, threshold=threshold)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e.problem}", remedy=e.remedy) from e


def is_rule_list(path: str | Path) -> bool:
    """Whether a file says that it is a rule list. Never raises."""
    path = Path(path)
    if path.suffix != ".toml" or not path.is_file():
        return False
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8")).get("kind") == FAMILY
    except (OSError, ValueError, RecursionError):
        return False


def _bounded(text: str, most: int) -> tuple[str, int]:
    """The text without its middle where it is longer, and the number of words that this drops."""
    if len(text) <= most:
        return text, 0
    head, tail = text[: most // 2], text[len(text) - most // 2 :]
    return f"{head} {tail}", max(1, len(text.split()) - len(head.split()) - len(tail.split()))


def _compile(rule: Rule, where: str) -> _Compiled:
    if not rule.words and not rule.patterns:
        raise ConfigError(
            f"{where}: {rule.category!r} has neither words nor patterns", remedy="give it some, or remove it"
        )
    words = [_phrase(word, f"{where}.words.{i}") for i, word in enumerate(rule.words)]
    patterns = tuple(_pattern(p, f"{where}.patterns.{i}") for i, p in enumerate(rule.patterns))
    compiled = re.compile("|".join(words)) if words else None
    return _Compiled(home(rule.category), rule.weight, compiled, patterns)


def _phrase(phrase: str, where: str) -> str:
    """A phrase as a pattern over space-separated words, of at most GAP + 1 ways for each gap."""
    made, gap = "", ""
    parts = phrase.split()
    for given in parts:
        if given == "...":
            gap = rf"(?: \S++){{0,{GAP}}}?"
            continue
        word = normalised(given.removesuffix("*"))
        if not word or "*" in given[:-1]:
            raise ConfigError(
                f"{where}: {phrase!r}: {given!r} is no word",
                remedy="a phrase has words, `...` between two of them, and `*` at the end of a word",
            )
        made += (gap if made else "") + " " + re.escape(word) + (r"\S*+" if given.endswith("*") else "(?= )")
        gap = ""
    if not made or gap or parts[0] == "..." or parts.count("...") > 2:
        raise ConfigError(
            f"{where}: {phrase!r} cannot be used", remedy="begin and end with a word, with at most two `...`"
        )
    return made


def _pattern(pattern: str, where: str) -> re.Pattern[str]:
    try:
        tree = re._parser.parse(pattern, re.IGNORECASE)  # type: ignore[attr-defined]
        steps = _cost(tree)[1]
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as e:
        raise ConfigError(f"{where}: {pattern!r} is no pattern ({e})", remedy="see Python's re module") from e
    except _UnboundedError as e:
        raise ConfigError(
            f"{where}: {pattern!r} has {e}, so the time that it takes has no bound",
            remedy="give repetition an upper end, such as {0,40}; white space is one space already",
        ) from e
    if steps > MOST_STEPS:
        raise ConfigError(
            f"{where}: {pattern!r} may take {steps:,} steps at one place of a text; {MOST_STEPS:,} are allowed",
            remedy="use fewer or shorter repetitions, or words with `...`, which are always quick",
        )
    if compiled.search("") is not None:
        raise ConfigError(f"{where}: {pattern!r} matches anything", remedy="say what it must find")
    return compiled


class _UnboundedError(Exception):
    """A part of a pattern whose cost has no bound."""


def _cost(tree: Any) -> tuple[int, int]:
    """Ways in which the pattern can match at one place, and steps to try them all.

    Backtracking tries B again for every way of A: ways(AB) = ways(A) · ways(B), steps(AB) = steps(A) + ways(A) ·
    steps(B); of a choice both add up; a repetition is the choice of its lengths.
    """
    ways, steps = 1, 0
    for kind, value in tree:
        w, s = _node_cost(str(kind), value)
        ways, steps = ways * w, steps + ways * s
    return ways, steps


def _node_cost(kind: str, value: Any) -> tuple[int, int]:
    if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
        return 1, 1
    if kind == "BRANCH":
        each = [_cost(choice) for choice in value[1]]
        return sum(w for w, _ in each), sum(s for _, s in each)
    if kind in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return _cost(value[-1])
    if kind == "ATOMIC_GROUP":
        return _cost(value)
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, inner = value
        if high > MOST_STEPS:
            raise _UnboundedError("repetition without an upper end")
        w, s = _cost(inner)
        at, ways, steps = 1, int(low == 0), 0
        for times in range(1, int(high) + 1):
            steps += at * s
            at *= w
            ways += at if times >= low else 0
            if steps > MOST_STEPS:
                break  # refused anyway
        return ways, steps
    raise _UnboundedError(f"a {kind.lower().replace('_', ' ')}")
