"""Weights in the Model Signing format and statements by Sigstore, with the official libraries."""

from __future__ import annotations

import base64
import inspect
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("sqlalchemy", reason="the dossier extra is not installed")
pytest.importorskip("cryptography", reason="the dossier extra is not installed")

from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from dossier_cases import Clock, lived, model, opened
from guardkeel.cli import app
from guardkeel.dossier import dsse
from guardkeel.dossier.bundle import check, write
from guardkeel.dossier.exports import keyless, statements
from guardkeel.dossier.kinds import GateDecision, Run
from guardkeel.errors import ConfigError, DataError, OfflineError, PinError, RunError
from guardkeel.resources import digest

NAME = "banks/guard-1"


def write_key(path, curve):
    key = ec.generate_private_key(curve)
    path.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption())
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dossier with a tiny model, whose weights lie in a folder with a private name, and a key for them."""
    folder = tmp_path_factory.mktemp("signing")
    weights = folder / "secret-place"
    weights.mkdir()
    save_file({"head": np.arange(12, dtype=np.float32).reshape(3, 4)}, weights / "model.safetensors")
    (weights / "config.json").write_text('{"model_type": "llama"}')
    (weights / "README.md").write_text("# A guard")
    dossier = opened(folder / "d", Clock())
    dossier.record(
        [
            model(NAME, digest=digest(weights), location=str(weights)),
            model("elsewhere", digest="ab" * 32, location=str(folder / "gone")),
            model("same/name"),
            model("same-name"),
        ],
        "ada",
    )
    yield dossier, weights, write_key(folder / "models.key", ec.SECP256R1()), folder
    dossier.store.close()


@pytest.fixture(scope="module")
def bundle(made):
    pytest.importorskip("model_signing", reason="the signing extra is not installed")
    dossier, _, key, folder = made
    out = folder / "bundle"
    write(dossier, out, signed_models=[NAME], model_key=key, redact=True)
    return out


@pytest.fixture(scope="module")
def public(made):
    return [dsse.read_public(made[3] / "d" / "dossier.key.pub")]


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the weights, as somebody who downloaded them has it."""
    return shutil.copytree(made[1], tmp_path / "downloaded")


def test_weights_are_checked_with_only_the_bundle_and_the_dossiers_key(bundle, copied, public):
    found = check(bundle, public, models={NAME: copied})
    assert found.sound, found.fault
    assert any("signed and as registered" in n for n in found.notes)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_changed_byte_is_found(bundle, copied, public, name):
    with (copied / name).open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last[0] ^ 1]))
    found = check(bundle, public, models={NAME: copied})
    assert f"Hash mismatch for '{name}'" in found.fault.problem.replace("\\", "") and not found.sound
    assert "Digest" not in found.fault.problem


def test_a_file_that_was_added_or_taken_away_is_found(bundle, copied, public):
    (copied / "modeling.py").write_text("print('hello')")  # no content file: the registered digest stays
    assert "modeling.py" in check(bundle, public, models={NAME: copied}).fault.problem
    (copied / "modeling.py").unlink()
    (copied / "config.json").unlink()
    assert "config.json" in check(bundle, public, models={NAME: copied}).fault.problem


def test_the_official_tool_checks_them_by_itself(bundle, copied):
    args = ["verify", "key", str(copied), "--signature", str(bundle / "model-signing" / "banks-guard-1.sig")]
    args += ["--public_key", str(bundle / "model-signing" / "models.pub")]
    call = [sys.executable, "-m", "model_signing", *args]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_signature_tells_the_models_id_and_not_where_it_lies(bundle, made):
    text = (bundle / "model-signing" / "banks-guard-1.sig").read_text()
    said = json.loads(base64.b64decode(json.loads(text)["dsseEnvelope"]["payload"]))
    assert [s["name"] for s in said["subject"]] == ["banks-guard-1"] and "secret-place" not in json.dumps(
        said
    )
    names = {r["name"] for r in said["predicate"]["resources"]}
    assert names == {p.relative_to(made[1]).as_posix() for p in made[1].rglob("*") if p.is_file()}


def test_another_signature_or_key_in_the_bundle_is_found(bundle, copied, public, tmp_path):
    from guardkeel.dossier.exports import weights

    forged = shutil.copytree(bundle, tmp_path / "forged")
    other = write_key(tmp_path / "other.key", ec.SECP384R1())
    (forged / "model-signing" / "models.pub").write_text(weights.public(other))
    assert "models.pub was changed" in check(forged, public, models={NAME: copied}).fault.problem
    about = model(NAME, digest=digest(copied))
    signature, key = forged / "model-signing" / "banks-guard-1.sig", forged / "model-signing" / "models.pub"
    assert "Key mismatch" in weights.check(about, copied, signature, key).problem
    said = json.loads(signature.read_text())
    said["verificationMaterial"]["publicKey"].pop("hint")  # without it the library tries the signature itself
    signature.write_text(json.dumps(said))
    assert "not signed by models.pub" in weights.check(about, copied, signature, key).problem
    whole = bundle / "model-signing"
    stranger = weights.check(
        model(NAME), copied, whole / "banks-guard-1.sig", whole / "models.pub"
    )  # another digest is registered
    assert "registered is" in stranger.problem


def test_weights_in_a_cache_of_links_are_signed_as_what_they_are(made, bundle, copied, tmp_path):
    from guardkeel.dossier.exports import weights

    links = tmp_path / "snapshot"
    links.mkdir()
    for file in copied.iterdir():
        (links / file.name).symlink_to(file)
    about = model("linked", digest=digest(copied), location=str(links))
    weights.sign(about, made[2], tmp_path / "linked.sig")
    key = bundle / "model-signing" / "models.pub"
    assert weights.check(about, made[1], tmp_path / "linked.sig", key) is None


def test_weights_that_are_not_those_registered_are_not_signed(made, copied, tmp_path):
    pytest.importorskip("model_signing", reason="the signing extra is not installed")
    registered = digest(copied)
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    with opened(tmp_path / "d", Clock()) as dossier:
        dossier.record([model(NAME, digest=registered, location=str(copied))], "ada")
        with pytest.raises(PinError, match=f"registered is {registered}"):
            write(dossier, tmp_path / "b", signed_models=[NAME], model_key=made[2])
    assert {p.name for p in tmp_path.iterdir()} == {"d", "downloaded"}


def test_what_cannot_be_signed_says_why(made, tmp_path):
    pytest.importorskip("model_signing", reason="the signing extra is not installed")
    dossier, _, key, folder = made
    wrong = write_key(tmp_path / "koblitz.key", ec.SECP256K1())
    cases = [
        (["elsewhere"], key, ConfigError, "not on this machine"),
        ([NAME], None, ConfigError, "no key to sign weights"),
        ([], key, ConfigError, "and no model"),
        (["same/name", "same-name"], key, ConfigError, "one file name"),
        ([NAME], folder / "d" / "dossier.key", ConfigError, "not a key of the curves"),
        ([NAME], wrong, ConfigError, "not a key of the curves"),
        ([NAME], tmp_path / "none.key", ConfigError, "cannot be read"),
        (["nobody"], key, DataError, "nobody"),
    ]
    for names, private, error, why in cases:
        with pytest.raises(error, match=why):
            write(dossier, tmp_path / "b", signed_models=names, model_key=private)
    assert list(tmp_path.iterdir()) == [wrong]


def test_the_commands(made, bundle, copied, tmp_path):
    _, weights, key, folder = made
    out, pub = tmp_path / "b", folder / "d" / "dossier.key.pub"
    runner = CliRunner()
    export = ["dossier", "export", str(out), "-d", str(folder / "d"), "--model-key", str(key)]
    done = runner.invoke(app, [*export, "--sign-model", NAME])
    assert done.exit_code == 0, done.output
    verify = ["dossier", "verify", str(out), "--key", str(pub), "--weights"]
    assert runner.invoke(app, [*verify, f"{NAME}={weights}"]).exit_code == 0
    (copied / "config.json").write_text("{}")
    done = runner.invoke(app, [*verify, f"{NAME}={copied}"])
    assert done.exit_code == 1 and "config.json" in done.output.replace("\n", "")
    with pytest.raises(DataError, match="holds no signature"):
        check(out, models={"elsewhere": weights})


@pytest.mark.parametrize(("missing", "sigstore"), [("model_signing", False), ("sigstore.dsse", True)])
def test_without_the_extra_the_error_names_it(made, tmp_path, monkeypatch, missing, sigstore):
    monkeypatch.setitem(sys.modules, missing, None)
    how = {"sigstore": True} if sigstore else {"signed_models": [NAME], "model_key": made[2]}
    with pytest.raises(ConfigError) as error:
        write(made[0], tmp_path / "b", **how)
    assert "guardkeel[signing]" in error.value.remedy and list(tmp_path.iterdir()) == []


@pytest.fixture
def unreached(monkeypatch, tmp_path_factory):
    """No CI job, no token, no network (a proxy where nobody listens), nothing of Sigstore in a cache."""
    pytest.importorskip("sigstore", reason="the signing extra is not installed")
    for name in list(os.environ):
        if name.startswith(("GITHUB_", "ACTIONS_", "CIRCLE", "BUILDKITE", "GITLAB", "SIGSTORE_", "CI")):
            monkeypatch.delenv(name)
    for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))


def token():
    """The form of an identity token; nobody has signed it."""

    def part(said):
        return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")

    now = int(time.time())
    claims = {"iss": "https://issuer.example", "sub": "ada", "aud": "sigstore", "iat": now, "exp": now + 600}
    return f"{part({'alg': 'RS256', 'typ': 'JWT'})}.{part(claims)}.{part('signature')}"


def test_sigstore_without_an_identity_or_a_network_writes_nothing(made, unreached, tmp_path, monkeypatch):
    def refused(error, why):
        with pytest.raises(error, match=why) as caught:
            write(made[0], tmp_path / "b", sigstore=True)
        assert caught.value.exit_code == 2 and caught.value.remedy and list(tmp_path.iterdir()) == []
        return caught.value.__cause__

    refused(ConfigError, "nobody at a terminal")
    monkeypatch.setenv(keyless.VARIABLE, "no token")
    refused(ConfigError, "malformed")
    monkeypatch.setenv(keyless.VARIABLE, token())
    assert type(refused(RunError, "Sigstore cannot be reached")).__name__ == "TUFError"  # it did try
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    refused(OfflineError, "the network is off")


def test_sigstores_library_takes_our_statements(tmp_path):
    pytest.importorskip("sigstore", reason="the signing extra is not installed")
    from sigstore.dsse import Statement
    from sigstore.errors import Error

    from guardkeel.dossier.canonical import canonical

    dossier, guard = lived(tmp_path / "d", tmp_path / "run", Clock())
    state = dossier.state
    summary = statements.verification_summary(state, state.each(GateDecision)[0], "0" * 64)
    for said in (statements.test_result(state, state.get(Run, "audit-1")), summary):
        assert keyless.statement(said) == said  # one digest, which is a sha256
        Statement(canonical(said))
    dossier.store.close()
    held = guard.model_copy(update={"files": {"model.safetensors": "ab" * 32}})
    said = {**summary, "subject": statements.subject(held)}
    with pytest.raises(Error, match="malformed"):
        Statement(canonical(said))  # a digest of a folder: why some subjects are left out
    narrow = keyless.statement(said)
    assert [s["digest"] for s in narrow["subject"]] == [{"sha256": "ab" * 32}]
    Statement(canonical(narrow))
    assert keyless.statement({**summary, "subject": said["subject"][:1]}) is None


def test_the_calls_to_sigstore_fit_the_library_that_is_installed():
    pytest.importorskip("sigstore", reason="the signing extra is not installed")
    from sigstore.models import Bundle, ClientTrustConfig, SigningConfig
    from sigstore.oidc import Issuer
    from sigstore.sign import Signer, SigningContext

    self = object()
    inspect.signature(ClientTrustConfig.production).bind()
    inspect.signature(SigningContext.from_trust_config).bind(self)
    inspect.signature(SigningContext.signer).bind(self, self)
    inspect.signature(Signer.sign_dsse).bind(self, self)
    inspect.signature(SigningConfig.get_oidc_url).bind(self)
    inspect.signature(Issuer.identity_token).bind(self)
    assert inspect.signature(Signer.sign_dsse).return_annotation in ("Bundle", Bundle)
    inspect.signature(Bundle.to_json).bind(self)
