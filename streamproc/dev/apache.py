"""Apache Kafka for development and tests: jars by Maven, one KRaft node, no installation."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from streamproc.dev.process import LOOPBACK, free_port
from streamproc.dev.servers import KafkaServer
from streamproc.errors import ServerFailed, ServerNotInstalled

_CLUSTER_ID = "c3RyZWFtcHJvYy1kZXY0MQ"
# A broker that lives for minutes: compile lightly, collect garbage on one thread.
_JVM_OPTIONS = [
    *("-Xms256m", "-Xmx512m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
]

# As on a production broker a topic must be created before use. The rest makes one node
# enough (replication factors) and quick (few partitions, no wait for more group members, a
# killed broker is taken back after 3 s).
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={host}:{controller_port}
controller.listener.names=CONTROLLER
listeners={listeners},CONTROLLER://{host}:{controller_port}
advertised.listeners={listeners},CONTROLLER://{host}:{controller_port}
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.cleaner.dedupe.buffer.size=2097152
message.max.bytes=20971520
replica.fetch.max.bytes=20971520
"""


@dataclass(frozen=True)
class Listener:
    """One more address of a broker, with rules of its own about logins and TLS."""

    name: str
    #: ``PLAINTEXT``, ``SSL``, ``SASL_PLAINTEXT`` or ``SASL_SSL``.
    protocol: str
    #: Its properties without ``listener.name.<name>.``.
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"{LOOPBACK}:{self.port}"

    def lines(self) -> list[str]:
        """Return its part of the broker's properties."""
        prefix = f"listener.name.{self.name.lower()}."
        return [f"{prefix}{name}={value}" for name, value in self.properties.items()]


class ApacheKafka(KafkaServer):
    """One Apache Kafka node (broker and controller) with its data in ``data_dir``.

    Its listener at ``port`` knows neither login nor TLS. Those in ``listeners`` may, and
    ``scram_users`` are the passwords by user of those who log in by SCRAM.
    """

    start_timeout = 60.0

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        listeners: Sequence[Listener] = (),
        scram_users: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a broker; jars are resolved when it first starts."""
        super().__init__("kafka", data_dir, port)
        self.controller_port = free_port()
        self.listeners = [Listener("PLAINTEXT", "PLAINTEXT", port=self.port), *listeners]
        self.scram_users = dict(scram_users or {})

    def command(self) -> Sequence[str]:
        """Format the data folder if it is new and return the broker's command line.

        Raises:
            ServerNotInstalled: Java or Maven is missing, or the jars can't be resolved.
            ServerFailed: The data folder could not be formatted.
        """
        java = [_program("java"), *_JVM_OPTIONS, "-cp", f"{kafka_jars()}{os.sep}*"]
        properties = self.data_dir / "server.properties"
        log_dir = self.data_dir / "data"
        properties.write_text(
            _PROPERTIES.format(
                host=LOOPBACK,
                listeners=",".join(f"{each.name}://{each.address}" for each in self.listeners),
                protocols=",".join(f"{each.name}:{each.protocol}" for each in self.listeners),
                controller_port=self.controller_port,
                log_dir=log_dir,
            )
            + "".join(f"{line}\n" for each in self.listeners for line in each.lines())
        )
        if not (log_dir / "meta.properties").exists():
            _format(java, properties, self.scram_users)
        return [*java, "kafka.Kafka", str(properties)]


def kafka_jars() -> Path:
    """Return the folder with Kafka's jars, resolving them by Maven the first time.

    They are kept in ``STREAMPROC_CACHE`` (default ``~/.cache/streamproc``).

    Raises:
        ServerNotInstalled: Maven is missing or could not resolve them.
    """
    pom = resources.files("streamproc.dev").joinpath("kafka_pom.xml").read_bytes()
    cache = Path(os.environ.get("STREAMPROC_CACHE") or Path.home() / ".cache" / "streamproc")
    jars = cache / f"kafka-{hashlib.sha256(pom).hexdigest()[:12]}"
    if not jars.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _resolve(pom, Path(scratch))
            _publish(Path(scratch) / "jars", jars)
    return jars


def _resolve(pom: bytes, folder: Path) -> None:
    (folder / "pom.xml").write_bytes(pom)
    maven = [_program("mvn"), "--quiet", "--batch-mode", "dependency:copy-dependencies"]
    done = subprocess.run(
        [*maven, f"-DoutputDirectory={folder / 'jars'}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServerNotInstalled(
            f"Maven could not resolve Apache Kafka:\n{(done.stdout + done.stderr)[-1500:]}"
        )


def _publish(resolved: Path, jars: Path) -> None:
    """Move the jars to their place at once, so that nobody sees half of them."""
    try:
        resolved.rename(jars)
    except OSError:
        if not jars.is_dir():  # else another process was quicker, with the same jars
            raise


def _format(java: Sequence[str], properties: Path, scram_users: Mapping[str, str]) -> None:
    users = [
        f"{mechanism}=[name={user},password={password}]"
        for user, password in scram_users.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]
    done = subprocess.run(
        [
            *(*java, "kafka.tools.StorageTool", "format", "--standalone"),
            *("--cluster-id", _CLUSTER_ID, "--config", str(properties)),
            *(part for user in users for part in ("--add-scram", user)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServerFailed(f"Kafka could not format {properties.parent}:\n{done.stderr[-1500:]}")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ServerNotInstalled(
            f"Apache Kafka needs {name!r} on PATH (Debian, Ubuntu: apt-get install "
            "openjdk-17-jre-headless maven). Without Java, use the embedded Kafka."
        )
    return path
