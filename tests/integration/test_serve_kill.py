"""kill -9 while feedback is written: nothing that was acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")
pytest.importorskip("sqlalchemy", reason="the serve extra is not installed")

from moderation_soak import Soak


def test_kill_loses_nothing_that_was_acknowledged_and_applies_nothing_twice(tmp_path):
    """At full size: python tests/moderation_soak.py --feedback 10000 --kills 20."""
    soak = Soak(tmp_path, feedback=300, clients=16, kills=2)
    asyncio.run(soak.run())
    assert len(soak.acknowledged) == 300 and soak.retries > 0  # some were under way when it was killed
