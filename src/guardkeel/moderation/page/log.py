"""What the page asks the store. All of it blocks, and raises StoreDownError."""

from __future__ import annotations

from sqlalchemy import and_, func, select

from guardkeel.moderation.store import Row, Store
from guardkeel.moderation.tables import feedback, verdicts

WINDOW = 1000
"""Verdicts that rates and latencies are of."""
LOOKED_AT = 5000
"""Verdicts among which disagreements are looked for."""
LEAST = 0.05
"""Disagreement under which experts are taken to agree."""
_RECENT = ("created", "unsafe", "flagged", "unscored", "opinions", "categories", "seconds")


def recent(store: Store, most: int = WINDOW) -> list[Row]:
    """The last verdicts, the latest first, without their texts."""
    columns = [verdicts.c[name] for name in _RECENT]
    return store.read(select(*columns).order_by(verdicts.c.created.desc()).limit(most))


def waiting(store: Store) -> int:
    """How many verdicts were drawn for review and have none yet."""
    open_audits = and_(verdicts.c.audited, feedback.c.id.is_(None))
    joined = verdicts.outerjoin(feedback, feedback.c.verdict == verdicts.c.id)
    return int(store.read(select(func.count().label("n")).select_from(joined).where(open_audits))[0]["n"])


def disagreements(store: Store, most: int) -> list[Row]:
    """Of the last verdicts those that were not drawn and have no feedback, where experts disagree most."""
    last = select(verdicts.c.id).order_by(verdicts.c.created.desc()).limit(LOOKED_AT).subquery()
    query = (
        select(verdicts)
        .join(last, last.c.id == verdicts.c.id)
        .outerjoin(feedback, feedback.c.verdict == verdicts.c.id)
        .where(~verdicts.c.audited, feedback.c.id.is_(None), verdicts.c.disagreement >= LEAST)
        .order_by(verdicts.c.disagreement.desc(), verdicts.c.id)
        .limit(most)
    )
    return store.read(query)
