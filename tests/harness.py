"""What integration tests do with real servers: topics, records in and out, workers, waiting."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from streamproc.dev.process import LOOPBACK, ChildProcess, free_port

NO_COORDINATOR = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}


class Received(NamedTuple):
    """A record read back from Kafka."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: list[tuple[str, bytes]]

    def json(self) -> Any:
        return json.loads(self.value)


def wait_for(
    condition: Callable[[], Any], timeout: float = 30.0, message: str | Callable[[], str] = ""
) -> Any:
    """Poll ``condition`` until it returns something true and return that; fail after timeout."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            _give_up(condition, timeout, message)
        time.sleep(0.05)
    return result


async def async_wait_for(
    condition: Callable[[], Any], timeout: float = 30.0, message: str | Callable[[], str] = ""
) -> Any:
    """:func:`wait_for` that lets the event loop run; ``condition`` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            _give_up(condition, timeout, message)
        await asyncio.sleep(0.05)


def _give_up(condition: Any, timeout: float, message: str | Callable[[], str]) -> None:
    text = message() if callable(message) else message
    raise AssertionError(f"Not within {timeout:g} s: {text or condition}")


class KafkaClient:
    """Topics and records of one broker, through librdkafka: independent of what is tested."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._config = {"bootstrap.servers": bootstrap, "log_level": 3}
        self._admin = AdminClient(self._config)

    def create_topic(
        self,
        partitions: int = 4,
        name: str | None = None,
        config: Mapping[str, str] | None = None,
        prefix: str = "t",
        replication: int = 1,
    ) -> str:
        """Create a topic (its name is made up and unique unless given) and return its name."""
        name = name or f"{prefix}-{uuid.uuid4().hex[:10]}"
        settings = {"retention.ms": "-1", **(config or {})}
        topic = NewTopic(name, partitions, replication, config=settings)
        self._admin.create_topics([topic])[name].result(30)
        wait_for(lambda: self.partitions(name) == partitions, 30, f"topic {name} exists")
        return name

    def delete_topics(self, *names: str) -> None:
        """Delete topics and return when they are gone."""
        for done in self._admin.delete_topics(list(names)).values():
            done.result(30)
        wait_for(lambda: not any(map(self.partitions, names)), 30, f"{names} are gone")

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has; 0 when it doesn't exist."""
        found = self._admin.list_topics(timeout=10).topics.get(topic)
        return 0 if found is None or found.error else len(found.partitions)

    def produce(
        self, topic: str, records: Iterable[Any], *, partition: int | None = None
    ) -> dict[int, int]:
        """Send records, wait for all acks and return the count a partition.

        A record is a value or a tuple ``(key, value[, timestamp_ms[, headers]])``. Values and
        keys are bytes, str, None, or anything else for JSON. Keys choose the partition as
        Kafka's default partitioner (murmur2) does.
        """
        counts: Counter[int] = Counter()
        errors: list[Any] = []

        def acked(error: Any, message: Any) -> None:
            if error:
                errors.append(error)
            else:
                counts[message.partition()] += 1

        producer = Producer(
            self._config
            | {"partitioner": "murmur2_random", "linger.ms": 5, "message.max.bytes": 20_000_000}
            | {"queue.buffering.max.messages": 1_000_000}
        )
        for record in records:
            fields = _fields(record)
            if partition is not None:
                fields["partition"] = partition
            while True:
                try:
                    producer.produce(topic, on_delivery=acked, **fields)
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0, f"{topic}: records not acknowledged within 60 s"
        assert not errors, f"{topic}: {errors[0]}"
        return dict(counts)

    def consume_all(
        self,
        topic: str,
        *,
        at_least: int = 0,
        timeout: float = 30.0,
        isolation: str = "read_committed",
    ) -> list[Received]:
        """Read a topic from its start to the high watermark of every partition.

        With ``at_least`` it goes on reading until there are that many records, and fails
        when there are not within ``timeout`` seconds. Sorted by partition and offset.
        """
        config = {"group.id": f"reader-{uuid.uuid4().hex}", "isolation.level": isolation}
        config |= {"enable.auto.commit": False, "enable.partition.eof": True}
        config |= {"fetch.wait.max.ms": 50, "fetch.queue.backoff.ms": 10}
        partitions = range(wait_for(lambda: self.partitions(topic), 10, f"topic {topic} exists"))
        consumer = Consumer(self._config | config)
        try:
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
            return _read(consumer, topic, set(partitions), at_least, timeout)
        finally:
            consumer.close()

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Return the offsets that a group has committed, by partition (none: left out)."""
        wanted = [TopicPartition(topic, p) for p in range(self.partitions(topic))]
        if not wanted:
            return {}
        consumer = Consumer(self._config | {"group.id": group, "enable.auto.commit": False})
        try:
            offsets = wait_for(lambda: _committed(consumer, wanted), 20, f"offsets of {group}")
        finally:
            consumer.close()
        return {tp.partition: tp.offset for tp in offsets if tp.offset >= 0}

    def reset_offsets(self, group: str, topic: str) -> None:
        """Set a group's offsets to 0, as ``kafka-consumer-groups --reset-offsets`` does."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        try:
            places = [TopicPartition(topic, part, 0) for part in range(self.partitions(topic))]
            wait_for(lambda: _reset(consumer, places), 30, "the group has no members")
        finally:
            consumer.close()

    def total_committed(self, group: str, topic: str) -> int:
        """Return the sum of the committed offsets: how many records are done with."""
        return sum(self.committed(group, topic).values())


def _reset(consumer: Consumer, places: list[TopicPartition]) -> bool:
    try:
        consumer.commit(offsets=places, asynchronous=False)
    except KafkaException:  # a member that was killed counts until its session is over
        return False
    return True


def _committed(consumer: Consumer, wanted: list[TopicPartition]) -> list[TopicPartition] | None:
    """Ask for committed offsets; None while a broker just started has no coordinator yet."""
    try:
        offsets: list[TopicPartition] = consumer.committed(wanted, timeout=10)
    except KafkaException as exc:
        if exc.args[0].code() not in NO_COORDINATOR:
            raise
        return None
    return offsets


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, tuple):
        return {"value": _encode(record)}
    names = ("key", "value", "timestamp", "headers")
    fields = dict(zip(names, record, strict=False))
    fields["key"], fields["value"] = _encode(fields["key"]), _encode(fields["value"])
    return {name: value for name, value in fields.items() if value is not None}


def _encode(data: Any) -> bytes | None:
    if data is None or isinstance(data, bytes):
        return data
    return data.encode() if isinstance(data, str) else json.dumps(data).encode()


def _read(
    consumer: Consumer, topic: str, unfinished: set[int], at_least: int, timeout: float
) -> list[Received]:
    records: list[Received] = []
    deadline = time.monotonic() + timeout
    while unfinished or len(records) < at_least:
        assert time.monotonic() < deadline, (
            f"{topic}: {len(records)} records within {timeout:g} s, expected {at_least}; "
            f"end not reached in partitions {sorted(unfinished)}"
        )
        for message in consumer.consume(10_000, 0.1):
            error = message.error()
            if error is None:
                records.append(_received(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                unfinished.discard(message.partition())
            elif error.fatal():
                raise AssertionError(f"{topic}: {error}")
    return sorted(records, key=lambda record: record[:2])


def _received(message: Any) -> Received:
    return Received(
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        message.timestamp()[1],
        list(message.headers() or ()),
    )


class Feed(threading.Thread):
    """Goes on producing to a topic while something else happens.

    Args:
        produce: The fixture.
        topic: Its name.
        records: Makes the records of a range of numbers.
        step: How many at once.
        pause: Seconds before the next ones.

    Attributes:
        count: How many were acknowledged.
        sent: How many of them, by partition.
    """

    def __init__(
        self,
        produce: Callable[[str, list[Any]], Any],
        topic: str,
        records: Callable[[range], list[Any]],
        *,
        step: int,
        pause: float = 0.1,
    ) -> None:
        super().__init__(daemon=True)
        self.produce, self.topic, self.records = produce, topic, records
        self.step, self.pause = step, pause
        self.count = 0
        self.sent: Counter[int] = Counter()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self.pause):
            numbers = range(self.count, self.count + self.step)
            self.sent.update(self.produce(self.topic, self.records(numbers)))
            self.count += self.step

    def finish(self) -> int:
        """Stop, and return how many there are."""
        self._stopped.set()
        self.join()
        return self.count


class Worker(ChildProcess):
    """``python -m faust -A MODULE worker`` in a folder of the test."""

    def __init__(self, name: str, data_dir: Path, web_port: int | None) -> None:
        super().__init__(name, data_dir)
        self.web_port = web_port

    @property
    def web_url(self) -> str:
        assert self.web_port, "start the worker with web=True"
        return f"http://{LOOPBACK}:{self.web_port}"

    @property
    def log(self) -> str:
        """Everything that the worker wrote so far."""
        return self.log_path.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until ``text`` is in the log; fail at once when the worker ends before."""

        def there() -> bool:
            running = self.running
            if text in self.log:
                return True
            assert running, f"{self.name} ended with {self.exit_code} before it wrote {text!r}"
            return False

        wait_for(there, timeout, f"{text!r} in the log of {self.name}")

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until Faust says that the worker is ready."""
        self.wait_log("Worker ready", timeout)

    def wait_end(self, timeout: float = 30.0) -> int:
        """Wait until the worker has ended and return its exit code."""
        wait_for(lambda: not self.running, timeout, f"{self.name} ends")
        code = self.stop()
        assert code is not None
        return code


class WorkerLauncher:
    """Starts workers of app modules that a test writes as text; see the ``worker`` fixture."""

    def __init__(self, folder: Path, env: Mapping[str, str], started: list[ChildProcess]) -> None:
        self._folder = folder
        self._env = dict(env)
        self._started = started

    def __call__(
        self,
        source: str | None = None,
        *,
        module: str = "app_under_test",
        cwd: Path | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        web: bool = False,
        ready: bool = False,
    ) -> Worker:
        """Write ``source`` as ``module`` and start a worker of it.

        ``source=None`` starts another worker of a module that is there (``cwd``: in that
        folder). ``args`` go after ``worker``. ``ready=True`` returns when it is ready.
        """
        folder = cwd or self._folder
        if source is not None:
            (folder / f"{module}.py").write_text(textwrap.dedent(source))
        number = len(self._started) + 1
        data_dir = self._folder / f"worker-{number}"
        worker = Worker(f"worker-{number}", data_dir, free_port() if web else None)
        web_args = ["--web-port", str(worker.web_port)] if web else ["--without-web"]
        command = [sys.executable, "-m", "faust", "-A", module, "--datadir", str(data_dir)]
        command += ["worker", "-l", "info", *web_args, *args]
        self._started.append(worker)
        worker.spawn(command, cwd=folder, env={**self._env, **(env or {})})
        if ready:
            worker.wait_ready()
        return worker
