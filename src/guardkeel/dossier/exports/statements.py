"""in-toto Statements (v1) about a model: test-result v0.1 for a run, SLSA verification summary v1 for a decision.

Subjects are the weight files by their sha256, so that whoever holds a file finds its statements; where only the digest
of a folder is known it stands under the name guardkeelFolderV1, which no tool mistakes for a file's. Statements are
signed as DSSE envelopes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import guardkeel
from guardkeel.dossier import dsse
from guardkeel.dossier.canonical import canonical
from guardkeel.dossier.findings import broken
from guardkeel.dossier.kinds import RELEASES, GateDecision, Model, Policy, Result, Run, Threshold
from guardkeel.dossier.state import State
from guardkeel.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
SUMMARY = "https://slsa.dev/verification_summary/v1"
PAYLOAD = "application/vnd.in-toto+json"
FOLDER = "guardkeelFolderV1"


def subject(model: Model) -> list[dict[str, Any]]:
    """What a statement about a model is about."""
    files = [
        {"name": f"{model.id}/{name}", "digest": {"sha256": sha}}
        for name, sha in sorted(model.files.items())
        if name.endswith((".safetensors", ".gguf"))
    ]
    whole = {"name": model.id, "digest": {FOLDER if model.files else "sha256": model.digest}}
    return [whole, *files]


def test_result(state: State, run: Run) -> dict[str, Any]:
    """The result of a run against the thresholds that are drawn on what it measured."""
    model = state.get(Model, run.model)
    told: dict[str, list[str]] = {"passed": [], "warned": [], "failed": []}
    for threshold in state.each(Threshold):
        for result in state.results(run.id):
            if (result.metric, result.slice) == (threshold.metric, threshold.slice):
                told[_became(threshold, result)].append(f"{threshold.id} on {run.spec}")
    if run.status == "errored":
        told["failed"].append(f"run {run.id}")
    word = "FAILED" if told["failed"] else "WARNED" if told["warned"] or not told["passed"] else "PASSED"
    configuration = [
        {"name": f"{s.id} {s.version}", "digest": {"sha256": s.digest}, "annotations": {"kind": "prompt-set"}}
        for s in run.prompt_sets
    ]
    configuration += [
        {"name": name, "digest": {"sha256": file.sha256}, "annotations": {"kind": "file of the run"}}
        for name, file in sorted(run.files.items())
    ]
    predicate = {
        "result": word,
        "configuration": configuration,
        "passedTests": told["passed"],
        "warnedTests": told["warned"],
        "failedTests": told["failed"],
    }
    return {
        "_type": STATEMENT,
        "subject": subject(model),
        "predicateType": TEST_RESULT,
        "predicate": predicate,
    }


def _became(threshold: Threshold, result: Result) -> str:
    if result.value is None:
        return "failed"
    if broken(threshold, result):
        return "warned" if threshold.level == "alert" else "failed"
    end = result.low if threshold.bound == "min" else result.high
    sure = not threshold.whole_interval or (
        end is not None and (end >= threshold.value if threshold.bound == "min" else end <= threshold.value)
    )
    return "passed" if sure else "warned"


def verification_summary(state: State, decision: GateDecision, dossier: str) -> dict[str, Any]:
    """The summary of a gate decision; `dossier` is the hash of the dossier's first entry."""
    model = state.get(Model, decision.model)
    passed = decision.outcome in RELEASES and state.released(decision)
    predicate = {
        "verifier": {
            "id": f"urn:guardkeel:dossier:{dossier}",
            "version": {"guardkeel": guardkeel.__version__},
        },
        "timeVerified": decision.decided_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resourceUri": model.repository or f"urn:guardkeel:model:{model.fingerprint}",
        "policy": {
            "uri": f"urn:guardkeel:policy:{state.get(Policy, decision.policy).id}",
            "digest": {"sha256": decision.policy_digest},
        },
        "inputAttestations": [
            {"uri": f"urn:guardkeel:record:{name}", "digest": {"sha256": sha}}
            for name, sha in sorted(decision.inputs.items())
        ],
        "verificationResult": "PASSED" if passed else "FAILED",
        "verifiedLevels": [f"GUARDKEEL_GATE_{decision.outcome.upper().replace('-', '_')}"]
        if passed
        else ["FAILED"],
    }
    return {"_type": STATEMENT, "subject": subject(model), "predicateType": SUMMARY, "predicate": predicate}


def signed(statement: dict[str, Any], key: Any) -> dsse.Envelope:
    """A statement in its envelope."""
    return dsse.sign(PAYLOAD, canonical(statement), key)


def opened(envelope: dsse.Envelope, keys: Iterable[Ed25519PublicKey], where: str) -> dict[str, Any]:
    """The statement of an envelope that one of the keys signed; errors as `dsse.opened`."""
    found = json.loads(dsse.opened(envelope, keys, PAYLOAD, where))
    if not isinstance(found, dict) or found.get("_type") != STATEMENT:
        raise DataError(f"{where}: no in-toto Statement v1", remedy="take the file as it was exported")
    return found
