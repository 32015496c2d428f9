"""A server or worker started for development: one child process, its port, log and end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from streamproc.errors import ServerFailed

if TYPE_CHECKING:
    from typing_extensions import Self

#: The address everything of development listens on; never another one.
LOOPBACK = "127.0.0.1"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Ask Linux to end this child when its parent is gone (runs between fork and exec)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


class ChildProcess:
    """A child process with a log file and a pid file, in a session of its own.

    Being in its own session it doesn't see the terminal's Ctrl-C: its owner decides the
    order in which things end. On Linux it is killed when the *thread* that started it ends,
    so start children from a thread that lives as long as they should.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        """Name the child; its files go to ``data_dir`` (created when it starts)."""
        self.name = name
        self.data_dir = data_dir.absolute()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The file that has the child's standard output and error."""
        return self.data_dir / f"{self.name}.log"

    @property
    def pid_path(self) -> Path:
        """The file that has the child's process id while it should be running."""
        return self.data_dir / f"{self.name}.pid"

    @property
    def pid(self) -> int:
        """The process id of the running child."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code of an ended child (negative: the signal that ended it), else None."""
        return None if self._process is None else self._process.poll()

    def spawn(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start ``command`` with ``env`` added to the environment; its log is appended to."""
        if self.running:
            raise ServerFailed(f"{self.name} already runs with pid {self.pid}.")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd or self.data_dir,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.pid_path.write_text(f"{self.pid}\n{_start_mark(self.pid)}")

    def stop(self, timeout: float = 10.0) -> int | None:
        """End the child (SIGTERM, SIGKILL after ``timeout`` seconds); return its exit code.

        Another Ctrl-C meanwhile kills it.
        """
        if self._process is None:
            return None
        if self.running:
            self.send_signal(signal.SIGCONT)
            self.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.send_signal(signal.SIGKILL)
            except KeyboardInterrupt:
                self.kill()
                raise
        return self._ended()

    def kill(self) -> int | None:
        """End the child at once (SIGKILL), as a crash would; return its exit code."""
        if self._process is None:
            return None
        self.send_signal(signal.SIGKILL)
        return self._ended()

    def pause(self) -> None:
        """Freeze the child (SIGSTOP): its connections stay open and nothing answers."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused child go on (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    def send_signal(self, number: int) -> None:
        """Send a signal to the child if it still runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of the log."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def _ended(self) -> int | None:
        assert self._process is not None
        code = self._process.wait()
        self.pid_path.unlink(missing_ok=True)
        return code


class Server(ChildProcess):
    """A child process that listens on a loopback port and can be asked whether it is ready.

    A subclass gives :meth:`command` and :meth:`answers`. The port is chosen once, so a
    restarted server is found at the same address.
    """

    #: Seconds that a start may take.
    start_timeout = 30.0
    #: Whether data outlives a restart.
    durable = True
    #: Scheme of :attr:`url`.
    scheme = "tcp"

    def __init__(self, name: str, data_dir: Path, port: int | None = None) -> None:
        """Name the server; without ``port`` a free one is chosen."""
        super().__init__(name, data_dir)
        self.port = port or free_port()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """``scheme://host:port``."""
        return f"{self.scheme}://{self.address}"

    def command(self) -> Sequence[str]:
        """Return the command line, after writing the files it needs to ``data_dir``.

        Raises:
            ServerNotInstalled: The server's program isn't on this machine.
        """
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server answers a request of its protocol; OSError means no."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start the server and return when it answers.

        Raises:
            ServerNotInstalled: The server's program isn't on this machine.
            ServerFailed: It ended, or didn't answer in time; the message has its last words.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.spawn(self.command())
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until the server answers (see :meth:`start`)."""
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.running:
                raise ServerFailed(
                    f"{self.name} ended with exit code {self.exit_code} while starting on "
                    f"{self.address}. Its log {self.log_path} ends with:\n{self.log_tail(15)}"
                )
            with contextlib.suppress(OSError):
                if self.answers():
                    return
            time.sleep(0.02)
        self.kill()
        raise ServerFailed(
            f"{self.name} did not answer on {self.address} within {self.start_timeout:g} s. "
            f"Its log {self.log_path} ends with:\n{self.log_tail(15)}"
        )

    def restart(self) -> Self:
        """Stop the server if it runs and start it again on the same port and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def kill_leftovers(folder: Path) -> list[int]:
    """Kill the children whose pid files are left under ``folder``; return their pids.

    A pid file also has the time at which its process started, so a reused pid is never hit.
    """
    killed = []
    for pid_path in folder.absolute().glob("**/*.pid"):
        pid, _, mark = pid_path.read_text().partition("\n")
        if pid.isdigit() and mark and _start_mark(int(pid)) == mark:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))
        pid_path.unlink(missing_ok=True)
    return killed


def _start_mark(pid: int) -> str:
    """Return when a process was started, as an opaque text; empty if there is none."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        return stat.rpartition(")")[2].split()[19]
    listing = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listing.stdout.strip()
