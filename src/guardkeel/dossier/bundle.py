"""A bundle: a folder that a stranger can check with nothing but the public key.

    records.jsonl heads.jsonl   the chain, and its signed heads
    manifest.dsse.json          sha256 of every file, and the head, signed
    index.html                  the dossier as a page
    evidence/SHA256             files of runs; messages only if asked for
    statements/ every-eval-ever/ cyclonedx/ hub/ reports/
    model-signing/              signatures of weights, and the public key for them; only if asked for

A redacted bundle withholds people, paths and free text of records, field by field: leaves of the chain stand in their
place, so it closes all the same. All else in it is made from the records as redacted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardkeel.dossier import dsse
from guardkeel.dossier.canonical import canonical
from guardkeel.dossier.chain import Entry, Fault, from_line, line, redacted
from guardkeel.dossier.dossier import Dossier
from guardkeel.dossier.evidence import on_disk
from guardkeel.dossier.exports import cyclonedx, every_eval_ever, hub, keyless, statements, weights
from guardkeel.dossier.heads import Head
from guardkeel.dossier.kinds import KINDS, GateDecision, Incident, Model, Opening, Run, moment
from guardkeel.dossier.regimes import drafts, load
from guardkeel.dossier.standing import standing
from guardkeel.dossier.state import State
from guardkeel.dossier.verifying import Verified, verify
from guardkeel.errors import ConfigError, DataError, GuardkeelError
from guardkeel.records import file_digest, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST = "manifest.dsse.json"
TYPE = "application/vnd.guardkeel.dossier-bundle+json"
TEXTS = ("items.jsonl",)
"""Files of runs that hold messages."""
LIMIT = 64 * 1024**2
SIGNATURES = "model-signing"
MODELS_KEY = f"{SIGNATURES}/models.pub"


@dataclass
class Written:
    """A bundle that was written, and what was left out of it."""

    files: int
    left_out: list[str] = field(default_factory=list)


def write(
    dossier: Dossier,
    out: Path,
    page: Callable[[State], str] | None = None,
    *,
    redact: bool = False,
    texts: bool = False,
    limit: int = LIMIT,
    key: Path | None = None,
    signed_models: Sequence[str] = (),
    model_key: Path | None = None,
    sigstore: bool = False,
) -> Written:
    """Write a bundle into a folder that is new or empty; whole, or not at all.

    Args:
        dossier: whose head is signed first.
        out: the folder.
        page: makes index.html of the records that go out.
        redact: withhold private fields, and leave all evidence out.
        texts: take files that hold messages in too.
        limit: bytes of a file; larger ones are named by digest only.
        key: private key; default the dossier's own.
        signed_models: ids of models whose weights are signed (exports/weights.py).
        model_key: private key of an elliptic curve, for those.
        sigstore: sign statements by Sigstore as well (exports/keyless.py).

    Raises:
        ConfigError: the folder is not empty, or there is no key to sign with.
        PinError: the weights of a model to be signed are not those that are registered.
        RunError: Sigstore cannot be reached.
    """
    path = key or dossier.key
    if path is None:
        raise ConfigError("there is no key to sign with", remedy="give the private key: --key FILE")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty", remedy="choose another folder")
    secret = dsse.private_key(path)
    if signed_models and model_key is None:
        raise ConfigError("there is no key to sign weights with", remedy=weights.MAKE)
    if model_key is not None and not signed_models:
        raise ConfigError("a key to sign weights with, and no model", remedy="name it: --sign-model MODEL")
    models = [dossier.refresh().get(Model, name) for name in dict.fromkeys(signed_models)]
    if len({_signature(m) for m in models}) < len(models):
        raise ConfigError("two models to be signed have one file name", remedy="sign them in two bundles")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        if model_key is not None and models:
            write_text(part / MODELS_KEY, weights.public(model_key))
            for model in models:
                weights.sign(model, model_key, part / _signature(model))
        with keyless.signer() if sigstore else nullcontext() as sign:
            made = _written(dossier, part, page, redact, texts, limit, path, secret, sign)
        part.chmod(0o755)
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return made


def _written(
    dossier: Dossier,
    out: Path,
    page: Callable[[State], str] | None,
    redact: bool,
    texts: bool,
    limit: int,
    path: Path,
    secret: Any,
    sign: keyless.Sign | None,
) -> Written:
    dossier.sign(path)
    entries = [_given(s.entry, redact) for s in dossier.refresh().all]
    state = State(entries)
    made = Written(0)
    (out / "records.jsonl").write_bytes(b"".join(map(line, entries)))
    (out / "heads.jsonl").write_bytes(b"".join(canonical(h) + b"\n" for h in dossier.store.heads()))
    for name, text in _exports(state, dossier, secret, sign, made).items():
        write_text(out / name, text)
    if page is not None:
        write_text(out / "index.html", page(state))
    if not redact:
        _evidence(dossier.state, out, texts, limit, made)
    else:
        made.left_out.append("evidence: a redacted bundle has none; runs name their files by digest")
    write_text(out / "README.md", _readme(dossier, state, made, redact))
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    manifest = {
        "dossier": entries[0].hash,
        "sequence": entries[-1].sequence,
        "head": entries[-1].hash,
        "at": moment(dossier.now),
        "redacted": redact,
        "files": {name: file_digest(out / name) for name in names},
    }
    write_text(out / MANIFEST, json.dumps(dsse.sign(TYPE, canonical(manifest), secret)) + "\n")
    made.files = len(names) + 1
    return made


def _given(entry: Entry, redact: bool) -> Entry:
    return (
        replace(redacted(entry, KINDS[entry.kind].private()), text=None)
        if redact
        else replace(entry, text=None)
    )


def _name(id: str) -> str:
    """An id as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", id).strip("-.")[:120] or "record"


def _signature(model: Model) -> str:
    return f"{SIGNATURES}/{_name(model.id)}.sig"


def _exports(
    state: State, dossier: Dossier, key: Any, sign: keyless.Sign | None, written: Written
) -> dict[str, str]:
    now, first = dossier.now, state.all[0].entry.hash
    made: dict[str, str] = {}

    def put(name: str, value: Any) -> None:
        made[name] = (
            value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        )

    def attest(name: str, said: dict[str, Any]) -> None:
        put(f"statements/{name}.dsse.json", statements.signed(said, key))
        if sign is None:
            return
        if (narrow := keyless.statement(said)) is None:
            written.left_out.append(f"{name} by Sigstore: it takes no digests of folders, only of files")
        else:
            put(f"statements/{name}.sigstore.json", sign(canonical(narrow)) + "\n")

    for number, s in enumerate(state.every(Run), 1):
        name = f"{number:03}-{_name(s.record.id)}"
        attest(f"{name}.test-result", statements.test_result(state, s.record))
        put(f"every-eval-ever/{name}.json", every_eval_ever.document(state, s.record, now))
    for number, decision in enumerate(state.each(GateDecision), 1):
        said = statements.verification_summary(state, decision, first)
        attest(f"{number:03}-{_name(decision.id)}.summary", said)
    for model in state.each(Model):
        name = _name(model.id)
        put(f"cyclonedx/{name}.cdx.json", cyclonedx.bom(state, model, now))
        put(f"hub/{name}/README.md", hub.card(state, model, standing(state, model, now)))
        for file, text in hub.eval_results(state, model).items():
            put(f"hub/{name}/.eval_results/{file}", text)
        put(f"reports/{name}.model-report.md", drafts.model_report(state, model, now))
        put(f"reports/{name}.transparency-report.md", drafts.transparency(state, model, now))
    for incident in state.each(Incident):
        for regime in ("eu-gpai-code", "us-ca-sb53", "us-ny-raise"):
            text = drafts.incident(state, incident, load(regime), "initial", now)
            put(f"reports/{_name(incident.id)}.{regime}.initial.md", text)
    put("reports/risk-profile.md", drafts.risk_profile(state, now))
    return made


def _evidence(state: State, out: Path, texts: bool, limit: int, made: Written) -> None:
    for run in state.each(Run):
        found = on_disk(run)
        if not found.sound:
            made.left_out.append(f"evidence of run {run.id}: {found.state}. {found.what}")
            continue
        place = Path(run.location)
        for name, file in run.files.items():
            if (Path(name).name in TEXTS and not texts) or file.bytes > limit:
                why = "holds messages" if Path(name).name in TEXTS and not texts else f"{file.bytes:,} bytes"
                made.left_out.append(f"{name} of run {run.id} ({why}): sha256 {file.sha256}")
                continue
            target = out / "evidence" / file.sha256
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                shutil.copyfile(place / name if place.is_dir() else place, target)


def _readme(dossier: Dossier, state: State, made: Written, redact: bool) -> str:
    last = state.all[-1].entry
    lines = [
        f"# {state.all[0].record.title}",
        f"{state.last} records; the last one's hash is `{last.hash}`.",
        "Check it with the public key, which you should have from the signer and not from here:",
        "    guardkeel dossier verify . --key KEY.pub",
        "That finds any changed byte, missing record or broken chain, and names the first. `index.html` is the dossier "
        "to read. Files under `evidence/` are named by their sha256, as the runs in `records.jsonl` name them.",
    ]
    if redact:
        lines.append(
            "This is a redacted copy: people, paths and free text are withheld, and the chain closes all the same."
        )
    if made.left_out:
        lines.append("Left out:\n\n" + "\n".join(f"- {x}" for x in made.left_out))
    return "\n\n".join(lines) + "\n"


def check(
    folder: Path,
    keys: Sequence[Ed25519PublicKey] = (),
    elsewhere: Sequence[Head] = (),
    models: Mapping[str, Path] | None = None,
) -> Verified:
    """Check a bundle: the manifest's signature, every file, the chain, the heads, every statement.

    Without keys those that the bundle itself names are used, which shows that it is whole and not whose it is.
    `models` are weights to check against their signatures in it, by the id of the model.

    Raises:
        DataError: it is no bundle, or holds no signature of such a model.
    """
    notes: list[str] = []
    entries: list[Entry] = []
    for number, text in enumerate(_lines(folder / "records.jsonl"), 1):
        try:
            entries.append(from_line(text, f"records.jsonl line {number}"))
        except DataError as e:
            return Verified(len(entries), Fault(number, e.problem, e.remedy))
    if not keys:
        opening = entries[0].body.get("keys", {}) if entries and entries[0].kind == Opening.kind else {}
        keys = [dsse.public_key(p, f"{folder}: its own key") for p in opening.values()]
        notes.append("checked by keys that the bundle itself names: that it is whole, not whose it is")
    try:
        manifest = json.loads(dsse.opened(_json(folder / MANIFEST), keys, TYPE, MANIFEST))
    except GuardkeelError as e:
        if isinstance(e, DataError):
            raise
        return Verified(len(entries), Fault(0, e.problem, e.remedy), notes=notes)
    fault = _files(folder, manifest["files"])
    found = verify(entries, [_parsed(h) for h in _lines(folder / "heads.jsonl")], keys, elsewhere)
    fault = found.fault if fault is None or (found.fault and found.fault.sequence) else fault
    if fault is None and (manifest["sequence"], manifest["head"]) != (len(entries), found.head):
        fault = Fault(len(entries) + 1, "the manifest was signed over another end of the chain")
    if fault is None:
        fault = _statements(folder, keys, entries)
    if fault is None and models:
        fault = _weights(folder, State(entries), models)
        if fault is None:
            notes += [
                f"weights of {name} in {place}: signed and as registered" for name, place in models.items()
            ]
    return Verified(len(entries), fault, max(found.signed, 0), found.head, [*notes, *found.notes])


def _files(folder: Path, files: dict[str, str]) -> Fault | None:
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    there.discard(MANIFEST)
    for name in sorted(files.keys() | there):
        if name not in there:
            return Fault(0, f"the file {name} is missing", "get the bundle again")
        if name not in files:
            return Fault(0, f"the file {name} was added: the manifest does not know it", "remove it")
        if file_digest(folder / name) != files[name]:
            return Fault(0, f"the file {name} was changed", "get the bundle again")
    return None


def _statements(folder: Path, keys: Iterable[Ed25519PublicKey], entries: Sequence[Entry]) -> Fault | None:
    """Every statement is signed, and what a summary rests on is in the chain."""
    hashes = {e.hash for e in entries}
    for path in sorted((folder / "statements").glob("*.dsse.json")):
        try:
            said = statements.opened(_json(path), keys, path.name)
        except GuardkeelError as e:
            return Fault(0, e.problem, e.remedy)
        for used in said["predicate"].get("inputAttestations", ()):
            if used["digest"]["sha256"] not in hashes:
                return Fault(0, f"{path.name}: rests on {used['uri']}, which is not in the chain")
    return None


def _weights(folder: Path, state: State, models: Mapping[str, Path]) -> Fault | None:
    """The first model whose weights are not those that were signed. The manifest has vouched for the key by now."""
    for name, place in models.items():
        model = state.get(Model, name)
        signature = folder / _signature(model)
        if not signature.is_file():
            raise DataError(
                f"{folder}: holds no signature of the weights of {name!r}",
                remedy=f"have it exported with --sign-model {name}",
            )
        if fault := weights.check(model, place, signature, folder / MODELS_KEY):
            return fault
    return None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read ({e.strerror})", remedy="give a bundle as it was exported"
        ) from e


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as e:
        raise DataError("a signed head is no JSON", remedy="take the bundle as it was exported") from e
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    return _parsed(b"".join(_lines(path)))
