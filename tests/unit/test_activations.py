import numpy as np
import pytest
import torch

from guardkeel.activations.blocks import blocks, monitored
from guardkeel.activations.capture import Capture
from guardkeel.errors import ModelError
from guardkeel.models.tiny import ARCHITECTURES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_of_every_architecture(architecture, tiny_loaded):
    model, _ = tiny_loaded(architecture)
    found = blocks(model)
    assert len(found) == 2
    assert not any(isinstance(m, torch.nn.Embedding) for m in found.modules())


def test_blocks_under_an_adapter(tiny_loaded):
    import copy

    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(tiny_loaded("llama")[0])
    inner = blocks(model)
    assert blocks(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) is inner


class Block(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.self_attn = torch.nn.Linear(width, width)

    def forward(self, x):
        return (self.self_attn(x), "cache")


class Stack(torch.nn.Module):
    def __init__(self, **lists):
        super().__init__()
        for name, modules in lists.items():
            setattr(self, name, torch.nn.ModuleList(modules))


def test_blocks_are_told_from_other_lists():
    linears = [torch.nn.Linear(2, 2) for _ in range(9)]
    mixed = [Block(), torch.nn.Linear(2, 2)]
    model = Stack(
        vision_layers=[Block() for _ in range(9)],
        experts=linears,
        empty=[],
        mixed=mixed,
        layers=[Block() for _ in range(3)],
    )
    assert blocks(model) is model.layers
    with pytest.raises(ModelError, match="no transformer blocks found in Stack") as error:
        blocks(Stack(experts=linears, mixed=mixed))
    assert "--no-geometry" in error.value.remedy


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (4, (1, 2, 3, 4)),
        (30, (4, 8, 11, 15, 19, 24, 26, 30)),
        (32, (4, 8, 12, 16, 20, 25, 28, 32)),
    ],
)
def test_monitored_by_hand(count, expected):
    found = monitored(count)
    assert found == expected
    assert {max(1, int(r * count)) for r in (0.5, 0.65, 0.8, 1.0)} <= set(found)
    assert len(monitored(count, most=3)) == min(3, count)


def test_capture_takes_the_outputs_of_the_chosen_blocks():
    model = Stack(layers=[Block() for _ in range(3)])
    x = torch.randn(2, 5, 4)
    with Capture(model, (3, 1)) as capture:
        first = model.layers[0](x)[0]
        model.layers[1](first)
        third = model.layers[2](first)[0]
        taken = capture.take(torch.tensor([4, 1]))
        assert taken.shape == (2, 2, 4) and taken.dtype == np.float32
        rows = torch.arange(2)
        assert np.array_equal(taken[0], third[rows, [4, 1]].detach())
        assert np.array_equal(taken[1], first[rows, [4, 1]].detach())
        model.layers[0](x), model.layers[2](x)
        assert np.array_equal(capture.take(-1)[1], first[:, -1].detach())


def test_no_layers_take_nothing_and_need_no_blocks():
    with Capture(torch.nn.Linear(2, 2), ()) as capture:
        assert capture.take(-1).shape == (0, 0, 0)


def test_bfloat16_states_come_as_float32():
    model = Stack(layers=[Block().to(torch.bfloat16) for _ in range(2)])
    with Capture(model, (2,)) as capture:
        out = model.layers[1](torch.ones(1, 2, 4, dtype=torch.bfloat16))[0]
        assert np.array_equal(capture.take(0)[0], out[:, 0].detach().float())
