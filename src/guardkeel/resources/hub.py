"""hub: references through huggingface_hub: its cache, token, endpoint and resumed downloads hold.

Only formats that cannot run code are ever asked for (`digests.CONTENT`). A whole repository is taken
without its GGUF files, which are often many quantisations of one model: such a file is asked for by name.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from guardkeel.errors import OfflineError, ResourceError
from guardkeel.resources.cache import Progress, is_offline
from guardkeel.resources.digests import CONTENT, content_files
from guardkeel.resources.reference import Reference

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def fetch(reference: Reference, progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The file, or the repository's snapshot folder, in huggingface_hub's cache.

    Raises:
        OfflineError: it is not cached and the network is off.
        ResourceError: no such repository, revision or file, no access, no network, or nothing usable in it.
    """
    import huggingface_hub

    name, inside = reference.name, reference.file
    common: dict[str, Any] = {
        "repo_id": name.removeprefix("datasets/"),
        "repo_type": "dataset" if name.startswith("datasets/") else "model",
        "revision": reference.revision or None,
        "local_files_only": is_offline(offline),
    }
    bar: dict[str, Any] = {"tqdm_class": _bar(progress, name)}
    if progress:
        progress(f"fetch {name}", 0, None)
    try:
        if inside and not inside.endswith("/"):
            if "tqdm_class" not in inspect.signature(huggingface_hub.hf_hub_download).parameters:
                bar = {}
            one: Any = huggingface_hub.hf_hub_download
            return Path(one(filename=inside, **common, **bar))
        patterns = [f"{inside}{p}" for p in CONTENT if p != "*.gguf"]
        snapshot: Any = huggingface_hub.snapshot_download
        folder = Path(snapshot(allow_patterns=patterns, **common, **bar)) / inside
    except Exception as e:
        raise explained(reference, e, is_offline(offline)) from e
    if not folder.is_dir() or not content_files(folder):
        raise ResourceError(
            f"{reference}: no usable file in it (only {', '.join(CONTENT)} are taken)",
            remedy="name a GGUF file as hub:org/name@revision/file.gguf, or find safetensors",
        )
    return folder


def _bar(progress: Progress | None, name: str) -> type[Any]:
    """A tqdm class that reports to `progress` and never draws."""
    tqdm: Any = importlib.import_module("tqdm.auto").tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kind = str(kwargs.pop("name", ""))
            super().__init__(*args, **{**kwargs, "disable": True})
            self._done = int(kwargs.get("initial") or 0)
            self._what = f"fetch {name}" + ("" if kwargs.get("unit") == "B" else ", files")
            self._silent = progress is None or kind.endswith(".transfer")  # the same bytes a second time

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            if progress and not self._silent:
                progress(self._what, self._done, int(self.total) if self.total else None)
            return None

    return Bar


def explained(reference: Reference, error: Exception, offline: bool) -> Exception:
    """huggingface_hub's error as one of ours; an error that is not about the hub is returned as it is."""
    from huggingface_hub import errors

    where = str(reference)
    guess = " (no such local path, so it was taken as a hub repository)" if reference.guessed else ""
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{reference.name}"
        return ResourceError(f"{where}: access is gated", remedy=f"accept the terms at {page}, then {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ResourceError(
            f"{where}: no such repository, or no access to it{guess}",
            remedy=f"check the spelling; for a private repository {LOGIN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ResourceError(
            f"{where}: no revision {reference.revision!r}", remedy="give a branch, a tag or a full commit id"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if offline:
            return OfflineError(
                f"{where}: not in huggingface_hub's cache and the network is off{guess}",
                remedy="run once with the network on, or give a local folder as path:",
            )
        return ResourceError(
            f"{where}: the hub cannot be reached, and it is not in the cache{guess}",
            remedy="check the network, the proxy and HF_ENDPOINT, or give a local folder as path:",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ResourceError(
            f"{where}: no file {reference.file!r} in the repository", remedy="check the path and the revision"
        )
    if isinstance(error, errors.HFValidationError):
        return ResourceError(f"{where}: {error}", remedy="write hub:org/name@revision[/file]")
    transport = type(error).__module__.split(".")[0] in ("requests", "httpx", "httpx2", "httpcore")
    if isinstance(error, (errors.HfHubHTTPError, OSError)) or transport:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ResourceError(
            f"{where}: the hub could not be used: {said}",
            remedy="check the network, the proxy, HF_ENDPOINT and the free disk space",
        )
    return error
