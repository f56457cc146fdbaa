"""A tiny float64 model with real peft LoRA layers, and probes on it, small enough for finite differences."""

from contextlib import nullcontext

import torch
from peft import LoraConfig, get_peft_model

from guardkeel.tuning.regularisers.base import Seen

INPUTS, HIDDEN, OUTPUTS, VOCABULARY = 5, 6, 4, 7


class Net(torch.nn.Module):
    """Two blocks and a vocabulary head."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(INPUTS, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, OUTPUTS, bias=False)
        self.head = torch.nn.Linear(OUTPUTS, VOCABULARY)

    def forward(self, x):
        first = torch.tanh(self.first(x))
        second = torch.tanh(self.second(first))
        return first, second, 3 * self.head(second)


def make(kind="lora", seed=0):
    """The net, its first two layers trained: "lora", "dora", or "full" (the head stays frozen)."""
    torch.manual_seed(seed)
    net = Net().double()
    if kind == "full":
        net.head.requires_grad_(False)
        return net
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["first", "second"], use_dora=kind == "dora")
    return get_peft_model(net, config)


class ToyProbes:
    """`guardkeel.tuning.regularisers.base.Probes` on the net: verdict words 0 (safe) and 1 (unsafe)."""

    depth = 2

    def __init__(self, model, count=8, seed=1):
        self.model = model
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64)
        self.unsafe = torch.arange(count) % 2 == 1
        self.looks = 0  # forwards on guard data

    def __len__(self):
        return len(self.x)

    def draw(self, step):
        return [2 * step % len(self), (2 * step + 3) % len(self)]

    def chunks(self):
        everything = list(range(len(self)))
        return [everything[i : i + 3] for i in range(0, len(self), 3)]

    def look(self, picks, *, layers=(), logits=True):
        self.looks += 1
        first, second, out = self.model(self.x[list(picks)])
        hidden = {layer: (first, second)[layer - 1] for layer in layers}
        if not logits:
            return Seen(hidden)
        return Seen(hidden, torch.log_softmax(out[:, :2], -1), out)

    def frozen(self):
        return nullcontext()

    def answer_loss(self, picks):
        picks = list(picks)
        return torch.nn.functional.cross_entropy(self.look(picks).logits, self.unsafe[picks].long())

    def gradients(self, loss):
        parameters = self.parameters()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {
            n: torch.zeros_like(p) if g is None else g
            for (n, p), g in zip(parameters.items(), found, strict=True)
        }

    def parameters(self):
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def modules(self):
        return {
            n: m
            for n, m in self.model.named_modules()
            if hasattr(m, "lora_A")
            or (isinstance(m, torch.nn.Linear) and "lora" not in n and m.weight.requires_grad)
        }


def task_loss(probes):
    """A task at odds with the guard: everything is safe."""
    return torch.nn.functional.cross_entropy(
        probes.look(range(len(probes))).logits, torch.zeros(len(probes), dtype=torch.long)
    )


@torch.no_grad()
def scatter(probes, size=0.3, seed=3):
    """Move every trainable parameter away from where it is."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in probes.parameters().values():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=size)


def dense(module):
    """ΔW of a LoRA layer, formed by peft."""
    return module.get_delta_weight("default")


def directions(probes, seed=5, scale=1.0):
    """Random V (out, in) for every trained module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(m.out_features, m.in_features, generator=generator, dtype=torch.float64)
        for name, m in probes.modules().items()
    }


def differences(value, parameters, step=1e-5):
    """Central differences of a function of no argument by every number of every parameter."""
    found = {}
    for name, p in parameters.items():
        flat, slopes = p.data.view(-1), torch.zeros(p.numel(), dtype=p.dtype)
        for i in range(p.numel()):
            here = flat[i].item()
            flat[i] = here + step
            up = float(value().detach())
            flat[i] = here - step
            slopes[i] = (up - float(value().detach())) / (2 * step)
            flat[i] = here
        found[name] = slopes.view_as(p)
    return found


def train(regulariser, probes, steps, first=0, rate=0.1):
    """Plain descent through the contract, in the trainer's order. Returns the parameters after every step."""
    path = []
    for step in range(first, first + steps):
        task = task_loss(probes)
        if regulariser.wants(step):
            regulariser.observe(probes, step, probes.gradients(task_loss(probes)))
        term = regulariser.loss(probes, step)
        gradients = probes.gradients(task if term is None else task + term)
        regulariser.edit(probes, step, gradients)
        with torch.no_grad():
            for name, p in probes.parameters().items():
                p.sub_(gradients[name], alpha=rate)
        path.append({n: p.detach().clone() for n, p in probes.parameters().items()})
    return path
