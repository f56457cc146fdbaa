"""Which items an audit judges: splits of suites, an optional cap, and the balanced sample for geometry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from guardkeel.conversation import text_digest
from guardkeel.evaluation.items import ItemMeta
from guardkeel.evaluation.suites import Suite, SuiteItem, split_many
from guardkeel.results import SuiteInfo


def select(suites: Sequence[Suite], *, limit: int | None = None, calibrate: bool = True) -> list[SuiteItem]:
    """`test` items of every suite and, for moving thresholds, their `calibrate` items.

    Splits are made jointly, so that no text is shared. `limit` caps the items of each suite and split; which ones
    stay follows from their ids, not from file order.
    """
    found = []
    for suite in split_many(suites):
        for split in ("test", "calibrate") if calibrate else ("test",):
            items = [i for i in suite.items() if i.split == split]
            if limit is not None and len(items) > limit:
                keep = {i.judgement.id for i in sorted(items, key=lambda i: _key(i.judgement.id))[:limit]}
                items = [i for i in items if i.judgement.id in keep]
            found += items
        suite.items("test")  # an empty test split is the user's error, said with the remedy
    return found


def suite_infos(suites: Sequence[Suite], items: Sequence[SuiteItem]) -> list[SuiteInfo]:
    """What was used of each suite, split by split."""
    infos = []
    for suite in suites:
        for split in ("test", "calibrate"):
            mine = [i for i in items if i.suite == suite.name and i.split == split]
            if mine:
                unsafe = sum(i.label == "unsafe" for i in mine)
                infos.append(
                    SuiteInfo(
                        name=suite.name,
                        version=suite.version,
                        digest=suite.digest,
                        split=split,
                        n=len(mine),
                        n_unsafe=unsafe,
                        n_safe=len(mine) - unsafe,
                        licence=suite.card.licence,
                        origin=suite.card.origin,
                    )
                )
    return infos


def meta(item: SuiteItem) -> ItemMeta:
    """What the statistics need to know of an item."""
    return ItemMeta(
        id=item.judgement.id,
        suite=item.suite,
        side=item.side,
        label=item.label,
        categories=item.example.categories,
        source=item.example.source,
        language=item.example.language,
        length=len(item.example.conversation.text),
    )


def row(item: SuiteItem) -> dict[str, object]:
    """The item's line in items.jsonl."""
    m = meta(item)
    text = item.example.conversation.text
    return {
        "id": m.id,
        "suite": m.suite,
        "split": item.split,
        "side": m.side,
        "label": m.label,
        "categories": list(m.categories),
        "source": m.source,
        "language": m.language,
        "length": m.length,
        "digest": text_digest(text),
        "messages": item.example.conversation.to_messages(),
    }


def geometry_sample(items: Sequence[SuiteItem], most: int) -> list[int]:
    """Indices of at most `most` test items, half of them unsafe where there are enough, spread over suites."""
    chosen: list[int] = []
    for label in ("unsafe", "safe"):
        queues: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            if item.split == "test" and item.label == label:
                queues.setdefault(item.suite, []).append(index)
        for queue in queues.values():
            queue.sort(key=lambda i: _key(items[i].judgement.id), reverse=True)
        room = most // 2
        while room and any(queues.values()):
            for queue in queues.values():
                if queue and room:
                    chosen.append(queue.pop())
                    room -= 1
    return sorted(chosen)


def _key(identity: str) -> str:
    return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
