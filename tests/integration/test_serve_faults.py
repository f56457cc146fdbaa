"""Real sockets: the official client, and guards behind servers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation.config import ServeConfig
from guardkeel.moderation.experts import load_experts
from guardkeel.moderation.keys import new_key
from guardkeel.moderation.metrics import Metrics
from guardkeel.moderation.service import Service
from moderation_parts import Acting, client_of, listening, rules, service_of
from remote_server import DROP, HANG, Server, moderated


def test_official_client_works_by_its_base_url(tmp_path):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    key = new_key(tmp_path / "keys.json", "shop", ("moderate",))
    service = service_of(
        tmp_path, rules(), Acting(lambda text: 0.3, name="calm"), server={"keys": "keys.json"}
    )
    with listening(service) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        [one] = client.moderations.create(input="the ship sails").results
        assert one.flagged and one.categories.violence and not one.categories.self_harm_intent
        assert one.category_scores.violence == pytest.approx(0.65)
        assert one.category_applied_input_types.sexual_minors == ["text"]
        many = client.moderations.create(model="omni-moderation-latest", input=["hello", "ships"])
        assert [r.flagged for r in many.results] == [False, True]
        assert many.model == "guardkeel-default"
        parts = client.moderations.create(input=[{"type": "text", "text": "ships"}])
        assert [r.flagged for r in parts.results] == [True]
        picture = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
        with pytest.raises(openai.BadRequestError, match="only texts"):
            client.moderations.create(input=picture)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="no", max_retries=0).moderations.create(input="a")


def test_official_client_chats_through_the_proxy(tmp_path):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    from guardkeel.moderation.proxy import Upstream
    from remote_server import chat

    with Server(lambda request: chat("a ship" if "sail" in str(request["body"]) else "calm")) as behind:
        service = service_of(tmp_path, rules(), proxy={"upstream": f"{behind.url}/v1"})
        with listening(service, Upstream(service.config.proxy)) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)

            def say(text):
                return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])

            assert say("hello").choices[0].message.content == "calm"
            withheld = say("who sails").choices[0]
            assert (withheld.message.content, withheld.finish_reason) == ("", "content_filter")
            with pytest.raises(openai.BadRequestError) as refused:
                say("a ship")
            assert refused.value.code == "content_filter"


# Guards behind servers that fail


def remote_service(tmp_path, server, **said):
    """A service with a real remote guard and a rule list."""
    (tmp_path / "far.toml").write_text(
        f'url = "{server.url}"\napi = "moderations"\nmodel = "m"\nretries = {said.pop("tries", 0)}\nbackoff = 0.01\n'
    )
    store = {"url": f"sqlite:///{tmp_path}/log.db", "poll": 0.05}
    config = ServeConfig(expert=[{"guard": "far.toml", **said}], folder=tmp_path, store=store)
    return Service(config, load_experts(config), Metrics())


def opinions(service, count):
    async def main():
        async with client_of(service) as client:
            found = []
            for _ in range(count):
                answer = await client.post("/v1/verdicts", json={"items": [{"prompt": "words of mine"}]})
                [verdict] = answer.json()["verdicts"]
                found.append((verdict, verdict["experts"]["far"]))
            return found

    return asyncio.run(main())


def test_remote_guard_is_an_expert(tmp_path):
    with Server(lambda request: moderated({"violence": 0.8})) as server:
        [(verdict, far)] = opinions(remote_service(tmp_path, server), 1)
        assert verdict["unsafe"] == pytest.approx(0.8) and far["outcome"] == "scored"
        assert verdict["categories"][0] == {"name": "Violence", "score": pytest.approx(0.8), "flagged": True}


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        ((500, {"error": {"message": "words of mine"}}, {}), "failed", "HTTP 500"),
        ((401, {"error": {"message": "words of mine"}}, {}), "failed", "HTTP 401"),
        (HANG, "timeout", "no answer within 0.3 s"),
        (DROP, "failed", "the connection broke"),
        ((200, b"words of mine", {}), "unscored", "the answer is not JSON"),
        ((400, {"error": {"message": "words of mine"}}, {}), "unscored", "HTTP 400"),
        (moderated({"violence": 1e9}), "unscored", "for a probability"),
    ],
)
def test_remote_guard_that_fails_abstains(tmp_path, answer, outcome, reason):
    with Server(lambda request: answer) as server:
        [(verdict, far)] = opinions(remote_service(tmp_path, server, timeout=0.3), 1)
    assert far["outcome"] == outcome and reason in far["reason"]
    assert verdict["unsafe"] is None and verdict["flagged"] and "words" not in far["reason"]


def test_remote_guard_that_recovers_is_asked_again(tmp_path):
    broken = threading.Event()
    broken.set()

    def answer(request):
        return (503, {}, {}) if broken.is_set() else moderated({"violence": 0.1})

    with Server(answer) as server:
        service = remote_service(tmp_path, server, failures=2, rest=0.1)

        async def main():
            async with client_of(service) as client:

                async def far():
                    answer = await client.post("/v1/verdicts", json={"items": [{"prompt": "a"}]})
                    return answer.json()["verdicts"][0]["experts"]["far"]["outcome"]

                first = [await far() for _ in range(4)]
                broken.clear()
                await asyncio.sleep(0.15)
                return first, [await far() for _ in range(2)], len(server.requests)

        first, then, asked = asyncio.run(main())
    assert first == ["failed", "failed", "resting", "resting"]
    assert then == ["scored", "scored"] and asked == 4


def test_slow_loris_of_a_guard(tmp_path):
    """A server that sends its answer byte by byte, never silent for long."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n")
            while not ended.wait(0.02):
                connection.sendall(b" ")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()

    class At:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    begun = time.monotonic()
    [(verdict, far)] = opinions(remote_service(tmp_path, At, timeout=0.4), 1)
    ended.set()
    listener.close()
    assert far["outcome"] == "timeout" and verdict["unsafe"] is None and 0.3 < far["ms"] / 1000 < 5
    assert time.monotonic() - begun < 30
