"""Run directories and what they hold: estimates with intervals, run records, digests, atomic writes.

A run directory is the only thing that reports, comparisons and gates read:

    run.json          RunRecord, written last: a directory without it is an unfinished run
    config.toml       the configuration as resolved
    items.jsonl       one judged item a line, in suite order
    geometry.safetensors, …   whatever the verb adds
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardkeel.errors import ConfigError, DataError

SCHEMA_VERSION = 1
_PIECE = 2**24  # bytes hashed at once


class Estimate(BaseModel):
    """A value with its interval and the number of items behind it.

    `value` is None when the quantity is undefined (say, AUROC of one class); `note` then says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    confidence: float = 0.95
    note: str = ""


class RunRecord(BaseModel):
    """What a run was, from what, how, on what, and what came out."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    verb: str
    started_at: str
    finished_at: str = ""
    guardkeel: str = ""
    command: list[str] = Field(default_factory=list)
    inputs: dict[str, str] = Field(default_factory=dict, description="name → sha256 of what was read")
    config: dict[str, Any] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict, description="seconds")
    counts: dict[str, int] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict)
    not_measured: list[str] = Field(default_factory=list)

    @classmethod
    def finished(cls, **fields: Any) -> RunRecord:
        """The record of a run that ends now, here and with these libraries; the fields say the rest."""
        from guardkeel import __version__

        versions, hardware = environment()
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(finished_at=at, guardkeel=__version__, versions=versions, hardware=hardware, **fields)


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` only when the block ends well (temp, fsync, rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp made it private
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_writer(path) as out:
        out.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, sorted and indented, refusing NaN.

    JSON readers refuse lone surrogates (file names that are not UTF-8 have them): they become "\\udce9".
    """
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    write_text(path, re.sub(r"[\ud800-\udfff]", lambda m: f"\\\\u{ord(m[0]):04x}", text) + "\n")


def write_record(directory: str | Path, record: RunRecord) -> Path:
    """Write run.json, which marks the run as finished."""
    path = Path(directory) / "run.json"
    write_json(path, record.model_dump(mode="json"))
    return path


def read_record(directory: str | Path) -> RunRecord:
    """Read run.json; raises DataError naming the file and the remedy."""
    path = Path(directory) / "run.json"
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as e:
        raise DataError(
            f"{path}: no run record there",
            remedy="give a run directory of a finished run; resume an unfinished one first",
        ) from e
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="check the path and permissions"
        ) from e
    except ValidationError as e:
        first = e.errors()[0]
        where = f"field {'.'.join(map(str, first['loc']))!r}: " if first["loc"] else ""
        raise DataError(
            f"{path}: {where}{first['msg']}", remedy="take the file as the run wrote it, or repeat the run"
        ) from e
    if record.schema_version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema version {record.schema_version}, this guardkeel reads up to {SCHEMA_VERSION}",
            remedy="update guardkeel",
        )
    return record


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, as hex.

    Read in large pieces: a thread that hashes while another one runs Python waits for its turn at each of them.
    """
    found = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as f:
        space = memoryview(bytearray(min(_PIECE, max(os.fstat(f.fileno()).st_size, 2**16))))
        while count := f.readinto(space):
            found.update(space[:count])
    return found.hexdigest()


def value_digest(value: Any) -> str:
    """sha256 of a JSON-able value in canonical form, as hex."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def environment() -> tuple[dict[str, str], dict[str, Any]]:
    """Versions of what decides results, and the machine in words."""
    versions = {"python": platform.python_version()}
    for name in ("guardkeel", "torch", "transformers", "peft", "tokenizers", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    hardware: dict[str, Any] = {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    torch = sys.modules.get("torch")  # never the reason to import it
    if torch is not None:
        hardware["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            hardware["accelerator"] = torch.cuda.get_device_name()
    return versions, hardware


def claim(folder: str | Path, digest: str, *, begun: str) -> None:
    """Make a folder the run directory of the run with this digest, or find that it is.

    Args:
        folder: made where it is not there.
        digest: of everything that the run's results follow from.
        begun: pattern of what an unfinished run has done already; without it another run may take the folder over.

    Raises:
        ConfigError: the folder cannot be written, or holds something else: it is never overwritten.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in folder.iterdir() if not p.match(".plan.json.*.part")}  # left by a kill
    except OSError as e:
        raise ConfigError(
            f"{folder}: cannot be a run directory ({e.strerror})", remedy="choose another --out"
        ) from e
    plan = folder / "plan.json"
    held = _held(plan)
    if held is None and names:
        what = "is not empty" + (", it holds a finished run" if "run.json" in names else "")
        raise ConfigError(f"{folder}: {what}", remedy="choose another --out, or delete the folder")
    if held not in (None, digest) and any(folder.glob(begun)):
        raise ConfigError(
            f"{folder}: holds an unfinished run with other guards, data or settings",
            remedy="repeat its command to resume it, or choose another --out",
        )
    if held != digest:
        write_json(plan, {"digest": digest})


def _held(plan: Path) -> str | None:
    """The digest of the unfinished run that a plan.json belongs to; None where it is none of ours."""
    try:
        found = json.loads(plan.read_bytes())
    except (OSError, ValueError):
        return None
    digest = found.get("digest") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else None


def toml_text(config: dict[str, Any]) -> str:
    """A configuration as TOML, which has no null: what is not set is left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(config))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
