"""Whether the files that a run rests on are still there, and still the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guardkeel.dossier.kinds import File, Run
from guardkeel.errors import DataError
from guardkeel.records import file_digest

EVIDENCE = ("run.json", "config.toml", "items.jsonl", "reference.jsonl", "candidate.jsonl", "log.jsonl")
"""Files of a run directory that a decision is traced to. Activations and pages follow from these."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What became of a run's files."""

    state: Literal["present", "missing", "changed", "none"]
    what: str = ""

    @property
    def sound(self) -> bool:
        """Whether a decision may rest on it."""
        return self.state == "present"


Check = Callable[[Run], Evidence]


def taken(folder: Path, names: tuple[str, ...] = EVIDENCE) -> dict[str, File]:
    """Those of the named files that are in a folder, by digest; read as streams, of any size."""
    found = {}
    for name in names:
        path = folder / name
        if path.is_file():
            found[name] = of_file(path)
    return found


def of_file(path: Path) -> File:
    """A file by digest."""
    try:
        return File(sha256=file_digest(path), bytes=path.stat().st_size)
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e


def on_disk(run: Run) -> Evidence:
    """Look for a run's files where they were when it was recorded."""
    if not run.files:
        return Evidence("none", "no file of it was recorded")
    place = Path(run.location)
    for name, file in run.files.items():
        path = place / name if place.is_dir() or not place.exists() else place
        if not path.is_file():
            return Evidence("missing", f"{name} of run {run.id!r} is not there any more")
        if path.stat().st_size != file.bytes or file_digest(path) != file.sha256:
            return Evidence("changed", f"{name} of run {run.id!r} is not what it was when it was recorded")
    return Evidence("present", f"{len(run.files)} files, unchanged")
