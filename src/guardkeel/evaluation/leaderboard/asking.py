"""One guard asked about all items, taking up what an earlier process has done.

progress/guard-01-000000.npz   batches, see scoring.py
progress/guard-01.source.json  the fingerprint of the guard they are of
progress/guard-01.done.json    that it is finished: who it was and how long it took
"""

from __future__ import annotations

import errno
import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guardkeel.errors import ConfigError, GuardkeelError, InputError
from guardkeel.evaluation.leaderboard.config import GuardEntry
from guardkeel.evaluation.leaderboard.files import read_verdicts, verdict_file, write_verdicts
from guardkeel.evaluation.leaderboard.judged import Failed, Info, Judged, Timing
from guardkeel.evaluation.leaderboard.timing import batch_times, judged_alone, message_tokens
from guardkeel.evaluation.scoring import score
from guardkeel.evaluation.suites import SuiteItem
from guardkeel.guards.base import Guard
from guardkeel.guards.kinds import kind_of, other_digest
from guardkeel.guards.load import base_path, guard_path
from guardkeel.models.adapters import adapter_base, is_adapter
from guardkeel.models.loading import checkpoint_digest
from guardkeel.records import file_digest, value_digest, write_json

Watch = Callable[[str, int, int | None], None]
Load = Callable[[GuardEntry], Guard]


def ask(
    number: int,
    entry: GuardEntry,
    items: Sequence[SuiteItem],
    folder: Path,
    load: Load,
    watch: Watch,
    probe: int = 0,
    seed: int = 0,
    offline: bool | None = None,
    mark: Mapping[str, Any] = MappingProxyType({}),
) -> Judged | Failed:
    """One guard's verdicts: those that are there, else the guard is loaded and asked; what goes wrong is its reason.

    `mark` is what its verdicts follow from besides the guard; see EngineSettings.engine_mark.
    """
    role = role_of(number)
    path = verdict_file(folder, number, entry.label)
    ids = [i.judgement.id for i in items]
    guard: Any = None
    try:
        digest, fingerprint = identity(entry, offline, watch)
        fingerprint = value_digest([fingerprint, dict(mark)]) if mark else fingerprint
        before = _finished(folder, role, path, ids, fingerprint)
        if before is not None:
            return before
        guard = load(entry)
        judgements = [i.judgement for i in items]

        def scored() -> Any:
            return score(
                guard, judgements, folder, role, watch=lambda d, t: watch(f"score {entry.label}", d, t)
            )

        try:
            verdicts = scored().verdicts
        except ConfigError:
            # Batches that this guard, on this machine, would not have made: they are made again.
            if not list((folder / "progress").glob(f"{role}-*.npz")):
                raise
            _anew(folder, role, fingerprint)
            verdicts = scored().verdicts
        info = Info(
            name=entry.name or guard.name,
            reference=entry.reference,
            threshold=guard.threshold,
            family=guard.family,
            policy=entry.policy or "",
            digest=digest,
            facts=guard.facts,
        )
        timing = Timing(
            batch_times(folder / "progress", role),
            judged_alone(guard, judgements, probe, seed),
            message_tokens(guard, judgements),
        )
        write_verdicts(path, ids, verdicts)
        write_json(
            folder / "progress" / f"{role}.done.json", {"info": asdict(info), "timing": asdict(timing)}
        )
        return Judged(info, verdicts, timing)
    except Exception as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the run's trouble, not the guard's
        return Failed(entry.label, entry.reference, _reason(e))
    finally:
        heavy, guard = guard is None or hasattr(guard, "model"), None
        if heavy:  # weights, or what is left of loading them
            _free()


def _finished(folder: Path, role: str, path: Path, ids: Sequence[str], fingerprint: str) -> Judged | None:
    """What an earlier process has done for this guard; None where it did not finish, or the guard has changed."""
    try:
        held = json.loads((folder / "progress" / f"{role}.source.json").read_bytes())
    except (OSError, ValueError):
        held = None
    if held != fingerprint:
        _anew(folder, role, fingerprint)
        return None
    try:
        done = json.loads((folder / "progress" / f"{role}.done.json").read_bytes())
        timing = done["timing"]
        return Judged(
            Info(**done["info"]),
            read_verdicts(path, ids),
            Timing([(int(n), float(s)) for n, s in timing["batches"]], timing["alone"], timing["tokens"]),
        )
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None  # not finished, or a disk that lost its last writes


def _anew(folder: Path, role: str, fingerprint: str) -> None:
    discard(folder, role)
    write_json(folder / "progress" / f"{role}.source.json", fingerprint)


def identity(entry: GuardEntry, offline: bool | None = None, watch: Watch | None = None) -> tuple[str, str]:
    """The digest of a guard's own files ("" where they cannot be had), and a sha256 over all its verdicts follow from.

    The second one covers the base of an adapter, the policy's file and the options as well.
    """
    own, base = "", ""
    try:
        kind = kind_of(entry.reference, progress=watch, offline=offline)
        if kind == "checkpoint":
            path = guard_path(entry.reference, progress=watch, offline=offline)
            own = checkpoint_digest(path)
            if is_adapter(path) and adapter_base(path):
                base = checkpoint_digest(base_path(path, watch, offline))
        else:
            own = other_digest(kind, entry.reference, progress=watch, offline=offline)
    except GuardkeelError:
        pass  # loading it says what is wrong
    policy = file_digest(entry.policy) if entry.policy and Path(entry.policy).is_file() else ""
    return own, value_digest([entry.reference, entry.options(), own, base, policy])


def role_of(number: int) -> str:
    """What the files of a guard under progress/ begin with; guards count from 1."""
    return f"guard-{number:02d}"


def discard(folder: Path, role: str) -> None:
    """Remove all that was kept for a guard, so that it is asked anew."""
    for path in [*(folder / "progress").glob(f"{role}-*"), *(folder / "progress").glob(f"{role}.*")]:
        path.unlink(missing_ok=True)


def _free() -> None:
    """The memory of a guard that is done with."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    if isinstance(error, GuardkeelError):
        return error.problem + (f" (remedy: {error.remedy})" if error.remedy else "")
    return f"{type(error).__name__}: {error}"
