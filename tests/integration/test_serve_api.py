"""The service over HTTP, in this process: endpoints, limits, keys, faults of experts and of requests."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.guards.base import Verdict
from guardkeel.moderation.keys import new_key
from guardkeel.moderation.openai_schema import KEYS
from moderation_parts import Acting, Hanging, client_of, rules, service_of, until


def serving(tmp_path, *guards, headers=None, **options):
    """Decorates work(client, service): it is run against the service."""

    def run(work):
        async def main():
            service = service_of(tmp_path, *guards, **options)
            async with client_of(service, headers=headers) as client:
                return await work(client, service)

        return asyncio.run(main())

    return run


async def verdicts(client, *texts, **more):
    answer = await client.post("/v1/verdicts", json={"items": [{"prompt": t, **more} for t in texts]})
    assert answer.status_code == 200, answer.text
    return answer.json()["verdicts"]


def scope():
    """Of a request that is made by hand."""
    return {
        "type": "http", "method": "POST", "path": "/v1/moderations", "raw_path": b"/v1/moderations",
        "query_string": b"", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "scheme": "http", "server": ("serve", 80), "client": ("c", 1), "root_path": "",
    }  # fmt: skip


def test_moderations_are_in_openais_schema(tmp_path):
    @serving(tmp_path, rules(), Acting(lambda text: 0.4, name="calm"))
    async def _(client, service):
        one = (await client.post("/v1/moderations", json={"input": "a ship"})).json()
        assert set(one) == {"id", "model", "results"} and one["id"].startswith("modr-")
        [result] = one["results"]
        assert set(result) == {"flagged", "categories", "category_scores", "category_applied_input_types"}
        assert set(result["categories"]) == set(result["category_scores"]) == set(KEYS)
        assert result["flagged"] and result["categories"]["violence"] and not result["categories"]["hate"]
        assert result["category_scores"]["violence"] == pytest.approx(0.7)
        many = await client.post(
            "/v1/moderations", json={"input": ["a ship", "hello"], "model": "omni-moderation-latest"}
        )
        assert [r["flagged"] for r in many.json()["results"]] == [True, False]
        parts = [{"type": "text", "text": "a sh"}, {"type": "text", "text": "ship"}]
        joined = (await client.post("/v1/moderations", json={"input": parts})).json()
        assert [r["flagged"] for r in joined["results"]] == [True]
        picture = [*parts, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
        refused = await client.post("/v1/moderations", json={"input": picture})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_input"


@pytest.mark.parametrize(
    ("unscored", "status", "flagged"), [("closed", 200, True), ("open", 200, False), ("error", 503, None)]
)
def test_unscored_is_never_safe(tmp_path, unscored, status, flagged):
    silent = Acting(lambda text: Verdict(None, unscored="said nothing"), name="silent")

    @serving(tmp_path, silent, policy={"unscored": unscored})
    async def _(client, service):
        answer = await client.post("/v1/moderations", json={"input": ["a", "b"]})
        assert answer.status_code == status
        assert answer.headers["x-guardkeel-unscored"] == "0,1"
        if flagged is not None:
            results = answer.json()["results"]
            assert [r["flagged"] for r in results] == [flagged] * 2
            assert not any(results[0]["categories"].values())
            [found] = await verdicts(client, "a")
            assert found["unsafe"] is None and found["flagged"] is flagged
            assert found["unscored"] == "said nothing" and found["audit"]["propensity"] >= 0.05
        else:
            assert answer.headers["retry-after"]
        text = (await client.get("/metrics")).text
        assert 'guardkeel_verdicts_total{outcome="unscored",side="prompt"}' in text
        assert 'outcome="allowed"' not in text


def test_policys_own_words_flag_where_no_expert_was_heard(tmp_path):
    policy = {"unscored": "open", "categories": [{"name": "Anchors", "words": ["anchor"]}]}

    @serving(tmp_path, Acting(lambda text: None, name="broken"), policy=policy)
    async def _(client, service):
        found = await verdicts(client, "an anchor", "a rope")
        assert [v["flagged"] for v in found] == [True, False]
        assert found[0]["unscored"] is None and found[1]["unscored"]


def test_expert_that_hangs_costs_its_timeout_and_abstains(tmp_path):
    hanging = Hanging()

    @serving(tmp_path, rules(), Acting(hanging, name="stuck"), experts=[{}, {"timeout": 0.1, "failures": 1}])
    async def _(client, service):
        first, second = [(await verdicts(client, "a ship"))[0] for _ in range(2)]
        for found in (first, second):
            assert found["flagged"] and found["unsafe"] == 1.0
            assert found["experts"]["stuck"]["unsafe"] is None and found["experts"]["stuck"]["weight"] == 0
        assert first["experts"]["stuck"]["outcome"] == "timeout" and first["ms"] >= 90
        assert second["experts"]["stuck"]["outcome"] == "resting"
        assert (await client.get("/readyz")).json()["resting"] == ["stuck"]
        hanging.release()


def test_every_fault_of_an_expert_is_an_abstention(tmp_path):
    def act(text):
        raise RuntimeError("quoting " + text)

    guards = [
        Acting(act, name="raises"),
        Acting(lambda text: float("nan"), name="nan"),
        Acting(lambda text: "safe", name="garbage"),
        Acting(lambda text: 0.9, name="sound"),
    ]

    @serving(tmp_path, *guards)
    async def _(client, service):
        [found] = await verdicts(client, "secret words")
        assert found["unsafe"] == pytest.approx(0.9) and found["flagged"]
        said = {name: (o["outcome"], o["unsafe"], o["weight"]) for name, o in found["experts"].items()}
        for name in ("raises", "nan", "garbage"):
            assert said[name] == ("failed", None, 0)
        assert "secret words" not in json.dumps(found)


def test_feedback_teaches_whom_to_trust(tmp_path):
    wrong, right = Acting(lambda text: 0.9, name="wrong"), Acting(lambda text: 0.2, name="right")
    audit = {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}

    @serving(tmp_path, wrong, right, learner={"audit": audit, "prior_strength": 1.0})
    async def _(client, service):
        served = await verdicts(client, *[f"text {i}" for i in range(40)], language="de-AT")
        assert all(v["audit"] == {"drawn": True, "propensity": 1.0} for v in served)
        assert served[0]["flagged"]
        rows = [{"id": f"f{i}", "verdict": v["id"], "unsafe": False} for i, v in enumerate(served)]
        first = await client.post("/v1/feedback", json={"feedback": rows})
        assert first.status_code == 200
        assert [a["sequence"] for a in first.json()["feedback"]] == list(range(1, 41))
        again = await client.post("/v1/feedback", json={"feedback": rows})
        assert {a["status"] for a in again.json()["feedback"]} == {"known"}
        await until(lambda: service.learner.sequence == 40)
        [after] = await verdicts(client, "text", language="de")
        assert after["context"] == ["prompt", "de"] and after["weights_version"] == 40
        assert after["experts"]["right"]["weight"] > 0.95 and not after["flagged"]
        await until(lambda: service.writer.waiting == 0 and service.store.counts()["served"] == 41)
        shown = (await client.get("/v1/experts")).json()
        assert shown["weights_version"] == 40 and shown["counts"] == {
            "served": 41,
            "drawn": 41,
            "feedback": 40,
        }
        assert ["prompt", "de"] in [t["context"] for t in shown["tables"]]
        assert len((await client.get("/v1/audits")).json()["audits"]) == 1
        kept = (await client.get(f"/v1/verdicts/{served[0]['id']}")).json()
        assert kept["text"] is None and kept["advice"] == {"wrong": 0.9, "right": 0.2}


def test_appeals_teach_nothing_unless_they_are_given_a_weight(tmp_path):
    """One-sided: only the blocked appeal. An ensemble that listened would drift permissive."""
    audit = {"floor": 1e-9, "flagged": 0.0, "allowed": 0.0, "focus": 0.0}

    @serving(
        tmp_path,
        Acting(lambda text: 0.9, name="a"),
        Acting(lambda text: 0.1, name="b"),
        learner={"audit": audit},
    )
    async def _(client, service):
        served = await verdicts(client, *["text"] * 20)
        rows = [
            {"id": f"f{i}", "verdict": v["id"], "unsafe": False, "source": "appeal"}
            for i, v in enumerate(served)
        ]
        acks = (await client.post("/v1/feedback", json={"feedback": rows})).json()["feedback"]
        assert not any(a["audited"] for a in acks)
        await until(lambda: service.learner.sequence == 20)
        assert service.learner.weights() == {"a": 0.5, "b": 0.5}


def test_feedback_that_is_not_taken_is_said(tmp_path):
    @serving(tmp_path, rules())
    async def _(client, service):
        [v] = await verdicts(client, "a ship")
        mixed = [
            {"id": "f", "verdict": v["id"], "unsafe": True},
            {"id": "g", "verdict": "v_no", "unsafe": True},
        ]
        answer = await client.post("/v1/feedback", json={"feedback": mixed})
        assert answer.status_code == 207
        assert [a["status"] for a in answer.json()["feedback"]] == ["new", "unknown verdict"]
        changed = [{"id": "f", "verdict": v["id"], "unsafe": False}]
        assert (await client.post("/v1/feedback", json={"feedback": changed})).json()["feedback"][0][
            "status"
        ] == "conflict"


def test_policy_is_changed_without_a_restart_and_survives_one(tmp_path):
    guard = Acting(lambda text: 0.6, name="a")

    @serving(tmp_path, guard)
    async def _(client, service):
        assert (await verdicts(client, "x"))[0]["flagged"]
        flipped = await client.patch("/v1/policies", json={"strictness": "permissive"})
        assert flipped.json()["version"] == 2
        [found] = await verdicts(client, "x")
        assert not found["flagged"] and found["policy"] == {
            "name": "default",
            "version": 2,
            "strictness": "permissive",
        }
        put = await client.put("/v1/policies", json={"name": "mine", "threshold": 0.55})
        assert put.status_code == 200 and (await verdicts(client, "x"))[0]["flagged"]
        bad = await client.put("/v1/policies", json={"name": "mine", "treshold": 0.55})
        assert bad.status_code == 400 and "treshold" in bad.json()["error"]["message"]

    @serving(tmp_path, guard)
    async def _(client, service):
        found = (await client.get("/v1/policies")).json()
        assert found["in_force"]["policy"]["name"] == "mine" and len(found["history"]) == 3


def test_replicas_on_one_log_converge(tmp_path):
    audit = {"floor": 0.5, "flagged": 0.5, "allowed": 0.5, "focus": 0.3}

    async def main():
        guards = [
            Acting(lambda text: 0.8, name="a"),
            Acting(lambda text: (sum(map(ord, text)) % 7) / 10, name="b"),
        ]
        made = [service_of(tmp_path, *guards, learner={"audit": audit, "unsolicited": 0.2}) for _ in range(2)]
        async with client_of(made[0]) as one, client_of(made[1]) as two:
            for i in range(30):
                client = (one, two)[i % 2]
                [v] = await verdicts(client, f"text {i}")
                row = {"id": f"f{i}", "verdict": v["id"], "unsafe": i % 3 == 0}
                assert (await client.post("/v1/feedback", json={"feedback": [row]})).status_code == 200
            await one.patch("/v1/policies", json={"strictness": "permissive"})
            await until(lambda: made[0].learner.sequence == made[1].learner.sequence == 30)
            await until(lambda: made[1].in_force.version == 2)
            context = ("prompt", "und")
            assert made[0].learner.weights(context) == made[1].learner.weights(context)
            assert made[0].learner.weights(context) != {"a": 0.5, "b": 0.5}
            learnt = made[0].learner.tables()
        fresh = service_of(tmp_path, *guards, learner={"audit": audit, "unsolicited": 0.2})
        async with client_of(fresh):
            assert fresh.learner.tables() == learnt

    asyncio.run(main())


# Limits and keys


def test_too_much_is_429_with_a_time(tmp_path):
    hanging = Hanging()

    @serving(tmp_path, Acting(hanging, name="slow"), server={"max_pending": 2, "max_items": 3})
    async def _(client, service):
        first = asyncio.create_task(client.post("/v1/moderations", json={"input": ["a", "b"]}))
        await until(lambda: service.pending.now == 2)
        busy = await client.post("/v1/moderations", json={"input": "c"})
        assert busy.status_code == 429 and int(busy.headers["retry-after"]) >= 1
        assert busy.json()["error"]["type"] == "rate_limit_error"
        hanging.release()
        assert (await first).status_code == 200
        assert (await client.post("/v1/moderations", json={"input": "c"})).status_code == 200
        many = await client.post("/v1/moderations", json={"input": list("abcd")})
        assert many.status_code == 400 and many.json()["error"]["code"] == "too_many_items"


def test_keys_have_roles_and_rates(tmp_path):
    keys = tmp_path / "keys.json"
    shop, reviewer, admin = (new_key(keys, r, (r,)) for r in ("moderate", "feedback", "admin"))
    slow = new_key(keys, "slow", ("moderate",), 6)

    @serving(tmp_path, rules(), server={"keys": "keys.json"})
    async def _(client, service):
        async def status(method, path, key, body=None):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            return (await client.request(method, path, json=body, headers=headers)).status_code

        ask = {"input": "x"}
        assert await status("POST", "/v1/moderations", None, ask) == 401
        assert await status("POST", "/v1/moderations", shop[:-1], ask) == 401
        assert await status("POST", "/v1/moderations", shop, ask) == 200
        assert await status("POST", "/v1/moderations", reviewer, ask) == 403
        assert await status("GET", "/v1/audits", reviewer) == 200
        assert await status("GET", "/v1/audits", shop) == 403
        assert await status("GET", "/v1/experts", reviewer) == 403
        assert await status("GET", "/v1/experts", admin) == 200
        assert await status("POST", "/v1/moderations", admin, ask) == 200
        assert await status("GET", "/nowhere", None) == 401
        assert await status("GET", "/nowhere", shop) == 404
        for open_path in ("/healthz", "/readyz", "/metrics"):
            assert await status("GET", open_path, None) == 200
        assert await status("POST", "/v1/moderations", slow, ask) == 200
        assert await status("POST", "/v1/moderations", slow, ask) == 429


# Requests that are wrong or strange


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"input": "\xff\xfe"}',
        b'{"input": NaN}',
        b'{"input": []}',
        b'{"input": {}}',
        b'{"input": [1]}',
        b'{"input": [["a"]]}',
        b'{"input": ["a", {"type": "text", "text": "b"}]}',
        b'{"input": [{"type": "video", "text": "b"}]}',
        b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 500_000,
        b'{"input": ' + b"9" * 10_000 + b"}",
    ],
)
def test_bodies_that_cannot_be_used_are_4xx(tmp_path, body):
    @serving(tmp_path, rules())
    async def _(client, service):
        answer = await client.post(
            "/v1/moderations", content=body, headers={"content-type": "application/json"}
        )
        assert 400 <= answer.status_code < 500, answer.status_code
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/verdicts", {"items": []}),
        ("/v1/verdicts", {"items": [{}]}),
        ("/v1/verdicts", {"items": [{"prompt": "a", "messages": []}]}),
        ("/v1/verdicts", {"items": [{"messages": []}]}),
        ("/v1/verdicts", {"items": [{"messages": [{"role": "wizard", "content": "secret words"}]}]}),
        ("/v1/verdicts", {"items": [{"messages": [{"role": "user", "content": 5}]}]}),
        ("/v1/verdicts", {"items": [{"prompt": "secret words", "side": "inside"}]}),
        ("/v1/feedback", {"feedback": []}),
        ("/v1/feedback", {"feedback": [{"id": "a\u0000b", "verdict": "v", "unsafe": True}]}),
        ("/v1/feedback", {"feedback": [{"id": "x" * 129, "verdict": "v", "unsafe": True}]}),
        ("/v1/feedback", {"feedback": [{"id": "a", "verdict": "v", "unsafe": "maybe"}]}),
        ("/v1/feedback", {"feedback": [{"id": "a", "verdict": "v", "unsafe": True, "propensity": 1.0}]}),
    ],
)
def test_bodies_of_our_own_endpoints(tmp_path, path, body):
    @serving(tmp_path, rules())
    async def _(client, service):
        answer = await client.post(path, json=body)
        assert answer.status_code == 400
        assert "secret words" not in answer.text


def test_size_is_bounded_while_reading(tmp_path):
    @serving(tmp_path, rules(), server={"max_body_bytes": 2**20, "max_chars": 1000})
    async def _(client, service):
        said = {"content-type": "application/json", "content-length": str(2**30)}
        assert (await client.post("/v1/moderations", content=b"{}", headers=said)).status_code == 413
        long = await client.post("/v1/moderations", json={"input": "b" * 1001})
        assert long.status_code == 400 and long.json()["error"]["code"] == "text_too_long"


def test_body_without_a_length_is_cut_off_while_it_comes(tmp_path):
    from guardkeel.moderation.app import make_app

    async def main():
        service = service_of(tmp_path, rules(), server={"max_body_bytes": 2**16})
        taken, sent = [], []

        async def receive():
            taken.append(2**14)
            return {"type": "http.request", "body": b"a" * 2**14, "more_body": True}

        async def send(message):
            sent.append(message)

        await make_app(service)(scope(), receive, send)
        assert sent[0]["status"] == 413 and sum(taken) <= 2**16 + 2**14

    asyncio.run(main())


def test_long_text_is_judged_whole(tmp_path):
    """One megabyte with the harm in the middle, where guards cut what is too long."""
    short = rules(name="short", max_chars=1000)
    options = {"max_body_bytes": 2**21, "max_chars": 2**20, "window_chars": 1000}

    @serving(tmp_path, short, server=options, experts=[{"batch": 512}])
    async def _(client, service):
        text = "calm sea " * 55_000
        middle = f"{text[: 2**18]} ship {text[: 2**18]}"
        [found] = await verdicts(client, middle)
        assert found["flagged"] and found["windows"] > 500
        [calm] = await verdicts(client, text[: 2**18])
        assert not calm["flagged"] and calm["unscored"] is None

    @serving(tmp_path, short, server={**options, "window_chars": 4000})
    async def _(client, service):  # too much for this guard: it is asked again about less
        [found] = await verdicts(client, "calm sea " * 1000)
        assert not found["flagged"] and found["windows"] > 9
        [found] = await verdicts(client, "calm sea " * 500 + " ship " + "calm sea " * 500)
        assert found["flagged"]

    tiny = Acting(lambda text: Verdict(0.1, dropped=1), name="tiny")

    @serving(tmp_path, tiny, server=options)
    async def _(client, service):
        [found] = await verdicts(client, "calm sea " * 100)
        assert found["unscored"] == "part of the text was read by no expert" and found["flagged"]


@pytest.mark.parametrize(
    "text",
    [
        "s\u200bh\u200dip",
        "ѕһір",
        "\u202eship\u202c",
        "s\u0301\u0302" * 500,
        "\ufeff",
        "a\u0000b",
        "😀" * 1000,
        "\U000e0041ship",
    ],
)
def test_strange_text_passes_through_unharmed(tmp_path, text):
    echo = Acting(lambda given: 0.25, name="echo")

    @serving(tmp_path, echo, store={"url": f"sqlite:///{tmp_path}/t.db", "texts": True})
    async def _(client, service):
        [found] = await verdicts(client, text)
        assert found["unsafe"] == 0.25
        await until(lambda: service.store.verdict(found["id"]) is not None)
        kept = (await client.get(f"/v1/verdicts/{found['id']}")).json()
        assert json.loads(kept["text"]) == [{"role": "user", "content": text}]

    assert echo.texts == [text]


def test_lone_surrogate_passes_through_too(tmp_path):
    echo = Acting(lambda given: 0.25, name="echo")

    @serving(tmp_path, echo, rules(), store={"url": f"sqlite:///{tmp_path}/t.db", "texts": True})
    async def _(client, service):
        body = b'{"items": [{"prompt": "a\\ud800b"}]}'
        answer = await client.post("/v1/verdicts", content=body, headers={"content-type": "application/json"})
        [found] = answer.json()["verdicts"]
        await until(lambda: service.store.verdict(found["id"]) is not None)

    assert echo.texts == ["a\ud800b"]


def test_slow_request_is_given_up(tmp_path):
    from guardkeel.moderation.app import make_app

    async def main():
        service = service_of(tmp_path, rules(), server={"body_seconds": 0.05})
        sent = []

        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message):
            sent.append(message)

        await asyncio.wait_for(make_app(service)(scope(), receive, send), 5)
        assert sent[0]["status"] == 408

    asyncio.run(main())


# The store away, logs, the end


def test_database_away_and_back(tmp_path):
    from guardkeel.moderation.store import StoreDownError

    @serving(tmp_path, rules())
    async def _(client, service):
        write = service.store.write

        def away(rows, given):
            raise StoreDownError("away")

        [before] = await verdicts(client, "a ship")
        await until(lambda: service.store.verdict(before["id"]) is not None)
        service.store.write = away
        [during] = await verdicts(client, "a ship")
        assert during["flagged"]  # verdicts go on
        row = {"feedback": [{"id": "f", "verdict": during["id"], "unsafe": True}]}
        refused = await client.post("/v1/feedback", json=row)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        ready = await client.get("/readyz")
        assert ready.status_code == 200 and ready.json()["store"] == "away"
        service.store.write = write
        assert (await client.post("/v1/feedback", json=row)).json()["feedback"][0]["status"] == "new"
        assert (await client.get("/readyz")).json()["store"] == "up"


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_clock_that_jumps_changes_nothing(tmp_path, monkeypatch, jump):
    """Verdicts, their times, feedback and its order, breakers and rates: none goes by the wall clock."""
    import time

    failing = Acting(lambda text: None, name="failing")
    expert = {"failures": 1, "rest": 0.2}
    real = time.time

    @serving(tmp_path, rules(), failing, experts=[{}, expert], server={"requests_per_minute": 600})
    async def _(client, service):
        [before] = await verdicts(client, "a ship")
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        [after] = await verdicts(client, "a ship")
        assert after["flagged"] and 0 <= after["ms"] < 5000
        assert after["experts"]["failing"]["outcome"] == "resting"
        rows = [{"id": v["id"], "verdict": v["id"], "unsafe": True} for v in (after, before)]
        acks = [
            (await client.post("/v1/feedback", json={"feedback": [r]})).json()["feedback"][0] for r in rows
        ]
        assert [a["sequence"] for a in acks] == [1, 2]
        await until(lambda: service.learner.sequence == 2)
        await asyncio.sleep(0.25)
        [tried] = await verdicts(client, "a ship")
        assert tried["experts"]["failing"]["outcome"] == "failed"
        assert (await client.get("/page/")).status_code == 200


def test_database_that_is_not_there_stops_the_start(tmp_path):
    from guardkeel.moderation.app import running
    from guardkeel.moderation.store import StoreDownError

    async def main():
        async with running(
            service_of(tmp_path, rules(), store={"url": f"sqlite:///{tmp_path}/no/such/log.db"})
        ):
            raise AssertionError("it started")

    with pytest.raises(StoreDownError, match="OperationalError"):
        asyncio.run(main())


def test_verdicts_before_their_answers_where_asked_for(tmp_path):
    store = {"url": f"sqlite:///{tmp_path}/b.db", "verdicts": "before", "poll": 0.05}

    @serving(tmp_path, rules(), store=store)
    async def _(client, service):
        [found] = await verdicts(client, "a ship")
        assert service.store.verdict(found["id"])["flagged"]


def test_no_text_and_no_key_in_the_logs(tmp_path, caplog):
    caplog.set_level("DEBUG")
    key = new_key(tmp_path / "keys.json", "shop", ("admin",))

    def act(text):
        raise ValueError(text)

    @serving(
        tmp_path,
        Acting(act, name="raises"),
        server={"keys": "keys.json"},
        headers={"authorization": f"Bearer {key}"},
    )
    async def _(client, service):
        await client.post("/v1/moderations?q=querysecret", json={"input": "bodysecret"})
        await client.post("/v1/verdicts", json={"items": [{"prompt": "bodysecret", "side": "bodysecret"}]})
        service.judge = None  # a fault of ours
        broken = await client.post("/v1/moderations", json={"input": "bodysecret"})
        assert broken.status_code == 500 and broken.json()["error"]["code"] == "internal_error"

    from guardkeel.moderation.logs import Lines

    lines = [
        Lines(plain=False, texts=False).format(r) for r in caplog.records if r.name.startswith("guardkeel")
    ]
    assert any('"route": "/v1/moderations"' in line for line in lines)
    assert any('"exception"' in line for line in lines)
    for line in lines:
        assert "bodysecret" not in line and "querysecret" not in line and key.split("_")[2] not in line


def test_what_machines_ask_again_and_again_is_logged_at_debug(tmp_path, caplog):
    caplog.set_level("DEBUG")

    @serving(tmp_path, rules())
    async def _(client, service):
        for path in ("/healthz", "/readyz", "/metrics", "/page/live", "/page/"):
            assert (await client.get(path)).status_code == 200
        service.draining = True
        assert (await client.get("/readyz")).status_code == 503

    told = [(r.fields["route"], r.levelname) for r in caplog.records if r.getMessage() == "request"]
    quiet = [(path, "DEBUG") for path in ("/healthz", "/readyz", "/metrics", "/page/live")]
    assert told == [*quiet, ("/page/", "INFO"), ("/readyz", "INFO")]


def test_stopping_drains(tmp_path):
    hanging = Hanging()

    async def main():
        service = service_of(tmp_path, Acting(hanging, name="slow"))
        async with client_of(service) as client:
            asked = asyncio.create_task(client.post("/v1/moderations", json={"input": "a"}))
            await until(lambda: service.pending.now == 1)
            service.draining = True
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            hanging.release()
            assert (await asked).status_code == 200
        again = service_of(tmp_path, rules())
        async with client_of(again):
            assert again.store.counts()["served"] == 1  # what waited was written

    asyncio.run(main())
