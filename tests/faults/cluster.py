"""Apache Kafka of one or three nodes, with a listener for clients behind a proxy."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from faults.proxy import Proxy

from streamproc.dev.apache import _JVM_OPTIONS, kafka_jars
from streamproc.dev.process import LOOPBACK, free_port
from streamproc.dev.servers import KafkaServer

_CLUSTER_ID = "c3RyZWFtcHJvYy1mYXVsdA"
_HEAP = "-Xmx256m"

_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},PROXIED://{host}:{behind},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port},PROXIED://{host}:{proxied}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
unclean.leader.election.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
replica.lag.time.max.ms=4000
controller.quorum.election.timeout.ms=1000
controller.quorum.fetch.timeout.ms=2000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.cleaner.dedupe.buffer.size=2097152
"""


class Node(KafkaServer):
    """One node, broker and controller, with a proxy before its second listener."""

    start_timeout = 90.0

    def __init__(self, data_dir: Path, number: int, pids: Callable[[], Collection[int]]) -> None:
        super().__init__(f"kafka-{number}", data_dir)
        self.number = number
        self.controller_port = free_port()
        self.behind_proxy = free_port()
        self.proxy = Proxy(self.behind_proxy, is_kafka=True, pids=pids).start()
        self.nodes: Sequence[Node] = [self]

    def command(self) -> Sequence[str]:
        options = [option for option in _JVM_OPTIONS if not option.startswith("-Xm")]
        java = ["java", _HEAP, *options, "-cp", f"{kafka_jars()}/*"]
        properties, log_dir = self.data_dir / "server.properties", self.data_dir / "data"
        copies = len(self.nodes)
        properties.write_text(
            _PROPERTIES.format(
                node=self.number,
                voters=",".join(f"{n.number}@{LOOPBACK}:{n.controller_port}" for n in self.nodes),
                host=LOOPBACK,
                port=self.port,
                behind=self.behind_proxy,
                proxied=self.proxy.port,
                controller=self.controller_port,
                log_dir=log_dir,
                copies=copies,
                in_sync=copies // 2 + 1,
            )
        )
        if not (log_dir / "meta.properties").exists():
            format_ = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID]
            subprocess.run([*format_, "--config", str(properties)], check=True, capture_output=True)
        return [*java, "kafka.Kafka", str(properties)]

    def leader(self) -> int | None:
        """Ask this node which node is the active controller (DescribeQuorum)."""
        body = b"\x02" + _compact(b"__cluster_metadata") + b"\x02" + bytes(4) + bytes(3)
        request = struct.pack(">hhih", 55, 0, 1, 6) + b"faults" + b"\x00" + body
        with socket.create_connection((LOOPBACK, self.port), timeout=5) as sock:
            sock.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", sock.recv(4, socket.MSG_WAITALL))
            reply = sock.recv(size, socket.MSG_WAITALL)
        # correlation id, tags, error; one topic: name, one partition: index, error, leader
        at = 4 + 1 + 2 + 1 + len(_compact(b"__cluster_metadata")) + 1
        if len(reply) < at + 10:
            return None
        _, error, leader = struct.unpack_from(">ihi", reply, at)
        return int(leader) if not error and leader > 0 else None


def _compact(text: bytes) -> bytes:
    return bytes([len(text) + 1]) + text


class Cluster:
    """Nodes that are started and ended together or one by one.

    Args:
        folder: For the data of the nodes.
        count: 1 or 3. With three, topics have three copies, of which two must be in sync.
        pids: Process ids of the clients that network faults may be aimed at.
    """

    def __init__(
        self, folder: Path, count: int, pids: Callable[[], Collection[int]] = list
    ) -> None:
        self.nodes = [Node(folder / f"node-{n}", n, pids) for n in range(1, count + 1)]
        for node in self.nodes:
            node.nodes = self.nodes

    @property
    def bootstrap(self) -> str:
        """Addresses for tests, past the proxies."""
        return ",".join(node.address for node in self.nodes)

    @property
    def proxied(self) -> str:
        """Addresses for workers, through the proxies."""
        return ",".join(node.proxy.address for node in self.nodes)

    @property
    def proxies(self) -> list[Proxy]:
        return [node.proxy for node in self.nodes]

    def start(self) -> Cluster:
        """Start the nodes that don't run and wait until all answer."""
        fresh = [node for node in self.nodes if not node.running]
        for node in fresh:
            node.data_dir.mkdir(parents=True, exist_ok=True)
            node.spawn(node.command())
        for node in fresh:
            node.wait_ready()
        return self

    def controller(self, timeout: float = 30.0) -> Node:
        """Return the node that is the active controller."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for node in self.nodes:
                with contextlib.suppress(OSError, struct.error):
                    if node.running and (number := node.leader()):
                        return self.nodes[number - 1]
            time.sleep(0.1)
        raise AssertionError("the cluster has no controller")

    def stop(self) -> None:
        """End all at once; their data isn't needed any more."""
        for node in self.nodes:
            node.kill()
            node.proxy.stop()
