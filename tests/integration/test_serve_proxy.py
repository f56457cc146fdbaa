"""The guarded chat, against a real upstream on this machine: nothing unchecked goes in or comes out."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.guards.base import Verdict
from moderation_parts import Acting, client_of, rules, service_of

HELLO = [{"role": "user", "content": "hello"}]


class Upstream:
    """An OpenAI-compatible server: `answer` is a whole body, or a list of events (bytes are sent as they are).

    `bodies` and `keys` are what it was sent. After `broken` events the connection is cut.
    """

    def __init__(self, answer, status=200, broken=None, paused=0.0):
        self.answer, self.status, self.broken, self.paused = answer, status, broken, paused
        self.bodies, self.keys = [], []

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        async with server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            yield self

    async def _handle(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.bodies.append(json.loads(await reader.readexactly(size)))
            self.keys.append(
                head.split("authorization: ")[1].split("\r\n")[0] if "authorization" in head else ""
            )
            kind = "text/event-stream" if isinstance(self.answer, list) else "application/json"
            writer.write(
                f"HTTP/1.1 {self.status} X\r\ncontent-type: {kind}\r\nconnection: close\r\n".encode()
            )
            if isinstance(self.answer, list):
                writer.write(b"transfer-encoding: chunked\r\n\r\n")
                for number, one in enumerate(self.answer):
                    if number == self.broken:
                        break
                    data = one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n"
                    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(self.paused)
                if self.broken is None:
                    writer.write(b"0\r\n\r\n")
            else:
                data = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
                writer.write(f"content-length: {len(data)}\r\n\r\n".encode() + data)
            await writer.drain()
        writer.close()


def chunk(text=None, finish=None, index=0, **delta):
    if text is not None:
        delta["content"] = text
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def whole(text, **more):
    message = {"role": "assistant", "content": text, **more}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "secret_extra": text,
    }


DONE = b"data: [DONE]\n\n"


def proxied(tmp_path, upstream, *guards, proxy=None, environment=None, **tables):
    """Decorates work(client, service, upstream)."""

    def run(work):
        async def main():
            from guardkeel.moderation.proxy import Upstream as Behind

            async with upstream.running():
                service = service_of(
                    tmp_path,
                    *(guards or (rules(),)),
                    proxy={"upstream": upstream.url, **(proxy or {})},
                    **tables,
                )
                async with client_of(service, Behind(service.config.proxy)) as client:
                    await work(client, service, upstream)

        asyncio.run(main())

    return run


async def ask(client, messages=HELLO, **more):
    return await client.post("/v1/chat/completions", json={"model": "m", "messages": messages, **more})


async def streamed(client, messages=HELLO):
    """Events of a streamed answer, its text, and the last finish_reason."""
    answer = await ask(client, messages, stream=True)
    assert answer.status_code == 200, answer.text
    data = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(d) for d in data if d != "[DONE]"]
    choices = [c for e in events for c in e.get("choices", [])]
    text = "".join(c["delta"].get("content") or "" for c in choices)
    ends = [c["finish_reason"] for c in choices if c.get("finish_reason")]
    return events, text, ends[-1] if ends else None


def test_chat_passes_and_the_upstreams_key_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")

    @proxied(tmp_path, Upstream(whole("calm sea")), proxy={"api_key_env": "UPSTREAM_KEY"})
    async def _(client, service, upstream):
        answer = await ask(client, temperature=0.5)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "calm sea"
        assert "secret_extra" not in answer.json()
        assert (answer.headers["x-guardkeel-input"], answer.headers["x-guardkeel-output"]) == (
            "allowed",
            "allowed",
        )
        assert upstream.keys == ["bearer sk-upstream"]
        assert upstream.bodies == [{"model": "m", "messages": HELLO, "temperature": 0.5}]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a ship"}],
        [{"role": "user", "content": [{"type": "text", "text": "a ship"}]}],
        [{"role": "user", "content": "a ship"}, {"role": "assistant", "content": "yes"}, *HELLO],
        [*HELLO, {"role": "assistant", "content": "a ship"}, *HELLO],
        [
            *HELLO,
            {
                "role": "assistant",
                "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "t", "content": "a ship"},
        ],
    ],
)
def test_flagged_input_is_not_sent(tmp_path, messages):
    @proxied(tmp_path, Upstream(whole("never")))
    async def _(client, service, upstream):
        answer = await ask(client, messages)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "content_filter"
        assert answer.headers["x-guardkeel-input"] == "flagged"
        assert upstream.bodies == []


def test_earlier_turns_are_judged_once(tmp_path):
    guard = Acting(lambda text: 0.1, name="a")

    @proxied(tmp_path, Upstream(whole("fine")), guard)
    async def _(client, service, upstream):
        talk = [*HELLO, {"role": "assistant", "content": "fine"}, {"role": "user", "content": "more"}]
        await ask(client, HELLO)
        guard.texts.clear()
        await ask(client, talk)
        assert sorted(guard.texts) == ["fine", "fine", "more"]  # as history, and as the new reply
        guard.texts.clear()
        await ask(client, talk)
        assert sorted(guard.texts) == ["fine", "more"]
        await client.patch("/v1/policies", json={"strictness": "permissive"})
        guard.texts.clear()
        await ask(client, talk)
        assert sorted(guard.texts) == [
            "fine",
            "fine",
            "hello",
            "more",
        ]  # under another policy all is judged again


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "hi", "audio": {"id": "a ship"}}],
        [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "a ship"}},
            *HELLO,
        ],
    ],
)
def test_what_cannot_be_judged_is_not_sent(tmp_path, messages):
    @proxied(tmp_path, Upstream(whole("never")), policy={"unscored": "open"})
    async def _(client, service, upstream):
        answer = await ask(client, messages)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "unscanned"
        assert upstream.bodies == []


def test_flagged_reply_is_withheld(tmp_path):
    calls = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": "ship"}'}}]
    for answer in (whole("a ship"), whole(None, tool_calls=calls), whole("fine", reasoning_content="a ship")):

        @proxied(tmp_path, Upstream(answer))
        async def _(client, service, upstream):
            found = await ask(client)
            assert found.status_code == 200 and found.headers["x-guardkeel-output"] == "flagged"
            [choice] = found.json()["choices"]
            assert choice["finish_reason"] == "content_filter" and choice["guardkeel"]["verdict"].startswith(
                "v_"
            )
            assert "ship" not in found.text


def words(text):
    return [chunk(role="assistant"), *(chunk(w + " ") for w in text.split()), chunk(finish="stop"), DONE]


def test_stream_passes_piece_by_piece(tmp_path):
    text = "the sea is calm and the wind is low " * 10

    @proxied(tmp_path, Upstream(words(text)), proxy={"chunk_chars": 40})
    async def _(client, service, upstream):
        _, said, finish = await streamed(client)
        assert said.split() == text.split() and finish == "stop"
        checks = [
            s
            for s in (await client.get("/metrics")).text.splitlines()
            if 'guardkeel_proxy_total{outcome="allowed",part="output"}' in s
        ]
        assert float(checks[0].split()[1]) >= 8


@pytest.mark.parametrize("size", [1, 30, 10_000])
def test_flagged_chunk_never_leaves(tmp_path, size):
    text = "calm sea " * 20 + "a ship comes " + "calm sea " * 20

    @proxied(tmp_path, Upstream(words(text)), proxy={"chunk_chars": size})
    async def _(client, service, upstream):
        events, said, finish = await streamed(client)
        assert "ship" not in said and finish == "content_filter"
        assert text.startswith(said.strip()[:-1])
        assert events[-1]["guardkeel"]["output"] == "flagged"


def test_harm_that_is_cut_across_chunks_is_seen(tmp_path):
    pieces = [chunk("the s"), chunk("hi"), chunk("p sails"), chunk(finish="stop"), DONE]

    @proxied(tmp_path, Upstream(pieces), proxy={"chunk_chars": 1})
    async def _(client, service, upstream):
        _, said, finish = await streamed(client)
        assert said == "the shi" and finish == "content_filter"


def failing_after(texts):
    """An expert that judges so many texts and then fails."""
    left = iter(range(texts))

    def act(text):
        if next(left, None) is None:
            raise RuntimeError
        return 0.1

    return Acting(act, name="failing")


@pytest.mark.parametrize("guard", ["raises", "unscored", "garbage"])
def test_closed_lets_no_unchecked_chunk_out(tmp_path, guard):
    acts = {
        "raises": failing_after(1),  # the input
        "unscored": Acting(lambda text: 0.1 if text == "hello" else Verdict(None, unscored="?"), name="u"),
        "garbage": Acting(lambda text: 0.1 if text == "hello" else "safe", name="g"),
    }

    @proxied(tmp_path, Upstream(words("calm sea " * 20)), acts[guard], proxy={"chunk_chars": 20})
    async def _(client, service, upstream):
        events, said, finish = await streamed(client)
        assert said == "" and finish == "content_filter"
        assert events[-1]["guardkeel"]["output"] == "unscanned"

    @proxied(tmp_path, Upstream(whole("calm sea")), acts[guard])
    async def _(client, service, upstream):
        found = await ask(client)
        if guard == "raises":  # now the input cannot be judged either
            assert found.status_code == 503 and found.json()["error"]["code"] == "unscanned"
            assert upstream.bodies == []
        else:
            assert found.headers["x-guardkeel-output"] == "unscanned" and "calm" not in found.text


def test_open_lets_it_out_and_says_so(tmp_path):
    guard = Acting(lambda text: 0.1 if text == "hello" else Verdict(None, unscored="?"), name="u")

    @proxied(tmp_path, Upstream(words("calm sea")), guard, policy={"unscored": "open"})
    async def _(client, service, upstream):
        events, said, finish = await streamed(client)
        assert said.split() == ["calm", "sea"] and finish == "stop"
        assert [e["guardkeel"]["output"] for e in events if "guardkeel" in e] == ["unscanned"]


def test_failing_in_mid_stream_keeps_what_follows(tmp_path):
    @proxied(tmp_path, Upstream(words("calm sea " * 20)), failing_after(3), proxy={"chunk_chars": 20})
    async def _(client, service, upstream):
        _, said, finish = await streamed(client)
        assert 20 <= len(said) <= 60 and finish == "content_filter"


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {not json\n\n",
        b"data: \xff\xfe\n\n",
        b'data: {"choices": "a ship"}\n\n',
        b'data: {"text": "a ship"}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"audio": {"data": "AA"}}}]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_events_that_cannot_be_judged_end_the_stream(tmp_path, garbage):
    @proxied(tmp_path, Upstream([chunk("calm "), garbage, chunk("sea"), DONE]), proxy={"chunk_chars": 1})
    async def _(client, service, upstream):
        events, said, finish = await streamed(client)
        assert said == "calm " and finish == "content_filter"
        assert "ship" not in json.dumps(events)


@pytest.mark.parametrize(("text", "wanted"), [("calm sea", "calm sea"), ("a ship", "")])
def test_stream_that_breaks_off(tmp_path, text, wanted):
    @proxied(tmp_path, Upstream(words(text), broken=3))
    async def _(client, service, upstream):
        events, said, _ = await streamed(client)
        assert said.strip() == wanted  # what was held is judged before it goes
        assert ("error" in events[-1]) == bool(wanted)


def test_endless_and_silent_upstreams(tmp_path):
    @proxied(tmp_path, Upstream(words("sea " * 2000)), proxy={"max_reply_bytes": 4096, "chunk_chars": 500})
    async def _(client, service, upstream):
        _, said, finish = await streamed(client)
        assert len(said) < 4096 and finish == "content_filter"

    @proxied(tmp_path, Upstream(whole("x" * 5000)), proxy={"max_reply_bytes": 4096})
    async def _(client, service, upstream):
        assert (await ask(client)).status_code == 502

    @proxied(tmp_path, Upstream(words("sea sea"), paused=0.5), proxy={"timeout": 0.2})
    async def _(client, service, upstream):
        events, _, _ = await streamed(client)
        assert events[-1]["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize(("status", "seen"), [(429, 429), (401, 401), (500, 502), (302, 502)])
def test_errors_of_the_upstream_are_passed_on_without_their_words(tmp_path, status, seen):
    @proxied(tmp_path, Upstream({"error": {"message": "a ship"}}, status=status))
    async def _(client, service, upstream):
        for stream in (False, True):
            answer = await ask(client, stream=stream)
            assert answer.status_code == seen and "ship" not in answer.text
            assert answer.headers["x-guardkeel-input"] == "allowed"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b'{"messages": []}',
        b'{"messages": [1]}',
        b'{"messages": "x"}',
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "stream": "yes"}',
    ],
)
def test_requests_that_cannot_be_used(tmp_path, body):
    @proxied(tmp_path, Upstream(whole("never")))
    async def _(client, service, upstream):
        answer = await client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400 and upstream.bodies == []


def test_what_was_judged_is_what_is_sent(tmp_path):
    """Of two keys of one name one is judged; the other must not reach the upstream."""

    @proxied(tmp_path, Upstream(whole("fine")))
    async def _(client, service, upstream):
        body = b'{"messages": [{"role": "user", "content": "a ship"}], "messages": [{"role": "user", "content": "hi"}]}'
        answer = await client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 200
        assert upstream.bodies == [{"messages": [{"role": "user", "content": "hi"}]}]


def test_no_proxy_without_an_upstream(tmp_path):
    async def main():
        async with client_of(service_of(tmp_path, rules())) as client:
            assert (await ask(client)).status_code == 404

    asyncio.run(main())
