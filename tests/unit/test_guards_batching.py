import pytest
import torch

from guardkeel.errors import RunError
from guardkeel.guards.batching import halving, plan


def test_plan_by_hand():
    #  longest first; 5·1 ≤ 10 takes a second row of length 5, the third would pad to 15.
    assert plan([3, 5, 1, 5, 2], budget=10) == [[1, 3], [0, 4, 2]]
    assert plan([], budget=10) == []
    assert plan([50, 60], budget=10) == [[1], [0]]  # what is over the budget goes alone
    assert plan([1] * 5, budget=100, most=2) == [[0, 1], [2, 3], [4]]


def test_every_item_once_and_within_the_budget():
    lengths = [(i * 37) % 91 + 1 for i in range(300)]
    batches = plan(lengths, budget=200)
    assert sorted(i for b in batches for i in b) == list(range(300))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * widest <= 200
    assert [lengths[b[0]] for b in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)


class Memory:
    """Runs rows while there are no more than fit."""

    def __init__(self, fits, error=torch.OutOfMemoryError):
        self.fits, self.error, self.calls = fits, error, []

    def __call__(self, rows):
        self.calls.append(rows)
        if len(rows) > self.fits:
            raise self.error("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return [-i for i in rows]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_once_halves(error):
    run = Memory(3, error)
    assert halving(run, [1, 2, 3, 4, 5]) == [-1, -2, -3, -4, -5]
    assert run.calls == [[1, 2, 3, 4, 5], [1, 2, 3], [4, 5]]


@pytest.mark.parametrize(("fits", "rows"), [(2, 5), (0, 1), (1, 3)])
def test_out_of_memory_twice_stops(fits, rows):
    run = Memory(fits)
    with pytest.raises(
        RunError, match=f"out of memory on a batch of {rows} items, and again on half"
    ) as error:
        halving(run, list(range(rows)))
    assert "--token-budget" in error.value.remedy
    assert len(run.calls) == 2


def test_other_errors_pass():
    def broken(rows):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(broken, [1, 2])

    def later(rows):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(later, [1, 2])
