"""Repairs after training, in memory and on whole weights, against dense arithmetic."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from guardkeel.errors import ConfigError, ModelError
from guardkeel.tuning.posthoc import (
    interpolate,
    interpolated,
    safe_lora,
    safe_projected,
)
from guardkeel.tuning.regularisers.registry import build
from regulariser_probes import Net, ToyProbes, dense, directions, make, scatter


def tuned(kind="lora"):
    probes = ToyProbes(make(kind))
    scatter(probes)
    return probes


def updates(probes):
    return {n: dense(m).detach() for n, m in probes.modules().items()}


def whole(model):
    """The weights of a model with its LoRA merged, by the net's own names."""
    import copy

    return copy.deepcopy(model).merge_and_unload().state_dict()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_interpolating_a_lora_is_interpolating_the_weights(alpha):
    before = whole(make())
    probes = tuned()
    wanted = interpolated(before, whole(probes.model), alpha)
    assert interpolate(probes.model, alpha) is None
    found = whole(probes.model)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_interpolation_reaches_modules_trained_whole():
    torch.manual_seed(0)
    net = Net().double()
    start = net.head.weight.detach().clone()
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["first"], modules_to_save=["head"]))
    probes = ToyProbes(model)
    scatter(probes)
    head = model.base_model.model.head.modules_to_save["default"]
    moved = head.weight.detach().clone()
    interpolate(model, 0.25)
    torch.testing.assert_close(head.weight.detach(), start + 0.25 * (moved - start))
    torch.testing.assert_close(model.base_model.model.head.original_module.weight.detach(), start)


def test_state_dicts_interpolate_exactly_at_the_ends():
    generator = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(50, generator=generator).bfloat16(), "n": torch.tensor([3])}
    after = {"w": torch.randn(50, generator=generator).bfloat16(), "n": torch.tensor([4])}
    assert torch.equal(interpolated(before, after, 0.0)["w"], before["w"])
    assert torch.equal(interpolated(before, after, 1.0)["w"], after["w"])
    half = interpolated(before, after, 0.5)
    assert half["w"].dtype == torch.bfloat16 and torch.equal(half["n"], after["n"])
    assert torch.equal(half["w"], ((before["w"].float() + after["w"].float()) / 2).bfloat16())


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}, "b"),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, "a"),
    ],
)
def test_models_of_different_tensors_are_refused(before, after, name):
    with pytest.raises(ModelError, match=f"'{name}'"):
        interpolated(before, after, 0.5)


def cosine(delta, v):
    kept = v @ v.T / v.norm() @ delta
    return float((delta * kept).sum() / delta.norm() / kept.norm())


def test_safe_lora_projects_what_fails_the_test():
    probes = tuned()
    alignment, before = directions(probes), updates(probes)
    wanted = {n: cosine(before[n], alignment[n]) for n in before}
    low, high = sorted(wanted, key=wanted.get)
    assert wanted[low] < wanted[high]
    found = safe_lora(probes.model, alignment, threshold=(wanted[low] + wanted[high]) / 2)
    assert {p.module: p.cosine for p in found} == pytest.approx(wanted)
    assert {p.module: p.projected for p in found} == {low: True, high: False}
    after = updates(probes)
    v = alignment[low]
    torch.testing.assert_close(after[low], v @ v.T / v.norm() @ before[low])
    assert torch.equal(after[high], before[high])


@pytest.mark.parametrize(
    ("options", "count"), [({"top": 1}, 1), ({"top": 9}, 2), ({"threshold": 0.0}, 0), ({"threshold": 1.0}, 2)]
)
def test_safe_lora_of_whole_weights_equals_that_of_the_lora(options, count):
    before = whole(make())
    probes = tuned()
    after = whole(probes.model)
    alignment = {n.removeprefix("base_model.model."): v for n, v in directions(probes).items()}
    weights, found = safe_projected(before, after, alignment, **options)
    assert sum(p.projected for p in found) == count
    by_lora = safe_lora(probes.model, alignment, **options)
    assert [p.projected for p in by_lora] == [p.projected for p in found]
    assert [p.cosine for p in by_lora] == pytest.approx([p.cosine for p in found])
    for name, weight in whole(probes.model).items():
        torch.testing.assert_close(weights[name], weight)
    lowest = min(found, key=lambda p: p.cosine)
    assert lowest.projected is (count > 0)


def test_safe_lora_leaves_alone_what_has_no_direction():
    probes = tuned()
    alignment = directions(probes)
    first, second = alignment
    alignment[first] = torch.zeros_like(alignment[first])
    with torch.no_grad():
        probes.modules()[second].lora_B["default"].weight.zero_()
    before = updates(probes)
    found = safe_lora(probes.model, alignment, threshold=1.0)
    assert [(p.cosine, p.projected) for p in found] == [(None, False)] * 2
    assert all(torch.equal(after, before[n]) for n, after in updates(probes).items())


def test_what_cannot_be_repaired_in_memory_is_refused_untouched():
    merged = tuned()
    merged.model.merge_adapter()
    dora = tuned("dora")
    biased = ToyProbes(get_peft_model(Net().double(), LoraConfig(r=2, target_modules=["first"], bias="all")))
    for probes, said in (
        (tuned("full"), "no LoRA"),
        (merged, "is merged"),
        (dora, "is no plain LoRA"),
        (biased, "biases"),
    ):
        before = {n: p.detach().clone() for n, p in probes.model.named_parameters()}
        with pytest.raises(ModelError, match=said):
            interpolate(probes.model, 0.5)
        assert all(torch.equal(p, before[n]) for n, p in probes.model.named_parameters())
    with pytest.raises(ModelError, match="not a product"):
        safe_lora(dora.model, directions(dora))
    with pytest.raises(ConfigError, match="no alignment direction"):
        safe_lora(tuned().model, {})
    with pytest.raises(ConfigError, match=r"no weight 'third\.weight'"):
        safe_projected({}, {}, {"third": torch.ones(2, 2)})


def test_methods_repair_by_their_options():
    probes = tuned()
    before = updates(probes)
    method = build("interpolation", {"interpolation": {"alpha": 0.2}})
    assert method.apply(probes.model) == {"alpha": 0.2}
    for name, after in updates(probes).items():
        torch.testing.assert_close(after, 0.2 * before[name])

    both = build("replay+safe-lora", {"safe-lora": {"top": 1}})
    repair = both.parts["safe-lora"]
    with pytest.raises(ConfigError, match="unaligned"):
        repair.apply(probes.model)
    both.alignment = directions(probes)
    done = repair.apply(probes.model)
    assert len(done["projected"]) == 1 and set(done["cosines"]) == set(before)
    for bad in ({"alpha": 1.5}, {"alpha": -0.1}):
        with pytest.raises(ConfigError, match="alpha"):
            build("interpolation", {"interpolation": bad})
