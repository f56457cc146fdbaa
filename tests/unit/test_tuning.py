"""Plain LoRA fine-tuning: what is trained, in which order, and what is saved."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from guard_doubles import EveryToken, items
from guardkeel.conversation import Conversation, Example
from guardkeel.errors import ConfigError, DataError, RunError
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.keel import Keel
from guardkeel.guards.load import load_guard, with_adapter
from guardkeel.tuning import lora, weights
from guardkeel.tuning.lora import LoraSettings, add_lora, save_adapter, train
from guardkeel.tuning.order import batches, schedule
from guardkeel.tuning.targets import Target, targets
from guardkeel.tuning.weights import block_linears


def cut(lengths, chosen):
    return batches(lengths, size=chosen.batch, count=chosen.steps, seed=chosen.seed)


def rate(step, chosen):
    return schedule(step, steps=chosen.steps, warmup=chosen.warmup, decay=chosen.decay)


TEXTS = (
    "a short poem",
    "reset my password",
    "the sea",
    "what is two x",
    "a payment of 12",
    "ships that sail",
)


def lessons(count=6):
    return [
        Target(Judgement(str(i), Conversation.of(text), "prompt"), "unsafe", ("Violence",))
        if i % 2
        else Target(Judgement(str(i), Conversation.of(text), "prompt"), "safe")
        for i, text in enumerate(TEXTS[:count])
    ]


@pytest.fixture
def tiny(tiny_loaded):
    model, tokenizer = tiny_loaded("llama")
    return copy.deepcopy(model), tokenizer


def tuned(tiny, taught=None, family=None, **options):
    """(model with LoRA, log) after a few steps."""
    model, tokenizer = tiny
    chosen = LoraSettings(**{"steps": 4, "batch": 3, "learning_rate": 5e-3, "max_tokens": 1024} | options)
    model = add_lora(model, chosen)
    return model, train(model, tokenizer, family or Keel(), taught or lessons(), chosen)


def test_targets_are_labelled_sides():
    chat = Conversation.of("hello", "go away")
    both = Example("a", chat, {"prompt": "safe", "response": "unsafe"}, ("Harassment", "Threat"))
    found = targets([both, Example("b", chat)])  # no label is no lesson
    assert [(t.judgement.id, t.judgement.side, t.label, t.categories) for t in found] == [
        ("a#prompt", "prompt", "safe", ()),
        ("a#response", "response", "unsafe", ("Harassment", "Threat")),
    ]


def test_the_loss_goes_down(tiny):
    steps = []
    model, tokenizer = tiny
    chosen = LoraSettings(steps=12, batch=6, learning_rate=1e-2, max_tokens=1024)
    model = add_lora(model, chosen)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    log = train(model, tokenizer, Keel(), lessons(), chosen, steps.append)
    assert log == steps and [s.step for s in log] == list(range(1, 13))
    assert log[-1].loss < 0.5 * log[0].loss
    assert all(s.seconds > 0 for s in log)
    assert not model.training
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_the_first_loss_is_that_of_the_untouched_model(tiny):
    """B = 0: the first step starts from the base, whatever the rank."""
    model, tokenizer = tiny
    encoder = lora.Encoder(Keel(), tokenizer, max_tokens=1024).share([t.judgement for t in lessons()])
    texts = [Keel().answer(t.label, t.categories) for t in lessons()]
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    plain = lora.answer_loss(model, encoder, lessons(), answers, 0.3).item()
    for rank in (1, 8):
        _, log = tuned((copy.deepcopy(model), tokenizer), steps=1, batch=6, rank=rank)
        assert log[0].loss == pytest.approx(plain, rel=1e-5)


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        save_adapter(tuned((copy.deepcopy(tiny[0]), tiny[1]), seed=seed)[0], tmp_path / name, "base")
    a, b, c = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in "abc")
    assert a == b
    assert a["adapter_model.safetensors"] != c["adapter_model.safetensors"]
    assert set(a) == {"adapter_config.json", "adapter_model.safetensors"}


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=90),
    batch=st.integers(1, 9),
    seed=st.integers(0, 3),
)
def test_every_example_comes_once_an_epoch(lengths, batch, seed):
    n = len(lengths)
    epoch = -(-n // batch)
    chosen = LoraSettings(steps=3 * epoch, batch=batch, seed=seed)
    found = cut(lengths, chosen)
    assert len(found) == 3 * epoch and found == cut(lengths, chosen)
    for start in range(0, len(found), epoch):
        seen = [i for b in found[start : start + epoch] for i in b]
        assert set(seen) == set(range(n))
        assert len(seen) == max(n, batch)  # fewer than a batch are repeated to fill it
    assert all(1 <= len(b) <= batch for b in found)
    if n >= batch:
        assert all(len(set(b)) == len(b) for b in found)


def test_batches_hold_similar_lengths_and_come_in_another_order_each_epoch():
    lengths = [100 * (i % 7) + i for i in range(64)]
    found = cut(lengths, LoraSettings(steps=16, batch=8))
    for picks in found:
        inside = sorted(lengths[i] for i in picks)
        assert sum(inside[0] <= length <= inside[-1] for length in lengths) == 8  # neighbours by length
    assert found[:8] != found[8:]
    assert found[:3] == cut(lengths, LoraSettings(steps=3, batch=8))
    assert found != cut(lengths, LoraSettings(steps=16, batch=8, seed=1))


def test_a_batch_in_parts_is_the_batch(tiny, monkeypatch):
    _, whole = tuned((copy.deepcopy(tiny[0]), tiny[1]), steps=3, batch=6)
    monkeypatch.setattr(lora, "_parts", lambda picks, lengths: [picks[:4], picks[4:]])
    _, parts = tuned(tiny, steps=3, batch=6)
    assert [s.loss for s in parts] == pytest.approx([s.loss for s in whole], rel=1e-4)


def test_long_batches_are_cut_into_parts():
    assert lora._parts([3, 1, 0, 2], [4000, 10, 10, 5000]) == [[3, 1], [0, 2]]
    assert lora._parts([0, 1], [20000, 30000]) == [[0], [1]]
    assert lora._parts([0, 1, 2], [0, 0, 0]) == [[0, 1, 2]]


def test_the_schedule_warms_up_and_decays():
    flat = LoraSettings(steps=40, warmup=0.1)
    assert [rate(k, flat) for k in (0, 1, 3, 4, 39)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    falling = LoraSettings(steps=40, warmup=0.1, decay=True)
    assert rate(4, falling) == 1.0
    assert rate(22, falling) == pytest.approx(0.55)  # half-way between 1 and 0.1
    assert rate(40, falling) == pytest.approx(0.1)


def test_nan_stops_before_the_step_that_would_spread_it(tiny):
    model, tokenizer = tiny
    chosen = LoraSettings(steps=3, batch=3, learning_rate=1e-2, max_tokens=1024)
    model = add_lora(model, chosen)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("poem")["input_ids"][0]] = torch.nan
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(RunError, match=r"step 1: loss nan") as error:
        train(model, tokenizer, Keel(), lessons(1), chosen)
    assert "lower the learning rate" in error.value.remedy
    after = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, before[n]) for n, p in after.items())
    assert not model.training


def test_infinite_gradients_stop_too(tiny, monkeypatch):
    model, tokenizer = tiny
    chosen = LoraSettings(steps=3, batch=3, max_tokens=1024)
    model = add_lora(model, chosen)
    weight = next(p for n, p in model.named_parameters() if "lora_B" in n)
    weight.register_hook(lambda g: torch.full_like(g, torch.inf))
    with pytest.raises(RunError, match="gradient norm inf"):
        train(model, tokenizer, Keel(), lessons(), chosen)
    assert not weight.any()  # B is still zero


def test_denormals_are_flushed_in_training_alone(tiny):
    model, tokenizer = tiny
    chosen, seen = LoraSettings(steps=1, batch=2, max_tokens=1024), []
    assert torch.tensor(1e-38) * 1e-3 > 0
    model = add_lora(model, chosen)
    train(
        model, tokenizer, Keel(), lessons(), chosen, lambda step: seen.append(torch.tensor(1e-38) * 1e-3 > 0)
    )
    assert seen == [False]
    assert torch.tensor(1e-38) * 1e-3 > 0


def test_a_model_of_sliding_windows_is_trained_without_a_shared_prefix(tiny_loaded):
    model, tokenizer = tiny_loaded("gemma3")
    _, log = tuned((copy.deepcopy(model), tokenizer), steps=8, batch=6, learning_rate=1e-2)
    assert log[-1].loss < log[0].loss


def test_examples_that_do_not_begin_alike_share_nothing(tiny):
    class BySide(Keel):
        """A template that speaks of the side at its very beginning."""

        def render(self, conversation, side, tokenizer):
            plain = super().render(conversation, side, tokenizer)
            return replace(plain, prefix=f"{side} {plain.prefix}")

    chat = Conversation.of(TEXTS[0], TEXTS[1])
    mixed = [*lessons(3), Target(Judgement("r", chat, "response"), "safe")]
    _, log = tuned(tiny, mixed, BySide(), steps=2, batch=4)
    assert len(log) == 2


def test_nothing_to_train_on(tiny):
    model, tokenizer = tiny
    with pytest.raises(DataError, match="nothing to train on"):
        train(model, tokenizer, Keel(), [], LoraSettings())


def test_the_first_layer_is_respected(tiny):
    model, _ = tiny
    assert {name.split(".")[2] for name in block_linears(model)} == {"0", "1"}
    assert {name.split(".")[2] for name in block_linears(model, 1)} == {"1"}
    assert len(block_linears(model, 1)) == 7 and not any("lm_head" in n for n in block_linears(model))
    changed, _ = tuned(tiny, first_layer=1, steps=2)
    moved = {n for n, p in changed.named_parameters() if "lora_B" in n and p.any()}
    assert moved and all(".layers.1." in n for n in moved)
    with pytest.raises(ConfigError, match="first_layer is 2, the model has 2 blocks") as error:
        block_linears(model, 2)
    assert "choose 0 to 1" in error.value.remedy


@pytest.fixture
def saved(tiny, tiny_folder, tmp_path, monkeypatch):
    """saved(dtype) → (scores of the model in memory, its adapter folder, its base)."""
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    from guardkeel.guards import load

    monkeypatch.setattr(load, "family_named", lambda name: EveryToken())

    def make(dtype):
        model, _ = tuned(tiny, steps=3, learning_rate=5e-2)
        scores = CausalGuard(model, tiny[1], EveryToken(), name="t").score(items())
        save_adapter(model, tmp_path / "adapter", str(tiny_folder("llama")), dtype)
        return scores, tmp_path / "adapter", tiny_folder("llama")

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_scores_as_before(saved, dtype):
    scores, adapter, base = saved(dtype)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    options = {"family": "every-token", "dtype": "float32"}
    alone = load_guard(str(adapter), **options).score(items())
    plain = load_guard(str(base), **options)
    before = plain.score(items())
    with with_adapter(plain, adapter) as guard:
        toggled = guard.score(items())
    assert alone == toggled
    assert plain.score(items()) == before != toggled
    values, kept = ([v.unsafe for v in said] for said in (scores, alone))
    if dtype is torch.float32:
        assert alone == scores
    else:
        assert kept == pytest.approx(values, abs=0.05) and kept != values


def test_a_saved_adapter_names_its_base_and_its_modules_in_order(saved):
    _, adapter, base = saved(torch.float32)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (adapter.stat().st_mode & 0o777) == 0o755


def test_an_adapter_appears_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    model, _ = tuned(tiny, steps=1)
    save_adapter(model, tmp_path / "adapter", "first")
    before = {f.name: f.read_bytes() for f in (tmp_path / "adapter").iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_json", full)
        with pytest.raises(OSError, match="No space left"):
            save_adapter(model, tmp_path / "adapter", "second")
        with pytest.raises(OSError, match="No space left"):
            save_adapter(model, tmp_path / "new", "second")
    assert {f.name: f.read_bytes() for f in (tmp_path / "adapter").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]  # and nothing half-written beside it
    save_adapter(model, tmp_path / "adapter", "second")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "second"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
