"""Fusion methods against PEFT's helpers for tensors (peft.utils.merge_utils), which take deltas."""

import pytest
import torch
from peft.utils import merge_utils as peft

from fusion_method_inputs import dice, inputs
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.registry import make
from guardkeel.fusion.methods.streams import added, blocks
from guardkeel.fusion.methods.ties import agreed
from guardkeel.fusion.methods.trimming import trimmed


def deltas(count, seed=0):
    """Changes since a reference of zeros, so that nothing is rounded on the way."""
    tensors = inputs((40, 30), count, seed)
    return list(tensors.deltas)


def tensors_of(changes):
    return Tensors("w", torch.zeros_like(changes[0]), tuple(changes))


def ones(changes):
    return torch.ones(len(changes))


def fuse(name, changes, seed=0, **options):
    return make(name, options).fuse(tensors_of(changes), dice(seed))


def streamed(tensor):
    return lambda: (block.clone() for block in blocks(tensor))


@pytest.mark.parametrize("density", [0.0, 0.001, 0.2, 0.29, 0.77])
def test_trimming_is_magnitude_pruning(density):
    delta = deltas(1)[0]
    found = torch.cat(list(trimmed(streamed(delta), delta.numel(), density)()))
    assert torch.equal(found, peft.prune(delta, density, "magnitude"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_task_arithmetic_is_the_same(count):
    changes = deltas(count)
    weights = torch.linspace(-1, 2, count)
    found = fuse("task-arithmetic", changes, scale=1.0, weights=weights.tolist())
    torch.testing.assert_close(found, peft.task_arithmetic(changes, weights))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_is_the_same(count, density):
    changes = deltas(count)
    wanted = peft.ties(changes, ones(changes), density)
    found = fuse("ties", changes, density=density, scale=1.0)
    if count < 3:
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted)


def test_where_no_sign_weighs_more_peft_takes_the_positive_one_and_we_neither():
    changes = [torch.tensor([0.5, 0.5]), torch.tensor([-0.5, 0.25])]
    assert peft.disjoint_merge(
        torch.stack(changes), peft.calculate_majority_sign_mask(torch.stack(changes))
    ).tolist() == [0.5, 0.375]
    assert fuse("ties", changes, density=1).tolist() == [0, 0.375]


@pytest.mark.parametrize("density", [0.25, 0.7])
def test_what_peft_drops_at_random_is_merged_alike(density):
    changes = deltas(3)
    torch.manual_seed(4)
    dropped = [peft.prune(d, density, "random", rescale=True) for d in changes]
    reference = torch.zeros_like(changes[0])
    torch.manual_seed(4)
    wanted = peft.dare_linear(changes, ones(changes), density)
    torch.testing.assert_close(added(reference, [streamed(d) for d in dropped], [1.0] * 3), wanted)
    torch.manual_seed(4)
    wanted = peft.dare_ties(changes, ones(changes), density)
    torch.testing.assert_close(agreed(reference, [streamed(d) for d in dropped], 1.0), wanted)


@pytest.mark.parametrize("density", [0.25, 0.7])
def test_dare_keeps_the_values_and_the_share_that_peft_keeps(density):
    delta = deltas(1)[0]
    found = fuse("dare", [delta], drop=1 - density)
    torch.manual_seed(0)
    theirs = peft.prune(delta, density, "random", rescale=True)
    both = (found != 0) & (theirs != 0)
    assert both.any()
    torch.testing.assert_close(found[both], theirs[both])
    sigma = (density * (1 - density) / delta.numel()) ** 0.5
    for kept in (found, theirs):
        assert abs(float((kept != 0).float().mean()) - density) < 5 * sigma
