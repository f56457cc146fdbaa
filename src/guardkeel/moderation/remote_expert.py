"""A guard behind a server as an expert: asked from the service's own event loop, over connections that stay open.

The server's file says how often it is tried again and how many requests are under way at once; the expert's timeout
bounds all of it. What a server answers with an error is never quoted: it may hold what was sent.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from guardkeel.errors import GuardkeelError
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.guards.remote import RemoteGuard
from guardkeel.guards.remote.client import Failed
from guardkeel.moderation.batching import ExpertError, sound

_SERVERS_FAULT = re.compile(
    r"HTTP (?:401|402|403|404|407|429|5\d\d)|cannot connect|no answer within|the connection"
)
_SAYABLE = re.compile(r"HTTP \d{3}|cannot connect(?: in time)?|redirects")


class RemoteExpert:
    """See above; the counterpart of BatchWorker."""

    def __init__(self, guard: RemoteGuard) -> None:
        self.guard = guard
        self._stack = contextlib.AsyncExitStack()
        self._session: Any = None
        self._under_way = 0

    async def start(self) -> None:
        """Open the session, in the loop in which it is used."""
        self._session = await self._stack.enter_async_context(self.guard._client.session())

    async def stop(self, seconds: float) -> bool:
        """Close its connections."""
        await self._stack.aclose()
        return True

    @property
    def waiting(self) -> int:
        """Requests under way."""
        return self._under_way

    async def ask(self, item: Judgement) -> Verdict:
        """The server's verdict; may be cancelled.

        Raises:
            ExpertError: the server gave none, and it was not the item's fault.
        """
        self._under_way += 1
        try:
            [verdict] = await self.guard.judge(self._session, [item])
        except GuardkeelError as e:
            raise ExpertError(_reason(e)) from None
        finally:
            self._under_way -= 1
        found = sound(verdict)
        if isinstance(found, ExpertError):
            raise found
        if found.unsafe is None and _SERVERS_FAULT.match(found.unscored):
            raise ExpertError(found.unscored)
        return found


def _reason(error: GuardkeelError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Failed):
            return cause.reason
        cause = cause.__context__
    found = _SAYABLE.search(error.problem)
    return found[0] if found else f"raised {type(error).__name__}"
