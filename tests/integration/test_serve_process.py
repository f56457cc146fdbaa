"""guardkeel serve as a process of its own, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from guardkeel.moderation.store import Store
from moderation_parts import rules_file


def test_process_serves_and_ends_well(tmp_path):
    """A signal while requests are under way: they are answered, what waits is written, exit code 0."""
    rules_file(tmp_path / "ships.toml")
    config = tmp_path / "moderation.toml"
    config.write_text('[[expert]]\nguard = "ships.toml"\n')
    command = [sys.executable, "-m", "guardkeel", "serve", "--config", str(config), "--port", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = []
    try:
        url = ""
        for line in process.stderr:
            lines.append(line)
            if "Uvicorn running on" in line:
                url = json.loads(line)["message"].split()[3]
                break
        answer = httpx.post(f"{url}/v1/moderations", json={"input": "secret ship words"}, timeout=30)
        assert answer.json()["results"][0]["flagged"]
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        rest = process.stderr.read()
        assert process.wait(max(1, until - time.monotonic())) == 0
        lines += rest.splitlines()
    finally:
        process.kill()
        process.wait(10)
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert rows[-1]["message"] in ("stopped", "Finished server process") or any(
        r["message"] == "stopped" for r in rows
    )
    assert any(r.get("route") == "/v1/moderations" and r["status"] == 200 for r in rows)
    assert "secret ship" not in "".join(lines)

    store = Store(f"sqlite:///{config.parent}/moderation.db")
    assert store.counts()["served"] == 1
    store.close()
