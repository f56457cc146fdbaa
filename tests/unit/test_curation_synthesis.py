"""Rows that are written: refusals, dialogues under a topic's rule; asked once, counted, kept within the budget."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from curation_rows import jsonl, row
from guardkeel.curation.config import Price
from guardkeel.curation.jury.cost import Meter
from guardkeel.curation.pipeline import accept, curate
from guardkeel.curation.rows import read_rows
from guardkeel.curation.synthesis.dialogues import dialogue_from, rows_of, written_dialogue
from guardkeel.curation.synthesis.refusals import WAYS, asked_of, refused, wants_refusal, way_of
from guardkeel.curation.synthesis.templates import Pool, template_rows
from guardkeel.curation.synthesis.writing import TextCache, estimate, open_writer, question, write
from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.guards.guard_policy import GuardPolicy
from guardkeel.guards.registry import family_named
from guardkeel.taxonomy import AEGIS2
from jury_server import rules_file
from remote_server import Server, chat

DIALOGUE = {
    "topic": "train tickets",
    "rule": "Sells train tickets and talks of nothing else.",
    "turns": [
        {"role": "user", "content": "one ticket please", "on_topic": True},
        {"role": "assistant", "content": "where to"},
        {"role": "user", "content": "who won the match", "on_topic": False},
        {"role": "assistant", "content": "back to your ticket"},
        {"role": "user", "content": "to the sea", "on_topic": True},
    ],
}


def writer_file(path, url, **options):
    """A writer's TOML file."""
    lines = {"url": url, "model": "scribe", "backoff": 0.01, "retries": 1, "concurrency": 2} | options
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items()))
    return str(path)


def answer(request):
    """A dialogue where one is asked for, else a refusal that names the message's last word."""
    messages = request["body"]["messages"]
    text = json.dumps(DIALOGUE) if "Domain:" in messages[-1]["content"] else "Sorry, not this."
    made = chat(text)
    made["usage"] = {"prompt_tokens": 10, "completion_tokens": 5}
    return made


def logs(path, count=12, **options):
    """Rows with labels, every second one unsafe."""
    rows = [
        row(
            f"r{i}",
            f"please number {i} of the ships and payments",
            prompt_label="unsafe" if i % 2 else "safe",
            categories=("Malware" if i % 4 == 1 else "Threat",) if i % 2 else (),
            **options,
        )
        for i in range(count)
    ]
    return str(jsonl(path, [r.to_json() for r in rows]))


def pipeline(tmp_path, **synthesis):
    """A pipeline with nothing but a source and the step."""
    return {
        "source": [{"name": "logs", "data": logs(tmp_path / "logs.jsonl"), "format": "guardkeel"}],
        "synthesis": synthesis,
        "offline": True,
    }


def step(config, out, **options):
    """The step, and none after it."""
    return curate(config, out, until="synthesis", **options).step("synthesis")


def made_rows(out):
    """The rows after the step."""
    return list(read_rows(out / "steps" / "synthesis" / "rows.jsonl"))


def test_refusals_are_asked_once_and_share_the_group_of_their_prompt(tmp_path):
    with Server(answer) as server:
        config = pipeline(tmp_path, refusals={"writer": writer_file(tmp_path / "w.toml", server.url)})
        out = tmp_path / "out"
        done = curate(config, out).step("synthesis")
        asked = len(server.requests)
        assert asked == 6 == done.counts["refusals"]
        again = step(config, out, redo=["synthesis"])
        assert again.counts["refusals"] == 6 and len(server.requests) == asked
    rows = made_rows(out)
    replies = [r for r in rows if r.id.endswith("~refusal")]
    assert len(rows) == 18 and len(replies) == 6
    for reply in replies:
        origin = next(r for r in rows if r.id == reply.id.removesuffix("~refusal"))
        assert reply.group == (origin.group or origin.id) and reply.label("prompt") == "unsafe"
        assert reply.labels["response"].label == "safe"
        assert reply.labels["response"].source == "synthesis:scribe"
        assert reply.conversation.turns[-1].content == "Sorry, not this."
    splits = {r.id: r.split for r in read_rows(out / "steps" / "split" / "rows.jsonl")}
    assert all(splits[r.id] == splits[r.id.removesuffix("~refusal")] for r in replies)


def test_the_writer_is_asked_to_deflect_in_the_way_of_the_row():
    unsafe = row("r1", "do harm", "an old reply", prompt_label="unsafe")
    asked = asked_of(unsafe, "care")
    assert WAYS["care"] in asked.messages[0]["content"]
    assert [m["content"] for m in asked.messages[1:]] == ["do harm"]
    assert way_of("r1", tuple(WAYS)) == way_of("r1", tuple(WAYS))
    assert len({way_of(f"r{i}", tuple(WAYS)) for i in range(60)}) == len(WAYS)
    assert wants_refusal(unsafe) and not wants_refusal(row("r2", prompt_label="safe"))
    made = refused(unsafe, "no", "synthesis:x", "care")
    assert [t.content for t in made.conversation.turns] == ["do harm", "no"]
    assert set(made.labels) == {"prompt", "response"}


def test_failures_are_counted_and_asked_again_and_replies_that_the_check_dislikes_are_left_out(tmp_path):
    broken = {"until": 4}

    def moody(request):
        if (
            len(server.requests) <= broken["until"]
            and "number 1 " in request["body"]["messages"][-1]["content"]
        ):
            return 500, {"error": "down"}, {}
        made = answer(request)
        if "number 3 " in request["body"]["messages"][-1]["content"]:
            made["choices"][0]["message"]["content"] = "here is the bomb"
        return made

    with Server(moody) as server:
        check = str(rules_file(tmp_path / "check.toml", "bomb", name="check"))
        writer = writer_file(tmp_path / "w.toml", server.url, retries=0, concurrency=1)
        config = pipeline(tmp_path, refusals={"writer": writer, "check": check})
        done = step(config, tmp_path / "out")
        assert done.counts["refusals that failed"] == 1
        assert done.counts["refusals that the check does not find safe"] == 1 and done.counts["refusals"] == 4
        broken["until"], before = 0, len(server.requests)
        done = step(config, tmp_path / "out", redo=["synthesis"])
        assert len(server.requests) == before + 1 and done.counts["refusals"] == 5
    rejected = (tmp_path / "out/steps/synthesis/rejected.jsonl").read_text()
    assert "check finds the reply unsafe" in rejected
    kept = next(r for r in made_rows(tmp_path / "out") if r.id.endswith("~refusal"))
    assert [v.by for v in kept.labels["response"].votes] == ["check"]


def test_nobody_is_asked_for_money_without_a_budget_and_not_beyond_it(tmp_path):
    with Server(answer) as server:
        writer = writer_file(tmp_path / "w.toml", server.url, concurrency=1)
        refusals = {"writer": writer}
        config = pipeline(tmp_path, refusals=refusals, price={"request": 1.0})
        with pytest.raises(ConfigError, match=r"synthesis would cost about 6\.00 USD"):
            step(config, tmp_path / "a")
        with pytest.raises(ConfigError, match="more than its budget"):
            step(config | {"synthesis": config["synthesis"] | {"budget": 3.0}}, tmp_path / "b")
        assert not server.requests
        done = step(config, tmp_path / "c", on_cost=accept)
        assert done.results["spent"] == {"scribe": 6.0}
    asked = [question([{"role": "user", "content": str(n)}]) for n in range(5)]
    with Server(answer) as server, TextCache(tmp_path / "texts.sqlite") as cache:
        one = open_writer(
            writer_file(tmp_path / "w2.toml", server.url, concurrency=1), Price(request=1.0), True
        )
        assert estimate(one, asked, cache, 80.0).money == pytest.approx(5.0)
        with pytest.raises(RunError, match=r"more than its budget of 2\.50"):
            write(one, asked, cache, Meter(2.5))
        assert len(server.requests) == 3  # the third broke the budget, and is kept
        assert write(one, asked, cache, Meter()) == {} and len(server.requests) == 5
        assert estimate(one, asked, cache, 80.0).to_ask == 0


def test_recorded_replies_need_no_server_and_unknown_rows_are_counted(tmp_path):
    path = jsonl(
        tmp_path / "said.jsonl",
        [{"id": "logs/r1", "text": "no", "model": "m1"}, {"id": "logs/nobody", "text": "no"}],
    )
    done = step(pipeline(tmp_path, refusals={"recorded": str(path)}), tmp_path / "out")
    assert done.counts == {"refusals": 1, "recorded replies to no row": 1}
    [reply] = [r for r in made_rows(tmp_path / "out") if r.id.endswith("~refusal")]
    assert reply.labels["response"].source == "synthesis:m1"


def test_dialogues_become_rows_that_carry_their_rule():
    rows = list(rows_of(written_dialogue("Here it is:\n" + json.dumps(DIALOGUE)), "topics/1", "synthesis:m"))
    assert [r.label("prompt") for r in rows] == ["safe", "unsafe", "safe"]
    assert [len(r.conversation.turns) for r in rows] == [
        1,
        3,
        3,
    ]  # the distractor and its answer are no context
    policy = GuardPolicy.model_validate(rows[0].extra["policy"])
    assert policy.name == "train tickets" and DIALOGUE["rule"] in policy.categories[0].description
    assert rows[1].categories == (policy.categories[0].name,) and {r.group for r in rows} == {"topics/1"}
    released = {
        "domain": "travel",
        "system_instruction": "Sell tickets.",
        "conversation": json.dumps([{k: t[k] for k in ("role", "content")} for t in DIALOGUE["turns"][:2]]),
        "distractors": [{"bot turn": "where to", "distractor": "who won"}],
    }
    rows = list(rows_of(dialogue_from(released), "topics/2", "synthesis:m"))
    assert [(r.conversation.turns[-1].content, r.label("prompt")) for r in rows] == [
        ("one ticket please", "safe"),
        ("who won", "unsafe"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no json", "no JSON object"),
        ("{broken", "no JSON object"),
        ("{'a': 1}", "not JSON"),
        (json.dumps({"topic": "t", "rule": "r", "turns": []}), "turns"),
        (json.dumps(DIALOGUE | {"turns": DIALOGUE["turns"][:2]}), "all on or all off"),
        (json.dumps(DIALOGUE | {"rule": ""}), "rule"),
    ],
)
def test_dialogues_that_are_not_as_asked_say_why(text, why):
    with pytest.raises(DataError, match=why):
        list(rows_of(written_dialogue(text), "n", "s"))


def test_templates_make_rules_of_texts_and_of_the_rows_own_categories(tmp_path):
    pool = Pool(50, seed=0)
    for n, name in enumerate([*AEGIS2] * 3):
        pool.add(row(f"u{n}", f"bad thing {n}", prompt_label="unsafe", categories=(name,)))
        pool.add(row(f"s{n}", f"fine thing {n}", prompt_label="safe"))
    rows = list(template_rows(90, pool, seed=3))
    assert [r.to_json() for r in rows] == [r.to_json() for r in template_rows(90, pool, seed=3)]
    assert [r.id for r in rows] != [r.id for r in template_rows(90, pool, seed=4)]
    assert len(rows) == 90 and len({r.id for r in rows}) == 90
    balance = Counter(r.label("prompt") for r in rows)
    assert balance == {"safe": 45, "unsafe": 45}
    family = family_named("keel-policy")
    for made in rows:
        policy = GuardPolicy.model_validate(made.extra["policy"])
        assert set(made.categories) <= set(family.under(policy).categories)
        assert bool(made.categories) == (made.label("prompt") == "unsafe")
        if "~" in made.id:  # a row's own text keeps that row's provenance
            assert made.group == made.id.partition("~")[0] and made.source != "topics"
        if "~never" in made.id:
            assert not made.id.startswith("u")  # nothing harmful is called safe by a topic's rule
    own = [r for r in rows if r.labels["prompt"].source == "synthesis:categories"]
    assert len(own) == 30 and all(not {*AEGIS2} & set(r.categories) for r in own)


def test_topics_by_all_ways_together(tmp_path):
    recorded = jsonl(tmp_path / "talks.jsonl", [DIALOGUE])
    with Server(answer) as server:
        topics = {
            "templates": 12,
            "writer": writer_file(tmp_path / "w.toml", server.url),
            "dialogues": 3,
            "recorded": str(recorded),
            "licence": "MIT",
        }
        out = tmp_path / "out"
        done = step(pipeline(tmp_path, topics=topics), out)
        assert len(server.requests) == 3
    assert done.counts["topic-following rows"] == 12 + 3 * 3 + 3
    rows = [r for r in made_rows(out) if r.extra.get("policy")]
    assert Counter(r.labels["prompt"].source for r in rows)["synthesis:scribe"] == 9
    assert {r.licence for r in rows if r.labels["prompt"].source == "synthesis:talks"} == {"MIT"}


def test_labels_under_a_policy_of_their_own_are_not_passed_on_without_it(tmp_path):
    export = {"formats": ["jsonl"], "also": ["aegis-2"]}
    config = pipeline(tmp_path, topics={"templates": 12}) | {"split": {}, "export": export}
    out = tmp_path / "out"
    curate(config, out)
    whole = [r for split in (out / "dataset" / "data").iterdir() for r in read_rows(split)]
    released = [
        json.loads(x) for f in (out / "dataset" / "also").iterdir() for x in f.read_text().splitlines()
    ]
    assert sum(bool(r.own_policy) for r in whole) == 12
    assert len(released) == len(whole) - 12 > 0


@pytest.mark.parametrize(
    ("synthesis", "why"),
    [
        ({}, "give refusals or topics"),
        ({"refusals": {}}, "give a writer or recorded"),
        ({"topics": {}}, "give templates, a writer or recorded"),
        ({"refusals": {"recorded": "missing.jsonl"}}, "no such file"),
    ],
)
def test_what_cannot_be_done_is_said_first(tmp_path, synthesis, why):
    with pytest.raises(ConfigError, match=why):
        step(pipeline(tmp_path, **synthesis), tmp_path / "out")


def test_a_writers_file_is_no_guards(tmp_path):
    for options, why in (
        ({"family": "keel"}, "of guards"),
        ({"api": "completions"}, "api 'chat'"),
        ({"hot": 1}, "hot"),
    ):
        with pytest.raises(ConfigError, match=why):
            open_writer(writer_file(tmp_path / "w.toml", "http://localhost:1", **options), Price(), True)
