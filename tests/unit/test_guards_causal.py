import copy

import numpy as np
import pytest
import torch

from guard_doubles import EveryToken, items, outspoken, poison
from guardkeel.conversation import Conversation, ToolCall, Turn
from guardkeel.errors import ModelError, RunError
from guardkeel.guards.base import Blank, Judgement
from guardkeel.guards.categories import SHARE, CategoryReader
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.form import Form
from guardkeel.guards.keel import Keel


@pytest.fixture
def llama(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    return copy.deepcopy(model), tokenizer


def guard(loaded, family=None, **options):
    return CausalGuard(*loaded, family or EveryToken(), name="tiny", **options)


def prompts(*texts):
    return [Judgement(str(i), Conversation.of(text), "prompt") for i, text in enumerate(texts)]


def test_the_chance_by_hand(llama):
    model, tokenizer = llama
    loud = outspoken(model, tokenizer)
    item = prompts("hello")[0]
    with torch.no_grad():
        ids = Encoder(Keel(), tokenizer).encode(item).ids
        logits = loud(torch.tensor([ids])).logits[0, -1]
    safe, unsafe = (float(logits[tokenizer(word)["input_ids"][0]]) for word in ("safe", "unsafe"))
    verdict = CausalGuard(loud, tokenizer, Keel(), name="loud").score([item])[0]
    assert verdict.unsafe == pytest.approx(1 / (1 + np.exp(safe - unsafe)), abs=1e-5)
    assert bool(verdict.categories) == (verdict.unsafe >= 0.5)


def test_what_begins_otherwise_is_unscored(llama):
    verdicts = guard(llama, Keel()).score(items())
    assert verdicts and all(v.unsafe is None for v in verdicts)
    assert all("output begins with" in v.unscored and "not a verdict" in v.unscored for v in verdicts)


@pytest.mark.parametrize("share", [True, False])
def test_nan_is_unscored_and_stays_in_its_row(llama, share):
    judged = prompts("hello", "a 😀 here", "a third")
    before = guard(llama, share_prefix=share).score(judged)
    poison(*llama, "😀")
    verdicts = guard(llama, share_prefix=share).score(judged)
    assert verdicts[1].unsafe is None and verdicts[1].unscored == "logits are not finite"
    assert not verdicts[1].categories
    assert (verdicts[0], verdicts[2]) == (before[0], before[2])


def test_batches_may_be_skipped_and_come_in_one_order(llama):
    judged = items()
    options = {"token_budget": 200, "layers": (1,)}
    tiny = guard(llama, token_budget=200)
    every = list(tiny.batches(judged, layers=options["layers"]))
    assert [b.number for b in every] == list(range(len(every)))
    assert sorted(i for b in every for i in b.indices) == list(range(len(judged)))
    some = list(tiny.batches(judged, layers=(1,), skip={0, 2}))
    assert [b.number for b in some] == [n for n in range(len(every)) if n not in (0, 2)]
    for batch in some:
        same = every[batch.number]
        assert (batch.indices, batch.verdicts) == (same.indices, same.verdicts)
        assert np.array_equal(batch.hidden, same.hidden)
    assert list(tiny.batches(judged, skip=range(len(every)))) == []


def test_nothing_to_score(llama):
    assert guard(llama).score([]) == []
    assert guard(llama, share_prefix=False).score([]) == []


def test_an_item_that_cannot_be_encoded_is_unscored_with_its_reason(llama):
    call = Turn("assistant", "", (ToolCall("f", "x " * 5000),))
    judged = [
        *prompts("hello"),
        Judgement("t", Conversation((Turn("user", "go"), call)), "trajectory"),
        *prompts("bye"),
    ]
    tiny = guard(llama)
    alone = tiny.score([judged[1]])[0]
    assert alone.unsafe is None and "max_tokens=2048" in alone.unscored
    found = {}
    for batch in tiny.batches(judged, layers=(1, 2)):
        found.update(
            zip(batch.indices, zip(batch.verdicts, batch.hidden.transpose(1, 0, 2), strict=True), strict=True)
        )
    assert found[1][0] == alone
    assert np.isnan(found[1][1]).all() and found[1][1].shape == (2, 32)
    for i in (0, 2):
        assert found[i][0].unsafe is not None and np.isfinite(found[i][1]).all()


def test_long_messages_are_counted(llama):
    verdict = guard(llama, max_tokens=700).score(prompts("word " * 3000))[0]
    assert verdict.unsafe is not None
    assert 2000 < verdict.dropped < 20000
    assert guard(llama, max_tokens=10**9).max_tokens == 2048  # the model's own limit


class Memory:
    """A pre-forward hook that runs out of memory above so many rows."""

    def __init__(self, model, rows):
        self.rows, self.seen = rows, []
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        rows, _ = kwargs["input_ids"].shape
        self.seen.append(rows)
        if rows > self.rows or (self.rows == 0 and rows == 1):
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_halves_once(llama):
    model, _ = llama
    judged = prompts(*("hi there",) * 8)
    expected = guard(llama).score(judged, categories=False)
    memory = Memory(model, 4)
    assert guard(llama).score(judged, categories=False) == pytest.approx(expected)
    assert memory.seen == [1, 8, 4, 4]
    memory.rows, memory.seen = 3, []
    with pytest.raises(RunError, match="a batch of 8 items, and again on half") as error:
        guard(llama).score(judged, categories=False)
    assert memory.seen == [1, 8, 4]
    assert "--token-budget" in error.value.remedy
    memory.rows = 0
    with pytest.raises(RunError, match="out of memory on the policy prefix"):
        guard(llama).score(judged)


def test_errors_that_are_not_memory_pass(llama):
    model, _ = llama

    def broken(module, args, kwargs):
        raise RuntimeError("shapes differ")

    handle = model.register_forward_pre_hook(broken, with_kwargs=True)
    for share in (True, False):
        with pytest.raises(RuntimeError, match="shapes differ"):
            guard(llama, share_prefix=share).score(prompts("hi"))
    handle.remove()
    assert guard(llama).score(prompts("hi"))[0].unsafe is not None


def test_verdicts_that_begin_alike_are_refused(llama):
    class Same(Keel):
        name = "same"

        def blanks(self, side):
            return (Blank(safe=("no way",), unsafe=("no",)),)

    with pytest.raises(ModelError, match="both verdicts of family 'same' begin with the same token"):
        guard(llama, Same()).score(prompts("hi"))


class Alike(EveryToken):
    """Names that share their beginnings, are prefixes of each other, or end early."""

    categories = (
        "Sexual",
        "Sexual (minor)",
        "Sexual (other)",
        "Sexual assault",
        "S1",
        "S10",
        "S14",
        "Violence",
        "Violets",
    )


class One(EveryToken):
    categories = ("Harm",)


def slow_reading(model, tokenizer, family, ids):
    """The same names by the definition: no cache, no batch, every step over the whole text."""
    end = tokenizer.eos_token_id
    rows = {n: [*tokenizer(family.answer("unsafe", (n,)))["input_ids"], end] for n in family.categories}

    def step(path, allowed):
        with torch.no_grad():
            logits = model(torch.tensor([ids + path])).logits[0, -1]
        tokens = sorted({row[len(path)] for row in allowed.values()})
        return tokens, logits[tokens].softmax(-1)

    def begins(path):
        return {n: row for n, row in rows.items() if row[: len(path)] == path}

    opening = []
    while len({row[len(opening)] for row in rows.values()}) == 1 and len(rows) > 1:
        opening.append(next(iter(rows.values()))[len(opening)])
    opening = opening or next(iter(rows.values()))[:-1]
    tokens, shares = step(opening, rows)
    order = shares.argsort(descending=True).tolist()
    names = []
    for start in [tokens[i] for rank, i in enumerate(order) if rank == 0 or shares[i] >= SHARE]:
        path = [*opening, start]
        while len(begins(path)) > 1:
            tokens, chances = step(path, begins(path))
            path.append(tokens[int(chances.argmax())])
        names.append(next(iter(begins(path))))
    return tuple(names)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("family", [EveryToken(), Alike(), One()], ids=["keel", "alike", "one"])
def test_names_are_those_of_the_slow_reading(architecture, family, tiny_loaded):
    model, tokenizer = tiny_loaded(architecture)
    texts = ["hello", "a poem about the sea", "Weapons! " * 9, "12.50", "y" * 40, "?"]
    judged = prompts(*texts)
    fast = CausalGuard(model, tokenizer, family, name="tiny", threshold=0.0).score(judged)
    encoder = Encoder(family, tokenizer)
    for item, verdict in zip(judged, fast, strict=True):
        ids = encoder.encode(item).ids
        assert verdict.categories == slow_reading(model, tokenizer, family, ids), item
    if architecture == "llama" and len(family.categories) > 1:
        assert len({v.categories for v in fast}) > 1


def test_some_names_come_in_pairs(tiny_loaded):
    """Otherwise the test above would not see the second name."""
    model, tokenizer = tiny_loaded("llama")
    verdicts = CausalGuard(model, tokenizer, Alike(), name="tiny", threshold=0.0).score(items())
    assert any(len(v.categories) > 1 for v in verdicts)


def test_names_are_read_for_unsafe_verdicts_only(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    verdicts = CausalGuard(model, tokenizer, Alike(), name="tiny", threshold=0.5).score(items())
    assert {bool(v.categories) for v in verdicts} == {True, False}
    for v in verdicts:
        assert bool(v.categories) == (v.unsafe >= 0.5)
    none = CausalGuard(model, tokenizer, Alike(), name="tiny").score(items(), categories=False)
    assert not any(v.categories for v in none)
    assert [v.unsafe for v in none] == pytest.approx([v.unsafe for v in verdicts], abs=1e-6)


def test_reader_of_one_name_or_no_end(tiny_loaded):
    _, tokenizer = tiny_loaded("llama")

    def reader(family):
        return CategoryReader(family, "prompt", Form(family, "prompt", tokenizer), tokenizer.eos_token_id)

    one = reader(One())
    assert one.names == {"Harm": (tokenizer.eos_token_id,)}
    assert tokenizer.decode(one.opening) == "unsafe\nHarm"
    several = reader(Alike())
    assert tokenizer.decode(several.opening) == "unsafe\n"
