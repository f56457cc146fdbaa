"""Adjudication: people decide where jurors do not, and audit a share of what jurors agree on.

    rows ─▶ queue (who disagrees, who is unsure) ─▶ store (leases, log of decisions) ◀─▶ page
                                                        └▶ outcomes ─▶ rows with labels by people, figures

`resolving` says when an item is decided, `reasons` why it is asked about and how much is learnt by asking, `queue`
makes the items, `store` keeps every decision (SQLite), `app` is the page, `folding` puts decisions into rows and
`quality` measures people and jurors by them. See docs/adjudicate.md.
"""

from __future__ import annotations

from guardkeel.errors import ConfigError


def needs_serve() -> None:
    """Say which extra is missing, before anything is done; raises ConfigError."""
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as e:
        raise ConfigError(
            f"adjudication needs {e.name}, which is not installed", remedy="pip install 'guardkeel[serve]'"
        ) from e
