"""Opinions, abstentions and what they cost; windows; contexts; the cascade."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest

from guardkeel.conversation import Conversation, Turn
from guardkeel.errors import ConfigError, ResourceError
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.moderation.aggregation import Calibration, Cascade, Costs
from guardkeel.moderation.config import ExpertConfig, ServeConfig
from guardkeel.moderation.contexts import context_of, language_of
from guardkeel.moderation.dispatch import Panel
from guardkeel.moderation.experts import Expert, Opinion, centred, load_experts, unquoted
from guardkeel.moderation.windows import windows
from moderation_parts import Acting, Hanging, rules, rules_file

ITEM = Judgement("", Conversation.of("hello"), "prompt")


def expert(guard, **said):
    return Expert(said.pop("name", guard.name), guard, ExpertConfig(guard="double", **said))


def run(experts, work):
    async def main():
        for one in experts:
            await one.runner.start()
        found = await work()
        for one in experts:
            await one.runner.stop(0.1)
        return found

    return asyncio.run(main())


def test_expert_that_hangs_abstains_and_is_then_left_alone():
    hanging = Hanging()
    one = expert(Acting(hanging), timeout=0.05, failures=2)

    async def work():
        found = [await one.ask(ITEM) for _ in range(4)]
        hanging.release()
        return found

    found = run([one], work)
    assert [o.outcome for o in found] == ["timeout", "timeout", "resting", "resting"]
    assert all(o.unsafe is None for o in found)
    assert found[0].reason == "no answer within 0.05 s"


def test_expert_that_raises_abstains_without_its_words():
    def act(text):
        raise RuntimeError(f"cannot judge {text!r}")

    one = expert(Acting(act), retries=0, failures=1)
    [found] = run([one], lambda: asyncio.gather(one.ask(ITEM)))
    assert (found.outcome, found.reason, found.unsafe) == ("failed", "raised RuntimeError", None)
    assert one.breaker.state == "open"


def test_unscored_is_an_answer_and_no_fault():
    one = expert(
        Acting(lambda text: Verdict(None, unscored=f"output outside the grammar: {text!r}")), failures=1
    )
    [found] = run([one], lambda: asyncio.gather(one.ask(ITEM)))
    assert (found.outcome, found.unsafe, found.reason) == ("unscored", None, "output outside the grammar …")
    assert one.breaker.state == "closed"


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("the text is empty", "the text is empty"),
        ("output outside the grammar: 'kill'", "output outside the grammar …"),
        ('unknown category "x', "unknown category …"),
    ],
)
def test_reasons_quote_nothing(reason, kept):
    assert unquoted(reason) == kept


def test_uncalibrated_guard_has_its_threshold_at_one_half():
    assert float(centred(0.2)(0.2)) == pytest.approx(0.5)
    assert float(centred(0.2)(0.1)) < 0.5 < float(centred(0.2)(0.3))
    assert centred(0.5) == Calibration()
    one = expert(Acting(lambda text: 0.2, threshold=0.2))
    [found] = run([one], lambda: asyncio.gather(one.ask(ITEM)))
    assert found.unsafe == pytest.approx(0.5) and found.raw == 0.2


def test_loading_names_the_expert_and_reads_its_calibration(tmp_path):
    rules_file(tmp_path / "ships.toml")
    (tmp_path / "c.json").write_text(json.dumps({"ships": Calibration("temperature", slope=0.5).record()}))
    config = ServeConfig(expert=[{"guard": "ships.toml", "calibration": "c.json"}], folder=tmp_path)
    [one] = load_experts(config)
    assert one.name == "ships"
    assert float(one.calibration(0.9)) == pytest.approx(1 / (1 + math.exp(-0.5 * math.log(9))))
    twice = ServeConfig(expert=[{"guard": "ships.toml"}, {"guard": "ships.toml"}], folder=tmp_path)
    with pytest.raises(ConfigError, match="two experts are called 'ships'"):
        load_experts(twice)
    missing = ServeConfig(
        expert=[{"guard": "ships.toml"}, {"guard": "no.toml", "name": "x"}], folder=tmp_path
    )
    with pytest.raises(ResourceError, match=r"expert 2 \(x\)"):
        load_experts(missing)
    other = ServeConfig(
        expert=[{"guard": "ships.toml", "name": "b", "calibration": "c.json"}], folder=tmp_path
    )
    with pytest.raises(ConfigError, match="no calibration of 'b'"):
        load_experts(other)


@pytest.mark.parametrize("length", [301, 563, 1000, 1001])
def test_windows_cover_every_character(length):
    text = "".join(chr(33 + i % 90) + chr(200 + i // 90) for i in range(length // 2 + 1))[:length]
    parts = [p.turns[0].content for p in windows(Conversation.of(text), "prompt", 300)]
    places = [text.index(part) for part in parts]
    assert all(len(part) <= 300 for part in parts)
    assert places[0] == 0 and text.endswith(parts[-1])
    ends = [place + len(part) for place, part in zip(places, parts, strict=True)]
    assert all(end - begin >= 37 for end, begin in zip(ends, places[1:], strict=False))  # an eighth is shared
    assert windows(Conversation.of("short"), "prompt", 300) == [Conversation.of("short")]


def test_windows_are_of_the_judged_turn_in_its_conversation():
    """What is around it is context, of which the nearest is kept."""
    talk = Conversation((Turn("user", "q"), Turn("assistant", "a" * 500)))
    parts = windows(talk, "response", 200)
    assert [len(p.turns) for p in parts] == [2] * len(parts) and len(parts) > 2
    assert all(p.turns[0].content == "q" for p in parts)
    [asked] = windows(talk, "prompt", 200)
    assert asked.turns[0] == talk.turns[0] and len(asked.turns[1].content) == 99
    assert windows(talk, "trajectory", 200) == [talk]


def test_long_chat_does_not_crowd_out_its_last_message():
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", f"{i}" * 30) for i in range(9))
    [part] = windows(Conversation(turns), "prompt", 200)
    assert part.turns[-1] == turns[-1]
    assert part.turns[1:] == turns[-4:]  # three of thirty characters, and what there was room for of a fourth
    assert sum(len(t.content) for t in part.turns[:-1]) <= 100
    assert part.turns[0].content == "444 … 444"
    [whole] = windows(Conversation(turns), "prompt", 1000)
    assert whole == Conversation(turns)


def test_contexts():
    parts = ("side", "language", "category")
    assert context_of(parts, "prompt", "en") == ("prompt", "en")
    named = [
        Opinion("scored", 0.9, categories=("Violent Crimes",)),
        Opinion("scored", 0.9, categories=("Threat",)),
    ]
    assert context_of(parts, "prompt", "en", named) == ("prompt", "en", "Threat")
    assert context_of(parts, "prompt", "en", [*named, named[0]]) == ("prompt", "en", "Violence")
    assert context_of((), "prompt", "en", named) == ()
    tags = {"de-AT": "de", "EN_us": "en", "": "und", None: "und", "x" * 30: "und", "e\u0301": "und"}
    assert {t: language_of(t) for t in tags} == tags


def test_cascade_asks_the_cheap_first_and_the_others_where_they_matter():
    cheap = expert(Acting(lambda text: 1.0 if "ship" in text else 0.5, name="cheap"))
    dear = expert(Acting(lambda text: 0.0, name="dear"))
    heard = []
    panel = Panel(
        [dear, cheap], Costs(), Cascade((10.0, 1.0)), lambda e, o: heard.append((e.name, o.outcome))
    )
    weights = np.array([0.3, 0.7])

    async def work():
        sure = await panel.ask(Judgement("", Conversation.of("ship"), "prompt"), weights)
        open_one = await panel.ask(ITEM, weights)
        return sure, open_one

    sure, open_one = run([cheap, dear], work)
    assert [o.outcome for o in sure] == ["not asked", "scored"]  # 0.7 · 1 ≥ ½ whatever the other says
    assert sure[0].unsafe is None
    assert [o.outcome for o in open_one] == ["scored", "scored"]
    assert heard == [("cheap", "scored"), ("dear", "not asked"), ("cheap", "scored"), ("dear", "scored")]


def test_cascade_goes_on_where_the_cheap_one_abstains():
    broken = expert(Acting(lambda text: None, name="broken"), retries=0)
    sound = expert(rules(name="sound"))
    panel = Panel([broken, sound], Costs(), Cascade((1.0, 2.0)))
    found = run([broken, sound], lambda: panel.ask(ITEM, np.array([0.9, 0.1])))
    assert [o.outcome for o in found] == ["failed", "scored"]


def test_models_share_the_threads_that_torch_has(monkeypatch):
    """Those follow the cores that the process may use, which are often fewer than the machine's."""
    torch = pytest.importorskip("torch")
    from guardkeel.moderation.config import ServeConfig
    from guardkeel.moderation.experts import _threads

    given = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    config = ServeConfig(expert=[{"guard": "a"}])
    model, none = Acting(lambda text: 0.5), Acting(lambda text: 0.5)
    model.model = object()
    assert _threads(config, [none]) is None
    _threads(config, [model, none])()
    _threads(config, [model, model, model])()
    _threads(config, [model] * 20)()
    _threads(
        config.model_copy(update={"server": config.server.model_copy(update={"torch_threads": 3})}), [model]
    )()
    assert given == [8, 2, 1, 3]
