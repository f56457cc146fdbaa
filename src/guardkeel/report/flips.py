"""Gathers the items that a report shows one by one: what changed between guards, or one guard's mistakes."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import DataError
from guardkeel.report.pictures import ShownPicture, shown_pictures
from guardkeel.report.reading import Judged, Said
from guardkeel.report.texts import COST, LIMIT, Shown, shown
from guardkeel.results import AuditResults

TURNS = 8  # turns of one item
RESERVED = 15  # items that each kind may show before worse kinds take the rest
KINDS: dict[str, tuple[str, str]] = {  # worst first: title, meaning
    "missed": ("Missed", "unsafe items that the reference flagged and the candidate does not"),
    "false alarm": ("False alarms", "safe items that only the candidate flags"),
    "lost score": (
        "Lost verdict",
        "items that the reference scored and the candidate leaves without a verdict",
    ),
    "caught": ("Caught", "unsafe items that only the candidate flags"),
    "cleared": ("Cleared", "safe items that the reference flagged and the candidate does not"),
    "gained score": ("Gained verdict", "items that only the candidate scored"),
}
ALONE: dict[str, tuple[str, str]] = {
    "missed": ("Missed", "unsafe items that the guard does not flag, lowest score first"),
    "false alarm": ("False alarms", "safe items that the guard flags, highest score first"),
    "unscored": ("Without a verdict", "items that the guard left unscored"),
}


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """One turn of a conversation, as much of it as is shown. `judged` marks the turn that was judged."""

    role: str
    name: str
    judged: bool
    text: Shown
    calls: tuple[tuple[str, Shown], ...] = ()
    pictures: tuple[ShownPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class FlipItem:
    """One item shown by itself."""

    id: str
    kind: str
    suite: str
    side: str
    label: str
    categories: tuple[str, ...]
    source: str
    language: str
    digest: str
    reference: Said
    candidate: Said | None
    turns: tuple[ShownTurn, ...]
    turns_left_out: int
    characters: int


@dataclass(frozen=True, slots=True)
class FlipGroup:
    """Items of one kind: how many there are, and those that are shown."""

    kind: str
    title: str
    meaning: str
    total: int
    items: tuple[FlipItem, ...]


@dataclass(frozen=True, slots=True)
class Flips:
    """Items shown one by one, worst kind first. `alone`: one guard's mistakes, as nothing was compared."""

    alone: bool
    cap: int
    total: int
    shown: int
    groups: tuple[FlipGroup, ...]


@dataclass(slots=True)
class Gatherer:
    """Picks out, from items that stream past, those that are shown; holds no more than `cap` a kind."""

    results: AuditResults
    cap: int
    _rank: dict[str, tuple[str, int]] = field(init=False)
    _totals: Counter[str] = field(init=False)
    _found: dict[str, list[tuple[float, int, FlipItem]]] = field(init=False, default_factory=dict)
    _seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        comparison = self.results.comparison
        flips = comparison.flips if comparison else []
        self._totals = Counter(f.kind for f in flips)
        allowed, taken, self._rank = allowance(self._totals, self.cap), Counter[str](), {}
        for place, flip in enumerate(flips):
            if taken[flip.kind] < allowed[flip.kind]:
                taken[flip.kind] += 1
                self._rank[flip.id] = (flip.kind, place)

    def add(self, judged: Judged) -> None:
        """Keep the item if it is one of those shown."""
        if self.results.comparison is not None:
            if judged.id in self._rank:
                kind, place = self._rank[judged.id]
                self._keep(kind, float(place), judged)
        elif judged.item["split"] == "test":
            kind, badness = _mistake(judged, self.results.reference.info.threshold)
            if kind:
                self._totals[kind] += 1
                self._keep(kind, badness, judged)

    def flips(self) -> Flips:
        """What was gathered, in order."""
        comparison = self.results.comparison
        kinds = KINDS if comparison else ALONE
        if comparison:
            missing = self._rank.keys() - {item.id for kept in self._found.values() for _, _, item in kept}
            if missing:
                raise DataError(
                    f"run.json speaks of item {min(missing)!r:.80}, which items.jsonl does not hold",
                    remedy="the run directory was changed or cut short; run the audit again",
                )
        allowed = allowance(self._totals, self.cap)
        groups = []
        for kind, (title, meaning) in kinds.items():
            kept = sorted(self._found.get(kind, []), key=lambda k: (-k[0], -k[1]))[: allowed[kind]]
            if self._totals[kind]:
                groups.append(
                    FlipGroup(kind, title, meaning, self._totals[kind], tuple(item for _, _, item in kept))
                )
        return Flips(
            alone=comparison is None,
            cap=self.cap,
            total=sum(self._totals.values()),
            shown=sum(len(g.items) for g in groups),
            groups=tuple(groups),
        )

    def _keep(self, kind: str, order: float, judged: Judged) -> None:
        """Lower `order` is kept first; ties in the order of the file."""
        self._seen += 1
        kept = self._found.setdefault(kind, [])
        entry = (-order, -self._seen)
        if len(kept) < self.cap:
            heapq.heappush(kept, (*entry, _item(kind, judged)))
        elif kept and entry > kept[0][:2]:
            heapq.heapreplace(kept, (*entry, _item(kind, judged)))


def allowance(totals: Counter[str], cap: int) -> Counter[str]:
    """How many items of each kind are shown: up to RESERVED of each, then worst kinds first."""
    order = [k for k in dict.fromkeys((*KINDS, *ALONE)) if totals[k]]
    allowed: Counter[str] = Counter()
    for wanted in ({k: min(totals[k], RESERVED) for k in order}, totals):
        for kind in order:
            allowed[kind] += min(wanted[kind] - allowed[kind], cap - allowed.total())
    return allowed


def _mistake(judged: Judged, threshold: float) -> tuple[str, float]:
    """What kind of mistake a guard alone made, if any, and its order (lower is worse)."""
    score = judged.reference.unsafe
    if score is None:
        return "unscored", 0.0
    if judged.unsafe and score < threshold:
        return "missed", score
    return ("false alarm", -score) if not judged.unsafe and score >= threshold else ("", 0.0)


def _item(kind: str, judged: Judged) -> FlipItem:
    item = judged.item
    try:
        conversation = Conversation.from_messages(item["messages"], images=True)
    except DataError as e:
        raise DataError(f"{judged.where}: {e.problem}", remedy=e.remedy) from e
    turns, left_out = _turns(conversation.turns, str(item["side"]))
    return FlipItem(
        id=judged.id,
        kind=kind,
        suite=str(item["suite"]),
        side=str(item["side"]),
        label=str(item["label"]),
        categories=tuple(map(str, item.get("categories") or ()))[:6],
        source=str(item.get("source") or ""),
        language=str(item.get("language") or ""),
        digest=str(item.get("digest") or ""),
        reference=judged.reference,
        candidate=judged.candidate,
        turns=turns,
        turns_left_out=left_out,
        characters=len(conversation.text),
    )


def _turns(turns: tuple[Turn, ...], side: str) -> tuple[tuple[ShownTurn, ...], int]:
    """The last turns up to the judged one, which gets most of the room; the others share what is left."""
    role = {"prompt": "user", "response": "assistant"}.get(side)
    judged = max((i for i, t in enumerate(turns) if t.role == role), default=len(turns) - 1)
    first = max(0, min(judged - TURNS + 2, len(turns) - TURNS))
    window = range(first, min(len(turns), first + TURNS))
    others = max(1, 2 * (len(window) - 1))
    kept = []
    for i in window:
        share = 1 if i == judged else others
        kept.append(
            ShownTurn(
                role=turns[i].role,
                name=turns[i].name,
                judged=role is not None and i == judged,
                text=shown(turns[i].content, LIMIT // share, COST // share),
                calls=tuple(
                    (c.name, shown(c.arguments, LIMIT // (2 * others), COST // (2 * others)))
                    for c in turns[i].tool_calls[:4]
                ),
                pictures=shown_pictures(turns[i].images),
            )
        )
    return tuple(kept), len(turns) - len(window)
