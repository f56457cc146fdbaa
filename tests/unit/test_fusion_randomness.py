import torch

from guardkeel.fusion.randomness import generator


def test_numbers_follow_from_seed_and_name_alone():
    torch.manual_seed(1)
    first = torch.rand(5, generator=generator(3, "model.norm.weight"))
    torch.manual_seed(2)
    torch.rand(100)
    generator(3, "another")
    again = torch.rand(5, generator=generator(3, "model.norm.weight"))

    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(5, generator=generator(4, "model.norm.weight")))
    assert not torch.equal(first, torch.rand(5, generator=generator(3, "model.norm.bias")))


def test_the_stream_is_the_same_on_any_machine_and_in_any_version():
    drawn = torch.randint(2**31, (3,), generator=generator(0, "lm_head.weight")).tolist()

    assert drawn == [1206642529, 71369818, 95639405]


def test_seed_and_name_cannot_be_confused():
    one, other = generator(1, "1.weight"), generator(11, ".weight")

    assert one.initial_seed() != other.initial_seed()
