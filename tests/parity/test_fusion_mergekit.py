"""Fusion methods against mergekit on single tensors, where mergekit (0.1.5 or later, `merge_tensors`) is installed.

Last run and passed with mergekit 0.1.5 and torch 2.13 on the CPU.
"""

import pytest
import torch

from fusion_method_inputs import dice, inputs
from guardkeel.fusion.methods.base import Tensors
from guardkeel.fusion.methods.registry import make

mergekit = pytest.importorskip(
    "mergekit.merge_methods", reason="mergekit is not installed; it needs `pip install mergekit`"
)
if not hasattr(mergekit, "merge_tensors"):
    pytest.skip("this mergekit cannot merge single tensors; it needs 0.1.5 or later", allow_module_level=True)


def fuse(name, tensors, **options):
    return make(name, options).fuse(tensors, dice())


def theirs(name, tensors, base=True, **parameters):
    given = [tensors.reference, *tensors.candidates] if base else list(tensors.candidates)
    return mergekit.merge_tensors(given, name, parameters=parameters, base_index=0 if base else None)


def by_candidate(weights):
    """mergekit's parameters of candidates, where the first tensor is the reference."""
    return dict(enumerate(weights, 1))


@pytest.mark.parametrize("count", [2, 3])
def test_linear_is_the_same(count):
    tensors = inputs((40, 30), count)
    weights = [1.0, 2.5, 0.5][:count]
    found = fuse("linear", tensors, weights=weights)
    torch.testing.assert_close(found, theirs("linear", tensors, base=False, weight=weights))


@pytest.mark.parametrize("count", [1, 3])
def test_task_arithmetic_is_the_same(count):
    tensors = inputs((40, 30), count)
    weights = [0.7, -0.5, 1.5][:count]
    found = fuse("task-arithmetic", tensors, scale=0.4, weights=weights)
    wanted = theirs("task_arithmetic", tensors, weight=by_candidate(weights), **{"lambda": 0.4})
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.2, 0.9])
def test_ties_is_the_same(count, density):
    tensors = inputs((40, 30), count)
    found = fuse("ties", tensors, density=density, scale=0.4)
    wanted = theirs("ties", tensors, weight=1.0, density=density, normalize=True, **{"lambda": 0.4})
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [2.0, 0.001])  # apart, and nearly colinear
def test_slerp_is_the_same(t, spread):
    tensors = inputs((40, 30), spread=spread)
    torch.testing.assert_close(fuse("slerp", tensors, t=t), theirs("slerp", tensors, t=t))


@pytest.mark.parametrize("count", [2, 4])
def test_model_stock_is_the_same_where_candidates_agree(count):
    tensors = inputs((40, 30), count)
    shared = torch.full_like(tensors.reference, 0.2)  # so that cosines are above 0
    tensors = Tensors("w", tensors.reference, tuple(c + shared for c in tensors.candidates))
    torch.testing.assert_close(fuse("model-stock", tensors), theirs("model_stock", tensors))
