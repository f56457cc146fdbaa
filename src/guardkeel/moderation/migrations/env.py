"""Run by alembic: migrates over the connection that the store gives it, in the store's transaction."""

from __future__ import annotations

from alembic import context

from guardkeel.moderation.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
