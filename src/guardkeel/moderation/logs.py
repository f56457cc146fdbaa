"""Structured logs: one JSON object a line, without texts.

A message of ours never holds what was judged. An exception's message may quote it, so of an exception the type and the
places in the code are logged and its message only where `logs.texts` is set.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

FIELDS = "fields"
"""The attribute of a record under which `extra` carries further values."""


class Lines(logging.Formatter):
    """See above."""

    def __init__(self, *, plain: bool, texts: bool) -> None:
        super().__init__()
        self._plain, self._texts = plain, texts

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            row["exception"] = raised(record.exc_info[1], self._texts)
        if self._plain:
            rest = " ".join(f"{k}={v}" for k, v in row.items() if k not in ("time", "level", "message"))
            return f"{row['time']} {row['level']:7} {row['message']}" + (f"  {rest}" if rest else "")
        return json.dumps(row, ensure_ascii=True, default=str)


def raised(error: BaseException, texts: bool = False) -> dict[str, Any]:
    """An exception without its message: what it was, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    found: dict[str, Any] = {
        "type": type(error).__name__,
        "at": [f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames],
    }
    cause = error.__cause__ or error.__context__
    if cause is not None:
        found["from"] = type(cause).__name__
    return found | ({"message": str(error)} if texts else {})


def set_up(level: str, form: Literal["json", "plain"], texts: bool) -> None:
    """Send the service's and uvicorn's logs to stderr in this form; other libraries' from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(plain=form == "plain", texts=texts))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("guardkeel", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True  # it logs query strings
