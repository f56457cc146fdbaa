"""Heads held while the rest learns: exactly, under LoRA and full fine-tuning; drawn back; random ones; bad input."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from guardkeel.errors import ConfigError
from guardkeel.tuning.probes import trained_modules
from guardkeel.tuning.regularisers.heads import Heads, HeadsSettings
from heads_reference import tiny_model

WIDTH = 6
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Probes:
    """What the method sees of the model: names, weights, shapes."""

    depth = 3

    def __init__(self, model):
        self.model = model

    def parameters(self):
        return {n: p for n, p in sorted(self.model.named_parameters()) if p.requires_grad}

    def modules(self):
        return trained_modules(self.model)

    def gradients(self, loss):
        found = torch.autograd.grad(loss, list(self.parameters().values()), allow_unused=True)
        return {
            n: torch.zeros_like(p) if g is None else g
            for (n, p), g in zip(self.parameters().items(), found, strict=True)
        }


def probes(kind="lora"):
    model = copy.deepcopy(tiny_model("llama"))  # four heads of width 6, two keys, biases
    if kind == "full":
        return Probes(model.requires_grad_(True))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[*PARTS, "up_proj"], use_dora=kind == "dora")
    return Probes(get_peft_model(model, config))


def weights(seen):
    """Every attention projection's effective weight, by (layer, projection)."""
    model = copy.deepcopy(seen.model)
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return {
        (i, part): (getattr(block.self_attn, part).weight.detach(), getattr(block.self_attn, part).bias)
        for i, block in enumerate(model.model.layers)
        for part in PARTS
    }


def trained(regulariser, seen, steps=4, resumed=0):
    """A few steps of AdamW on a task, through the contract; `resumed`: the step before which it is taken up again."""
    regulariser.prepare(seen)
    optimiser = torch.optim.AdamW(list(seen.parameters().values()), lr=0.05, weight_decay=0.0)
    for step in range(steps):
        if resumed and step == resumed:
            kept = regulariser.fixed
            regulariser = Heads(regulariser.settings)
            regulariser.fixed = kept
        ids = torch.tensor([[3 + step, 9, 27, 40 + step, 5]])
        task = seen.model(ids, labels=ids).loss
        term = regulariser.loss(seen, step)
        gradients = seen.gradients(task if term is None else task + term)
        regulariser.edit(seen, step, gradients)
        for name, p in seen.parameters().items():
            p.grad = gradients[name]
        optimiser.step()
    return weights(seen)


def own(part, head):
    """(axis, slice) of a head's part of a projection."""
    at = head // 2 if part in ("k_proj", "v_proj") else head
    return (1 if part == "o_proj" else 0), slice(at * WIDTH, (at + 1) * WIDTH)


def of(weight, part, head):
    axis, where = own(part, head)
    return weight[:, where] if axis else weight[where]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_held_heads_do_not_move_by_a_bit_and_others_do(kind):
    seen = probes(kind)
    before = weights(seen)
    after = trained(Heads(HeadsSettings(heads=["1-3", "2-0"])), seen, resumed=2)
    for layer, head in ((1, 3), (2, 0)):
        for part in PARTS:
            (old, old_bias), (new, new_bias) = before[layer, part], after[layer, part]
            assert torch.equal(of(old, part, head), of(new, part, head)), (layer, part)
            other = 1 if head == 3 else 3  # of another group
            assert (of(old, part, other) - of(new, part, other)).abs().max() > 1e-4, (layer, part)
            if part != "o_proj" and kind == "full":
                assert torch.equal(old_bias[own(part, head)[1]], new_bias[own(part, head)[1]])
                assert not torch.equal(old_bias, new_bias)
    assert all(not torch.equal(before[0, part][0], after[0, part][0]) for part in PARTS)


def test_without_zeroing_the_columns_of_a_the_output_projection_would_move():
    """Why prepare touches A: masking its gradient alone holds nothing."""
    seen = probes()
    held = Heads(HeadsSettings(heads=["1-3"], parts="o"))
    down = seen.modules()["model.layers.1.self_attn.o_proj"].lora_A["default"].weight
    first = down.detach().clone()
    held.prepare(seen)
    assert (down[:, 18:24] == 0).all() and torch.equal(down[:, :18], first[:, :18])
    with torch.no_grad():
        down.copy_(first)
    held.prepare = lambda _: None
    after = trained(held, seen)
    before = weights(probes())
    moved = of(after[1, "o_proj"][0], "o_proj", 3) - of(before[1, "o_proj"][0], "o_proj", 3)
    assert moved.abs().max() > 1e-4


def test_only_the_parts_that_are_asked_for():
    seen = probes()
    before = weights(seen)
    after = trained(Heads(HeadsSettings(heads=["1-3"], parts="qo")), seen)
    assert torch.equal(*(of(w[1, "q_proj"][0], "q_proj", 3) for w in (before, after)))
    assert not torch.equal(*(of(w[1, "k_proj"][0], "k_proj", 3) for w in (before, after)))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_l2_is_half_the_squared_change_of_the_slices(kind):
    seen = probes(kind)
    before = weights(seen)
    held = Heads(HeadsSettings(heads=["1-3", "2-0"], how="l2", strength=0.6))
    held.prepare(seen)
    assert held.loss(seen, 0).item() == 0
    with torch.no_grad():
        for number, p in enumerate(seen.parameters().values()):
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    after = weights(seen)
    total = 0.0
    for layer, head in ((1, 3), (2, 0)):
        for part in PARTS:
            old, new = (of(w[layer, part][0], part, head) for w in (before, after))
            total += float((new - old).square().sum())
            if kind == "full" and part != "o_proj":
                where = own(part, head)[1]
                total += (after[layer, part][1][where] - before[layer, part][1][where]).square().sum().item()
    assert held.loss(seen, 0).item() == pytest.approx(0.3 * total, rel=1e-4)
    assert held.log()["heads"] == 2
    strong = trained(Heads(HeadsSettings(heads=["1-3"], how="l2", strength=1e4)), probes(kind))
    free = trained(Heads(HeadsSettings(heads=["0-0"], parts="q")), probes(kind))
    moved, loose = (
        (of(w[1, "q_proj"][0], "q_proj", 3) - of(before[1, "q_proj"][0], "q_proj", 3)).norm()
        for w in (strong, free)
    )
    assert moved < loose


def test_random_heads_are_others_and_as_many():
    seen = probes()
    held = Heads(HeadsSettings(heads=["1-3", "2-0", "0-1"], random=4))
    held.prepare(seen)
    drawn = [tuple(h) for h in held.fixed["heads"].tolist()]
    assert len(set(drawn)) == 3 and not set(drawn) & {(1, 3), (2, 0), (0, 1)}
    again = Heads(HeadsSettings(heads=["1-3", "2-0", "0-1"], random=4))
    again.prepare(probes())
    assert torch.equal(again.fixed["heads"], held.fixed["heads"])
    other = Heads(HeadsSettings(heads=["1-3", "2-0", "0-1"], random=5))
    other.prepare(probes())
    assert not torch.equal(other.fixed["heads"], held.fixed["heads"])


def test_all_heads_can_be_asked_for():
    named = Heads(HeadsSettings(heads=[f"{i}-{j}" for i in range(3) for j in range(4)]))
    named.prepare(probes())
    every = Heads(HeadsSettings(heads=["all"]))
    every.prepare(probes())
    assert torch.equal(every.fixed["heads"], named.fixed["heads"])
    with pytest.raises(ConfigError, match="0 other heads"):
        Heads(HeadsSettings(heads=["all"], random=0)).prepare(probes())
    with pytest.raises(ValidationError, match="'all' is no head"):
        HeadsSettings(heads=["all", "1-0"])


def test_what_cannot_be_held():
    for given, said in (
        ({}, "names no heads"),
        ({"heads": ["3-0"]}, "no head 3-0"),
        ({"heads": ["0-4"]}, "no head 0-4"),
        ({"heads": [f"{i}-{j}" for i in range(3) for j in range(4)], "random": 0}, "0 other heads"),
    ):
        with pytest.raises(ConfigError, match=said):
            Heads(HeadsSettings(**given)).prepare(probes())
    for wrong in ({"heads": ["1.3"]}, {"parts": "qz"}, {"parts": ""}, {"how": "thaw"}):
        with pytest.raises(ValidationError):
            HeadsSettings(**wrong)
    with pytest.raises(ConfigError, match="DoRA"):
        Heads(HeadsSettings(heads=["1-3"])).prepare(probes("dora"))
    begun = probes()
    with torch.no_grad():
        begun.modules()["model.layers.1.self_attn.q_proj"].lora_B["default"].weight += 1
    with pytest.raises(ConfigError, match="does not begin at zero"):
        Heads(HeadsSettings(heads=["1-3"])).prepare(begun)
    only = probes()
    only.modules = dict
    with pytest.raises(ConfigError, match="trains none"):
        Heads(HeadsSettings(heads=["1-3"])).prepare(only)
