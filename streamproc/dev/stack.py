"""Everything that `streamproc dev` starts: Kafka, Redis and workers, and how they end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from streamproc.dev.process import LOOPBACK, ChildProcess, free_port, kill_leftovers
from streamproc.dev.servers import kafka_server, redis_server
from streamproc.errors import ConfigurationError
from streamproc.records.secrets import mask

if TYPE_CHECKING:
    from typing_extensions import Self

STATE_FOLDER = ".streamproc"


class DevWorker(ChildProcess):
    """``faust -A APP worker`` in the project's folder, with its page on a free port."""

    def __init__(self, name: str, data_dir: Path) -> None:
        """Prepare a worker; its tables are kept in ``data_dir``."""
        super().__init__(name, data_dir)
        self.web_port = free_port()
        self._log_read = 0
        self._last_error = ""

    @property
    def web_url(self) -> str:
        """Where the worker's page is."""
        return f"http://{LOOPBACK}:{self.web_port}"

    def last_error(self) -> str:
        """Return the last line of the log that tells of an error; empty if there was none."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_read)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # it is being written: read it next time
                self._log_read += len(line)
                if b"[ERROR]" in line or b"[CRITICAL]" in line:
                    self._last_error = line.decode(errors="replace").strip()
        return self._last_error

    def start(self, app: str, folder: Path, env: dict[str, str]) -> None:
        """Start the worker."""
        faust = [sys.executable, "-m", "faust", "-A", app, "--datadir", str(self.data_dir / "data")]
        web = ["--web-host", LOOPBACK, "--web-port", str(self.web_port)]
        self.spawn([*faust, "worker", "-l", "info", *web], cwd=folder, env=env)


@dataclass
class Addresses:
    """Where the servers are."""

    kafka: str
    redis: str

    @property
    def bootstrap(self) -> str:
        """Kafka as ``host:port[,host:port]``."""
        return self.kafka.partition("://")[2]

    @property
    def shown(self) -> list[str]:
        """Both, without passwords."""
        return [mask(url) for url in (self.kafka, self.redis)]

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that tell a project."""
        return {"STREAMPROC_BROKER_LIST": self.kafka, "STREAMPROC_REDIS": self.redis}


class Stack:
    """Servers and workers of one project; leaving the context ends what was started."""

    def __init__(self, folder: Path) -> None:
        """Work for the project in ``folder``, keeping everything in ``.streamproc`` there."""
        self.folder = folder.absolute()
        self.state = self.folder / STATE_FOLDER
        self.workers: list[DevWorker] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Take the state folder for ourselves.

        Raises:
            ConfigurationError: Another ``streamproc dev`` runs in this folder.
        """
        self.state.mkdir(exist_ok=True)
        self._exit.callback(_lock(self.state).close)
        kill_leftovers(self.state)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()

    def clean(self) -> None:
        """Remove the state: data of servers, tables of workers, logs."""
        for path in self.state.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def start_servers(self, kafka: str, redis: str) -> Addresses:
        """Start the servers asked for: ``embedded``, ``apache`` (Kafka), or a URL that runs.

        An embedded Kafka starts empty, so what was computed from the last one is removed.

        Raises:
            ServerNotInstalled, ServerFailed: See :mod:`streamproc.dev.servers`.
        """
        if kafka == "embedded":
            self.clean()
        return Addresses(self._kafka(kafka), self._redis(redis))

    def start_workers(self, count: int, app: str, env: dict[str, str]) -> None:
        """Start ``count`` workers."""
        for number in range(1, count + 1):
            worker = DevWorker(f"worker-{number}", self.state / f"worker-{number}")
            self._exit.callback(worker.stop)
            worker.start(app, self.folder, env)
            self.workers.append(worker)
        self._exit.callback(self._end_workers)

    def _end_workers(self) -> None:
        """Ask all workers to end at once; each is waited for as the stack unwinds."""
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)

    def _kafka(self, kind: str) -> str:
        if kind in ("embedded", "apache"):
            return self._exit.enter_context(kafka_server(kind, self.state / "kafka")).url
        if "://" in kind:
            return kind
        raise ConfigurationError(
            f"Kafka {kind!r} is not known: 'embedded', 'apache' or a URL like kafka://host:9092."
        )

    def _redis(self, kind: str) -> str:
        if kind == "embedded":
            return self._exit.enter_context(redis_server(self.state / "redis")).url
        if "://" in kind:
            return kind
        raise ConfigurationError(
            f"Redis {kind!r} is not known: 'embedded' or a URL like redis://host:6379/0."
        )


def _lock(state: Path) -> TextIO:
    file = (state / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.seek(0)
        owner = file.read()
        file.close()
        raise ConfigurationError(
            f"`streamproc dev` already runs in {state.parent} (process {owner})."
        ) from exc
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
