"""A service in a process of its own, to be killed: `python moderation_process.py FOLDER PORT [URL]`.

Two experts that need no model; every verdict is drawn for audit; one log in FOLDER, or at the URL.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moderation_parts import Acting, rules, service_of


def service(folder: Path, url: str | None = None):
    """The service that the process serves."""
    audit = {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}
    calm = Acting(lambda text: 0.4, name="calm")
    store = {"url": url or f"sqlite:///{folder}/log.db", "poll": 0.2}
    return service_of(folder, rules(), calm, learner={"audit": audit}, store=store)


if __name__ == "__main__":
    import uvicorn

    from guardkeel.moderation.app import make_app

    made = service(Path(sys.argv[1]), *sys.argv[3:])
    uvicorn.run(make_app(made), port=int(sys.argv[2]), log_config=None, access_log=False)
