"""hub: references against a small hub on this machine, and against huggingface_hub's own cache layout."""

import hashlib
import http.server
import json
import threading
from typing import ClassVar

import huggingface_hub.constants as hf
import pytest

from guardkeel.errors import OfflineError, ResourceError, UnsafeFileError
from guardkeel.resources import folder_digest, parse, resolve
from guardkeel.resources.hub import explained

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"architectures": ["X"]}',
    "model.safetensors": b"weights" * 100,
    "pytorch_model.bin": b"pickle",
    "training_args.pt": b"pickle",
    "handler.py": b"raise SystemExit",
    "tokenizer.json": b"{}",
    "q4.gguf": b"GGUF" * 1000,
    "sub/config.json": b'{"a": 1}',
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of the hub's HTTP interface that a download uses."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *args):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/gone/" in path or path.endswith("/gone"):
            return self.send(404, X_Error_Code="RepoNotFound")
        if "gated" in path:
            return self.send(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if "no-such-revision" in path:
            return self.send(404, X_Error_Code="RevisionNotFound")
        if "broken" in path:
            return self.send(500)
        if path.startswith("/api/models/org/model/tree/"):
            listing = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in FILES.items()
            ]
            return self.send(200, json.dumps(listing).encode(), Content_Type="application/json")
        if path.startswith("/api/models/org/model"):
            info = {"id": "org/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}
            return self.send(200, json.dumps(info).encode(), Content_Type="application/json")
        if path.startswith("/org/model/resolve/"):
            name = path.split("/", 5)[5]
            if name not in FILES:
                return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            if self.command == "GET":
                Hub.asked.append(name)
            etag = f'"{hashlib.sha1(FILES[name]).hexdigest()}"'
            return self.send(200, FILES[name], ETag=etag, X_Repo_Commit=COMMIT)
        return self.send(404)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(hf, name, value)
    monkeypatch.setenv("GUARDKEEL_CACHE", str(tmp_path / "cache"))
    for name in ("GUARDKEEL_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_snapshot_takes_only_formats_that_cannot_run_code(hub, monkeypatch):
    steps = []
    folder = resolve("hub:org/model@main", progress=lambda *a: steps.append(a))
    got = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert got == ["config.json", "model.safetensors", "sub/config.json", "tokenizer.json"]
    assert sorted(set(Hub.asked)) == got
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert max(done for what, done, _ in steps if what == "fetch org/model") >= sum(
        len(FILES[n]) for n in got
    )
    pin = folder_digest(folder)

    hub.shutdown()
    hub.server_close()
    monkeypatch.setenv("GUARDKEEL_OFFLINE", "1")
    assert resolve(f"hub:org/model@main#sha256={pin}") == folder
    assert resolve(f"hub:org/model@{COMMIT}") == folder
    assert resolve("org/model") == folder


def test_single_file(hub):
    steps = []
    path = resolve("hub:org/model@main/q4.gguf", progress=lambda *a: steps.append(a))
    assert path.read_bytes() == FILES["q4.gguf"]
    assert ("fetch org/model", len(FILES["q4.gguf"]), len(FILES["q4.gguf"])) in steps
    assert Hub.asked == ["q4.gguf"]
    with pytest.raises(UnsafeFileError):
        resolve("hub:org/model@main/pytorch_model.bin")


@pytest.mark.parametrize(
    ("reference", "match", "remedy"),
    [
        ("hub:org/gone@main", "no such repository, or no access", "check the spelling"),
        ("org/gone", "taken as a hub repository", "check the spelling"),
        ("hub:org/gated@main", "access is gated", "accept the terms at .*org/gated"),
        ("hub:org/model@no-such-revision", "no revision 'no-such-revision'", "a branch, a tag"),
        ("hub:org/model@main/nope.json", "no file 'nope.json'", "check the path"),
        ("hub:org/gated@main/a.json", "access is gated", "accept the terms"),
    ],
)
def test_errors_say_what_to_do(hub, reference, match, remedy):
    with pytest.raises(ResourceError, match=match) as e:
        resolve(reference)
    import re

    assert re.search(remedy, e.value.remedy)


def test_server_failure_and_no_network(hub):
    with pytest.raises(ResourceError, match=r"the hub cannot be reached|could not be used"):
        resolve("hub:org/broken@main")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ResourceError, match="the hub cannot be reached") as e:
        resolve("hub:org/model@main")
    assert "HF_ENDPOINT" in e.value.remedy
    with pytest.raises(OfflineError, match="network is off"):
        resolve("hub:org/model@main", offline=True)
    with pytest.raises(OfflineError, match="network is off"):
        resolve("hub:org/model@main/config.json", offline=True)


def test_cache_that_another_tool_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "HF_HUB_CACHE", str(tmp_path / "hf"))
    home = tmp_path / "hf" / "models--org--other"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    (snapshot / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ResourceError, match="no usable file") as e:
        resolve("hub:org/other@main", offline=True)
    assert "GGUF" in e.value.remedy
    (snapshot / "config.json").write_text("{}")
    assert resolve("hub:org/other", offline=True) == snapshot
    assert resolve("hub:org/other@main/config.json", offline=True) == snapshot / "config.json"


def test_other_errors_are_not_dressed_up():
    error = ZeroDivisionError()
    assert explained(parse("hub:a/b"), error, offline=False) is error
    assert "could not be used: No space" in str(
        explained(parse("hub:a/b"), OSError("No space left"), offline=False)
    )
