"""Verdicts, feedback, policies and the counters that number them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "verdicts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("side", sa.String(16), nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("context", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("strictness", sa.String(16), nullable=False),
        sa.Column("unsafe", sa.Double),
        sa.Column("flagged", sa.Boolean, nullable=False),
        sa.Column("unscored", sa.Text, nullable=False),
        sa.Column("disagreement", sa.Double, nullable=False),
        sa.Column("vote", sa.Double, nullable=False),
        sa.Column("weights_version", sa.BigInteger, nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("audited", sa.Boolean, nullable=False),
        sa.Column("advice", sa.JSON, nullable=False),
        sa.Column("weights", sa.JSON, nullable=False),
        sa.Column("opinions", sa.JSON, nullable=False),
        sa.Column("categories", sa.JSON, nullable=False),
        sa.Column("windows", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
    op.create_index("verdicts_created", "verdicts", ["created"])
    op.create_index("verdicts_audited", "verdicts", ["audited", "created"])
    op.create_table(
        "feedback",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(128), nullable=False, unique=True),
        sa.Column("verdict", sa.String(64), nullable=False),
        sa.Column("unsafe", sa.Boolean, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("reviewer", sa.String(128), nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("first", sa.Boolean, nullable=False),
        sa.Column("propensity", sa.Double),
        sa.Column("context", sa.JSON, nullable=False),
        sa.Column("advice", sa.JSON, nullable=False),
        sa.Column("served", sa.Double),
        sa.Column("vote", sa.Double, nullable=False),
        sa.Column("flagged", sa.Boolean, nullable=False),
    )
    op.create_index("ix_feedback_verdict", "feedback", ["verdict"])
    op.create_table(
        "policies",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    names = ("feedback", "policies", "deleted", "deleted drawn")
    op.bulk_insert(counters, [{"name": name, "value": 0} for name in names])


def downgrade() -> None:
    """Back."""
    for name in ("counters", "policies", "feedback", "verdicts"):
        op.drop_table(name)
