"""kill -9 while people label: nothing that was acknowledged is lost, nothing is labelled twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from adjudication_parts import store_of

LABELLER = """
import sys
from guardkeel.curation.adjudication.store import Answer, Store
store, who = Store(sys.argv[1]), sys.argv[2]
while (claim := store.claim(who, float(sys.argv[3]))) is not None:
    key = claim.item["key"]
    ack = store.submit(Answer(claim.token, key, who, "unsafe", note=key))
    print(ack.status, claim.token, ack.sequence, flush=True)
"""


def test_kill_loses_nothing_that_was_acknowledged_and_nothing_is_labelled_twice(tmp_path):
    """Two processes label; both are killed in the midst; others go on once the leases have ended."""
    file, count, acknowledged = tmp_path / "adjudication.sqlite", 150, {}
    store = store_of(file, count)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(stop_at):
        people = [
            subprocess.Popen(
                [sys.executable, "-c", LABELLER, str(file), who, "0.2"],
                stdout=subprocess.PIPE,
                env=environment,
            )
            for who in ("ann", "bob")
        ]
        end = time.monotonic() + 60
        while stop_at and len(store.records()) < stop_at and time.monotonic() < end:
            time.sleep(0.005)
        for one in people:
            if stop_at:
                one.send_signal(signal.SIGKILL)
            told = one.communicate(timeout=60)[0].decode().splitlines()
            assert one.returncode == (-signal.SIGKILL if stop_at else 0)
            for line in told:
                status, token, *rest = line.split(" ")
                if len(rest) == 1 and rest[0].isdigit():  # a line that was cut off acknowledges nothing
                    assert status == "new"
                    acknowledged[token] = int(rest[0])

    run(count // 3)
    assert 0 < len(acknowledged) < count
    time.sleep(0.3)
    run(None)
    records = {r["id"]: r for r in store.records()}
    assert {token: records[token]["sequence"] for token in acknowledged} == acknowledged
    assert len(records) == count == len({r["item"] for r in records.values()})
    assert all(r["note"] == r["item"] for r in records.values())
    assert store.progress("ann", 0).decided == count
