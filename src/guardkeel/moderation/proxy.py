"""The guarded chat: what is sent is judged before, and what comes back is judged before it is passed on.

The checks follow the policy in force. `flagged` stops the chat; where no expert gave a verdict the part is
`unscanned`, which stops it too under `closed` and is reported under `open`. A check that could not be made at all (too
much under way, the log away, pictures) is unscanned as well. What is sent upstream is the JSON that was judged, written
anew, so the two cannot differ.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import httpx
from pydantic_core import from_json

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import ConfigError, DataError
from guardkeel.moderation.config import ProxyConfig
from guardkeel.moderation.contexts import UNDETERMINED
from guardkeel.moderation.holding import Held, Lines, UnreadableError, choices_of, kept, spoken, written
from guardkeel.moderation.limits import OverloadedError
from guardkeel.moderation.served import Item
from guardkeel.moderation.service import Service
from guardkeel.moderation.store import StoreDownError

Outcome = Literal["allowed", "flagged", "unscanned", "unchecked"]
_ROLES = {"developer": "system", "function": "tool"}
_MESSAGE = ("role", "content", "tool_calls", "name", "tool_call_id", "refusal")
_REMEMBERED = 4096
"""Texts of earlier turns that were allowed; a chat sends all of them with every turn."""


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one part of a chat. `passes`: it may go on."""

    outcome: Outcome
    passes: bool
    verdict: str = ""


UNCHECKED = Check("unchecked", True)
UNREADABLE = Check("unscanned", False)
"""What no expert can judge stops a chat under every policy."""


class UpstreamError(Exception):
    """The upstream did not answer as it should; `status` is what it is answered with."""

    def __init__(self, message: str, status: int = 502, code: str = "upstream", after: str = "") -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.after = message, status, code, after


class Upstream:
    """The API behind the proxy.

    Args:
        config: with `upstream` set.
        transport: in place of the network.

    Raises:
        ConfigError: the variable of its key is not set.
    """

    def __init__(self, config: ProxyConfig, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.config = config
        headers = {"accept-encoding": "identity"}
        if config.api_key_env is not None:
            key = os.environ.get(config.api_key_env, "").strip()
            if not key:
                raise ConfigError(
                    f"proxy.api_key_env: the variable {config.api_key_env} is not set",
                    remedy=f"export {config.api_key_env}=… first",
                )
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout, connect=min(10.0, config.timeout)),
            follow_redirects=False,  # the key would go along
            transport=transport,
            trust_env=transport is None,
        )

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def send(self, body: dict[str, Any]) -> httpx.Response:
        """The answer, its body still to be read; close it.

        Raises:
            UpstreamError: there is none, or it is an error.
        """
        request = self._http.build_request(
            "POST", f"{str(self.config.upstream).rstrip('/')}/chat/completions", json=body
        )
        try:
            response = await self._http.send(request, stream=True)
        except httpx.TimeoutException:
            raise UpstreamError("the upstream did not answer in time", 504, "upstream_timeout") from None
        except httpx.HTTPError:
            raise UpstreamError("the upstream cannot be reached") from None
        if response.status_code == 200:
            return response
        after = response.headers.get("retry-after", "")
        await response.aclose()
        status = response.status_code if 400 <= response.status_code < 500 else 502
        raise UpstreamError(
            f"the upstream answered HTTP {response.status_code}",
            status,
            after=after if after.isdigit() else "",
        )

    async def read(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Its body, piece by piece; raises UpstreamError where it breaks off."""
        try:
            async for piece in response.aiter_bytes():
                yield piece
        except httpx.TimeoutException:
            raise UpstreamError("the upstream fell silent", 504, "upstream_timeout") from None
        except httpx.HTTPError:
            raise UpstreamError("the upstream broke off") from None
        finally:
            await response.aclose()

    async def read_all(self, response: httpx.Response) -> bytes:
        """Its whole body; raises UpstreamError where it is too long or breaks off."""
        body = bytearray()
        async for piece in self.read(response):
            body += piece
            if len(body) > self.config.max_reply_bytes:
                await response.aclose()
                raise UpstreamError(
                    f"the upstream's answer is longer than {self.config.max_reply_bytes} bytes"
                )
        return bytes(body)


class Chat:
    """One request to the proxy: its messages, and the checks of what it says and is told.

    Raises:
        DataError: the messages are none. UnreadableError: they hold what no expert can judge.
    """

    def __init__(
        self, service: Service, upstream: Upstream, body: dict[str, Any], request: str, key: str
    ) -> None:
        self._service, self._upstream = service, upstream
        self._request, self._key = request, key
        self.body = body
        self.conversation = _conversation(body.get("messages"))

    async def check_input(self, seen: Seen) -> Check:
        """Judge the last user message in its conversation, and every other text that was not allowed before."""
        if not self._upstream.config.check_input:
            return UNCHECKED
        turns = self.conversation.turns
        last = max((i for i, t in enumerate(turns) if t.role == "user"), default=None)
        version = self._service.in_force.version
        items: list[Item] = []
        alone: list[str] = []
        if last is not None:
            items.append(_item(Conversation(turns[: last + 1])))
            alone.append(turns[last].content)
        for i, turn in enumerate(turns):
            text = Conversation((turn,)).text
            if i != last and turn.role != "system" and text.strip() and not seen.has(version, text):
                items.append(_item(Conversation.of(text)))
                alone.append(text)
        found = await self._judge(items)
        if found.outcome == "allowed":
            for text in alone:
                seen.add(version, text)
        return found

    async def check_output(self, texts: Sequence[str]) -> Check:
        """Judge replies, each as the answer to the conversation."""
        turns = self.conversation.turns
        return await self._judge(
            [_item(Conversation((*turns, Turn("assistant", t))), "response") for t in texts]
        )

    async def answer(self) -> tuple[dict[str, Any], Check]:
        """The whole answer, what may not pass taken out of it.

        Raises:
            UpstreamError: there is none.
        """
        response = await self._upstream.send(self.body)
        try:
            found = from_json(await self._upstream.read_all(response), allow_inf_nan=False)
            choices = choices_of(found)
        except (ValueError, UnreadableError):
            raise UpstreamError("the upstream's answer is no chat completion") from None
        if not self._upstream.config.check_output:
            return found, UNCHECKED
        checks = []
        for choice in choices:
            try:
                text = "".join(spoken(choice.get("message")))
                check = await self.check_output([text]) if text.strip() else Check("allowed", True)
            except UnreadableError:
                check = UNREADABLE
            checks.append(check)
        found = kept(found)
        for choice, check in zip(found["choices"], checks, strict=True):
            choice["guardkeel"] = {"output": check.outcome, "verdict": check.verdict}
            if not check.passes:
                choice |= {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
        return found, max(checks, key=_gravity, default=Check("allowed", True))

    async def stream(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Events of a streamed answer, each after the text in it was judged."""
        config = self._upstream.config
        if not config.check_output:
            async for piece in self._upstream.read(response):
                yield piece
            return
        held = Held(config.chunk_chars, self._service.config.server.window_chars)
        try:
            async for data in _events(self._upstream.read(response), config.max_reply_bytes):
                held.add(_event(data))
                if held.clean or held.due:
                    passes, events = await self._pass_on(held)
                    for event in events:
                        yield written(event)
                    if not passes:
                        yield b"data: [DONE]\n\n"
                        return
            _, events = await self._pass_on(held)
            for event in events:
                yield written(event)
            yield b"data: [DONE]\n\n"
        except UnreadableError:
            self._service.metrics.proxied("output", UNREADABLE.outcome)
            for event in held.stopped(UNREADABLE.outcome):
                yield written(event)
            yield b"data: [DONE]\n\n"
        except UpstreamError as e:
            passes, events = await self._pass_on(held)
            for event in events:
                yield written(event)
            if passes:
                yield written({"error": {"message": e.message, "type": "server_error", "code": e.code}})
        finally:
            await response.aclose()

    async def _pass_on(self, held: Held) -> tuple[bool, list[dict[str, Any]]]:
        """Judge what is new; the events to send, and whether the stream goes on."""
        if held.clean:
            return True, held.release()
        check = await self.check_output(held.unjudged())
        self._service.metrics.proxied("output", check.outcome)
        if not check.passes:
            return False, held.stopped(check.outcome)
        events = held.release()
        if check.outcome == "unscanned":
            events[-1]["guardkeel"] = {"output": "unscanned", "verdict": check.verdict}
        return True, events

    async def _judge(self, items: Sequence[Item]) -> Check:
        if not items:
            return Check("allowed", True)
        policy = self._service.in_force.policy
        try:
            served = await self._service.judge(items, request=self._request, key=self._key)
        except (OverloadedError, StoreDownError):
            return Check("unscanned", policy.unscored == "open")
        flagged = next((s for s in served if s.flagged and not s.unscored), None)
        if flagged is not None:
            return Check("flagged", False, flagged.id)
        unscored = next((s for s in served if s.unscored), None)
        if unscored is not None:
            return Check("unscanned", unscored.policy.policy.unscored == "open", unscored.id)
        return Check("allowed", True, served[0].id)


class Seen:
    """Digests of texts that were allowed under a version of the policy; the latest few thousand."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._most = most
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def has(self, version: int, text: str) -> bool:
        """Whether this text was allowed lately."""
        digest = _digest(version, text)
        if digest not in self._digests:
            return False
        self._digests.move_to_end(digest)
        return True

    def add(self, version: int, text: str) -> None:
        """Remember it."""
        self._digests[_digest(version, text)] = None
        while len(self._digests) > self._most:
            self._digests.popitem(last=False)


def _digest(version: int, text: str) -> bytes:
    return sha256(f"{version} {text}".encode("utf-8", "surrogatepass")).digest()


def _item(conversation: Conversation, side: Literal["prompt", "response"] = "prompt") -> Item:
    return Item(conversation, side, UNDETERMINED)


def _gravity(check: Check) -> int:
    return ("unchecked", "allowed", "unscanned", "flagged").index(check.outcome)


def _conversation(messages: Any) -> Conversation:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise DataError(
            "messages must be a non-empty list of objects", remedy="see the OpenAI message format"
        )
    plain = []
    for message in messages:
        known = {k: message[k] for k in _MESSAGE if k in message}
        role = known.get("role")
        known["role"] = _ROLES.get(role, role) if isinstance(role, str) else role
        if isinstance(known.get("content"), list):
            for part in known["content"]:
                if isinstance(part, dict) and part.get("type") not in ("text", "refusal"):
                    raise UnreadableError
        elif known.get("content") is None and not known.get("tool_calls") and not known.get("refusal"):
            known["content"] = ""
        rest = {k: v for k, v in message.items() if k not in known}
        if any(True for _ in spoken(rest)):  # audio, function_call and what else there may be
            raise UnreadableError
        plain.append(known)
    return Conversation.from_messages(plain)


async def _events(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[str]:
    """Data of the events up to [DONE]."""
    lines = Lines(most)
    async for piece in pieces:
        for data in lines.feed(piece):
            if data.strip() == "[DONE]":
                return
            yield data
    for data in lines.end():
        if data.strip() == "[DONE]":
            return
        yield data


def _event(data: str) -> Any:
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError:
        raise UnreadableError from None
