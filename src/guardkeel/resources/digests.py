"""sha256 of files and folders, remembered while a file's size and times stay; pins."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from guardkeel.errors import PinError, ResourceError
from guardkeel.records import file_digest, write_json
from guardkeel.resources.cache import cache_dir

CONTENT = (
    "*.safetensors", "*.gguf", "*.json", "*.jsonl", "*.txt", "*.model", "*.jinja", "*.tiktoken",
    "*.csv", "*.tsv", "*.parquet",
)  # fmt: skip
"""What is fetched from a hub repository and counted in a folder's digest: weights, configuration,
tokenizers and data in formats that cannot run code."""

REMEMBER_BYTES = 1024**2
_busy: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def content_files(folder: Path) -> list[Path]:
    """The folder's content files, sorted by their relative path; hidden files and folders are left out."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [
            Path(root, f)
            for f in files
            if not f.startswith(".") and any(fnmatch.fnmatchcase(f, p) for p in CONTENT)
        ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def remembered(path: Path, what: str, compute: Callable[[Path], str]) -> str:
    """`compute(path)`; for a large file, what it was last time while inode, size and times are the same."""
    path = path.resolve()
    stat = path.stat()
    if stat.st_size < REMEMBER_BYTES:
        return compute(path)
    key = [str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = cache_dir() / what / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with _busy[str(note)]:  # who comes second finds the note of who came first
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(note.read_bytes())
            if known["key"] == key:
                return str(known["value"])
        value = compute(path)
        with contextlib.suppress(OSError):  # a read-only cache costs time, nothing else
            write_json(note, {"key": key, "value": value})
    return value


def remembered_file_digest(path: Path) -> str:
    """sha256 of a file's bytes, remembered."""
    return remembered(path, "digests", file_digest)


def folder_digest(folder: str | Path) -> str:
    """sha256 over `<sha256>  <relative path>\\n` of the folder's content files, sorted by path.

    Raises:
        ResourceError: the folder has no content file.
    """
    folder = Path(folder)
    files = content_files(folder)
    if not files:
        raise ResourceError(
            f"{folder}: no model or data file in it", remedy=f"it needs files of {', '.join(CONTENT)}"
        )
    lines = [f"{remembered_file_digest(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def digest(path: str | Path) -> str:
    """sha256 of a file, or of a folder as `folder_digest` has it."""
    path = Path(path)
    return folder_digest(path) if path.is_dir() else remembered_file_digest(path)


def digest_ahead(folders: Iterable[Path], *, threads: int = 2) -> None:
    """Begin to digest in threads what will be asked for soon: `digest` then waits for it, or finds it remembered.

    An error is left to whoever asks.
    """
    files = [file for folder in folders for file in content_files(folder)]

    def work() -> None:
        while files:
            with contextlib.suppress(OSError, IndexError):
                remembered_file_digest(files.pop())

    for _ in range(threads):
        threading.Thread(target=work, name="digests", daemon=True).start()


def check_pin(path: Path, expected: str | None, reference: str) -> None:
    """Nothing when there is no pin or it matches.

    Raises:
        PinError: naming the expected and the found digest.
    """
    if expected is None:
        return
    got = digest(path)
    if got != expected:
        raise PinError(
            f"{reference}: the sha256 pin does not match\n"
            f"  expected {expected}\n  got      {got}\n  of       {path}",
            remedy="if the source changed on purpose, review it and pin the new digest; else fetch it again",
        )
