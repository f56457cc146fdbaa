"""A real PostgreSQL server for tests, in a folder of its own, on a socket that nobody else knows.

    with running() as server:
        Store(server.database())

The server refuses to run as root, so root starts it as `postgres` or `nobody`. Where there is no server, tests skip
and say so.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

DEBIAN = "/usr/lib/postgresql"


class Postgres:
    """One cluster of databases; `start` and `stop` may be called again and again."""

    def __init__(self, folder: Path, binaries: Path, user: str | None) -> None:
        self.folder, self._binaries = folder, binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._as = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        self._made = 0
        options = ["-A", "trust", "-U", "guardkeel", "-E", "UTF8", "--no-sync", "--no-instructions"]
        self._run("initdb", "-D", folder / "data", *options)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        import psycopg

        command = [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, "-h", ""]
        command += ["-F"]  # no fsync: here servers crash, machines do not
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=self.folder, **self._as)
        until = time.monotonic() + 60
        while True:
            assert self._process.poll() is None and time.monotonic() < until, (
                self.folder / "log"
            ).read_text()
            with contextlib.suppress(psycopg.OperationalError), self.connect():
                return
            time.sleep(0.02)

    def stop(self, crash: bool = False) -> None:
        """Shut it down in order, connections cut off; or with `crash` as if it had crashed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def connect(self, name: str = "postgres"):
        """A connection of one's own."""
        import psycopg

        return psycopg.connect(host=str(self.folder), user="guardkeel", dbname=name, autocommit=True)

    def database(self) -> str:
        """The URL of a new and empty database."""
        self._made += 1
        name = f"log{self._made}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://guardkeel@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: object) -> None:
        command = [self._binaries / program, *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, env=environment, **self._as)


@contextlib.contextmanager
def running():
    """A server; skips the test where there is none to start."""
    pytest.importorskip("psycopg", reason="the postgres extra is not installed")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    user = _user()
    # Not under tmp_path: that is root's alone, and its name too long for a socket's.
    folder = Path(tempfile.mkdtemp(prefix="guardkeel-pg-"))
    if user:
        shutil.chown(folder, user)
    server = None
    try:
        server = Postgres(folder, binaries, user)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    found = shutil.which("postgres")
    on_path = [Path(found).parent] if found else []
    debian = sorted(Path(DEBIAN).glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return next((p for p in (*on_path, *debian) if (p / "initdb").exists()), None)


def _user() -> str | None:
    """Whom to run it as: oneself, or for root somebody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
