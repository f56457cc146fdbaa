"""Records from a TOML file: a table of tables for each kind, filled up with what can be looked up.

    [[model]]
    id = "guard"
    path = "runs/tuned/tuned"        # instead of digest and threshold: those of the weights that lie there
    trainers = ["tom"]

    [[prompt-set]]
    id = "harmbench"
    suite = "harmbench"              # instead of version, digest, n, licence and origin: those of the suite
    held_out = true

    [[prompt-set]]
    id = "hidden"
    version = "1"
    file = "hidden.jsonl"            # instead of digest, where no suite can be read from it
    held_out = true

    [[person]]
    id = "bob"
    key = "bob.key.pub"              # instead of public_key

Records about a model (assessment, monitor-plan, finding, incident, waiver, deployment) need no fingerprint: it is that
of the model as it is registered now, or in the same file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from guardkeel.dossier import dsse
from guardkeel.dossier.kinds import KINDS, Finding, Model, Record, parse
from guardkeel.dossier.state import State
from guardkeel.errors import ConfigError, DataError
from guardkeel.records import file_digest
from guardkeel.resources import Progress

FINGERPRINTED = frozenset(k for k, c in KINDS.items() if "fingerprint" in c.model_fields)
ASSESSED_FOR = timedelta(days=180)
TAXONOMIES = ("aegis-2", "ailuminate", "nist-ai-600-1")


def read_file(path: Path, state: State, now: datetime, progress: Progress | None = None) -> list[Record]:
    """Records of a TOML file, in the order of their kinds; errors name the file, the table and the key."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})", remedy="check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}", remedy="see https://toml.io") from e
    return read_tables(tables, state, now, str(path), path.parent, progress)


def read_tables(
    tables: dict[str, Any],
    state: State,
    now: datetime,
    where: str,
    folder: Path = Path(),
    progress: Progress | None = None,
) -> list[Record]:
    """Records of parsed tables; `folder` is where relative paths begin."""
    made: list[Record] = []
    order = list(KINDS)
    unknown = [k for k in tables if k not in KINDS]
    if unknown:
        raise ConfigError(f"{where}: unknown kind {unknown[0]!r}", remedy=f"kinds are {', '.join(order)}")
    for kind in sorted(tables, key=order.index):
        rows = tables[kind] if isinstance(tables[kind], list) else [tables[kind]]
        for number, row in enumerate(rows, 1):
            at = f"{where}: {kind} {number}"
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise DataError(f"{at}: has no id", remedy="give every record an id")
            said = _filled(kind, dict(row), at, folder, now, progress)
            if kind in FINGERPRINTED and "fingerprint" not in said:
                said["fingerprint"] = _model(state, made, said, at).fingerprint
            made.append(parse(kind, said.pop("id"), said, at))
    # a finding is closed by a mitigation, which names the finding: those of one file come first
    return sorted(made, key=lambda r: isinstance(r, Finding) and r.status in ("mitigated", "closed"))


def _model(state: State, made: Iterable[Record], said: dict[str, Any], where: str) -> Model:
    name = said.get("model")
    if not isinstance(name, str):
        raise DataError(f"{where}: names no model", remedy='say which: model = "…"')
    return next((m for m in made if isinstance(m, Model) and m.id == name), None) or state.get(Model, name)


def _filled(
    kind: str, said: dict[str, Any], where: str, folder: Path, now: datetime, progress: Progress | None
) -> dict[str, Any]:
    if kind == "model" and "path" in said:
        _weights(said, str(said.pop("path")), folder, progress)
    if kind == "person" and "key" in said:
        said.setdefault("public_key", dsse.pem(dsse.read_public(folder / str(said.pop("key")))))
    if kind == "prompt-set" and "suite" in said:
        _suite(said, str(said.pop("suite")), folder, progress)
    if kind == "prompt-set" and "file" in said:
        path = folder / str(said.pop("file"))
        if not path.is_file():
            raise DataError(f"{where}: {path} is no file", remedy="name the file of the prompts")
        said.setdefault("digest", file_digest(path))
    if kind == "assessment":
        said.setdefault("expires_at", now + ASSESSED_FOR)
    if kind == "monitor-plan":
        said.setdefault("since", now)
    if kind in ("exposure", "approval", "deployment"):
        said.setdefault("at", now)
    return said


def _weights(said: dict[str, Any], reference: str, folder: Path, progress: Progress | None) -> None:
    """Digest, as audits and services have it, place and operating point of a model's weights."""
    from guardkeel.guards.embedded import SETTINGS
    from guardkeel.guards.kinds import kind_of
    from guardkeel.guards.load import guard_digest, guard_path, guard_settings

    named = str(folder / reference) if (folder / reference).exists() else reference
    said.setdefault("digest", guard_digest(named, progress=progress))
    if kind_of(named, progress=progress) in ("server", "bridge"):
        return  # it runs elsewhere
    place = guard_path(named, progress=progress)
    said.setdefault("location", str(place.resolve()))
    if (place / SETTINGS).is_file():
        said.setdefault("threshold", guard_settings(place, place).threshold)


def _suite(said: dict[str, Any], name: str, folder: Path, progress: Progress | None) -> None:
    """What a suite says of itself, as audits of it do."""
    from guardkeel.evaluation.suites import load_suite

    beside = folder / name
    suite = load_suite(str(beside) if beside.is_file() else name, progress=progress)
    if said["id"] != suite.name:
        raise DataError(
            f"prompt-set {said['id']!r}: audits call this suite {suite.name!r}",
            remedy=f'give it the id "{suite.name}"',
        )
    own = {"version": suite.version, "digest": suite.digest, "n": len(suite.examples)}
    for key, value in (own | {"licence": suite.card.licence, "origin": suite.card.origin}).items():
        said.setdefault(key, value)


def taxonomy(name: str, state: State, now: datetime) -> list[Record]:
    """Risk domains of a taxonomy that ships: aegis-2, ailuminate, nist-ai-600-1."""
    if name not in TAXONOMIES:
        raise ConfigError(f"unknown taxonomy {name!r}", remedy=f"there is {', '.join(TAXONOMIES)}")
    text = (files("guardkeel.dossier") / "domains" / f"{name}.toml").read_text("utf-8")
    return read_tables(tomllib.loads(text), state, now, name)


def example() -> str:
    """A file of records to start one's own from."""
    return (files("guardkeel.dossier") / "records.toml").read_text("utf-8")
