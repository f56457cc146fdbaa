"""Tiny models, written and loaded once for the whole test run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """tiny_folder(architecture, **options of make_tiny) → its folder."""
    from guardkeel.models.tiny import make_tiny

    made = {}

    def folder(architecture, **options):
        key = (architecture, *sorted(options.items()))
        if key not in made:
            made[key] = make_tiny(architecture, tmp_path_factory.mktemp("tiny") / architecture, **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder, tmp_path_factory):
    """tiny_loaded(architecture, dtype, **options) → (model, tokenizer), shared: leave them as they are."""
    import torch

    from guardkeel.models.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    loaded = {}

    def load(architecture, dtype="float32", **options):
        key = (architecture, dtype, *sorted(options.items()))
        if key not in loaded:
            folder = tiny_folder(architecture, **options)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GUARDKEEL_CACHE", str(cache))
                loaded[key] = (load_model(folder, dtype, "cpu"), load_tokenizer(folder))
        return loaded[key]

    return load
