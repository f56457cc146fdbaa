"""A guard that keeps its policy's keys and values between calls gives the scores of one that does not."""

from __future__ import annotations

import copy

import pytest
import torch

from guard_doubles import EveryToken, items, outspoken
from guardkeel.conversation import Conversation
from guardkeel.guards import ground
from guardkeel.guards.base import Judgement, Rendered
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.keel import Keel


@pytest.fixture
def computed(monkeypatch):
    """Lengths of the prefixes whose keys and values were computed."""
    lengths = []
    real = ground.encode_prefix

    def counted(model, ids):
        lengths.append(len(ids))
        return real(model, ids)

    monkeypatch.setattr(ground, "encode_prefix", counted)
    return lengths


def pair(loaded, family=None, **options):
    """The same guard, fresh at every call and keeping."""
    fresh, kept = (CausalGuard(*loaded, family or EveryToken(), name="tiny", **options) for _ in range(2))
    kept.keep()
    return fresh, kept


def close(found, expected):
    assert [v.unscored for v in found] == [v.unscored for v in expected]
    assert [v.categories for v in found] == [v.categories for v in expected]
    assert [v.unsafe for v in found] == [e.unsafe and pytest.approx(e.unsafe, abs=1e-5) for e in expected]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3"])  # gemma3's prefix cannot be shared
def test_scores_are_those_of_a_guard_that_keeps_nothing(architecture, tiny_loaded):
    fresh, kept = pair(tiny_loaded(architecture))
    asked = items()
    close(kept.score(asked), fresh.score(asked))
    close([kept.score([i])[0] for i in asked], fresh.score(asked))


def test_scores_do_not_depend_on_what_was_asked_before(tiny_loaded):
    asked = items()
    _, forwards = pair(tiny_loaded("llama"))
    _, backwards = pair(tiny_loaded("llama"))
    one = [forwards.score([i])[0] for i in asked]
    assert [backwards.score([i])[0] for i in reversed(asked)][::-1] == one


def test_names_of_categories_are_the_same(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    fresh, kept = pair((outspoken(model, tokenizer), tokenizer), Keel(), threshold=0.01)
    asked = items()
    expected = fresh.score(asked)
    assert any(v.categories for v in expected)
    close([kept.score([i])[0] for i in asked], expected)


def test_prefix_is_computed_once_for_a_side(tiny_loaded, computed):
    fresh, kept = pair(tiny_loaded("llama"))
    asked = [i for i in items() if i.side == "prompt"]
    for one in asked:
        kept.score([one])
    assert len(computed) == 1 and computed[0] > 100
    fresh.score(asked[:1])
    fresh.score(asked[1:2])
    assert len(computed) == 3


@pytest.mark.parametrize("change", ["step", "load"])
def test_weights_that_change_are_noticed(tiny_loaded, change):
    model, tokenizer = tiny_loaded("llama")
    model = copy.deepcopy(model)
    fresh, kept = pair((model, tokenizer))
    asked = items()
    before = kept.score(asked)
    if change == "step":
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        for weight in model.parameters():
            weight.grad = 0.05 * torch.ones_like(weight)
        optimiser.step()
    else:
        model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()})
    after = kept.score(asked)
    assert [v.unsafe for v in after] != [v.unsafe for v in before]
    close(after, fresh.score(asked))


class Greeting(EveryToken):
    """What comes first depends on the conversation, so nothing is common to all."""

    def render(self, conversation, side, tokenizer):
        plain = super().render(conversation, side, tokenizer)
        polite = conversation.turns[0].content.startswith("please")
        return Rendered(("Dear guard. " if polite else "") + plain.prefix, plain.body, plain.suffix)


def test_item_that_begins_otherwise_is_scored_without_what_is_kept(tiny_loaded):
    fresh, kept = pair(tiny_loaded("llama"), Greeting())
    asked = [Judgement(t, Conversation.of(t), "prompt") for t in ("hello", "please help", "bye", "please go")]
    close([kept.score([i])[0] for i in asked], [fresh.score([i])[0] for i in asked])
    close(kept.score(asked), [fresh.score([i])[0] for i in asked])
