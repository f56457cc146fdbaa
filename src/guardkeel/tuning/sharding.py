"""A model in shards (FSDP2): every process holds 1/W of each weight, gradient and moment of the optimiser.

A block's weights are gathered while it runs and given up after it, so all processes must run the same forwards. What is
written is whole, so a checkpoint can be taken up by any number of processes, sharded or not. (PyTorch FSDP,
arXiv:2304.11277; `fully_shard` is its second version, one DTensor a weight.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardkeel.activations.blocks import blocks
from guardkeel.errors import ConfigError, ModelError
from guardkeel.tuning.ranks import Ranks
from guardkeel.tuning.regularisers.base import Gradients
from guardkeel.tuning.regularisers.factors import whole


def mesh_of(ranks: Ranks) -> Any:
    """The processes in one row, as `shard` wants them. All must call it.

    Raises:
        ConfigError: this torch has no FSDP2.
    """
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    if not hasattr(fsdp, "fully_shard"):
        raise ConfigError(
            f"sharding fsdp needs torch 2.6 or later, this is {torch.__version__}",
            remedy="update torch, or set sharding to none",
        )
    return init_device_mesh(torch.device(ranks.device).type, (ranks.size,))


def shard(model: Any, mesh: Any, *, offload: bool = False) -> None:
    """Cut the weights into shards, block by block, in place; no process waits for another.

    Shards go to the mesh's device, or stay in CPU memory with `offload`.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    away = offload and mesh.device_type != "cpu"
    # Weights outside the blocks are given up after each forward too: else a look between backward and optimiser step
    # would leave them as they were before it.
    options = {
        "mesh": mesh,
        "reshard_after_forward": True,
        "offload_policy": CPUOffloadPolicy() if away else OffloadPolicy(),
    }
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    if away:
        _runs_on(model, torch.device(mesh.device_type, torch.cuda.current_device()))


def settle(model: Any) -> None:
    """Run it once, all processes together: what is gathered into is made here, and not in inference mode."""
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def _runs_on(model: Any, device: torch.device) -> None:
    """Say where the model runs; asked itself it says where its weights rest."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = type(inner)
    inner.__class__ = type(kind.__name__, (kind,), {"device": property(lambda self: device)})


def gradients(loss: Tensor, named: Mapping[str, torch.nn.Parameter]) -> Gradients:
    """∂loss/∂(parameter) in shards, means over the processes; those that others left in `.grad` are put back.

    Zeros where there is none. The graph is kept.
    """
    before = {name: p.grad for name, p in named.items()}
    for p in named.values():
        p.grad = None
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    for name, p in named.items():
        p.grad = before[name]
    return found


def weights(model: Any, keep: bool) -> dict[str, Tensor]:
    """All that a checkpoint of a sharded model holds, whole and in CPU memory: the adapter's weights, or everything.

    All processes must call it; those that do not `keep` it get an empty one.
    """
    peft = hasattr(model, "peft_config")
    held = (
        {n: p for n, p in model.named_parameters() if p.requires_grad}
        if peft
        else model.state_dict(keep_vars=True)  # so that tied weights are one and the same
    )
    found: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    for name, tensor in held.items():
        if id(tensor) not in made:
            all_of_it = whole(tensor.detach())
            made[id(tensor)] = all_of_it.cpu() if keep else all_of_it.new_empty(0)
        found[name] = made[id(tensor)]
    return found if keep else {}


def put_weights(model: Any, folder: Path) -> None:
    """Take up the weights of a checkpoint folder, this process's shard of each.

    Raises:
        ModelError: a weight of it is not the model's.
    """
    from safetensors import safe_open

    own = model.state_dict()
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        own = get_peft_model_state_dict(model, state_dict=own)
    with torch.no_grad():
        for file in sorted(folder.glob("*.safetensors")):
            if file.name.startswith("regulariser"):
                continue
            with safe_open(file, "pt") as held:
                for name in held.keys():  # noqa: SIM118 - it is no dict
                    if name not in own:
                        raise ModelError(
                            f"{file}: holds {name!r}, which this model has not",
                            remedy="resume the run with the guard that it was begun with",
                        )
                    _fill(own[name], held.get_tensor(name))


def optimiser_state(optimiser: Any, keep: bool) -> dict[str, Any]:
    """An optimiser's state as if nothing were sharded; see `weights`."""
    state: dict[str, Any] = optimiser.state_dict()
    found: dict[int, dict[str, Any]] = {}
    for index, moments in state["state"].items():
        kept = {key: whole(value) if isinstance(value, Tensor) else value for key, value in moments.items()}
        if keep:
            found[index] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in kept.items()}
    return state | {"state": found}


def put_optimiser_state(optimiser: Any, state: dict[str, Any]) -> None:
    """Take up a whole state, this process's shard of it."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, moments in state["state"].items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                moments[key] = torch.empty_like(parameters[index], dtype=value.dtype)
                _fill(moments[key], value)
    optimiser.load_state_dict(state)


def _fill(target: Any, value: Tensor) -> None:
    """Put a whole tensor into one that may be sharded along its first axis."""
    if not hasattr(target, "to_local"):
        target.copy_(value)
        return
    mesh, mine = target.device_mesh, target.to_local()
    chunks = value.chunk(mesh.size(), 0)
    rank = mesh.get_local_rank()
    if rank < len(chunks):  # a small tensor has fewer rows than there are processes
        mine.copy_(chunks[rank])
