"""Run by alembic: migrates over the connection that the store gives it, in the store's transaction."""

from __future__ import annotations

from alembic import context

from guardkeel.dossier.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="dossier_version",
    render_as_batch=True,  # SQLite alters tables by copying them
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
