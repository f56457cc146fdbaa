"""The page of the service: who may look, what is shown, what a reviewer says, and that its numbers are right."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Verdict
from guardkeel.moderation.aggregation import estimate_regret
from guardkeel.moderation.keys import new_key, revoke_key
from guardkeel.moderation.page import history as past_of
from guardkeel.moderation.page.figures import loss_chart, regret_chart, round_ticks, weights_chart
from guardkeel.moderation.page.history import History
from guardkeel.moderation.page.recent import flip, summary
from guardkeel.moderation.page.texts import pieces, plain
from guardkeel.moderation.policies import Policy
from guardkeel.moderation.served import Item
from moderation_parts import Acting, client_of, rules, service_of, until

SAME = {"origin": "http://serve"}
JSON = {"accept": "application/json"}
HOSTILE = "<script>window.pwned=1</script> ship \u202e\u200b\ud800 Z" + "\u0301" * 30
ALL = {"floor": 1.0, "flagged": 1.0, "allowed": 1.0}
NONE = {"floor": 1e-9, "flagged": 0.0, "allowed": 0.0, "focus": 0.0}


def make(tmp_path, *guards, audit=ALL, texts=True, learner=None, **tables):
    """A service with keys ada (admin), rev (feedback) and shop (moderate)."""
    keys = tmp_path / "keys.json"
    secrets = {
        name: new_key(keys, name, (role,))
        for name, role in (("ada", "admin"), ("rev", "feedback"), ("shop", "moderate"))
    }
    made = service_of(
        tmp_path,
        *(guards or (rules(), rules("sea", ("ship*", "boat*")))),
        store={"url": f"sqlite:///{tmp_path}/log.db", "poll": 0.05, "texts": texts},
        server={"keys": str(keys)},
        learner={"contexts": ["side"], "audit": audit, **(learner or {})},
        **tables,
    )
    return made, secrets


def with_client(made, work, headers=None):
    async def run():
        async with client_of(made, headers=headers) as client:
            return await work(client)

    return asyncio.run(run())


async def enter(client, secret):
    answer = await client.post("/page/login", data={"key": secret}, headers=SAME)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    return answer


async def judged(service, *texts):
    """Verdicts of texts, in the log."""
    before = service.store.counts()["served"]
    served = await service.judge([Item(Conversation.of(t)) for t in texts])
    await until(lambda: service.store.counts()["served"] == before + len(texts))
    return [one.id for one in served]


def log_of(service):
    return service.store.feedback_after(0)


# who may look


def test_only_keys_that_may_review_get_in(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        lead = await client.get("/")
        assert (lead.status_code, lead.headers["location"]) == (307, "page/")
        home = await client.get("/page/")
        assert (home.status_code, home.headers["location"]) == (303, "login")
        assert (await client.get("/page/live", headers=JSON)).status_code == 401
        assert (await client.get("/page/login")).status_code == 200
        wrong = await client.post("/page/login", data={"key": keys["rev"] + "x"}, headers=SAME)
        assert wrong.status_code == 401 and "not known" in wrong.text and keys["rev"] not in wrong.text
        assert (await client.post("/page/login", data={"key": keys["shop"]}, headers=SAME)).status_code == 403
        assert not client.cookies
        cookie = (await enter(client, keys["rev"])).headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=lax", "path=/page"))
        assert "max-age" not in cookie and "expires" not in cookie and "secure" not in cookie
        assert (await client.get("/page/")).status_code == 200
        assert (await client.get("/v1/audits")).status_code == 401  # the API takes no cookie
        await client.post("/page/logout", headers=SAME)
        assert (await client.get("/page/")).status_code == 303

    with_client(service, work)


def test_behind_tls_the_cookie_goes_no_other_way_and_a_revoked_key_is_out_at_once(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        sent = {**SAME, "x-forwarded-proto": "https"}
        answer = await client.post("/page/login", data={"key": keys["rev"]}, headers=sent)
        assert "; secure" in answer.headers["set-cookie"].lower()
        client.headers["cookie"] = f"guardkeel_key={keys['rev']}"
        assert (await client.get("/page/")).status_code == 200
        revoke_key(tmp_path / "keys.json", keys["rev"].split("_")[1])
        assert (await client.get("/page/")).status_code == 303

    with_client(service, work)


def test_without_keys_there_is_no_login_and_rates_are_kept(tmp_path):
    async def work(client):
        assert (await client.get("/page/login")).headers["location"] == "./"
        assert "Log out" not in (await client.get("/page/")).text
        answers = [(await client.get("/page/live", headers=JSON)).status_code for _ in range(12)]
        assert answers[0] == 200 and answers[-1] == 429

    with_client(service_of(tmp_path, rules(), server={"requests_per_minute": 60}), work)


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "http://evil"}, {"origin": "null"}, {**SAME, "sec-fetch-site": "same-site"}],
    ids=["nothing said", "another origin", "no origin", "a neighbour"],
)
def test_forms_from_elsewhere_are_refused(tmp_path, headers):
    service, keys = make(tmp_path)

    async def work(client):
        (verdict,) = await judged(service, "a ship")
        await enter(client, keys["ada"])
        for path, data in (
            ("feedback", {"verdict": verdict, "unsafe": "0"}),
            ("policy", {"to": "permissive", "version": "1"}),
            ("login", {"key": keys["rev"]}),
            ("logout", {}),
        ):
            answer = await client.post(f"/page/{path}", data=data, headers=headers)
            assert (answer.status_code, "cross_site" in answer.text) == (403, True)
        assert log_of(service) == [] and service.in_force.policy.strictness == "strict"
        fetched = {**SAME, "sec-fetch-site": "same-origin", "origin": "http://outside"}  # behind a proxy
        data = {"verdict": verdict, "unsafe": "0"}
        assert (await client.post("/page/feedback", data=data, headers=fetched)).status_code == 303

    with_client(service, work)


def test_a_reviewer_sees_items_and_an_admin_sees_all(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        await judged(service, "a ship")
        await enter(client, keys["rev"])
        page = (await client.get("/page/")).text
        assert 'id="review"' in page
        assert not any(f'id="{part}"' in page for part in ("weights", "regret", "experts", "policy"))
        assert list((await client.get("/page/live", headers=JSON)).json()["fragments"]) == ["now"]
        assert (await client.get("/page/policy")).status_code == 403
        flipped = await client.post("/page/policy", data={"to": "permissive", "version": "1"}, headers=SAME)
        assert flipped.status_code == 403 and service.in_force.version == 1
        await enter(client, keys["ada"])
        page = (await client.get("/page/")).text
        assert all(f'id="{part}"' in page for part in ("weights", "regret", "experts", "policy"))

    with_client(service, work)


def test_pages_are_kept_nowhere_and_run_nothing_but_their_script(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        await judged(service, HOSTILE)
        await enter(client, keys["ada"])
        for path in ("/page/", "/page/login", "/page/policy", "/page/queue"):
            answer = await client.get(path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "same-origin"  # no-referrer makes Origin null
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert not re.search(r"<[^>]*\s(on\w+|style)=|<script>|<style|javascript:", answer.text)
        page = (await client.get("/page/")).text
        for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
            address = re.search(rf'"({name}\?v=\w+)"', page)[1]
            kept = await client.get(f"/page/{address}")
            assert (
                kept.headers["content-type"].startswith(kind) and "immutable" in kept.headers["cache-control"]
            )

    with_client(service, work)


# what is shown


def test_hostile_texts_are_shown_whole_and_harmless(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        (verdict,) = await judged(service, HOSTILE + "y" * 20_000)
        await enter(client, keys["rev"])
        page = (await client.get("/page/")).text
        assert "<script>window" not in page and "&lt;script&gt;window.pwned=1" in page
        for name in ("U+202E", "U+200B", "U+D800", "26 combining marks"):
            assert f'<span class="token">{name}</span>' in page
        assert "are left out" in page and "y" * 7000 not in page
        assert "y" * 20_000 in (await client.get("/page/text", params={"verdict": verdict})).text
        assert (await client.get("/page/text", params={"verdict": "v_0"})).status_code == 404

    with_client(service, work)


def test_without_texts_there_is_an_id_and_a_digest(tmp_path):
    service, keys = make(tmp_path, texts=False)

    async def work(client):
        (verdict,) = await judged(service, "a secret ship")
        await enter(client, keys["rev"])
        page = (await client.get("/page/")).text
        row = service.store.verdict(verdict)
        assert verdict in page and row["digest"] in page and "<code>store.texts</code>" in page
        assert "secret ship" not in page

    with_client(service, work)


def test_names_that_do_not_show_are_named():
    text = "a\u202eb\u200b\u200bc\x00\u3164" + "e" + "\u0301" * 9 + "\ud800\n\u200d"
    shown = list(pieces(text))
    assert [p.text for p in shown if p.token] == [
        "U+202E", "U+200B ×2", "U+0000", "U+3164", "5 combining marks", "U+D800",
    ]  # fmt: skip
    assert all(p.token or p.text.replace("\n", "").replace("\u200d", "").isprintable() for p in shown)
    assert plain("x" * 600) == "x" * 500 + "…" and plain("a\u202e") == "a⟨U+202E⟩"


def test_news_comes_once(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        await enter(client, keys["ada"])
        first = (await client.get("/page/live", headers=JSON)).json()
        again = await client.get("/page/live", params={"seen": first["seen"]}, headers=JSON)
        assert (again.status_code, again.content) == (204, b"")
        await judged(service, "a ship")
        client.app_page.board._until = 0.0  # what is read is kept for two seconds
        news = (await client.get("/page/live", params={"seen": first["seen"]}, headers=JSON)).json()
        assert news["audits"] == 1 and news["fragments"]["now"] != first["fragments"]["now"]
        assert news["fragments"]["weights"] == first["fragments"]["weights"]

    async def with_state(client):
        client.app_page = None
        await client.get("/page/login")
        client.app_page = client._transport.app.state.page
        await work(client)

    with_client(service, with_state)


def test_where_the_log_is_away_the_page_says_so(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        await enter(client, keys["ada"])
        with sqlite3.connect(tmp_path / "log.db") as db:
            db.execute("ALTER TABLE verdicts RENAME TO gone")
        page = await client.get("/page/")
        assert page.status_code == 503 and "The log is away" in page.text
        assert (await client.get("/page/live", headers=JSON)).status_code == 503

    with_client(service, work)


# what a reviewer says


def test_a_review_goes_into_the_log_once_with_the_probability_of_its_audit(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        ship, boat = await judged(service, "a ship", "a boat")
        await enter(client, keys["rev"])
        page = (await client.get("/page/queue")).text
        assert page.index(ship) < page.index(boat)  # the oldest first
        said = {"verdict": boat, "unsafe": "1"}
        answer = await client.post("/page/feedback", data=said, headers={**SAME, **JSON})
        assert answer.json() == {"status": "new", "teaches": True, "said": "Taken: it is in the log."}
        again = await client.post("/page/feedback", data=said, headers={**SAME, **JSON})
        assert (again.status_code, again.json()["status"]) == (200, "known")
        changed = await client.post("/page/feedback", data={**said, "unsafe": "0"}, headers={**SAME, **JSON})
        assert (changed.status_code, changed.json()["status"]) == (409, "conflict")
        nobody = await client.post(
            "/page/feedback", data={**said, "verdict": "v_0"}, headers={**SAME, **JSON}
        )
        assert (nobody.status_code, nobody.json()["status"]) == (409, "unknown verdict")
        (row,) = log_of(service)
        told = {k: row[k] for k in ("verdict", "unsafe", "source", "reviewer", "propensity", "first")}
        assert told == {
            "verdict": boat, "unsafe": True, "source": "review", "reviewer": "rev", "propensity": 1.0, "first": True,
        }  # fmt: skip
        assert row["key"] == keys["rev"].split("_")[1]
        page = (await client.get("/page/queue")).text
        assert ship in page and boat not in page
        await until(lambda: service.learner.sequence == 1)
        weights = service.learner.weights()
        assert weights["sea"] > weights["ships"]

    with_client(service, work)


def test_reviews_work_without_scripts(tmp_path):
    service, keys = make(tmp_path)

    async def work(client):
        (verdict,) = await judged(service, "a ship")
        await enter(client, keys["rev"])
        said = {"verdict": verdict, "unsafe": "0", "of": "disagreements"}
        answer = await client.post("/page/feedback", data=said, headers=SAME)
        assert answer.headers["location"] == "./?of=disagreements&said=new#review"
        page = await client.get("/page/?of=disagreements&said=new")
        assert "Taken: it is in the log." in page.text and "Nothing waits here." in page.text
        odd = await client.get("/page/?said=%3Cscript%3E")
        assert odd.status_code == 200 and "<script>" not in odd.text

    with_client(service, work)


@pytest.mark.parametrize(
    "form",
    [
        b"verdict=v_1",
        b"verdict=v_1&unsafe=2",
        b"verdict=&unsafe=1",
        b"verdict=a%20b&unsafe=1",
        b"\xff=1&unsafe=1",
        b"a=1&" * 30,
    ],
)
def test_forms_that_cannot_be_read_are_refused(tmp_path, form):
    service, keys = make(tmp_path)

    async def work(client):
        await enter(client, keys["rev"])
        assert (await client.post("/page/feedback", content=form, headers=SAME)).status_code == 400

    with_client(service, work)


def test_disagreements_are_the_largest_of_what_was_not_drawn_and_teach_nothing(tmp_path):
    half = rules("half", ("ship*",), weight=0.5, threshold=0.4)
    service, keys = make(tmp_path, rules(), half, rules("sea", ("boat*",)), audit=NONE)

    async def work(client):
        ship, both, calm = await judged(service, "a ship", "a boat", "bread")
        await enter(client, keys["rev"])
        page = (await client.get("/page/queue", params={"of": "disagreements"})).text
        order = sorted((ship, both), key=lambda v: -service.store.verdict(v)["disagreement"])
        assert page.index(order[0]) < page.index(order[1])
        assert calm not in page and "not drawn" in page
        assert (await client.get("/page/queue")).text.strip() == ""
        said = {"verdict": ship, "unsafe": "0"}
        answer = await client.post("/page/feedback", data=said, headers={**SAME, **JSON})
        assert answer.json()["teaches"] is False
        assert log_of(service)[0]["propensity"] is None
        assert ship not in (await client.get("/page/queue", params={"of": "disagreements"})).text
        await until(lambda: service.learner.sequence == 1)
        assert set(service.learner.weights().values()) == {1 / 3}

    with_client(service, work)


# the policy

POLICY = {
    "threshold": 0.3,
    "permissive_threshold": 0.7,
    "categories": [{"name": "Profanity", "flag": "strict"}, {"name": "Violence", "threshold": 0.2}],
}


def test_a_flip_does_what_it_was_said_to_do(tmp_path):
    guards = [rules("a", ("ship*",)), rules("b", ("boat*",)), rules("c", ("oath*",), "Profanity")]
    service, keys = make(tmp_path, *guards, policy=POLICY)
    texts = ["a ship", "a boat", "ship and boat", "an oath", "an oath on a ship", "bread"]

    async def work(client):
        await judged(service, *texts)
        await enter(client, keys["ada"])
        page = (await client.get("/page/policy")).text
        said = [int(n) for n in re.findall(r"<b>(\d+)</b>", page)]
        now = [s.flagged for s in await service.judge([Item(Conversation.of(t)) for t in texts])]
        wrong = await client.post("/page/policy", data={"to": "permissive", "version": "0"}, headers=SAME)
        assert (wrong.status_code, service.in_force.policy.strictness) == (409, "strict")
        done = await client.post("/page/policy", data={"to": "permissive", "version": "1"}, headers=SAME)
        assert (done.status_code, done.headers["location"]) == (303, "./#policy")
        then = [s.flagged for s in await service.judge([Item(Conversation.of(t)) for t in texts])]
        assert said == [sum(now), sum(then)] and sum(then) < sum(now)
        home = (await client.get("/page/")).text
        assert "Switch to strict" in home and f"key {keys['ada'].split('_')[1]}" in home
        assert service.store.policy()["body"]["strictness"] == "permissive"

    with_client(service, work)


def test_thresholds_before_and_after_a_flip():
    found = flip(Policy.model_validate(POLICY), [], 0.5)
    assert [(c.name, c.now, c.then) for c in found.thresholds] == [
        ("", 0.3, 0.7),
        ("Profanity", 0.3, None),
        ("Violence", 0.2, pytest.approx(0.6)),
    ]
    assert len(found.changed) == 3
    same = flip(Policy(threshold=1.0, permissive_threshold=1.0), [], 0.5)
    assert (same.to, same.changed) == ("permissive", ())


def test_an_unscored_item_is_flagged_under_either_policy_unless_it_is_open():
    row = {"categories": [["", 0.4, True]], "unscored": "no answer"}
    calm = {"categories": [["", 0.4, True]], "unscored": ""}
    strict = Policy(threshold=0.3, permissive_threshold=0.7)
    found = flip(strict, [row, calm], 0.5)
    assert (found.now, found.then, found.fewer, found.more) == (2, 1, 1, 0)
    assert flip(strict.model_copy(update={"unscored": "open"}), [row], 0.5).then == 0


# numbers


def test_rates_reasons_and_latency_are_counted_by_hand():
    def opinion(outcome, unsafe=None, reason="", ms=0.0):
        return {"outcome": outcome, "unsafe": unsafe, "reason": reason, "ms": ms}

    rows = [
        {"flagged": True, "unscored": "", "seconds": 0.010,
         "opinions": {"a": opinion("scored", 0.9, ms=10), "b": opinion("not asked", reason="decided")}},
        {"flagged": False, "unscored": "", "seconds": 0.020,
         "opinions": {"a": opinion("timeout", reason="too slow", ms=5000), "b": opinion("scored", 0.1, ms=2)}},
        {"flagged": True, "unscored": "both are away", "seconds": 0.030,
         "opinions": {"a": opinion("resting", reason="left alone"), "b": opinion("failed", reason="", ms=4)}},
    ]  # fmt: skip
    experts = [SimpleNamespace(name=n, config=SimpleNamespace(cost=c)) for n, c in (("a", 1.0), ("b", 3.0))]
    found = summary(rows, experts)
    assert (found.verdicts, found.flagged, found.unscored) == (3, 2, 1)
    assert found.reasons == (("both are away", 1),)
    a, b = found.experts
    assert (a.asked, a.saved, a.unscored) == (3, 0, 2)
    assert a.reasons == (("too slow", 1), ("left alone", 1))
    assert (b.asked, b.saved, b.unscored, b.reasons) == (2, 1, 1, (("failed", 1),))
    assert a.latency.p50 == pytest.approx(2505) and b.latency.p50 == pytest.approx(3)
    assert found.latency.p50 == pytest.approx(20)
    assert found.calls == pytest.approx(1 / 6) and found.cost == pytest.approx(3 / 12)
    empty = summary([], experts)
    assert (empty.latency, empty.calls, empty.experts[0].latency) == (None, None, None)


def test_the_page_says_what_experts_do_and_what_the_cascade_saves(tmp_path):
    mute = Acting(lambda text: Verdict(None, unscored="no verdict token"), "mute")
    service, keys = make(
        tmp_path,
        rules("cheap"),
        mute,
        learner={"cascade": {"enabled": True}},
        experts=[{"cost": 1}, {"cost": 9}],
    )

    async def work(client):
        await judged(service, "a ship", "bread")  # the ship is settled by the first expert, bread is not
        service.experts[1].breaker.state = "open"
        await enter(client, keys["ada"])
        page = (await client.get("/page/")).text
        assert "no verdict token" in page
        assert "open: left alone" in page and "closed: asked" in page
        assert '<p class="big">25.0%</p>' in page and "45.0% of the experts’ cost" in page

    with_client(service, work)


async def _reviewed(service, rng, n):
    """n items served and most of those drawn reviewed, some others appealed."""
    texts = [rng.choice(["a ship", "a boat", "ship and boat", "bread"]) for _ in range(n)]
    served = await service.judge(
        [
            Item(Conversation.of(t), s)
            for t, s in zip(texts, rng.choice(["prompt", "response"], n), strict=True)
        ]
    )
    await until(lambda: service.store.counts()["served"] == n)
    rows = [
        {
            "id": f"f{i}",
            "verdict": s.id,
            "unsafe": "ship" in t,
            "source": "review",
            "reviewer": "",
            "key": "k",
        }
        for i, (s, t) in enumerate(zip(served, texts, strict=True))
        if s.audited or (s.flagged and i % 3 == 0)
    ]
    await service.take_feedback(rows)
    await until(lambda: service.learner.sequence == len(rows))
    return rows


def test_history_is_the_learners_own(tmp_path):
    guards = (rules("ships"), rules("sea", ("ship*", "boat*")), rules("half", ("boat*",), weight=0.6))
    service, _ = make(tmp_path, *guards, audit={"floor": 0.2, "flagged": 0.5, "allowed": 0.3, "focus": 0.3})

    async def work():
        from guardkeel.moderation.app import running

        async with running(service):
            rows = await _reviewed(service, np.random.default_rng(3), 300)
            history = History(service.learner.experts, service.config.learner)
            return rows, history.read(service.store, 300)

    rows, past = asyncio.run(work())
    learner = service.learner.aggregator
    assert {t.context for t in past.tables} == set(learner.contexts())
    for table in past.tables:
        assert table.points[-1][1] == tuple(learner.weights(table.context).tolist())
        assert table.rounds == learner.rounds(table.context)
    assert (past.feedback, past.sequence) == (len(rows), len(rows)) and 20 < past.audited < len(rows)

    log = service.store.feedback_after(0)
    q = np.array([np.nan if r["propensity"] is None else r["propensity"] for r in log])
    loss = np.array([[(r["advice"][n] - r["unsafe"]) ** 2 for n in past.experts] for r in log])
    own = np.array([(r["served"] - r["unsafe"]) ** 2 for r in log])
    wanted = estimate_regret(own, loss, q, 300)
    assert past.regret.best.value == pytest.approx(wanted.best.value, abs=1e-9)
    assert past.regret.naive == pytest.approx(wanted.naive)

    last = past.stages[-1]
    assert last.reviews == past.audited and last.best == past.regret.best
    gaps = [last.ensemble - e for e in last.experts]
    assert gaps == pytest.approx([e.value for e in past.regret.experts], abs=1e-9)
    assert [s.reviews for s in past.stages] == sorted({s.reviews for s in past.stages})

    charts = [
        weights_chart("w", past.tables[0], past.experts),
        loss_chart("l", past),
        regret_chart("r", past),
    ]
    for chart in charts:
        for path in (*chart.lines, *chart.bands):
            places = np.array([[float(v) for v in p.split(",")] for p in path.points.split()])
            assert places.min() >= 0 and places[:, 0].max() <= 360 and places[:, 1].max() <= 210


def test_long_histories_are_thinned_and_keep_their_ends(monkeypatch):
    monkeypatch.setattr(past_of, "MOST_POINTS", 20)
    track = past_of._Track()
    for n in range(1000):
        if track.due():
            track.add((n, (1.0,)))
    at = [n for n, _ in track.points]
    assert 10 <= len(at) <= 21 and at == sorted(at) and at[0] < 2 and at[-1] > 900


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-67.8, 15.2), (0.0, 1e-5), (-3e6, 1.0), (0.0, 0.97)])
def test_ticks_are_few_and_hold_both_ends(low, high):
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 * abs(high)


def test_one_sided_feedback_is_told_apart_from_audits(tmp_path):
    """Before two reviews of drawn items nothing is claimed; appeals alone never make a claim."""
    service, keys = make(tmp_path, audit=NONE)

    async def work(client):
        verdicts = await judged(service, *["a boat"] * 4)
        rows = [
            {"id": v, "verdict": v, "unsafe": False, "source": "appeal", "reviewer": "", "key": ""}
            for v in verdicts
        ]
        await service.take_feedback(rows)
        await enter(client, keys["ada"])
        page = (await client.get("/page/")).text
        assert "Not known yet: 0 of the items" in page and "regret-plot" not in page
        assert "learnt from 4 reviews, 0 of them of items drawn at random" in page

    with_client(service, work)


def test_messages_are_shown_with_their_calls(tmp_path):
    from guardkeel.moderation.page.review import case_of

    messages = [
        {"role": "user", "content": "u" * 50},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "sink", "arguments": "{}"}}],
        },
    ]
    row = {"text": json.dumps(messages), "opinions": {}, "weights": {}}
    case = case_of(row, 60)
    assert [t.role for t in case.turns] == ["user", "assistant"]
    call = "".join(p.text for p in case.turns[1].pieces)
    assert "sink" in call  # the last message has the first claim on the room
    assert case.cut == 50 + len(call) - 60
