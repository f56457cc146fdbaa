"""The output folder as it is written: shards of their final size, a journal of finished tensors, one rename at the end.

    .NAME.unfinished/            beside the output, until the rename
      journal.jsonl              first what the run is; then the names of finished tensors, as they are finished
      model-….safetensors        header and room for all tensors from the start

A run that is killed leaves the folder, and the same run goes on with it. The journal speaks of what the system has
taken, so it holds as long as the machine is not restarted; after that the run begins again. Before the rename the
shards are on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from guardkeel.errors import ConfigError, RunError
from guardkeel.fusion.plan import Shard
from guardkeel.fusion.processes import LostWorkerError
from guardkeel.fusion.tensorfile import memory
from guardkeel.records import write_json
from guardkeel.resources import lock

JOURNAL = "journal.jsonl"
INDEX = "model.safetensors.index.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FLAGS = os.O_RDWR | os.O_CREAT
_SYNC = 2**27  # bytes


class Shards:
    """The shards of an unfinished output, which are there: takes bytes of tensors in any order from several threads.

    Several processes may write to the same shards, as each tensor has a place of its own.

    Args:
        folder: the unfinished output's.
        shards: the layout.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, shards
        self.done: set[str] = set()
        self._files: dict[str, tuple[int, int]] = {}
        self._mutex = threading.Lock()
        self._stack = contextlib.ExitStack()

    def open(self, *, fresh: bool = False) -> None:
        """Open shards and journal; what is missing, or with `fresh` all of it, is made first.

        Raises:
            OSError: as the system says.
        """
        for shard in self.shards:
            handle = os.open(self.folder / shard.file, _FLAGS, 0o644)
            self._stack.callback(os.close, handle)
            if fresh or os.fstat(handle).st_size != shard.size:
                _reserve(handle, shard.size)
                os.pwrite(handle, shard.header, 0)
            self._files |= {name: (handle, place) for name, place in shard.places.items()}
        self._journal = os.open(self.folder / JOURNAL, _FLAGS | os.O_APPEND, 0o644)
        self._stack.callback(os.close, self._journal)

    def write(self, name: str, at: int, data: Tensor | memoryview) -> None:
        """Put bytes, or those of a contiguous tensor, at byte `at` of the tensor of this name.

        Raises:
            RunError: the disk is full or fails.
        """
        handle, start = self._files[name]
        view = data if isinstance(data, memoryview) else memory(data)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(handle, view[done:], start + at + done)
            except OSError as e:
                raise _disk_error(self.folder, e) from e

    def finished(self, name: str) -> None:
        """Note that all of a tensor has been written."""
        with self._mutex:
            os.write(self._journal, (json.dumps(name) + "\n").encode())
            self.done.add(name)


class Writer(Shards):
    """The output as a whole; a context manager that must end with `publish`.

    Left by an error in the inputs or the outputs it removes what it wrote; left by an interruption, or because a worker
    process was lost, it keeps it.

    Args:
        out: the folder to be; it must not be there, or be empty.
        shards: the layout.
        identity: of the run; an unfinished one of the same identity is gone on with, any other is removed.

    Raises:
        ConfigError: `out` is there already or cannot be made.
        RunError: the disk has no room.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], identity: str) -> None:
        self.out = out.absolute()
        super().__init__(self.out.parent / f".{self.out.name}.unfinished", shards)
        self._said = {"identity": identity, "boot": _boot()}
        self._file = {name: self.folder / shard.file for shard in shards for name in shard.places}
        self._waiting = 0
        self._syncs: list[Future[None]] = []

    def write(self, name: str, at: int, data: Tensor | memoryview) -> None:
        """As in Shards; from time to time what was written goes to the disk, while more is made."""
        super().write(name, at, data)
        with self._mutex:
            self._waiting += data.nbytes
            if self._waiting < _SYNC:
                return
            self._waiting = 0
            self._syncs.append(self._syncing.submit(_sync, self._file[name]))

    def __enter__(self) -> Writer:
        self._stack.enter_context(lock(self.out))
        try:
            if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
                raise ConfigError(
                    f"{self.out}: is there already", remedy="choose another --out, or delete it"
                )
            self._open()
            self._syncing = self._stack.enter_context(ThreadPoolExecutor(1, "sync"))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, LostWorkerError):
            shutil.rmtree(self.folder, ignore_errors=True)  # while no other run may enter
        self._close()

    def publish(self, copies: Sequence[Path] = (), files: Mapping[str, bytes] | None = None) -> None:
        """Bring everything to the disk and make it the output.

        Args:
            copies: files to put beside the weights.
            files: contents by name, which come before copies of the same name.
        """
        try:
            for path in copies:
                if path.name not in (files or {}):
                    _copy(path, self.folder / path.name)
            for name, content in (files or {}).items():
                (self.folder / name).write_bytes(content)
            if len(self.shards) > 1:
                where = {name: shard.file for shard in self.shards for name in shard.places}
                total = sum(shard.size - len(shard.header) for shard in self.shards)
                write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
            for sync in self._syncs:
                sync.result()
            for path in (*self.folder.rglob("*"), self.folder):
                _sync(path)
            self.folder.chmod(0o755)
            os.replace(self.folder, self.out)  # noqa: PTH105 - over an empty folder too
            _sync(self.out.parent)
        except OSError as e:
            raise _disk_error(self.folder, e) from e
        (self.out / JOURNAL).unlink()

    def _open(self) -> None:
        before = _read(self.folder / JOURNAL)
        fresh = not before or before[0] != self._said
        try:
            if fresh:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            self.open(fresh=fresh)
            if fresh:  # after the shards: a journal with a first line says that they are there
                os.write(self._journal, (json.dumps(self._said) + "\n").encode())
            else:
                os.write(self._journal, b"\n")  # ends a line that a kill cut short
                self.done = {name for name in before[1:] if isinstance(name, str) and name in self._files}
        except OSError as e:
            if fresh:
                self._close()
                shutil.rmtree(self.folder, ignore_errors=True)
            raise _disk_error(self.folder, e) from e

    def _close(self) -> None:
        self._stack.close()
        self._files = {}


def _read(journal: Path) -> list[object]:
    found: list[object] = []
    try:
        lines = journal.read_text("utf-8", "replace").split("\n")
    except OSError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _boot() -> str:
    """What changes when the machine restarts."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time() / 60))


def _reserve(handle: int, size: int) -> None:
    """Take the room now, so that a full disk is known before the work."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
            return
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    os.ftruncate(handle, size)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(path: Path, to: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, to, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, to)


def _disk_error(folder: Path, error: OSError) -> ConfigError | RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"{folder}: no room left on the disk", remedy="free some, or choose another --out")
    if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM):
        return ConfigError(f"{folder}: cannot be written ({error.strerror})", remedy="choose another --out")
    return RunError(
        f"{folder}: writing failed ({error.strerror})", remedy="check the disk, or choose another --out"
    )
