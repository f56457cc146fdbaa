"""Where the repeated blocks of a transformer are, whatever its architecture."""

from __future__ import annotations

from typing import Any

from guardkeel.errors import ModelError


def blocks(model: Any) -> Any:
    """The ModuleList of a model's (text) blocks, adapters or not.

    It is the longest ModuleList whose members are all of one class and which holds attention; the vision
    tower of a multi-modal model is passed over.
    """
    import torch

    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) > 0
        and len({type(block) for block in module}) == 1
        and any("attn" in n.lower() or "attention" in n.lower() for n, _ in module[0].named_modules())
        and not any(part in name.lower() for part in ("vision", "visual", "image"))
    ]
    if not found:
        raise ModelError(
            f"no transformer blocks found in {type(model).__name__}",
            remedy="geometry and adapters need repeated attention blocks; audit with --no-geometry",
        )
    return max(found, key=len)


def monitored(count: int, most: int = 8) -> tuple[int, ...]:
    """Which of `count` blocks to watch, counted from 1, at most `most`.

    The released FW-SSR set (0.5, 0.65, 0.8, 1.0 of the depth) and an even spread over the rest.
    """
    wanted = [max(1, int(r * count)) for r in (1.0, 0.5, 0.65, 0.8)]
    wanted += [max(1, round(count * i / 8)) for i in (1, 7, 3, 2, 6, 4, 5)]
    return tuple(sorted(list(dict.fromkeys(wanted))[:most]))
