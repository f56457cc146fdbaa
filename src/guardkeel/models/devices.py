"""Which device and number format a model is loaded with, and whether it will fit."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from guardkeel.errors import ConfigError, RunError

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_OOM_WORDS = ("not enough memory", "out of memory", "annot allocate memory", "can't allocate memory")
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def pick_device(device: str = "auto") -> str:
    """`auto` is CUDA when there is one, else the CPU.

    Raises:
        ConfigError: the device is unknown or absent.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise ConfigError(f"device {device!r} is not known", remedy="use auto, cpu, cuda or cuda:N") from e
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r}: torch finds no CUDA device", remedy="use cpu, or install torch with CUDA"
        )
    return device


def pick_dtype(dtype: str = "auto", device: str = "cpu") -> str:
    """`auto` is bfloat16 on CUDA and on CPUs with bfloat16 instructions, else float32.

    Raises:
        ConfigError: the name is unknown.
    """
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") or cpu_has_bf16() else "float32"
    name = _SHORT.get(dtype, dtype)
    if name not in DTYPES:
        raise ConfigError(
            f"dtype {dtype!r} is not known", remedy=f"use auto, {', '.join([*DTYPES, *_SHORT])}"
        )
    return name


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16, AMX, Arm BF16)."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return bool(set(_CPU_FLAGS) & set(value.split()))
    return False


def free_memory(device: str = "cpu", cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that may still be used on the device; on the CPU, a container's limit counts."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())  # "max" when there is none
        used = int((cgroup / "memory.current").read_text())
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        free = min(free, max(0, limit - used + int(cached.get("inactive_file", 0))))
    return free


def peak_memory(device: str = "cpu") -> int:
    """Bytes: the accelerator's peak, or the process's largest resident size."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if os.name != "posix":
        return 0
    import resource  # on Linux its figure would hold the peak of whatever started this process

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def check_memory(needed: int, device: str, what: str) -> None:
    """Refuse to begin what cannot fit: on Linux the process would be killed without a word.

    Raises:
        RunError: naming what is needed and what is free.
    """
    free = free_memory(device)
    if needed > free:
        raise out_of_memory(what, device, f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def out_of_memory(what: str, device: str, detail: str) -> RunError:
    """The error for a model that does not fit."""
    return RunError(
        f"{what}: out of memory on {device}: {detail}",
        remedy="close other programs, use dtype bfloat16, a smaller model or a larger machine",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    import torch

    oom: Any = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    said = str(error)
    return isinstance(error, (MemoryError, oom)) or (
        isinstance(error, (RuntimeError, OSError)) and any(m in said for m in _OOM_WORDS)
    )


def model_facts(model: Any) -> dict[str, Any]:
    """Number of parameters, the number format of the largest, and the kind of device."""
    weights = list(model.parameters())
    return {
        "parameters": sum(w.numel() for w in weights),
        "dtype": str(max(weights, key=lambda w: w.numel()).dtype).removeprefix("torch."),
        "device": weights[0].device.type,
    }
