"""The jury: asked once, kept at once, abstentions kept, and what it costs said before and after."""

from __future__ import annotations

import json

import pytest

from curation_rows import row, votes
from guardkeel.curation.config import JurorConfig, JuryConfig, Price
from guardkeel.curation.jury.asking import ask, verdicts
from guardkeel.curation.jury.cache import Kept, VoteCache
from guardkeel.curation.jury.cost import Meter, estimate, sent_bytes
from guardkeel.curation.jury.items import items_of
from guardkeel.curation.jury.jurors import open_jurors
from guardkeel.curation.jury.pooling import contested, pooled, with_categories
from guardkeel.curation.rows import SideLabel, Vote
from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.guards.base import Verdict
from jury_server import conversation, judge, juror_file, rules_file
from remote_server import DROP, Server

SIDES = ("prompt", "response")


def items(count=12):
    """Items, every third one about ships."""
    rows = [
        row(f"r{i}", f"tell me about {'ships' if i % 3 == 0 else 'poems'} number {i}") for i in range(count)
    ]
    return [i for r in rows for i in items_of(r, SIDES, labelled=True)]


def jurors(*configs):
    return open_jurors([JurorConfig(**c) for c in configs])


def test_servers_guards_and_files_in_one_jury(tmp_path, tiny_folder):
    asked = items()
    recorded = tmp_path / "people.jsonl"
    recorded.write_text(
        "".join(
            json.dumps(r) + "\n"
            for r in (
                {"id": "r0", "side": "prompt", "label": "unsafe", "categories": ["Threat"]},
                {"id": "r1#prompt", "unsafe": 0.2},
                {"id": "r2", "label": None, "reason": "cannot say"},
            )
        )
    )
    with Server(judge) as server, VoteCache(tmp_path / "v.sqlite") as cache:
        several = jurors(
            {"guard": str(juror_file(tmp_path / "judge.toml", server.url))},
            {"guard": str(rules_file(tmp_path / "rules.toml", "ships"))},
            {"guard": str(tiny_folder("llama")), "family": "keel", "name": "tiny"},
            {"recorded": str(recorded)},
        )
        assert [j.kind for j in several] == ["server", "local", "local", "recorded"]
        assert ask(several, asked, cache, Meter()) == {}
        found = {j.name: [j.vote(verdicts(j, asked, cache)[i.key]) for i in asked] for j in several}
    judged, rules, tiny, people = found.values()
    assert [v.label for v in judged] == [v.label for v in rules] == ["unsafe", "safe", "safe"] * 4
    assert judged[0].categories == ("Violence",) and judged[1].categories == ()
    assert all(
        v.label is None and v.reason for v in tiny if v.unsafe is None
    )  # abstentions are kept, with why
    assert [v.label for v in people[:4]] == ["unsafe", "safe", None, None]
    assert people[2].reason == "cannot say" and people[3].reason == "not in the recorded file"


def test_nothing_is_asked_twice(tmp_path):
    twice = [*items(), *items()]
    with Server(judge) as server:
        config = {"guard": str(juror_file(tmp_path / "judge.toml", server.url))}
        for _ in range(2):
            with VoteCache(tmp_path / "v.sqlite") as cache:
                ask(jurors(config), twice, cache, Meter())
        assert len(server.requests) == 12
        again = juror_file(tmp_path / "judge.toml", server.url, concurrency=2)  # politeness is not identity
        with VoteCache(tmp_path / "v.sqlite") as cache:
            ask(jurors({"guard": str(again)}), twice, cache, Meter())
        assert len(server.requests) == 12
        other = juror_file(tmp_path / "judge.toml", server.url, model="another")
        with VoteCache(tmp_path / "v.sqlite") as cache:
            ask(jurors({"guard": str(other)}), twice, cache, Meter())
        assert len(server.requests) == 24


def test_a_prompt_is_one_question_whatever_was_answered():
    one, two = (items_of(row(str(i), "hello", f"answer {i}"), SIDES, labelled=True) for i in (1, 2))
    assert one[0].key == two[0].key and one[1].key != two[1].key
    labelled = row("a", "hello", "b", prompt_label="safe")
    assert [i.judgement.side for i in items_of(labelled, SIDES, labelled=False)] == ["response"]


def test_an_endpoint_that_goes_down_is_resumed_without_asking_again(tmp_path):
    asked = items(60)
    answered = []

    def failing(request):
        if len(answered) >= 20:
            return 503, {"error": "down"}, {}
        answered.append(conversation(request))
        return judge(request)

    with Server(failing) as server:
        config = {
            "guard": str(juror_file(tmp_path / "j.toml", server.url, retries=0, concurrency=4, backoff=0.01))
        }
        with VoteCache(tmp_path / "v.sqlite") as cache, pytest.raises(RunError, match="HTTP 503"):
            ask(jurors(config), asked, cache, Meter())
        server.answer = judge
        before = len(server.requests)
        with VoteCache(tmp_path / "v.sqlite") as cache:
            assert ask(jurors(config), asked, cache, Meter()) == {}
            assert len(verdicts(jurors(config)[0], asked, cache)) == 60
        assert len(server.requests) - before == 60 - len(answered)


def test_what_a_server_does_not_answer_is_an_abstention_that_is_not_kept(tmp_path):
    def odd(request):
        return DROP if "number 3" in conversation(request) else judge(request)

    asked = items(6)
    with Server(odd) as server:
        config = {"guard": str(juror_file(tmp_path / "j.toml", server.url, retries=0))}
        with VoteCache(tmp_path / "v.sqlite") as cache:
            left = ask(jurors(config), asked, cache, Meter())
            assert [v.unsafe for v in left.values()] == [None] and len(left) == 1
            assert len(verdicts(jurors(config)[0], asked, cache)) == 5
            server.answer = judge
            assert ask(jurors(config), asked, cache, Meter()) == {}
        assert len(server.requests) == 7


def test_an_answer_outside_the_grammar_is_paid_for_and_kept(tmp_path):
    def chatty(request):
        made = judge(request)
        made["choices"][0]["message"]["content"] = "I would say that it is fine."
        return made

    with Server(chatty) as server, VoteCache(tmp_path / "v.sqlite") as cache:
        some = jurors({"guard": str(juror_file(tmp_path / "j.toml", server.url))})
        ask(some, items(3), cache, Meter())
        ask(some, items(3), cache, Meter())
        vote = some[0].vote(verdicts(some[0], items(3), cache)[items(3)[0].key])
        assert len(server.requests) == 3 and vote.label is None and "JSON" in vote.reason


def test_the_budget_stops_it_and_it_goes_on_later(tmp_path):
    price = {"input": 1e6, "output": 0.0, "request": 0.0}  # one a token
    with Server(judge) as server, VoteCache(tmp_path / "v.sqlite") as cache:
        config = {"guard": str(juror_file(tmp_path / "j.toml", server.url, concurrency=1)), "price": price}
        meter = Meter(100.0, "EUR")
        with pytest.raises(RunError, match=r"more than its budget of 100\.00"):
            ask(jurors(config), items(30), cache, meter)
        before = len(server.requests)
        assert 0 < before < 30 and meter.total > 100
        ask(jurors(config), items(30), cache, Meter())
        assert len(server.requests) == 30


def test_cost_is_guessed_then_measured(tmp_path):
    price = Price(input=2.0, output=10.0, request=0.001)
    asked = items(40)
    with Server(judge) as server, VoteCache(tmp_path / "v.sqlite") as cache:
        file = juror_file(tmp_path / "j.toml", server.url, requests_per_minute=60.0, concurrency=4)
        one = jurors({"guard": str(file), "price": price.model_dump()})[0]
        sent = sum(sent_bytes(one, i.judgement) for i in asked)
        guess = estimate(one, 40, 40, sent, cache.usage(one.identity))
        assert not guess.measured and guess.input == pytest.approx(sent / 4) and guess.seconds == 40
        assert guess.money == pytest.approx((2 * guess.input + 10 * guess.output) / 1e6 + 0.04)
        fast = jurors({"guard": str(juror_file(file, server.url)), "price": price.model_dump()})[0]
        meter = Meter()
        ask([fast], asked, cache, meter)
        told = estimate(fast, 40, 0, 0, cache.usage(fast.identity))
        assert told.measured and told.to_ask == 0 and told.known == 40
        again = estimate(fast, 80, 40, sent, cache.usage(fast.identity))
        tokens = sum(len(conversation(r)) for r in server.requests)
        assert again.input == pytest.approx(tokens, rel=0.02) and again.output == pytest.approx(400)
        assert meter.tokens[fast.name] == (tokens, 400) and meter.requests[fast.name] == 40
        assert meter.total == pytest.approx((2 * tokens + 10 * 400) / 1e6 + 0.04)


def test_a_cache_is_for_one_process_at_a_time(tmp_path):
    with VoteCache(tmp_path / "v.sqlite"), pytest.raises(RunError, match="another process"):
        VoteCache(tmp_path / "v.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"no database, for certain" * 100)
    with pytest.raises(ConfigError, match="cannot keep votes"):
        VoteCache(tmp_path / "bad.sqlite")


def test_the_first_answer_stays(tmp_path):
    with VoteCache(tmp_path / "v.sqlite") as cache:
        cache.put("j", [("k", Kept(Verdict(0.9, categories=("Threat",))))])
        cache.put("j", [("k", Kept(Verdict(0.1)))])
        cache.put("j", [("u", Kept(Verdict(None, "why", dropped=3)))])
        assert cache.get("j", ["k", "u", "x"]) == {
            "k": Verdict(0.9, categories=("Threat",)),
            "u": Verdict(None, "why", dropped=3),
        }
        assert cache.get("other", ["k"]) == {}


def test_thresholds_and_doubt(tmp_path):
    rules = rules_file(tmp_path / "r.toml", "ships")
    [strict] = jurors({"guard": str(rules), "threshold": 0.3})
    assert strict.vote(Verdict(0.3)).label == "unsafe" and strict.vote(Verdict(0.29)).label == "safe"
    [doubtful] = jurors({"guard": str(rules), "unsure": (0.4, 0.6)})
    vote = doubtful.vote(Verdict(0.5))
    assert (vote.label, vote.unsafe, vote.reason) == (None, 0.5, "unsure")
    assert doubtful.vote(Verdict(0.6)).label == "unsafe"


def test_a_guards_own_threshold_holds_without_loading_it_again(tmp_path):
    rules = tmp_path / "r.toml"
    rules.write_text(
        'kind="rules"\nname="w"\nthreshold=0.8\n[[rules]]\ncategory="Threat"\nweight=0.7\nwords=["ships"]\n'
    )
    asked = items(3)
    for _ in range(2):
        with VoteCache(tmp_path / "v.sqlite") as cache:
            [one] = jurors({"guard": str(rules)})
            ask([one], asked, cache, Meter())
            assert one.vote(verdicts(one, asked, cache)[asked[0].key]).label == "safe"
    assert one._guard is None  # the second time nothing was loaded


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "", "label": "safe"}', "no id and side"),
        ('{"id": "a", "side": "reply", "label": "safe"}', "no id and side"),
        ('{"id": "a", "label": "bad"}', "unknown label 'bad'"),
        ('{"id": "a", "unsafe": "high"}', "unsafe must be a number"),
        ('{"id": "a", "unsafe": 2}', "unsafe must be a number"),
        ('{"id": "a", "label": "safe"}\n{"id": "a", "label": "unsafe"}', "is there twice"),
    ],
)
def test_recorded_files_are_checked(tmp_path, line, problem):
    path = tmp_path / "v.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=problem):
        jurors({"recorded": str(path)})


def test_jurors_have_names_of_their_own(tmp_path):
    file = str(rules_file(tmp_path / "r.toml", "x"))
    with pytest.raises(ConfigError, match="two jurors are named 'r'"):
        jurors({"guard": file}, {"guard": file})
    with pytest.raises(ValueError, match="quorum 3 is more than the 1"):
        JuryConfig(juror=[JurorConfig(guard=file)], quorum=3)
    with pytest.raises(ValueError, match="give either guard or recorded"):
        JurorConfig()


# Pooling


def pool(given, posterior=0.9, before=None, **options):
    rule = {"rule": "majority", "quorum": 2, "certainty": 0.8} | options
    return pooled(given, posterior, before=before, **rule)


def test_majority_quorum_and_ties():
    assert pool(votes("unsafe", "unsafe", "safe")).label == "unsafe"
    assert pool(votes("unsafe", "safe")).label is None
    assert pool(votes("unsafe", None, None)).label is None  # one vote is no quorum
    assert pool(votes("unsafe", None, None), quorum=1).label == "unsafe"
    nobody = pool(votes(None, None))
    assert nobody.label is None and dict(nobody.scores) == {} and nobody.source == "jury"


def test_both_rules_stand_side_by_side():
    found = pool(votes("unsafe", "safe", "safe"), 0.97, rule="dawid-skene")
    assert found.label == "unsafe" and found.scores["majority"] == pytest.approx(1 / 3)
    assert found.scores["dawid-skene"] == 0.97
    assert pool(votes("unsafe", "safe"), 0.6, rule="dawid-skene").label is None  # not certain enough
    assert pool(votes("safe", "safe"), 0.05, rule="dawid-skene").label == "safe"


def test_a_label_that_was_there_stays_and_is_measured_against():
    human = SideLabel("safe", "human", (Vote("anna", "safe"),))
    found = pool(votes("unsafe", "unsafe"), before=human)
    assert (found.label, found.source) == ("safe", "human") and len(found.votes) == 3
    open_ = SideLabel(None, "disagreement", votes("safe", "unsafe", by="set"))
    settled = pool(votes("unsafe", "unsafe"), before=open_)
    assert (settled.label, settled.source) == ("unsafe", "jury") and len(settled.votes) == 4


def test_contested_sides_are_those_for_people():
    assert contested(pool(votes("unsafe", "safe", "safe")))
    assert contested(pool(votes(None, None)))
    assert not contested(pool(votes("safe", "safe", None)))


def test_categories_need_half_of_the_unsafe_votes():
    given = (Vote("a", "unsafe", categories=("Threat", "Violence")), Vote("b", "unsafe", categories=("Threat",)),
             Vote("c", "unsafe"), Vote("d", "safe", categories=()))  # fmt: skip
    made = with_categories(row("a", labels={"prompt": SideLabel("unsafe", "jury", given)}))
    assert made.categories == ("Threat",)
    assert with_categories(row("a", categories=("Malware",))).categories == ("Malware",)
