"""Topics in memory: what a broker is to an app under test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

from faust.types import TP

from streamproc.errors import ProducerError
from streamproc.kafka.fetch import RECORD_OVERHEAD, Headers, RawBatch
from streamproc.kafka.producer import partition_of


class Log:
    """One partition: parallel lists, an index of which is an offset."""

    __slots__ = ("headers", "keys", "sequences", "timestamps", "values")

    def __init__(self) -> None:
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: list[Headers] = []
        #: Order of arrival over all partitions.
        self.sequences: list[int] = []

    def __len__(self) -> int:
        return len(self.values)


class MemoryBroker:
    """Topics, their records, and the offsets that a group has committed.

    It outlives the app's restarts and crashes.

    Args:
        partitions: Number of partitions of a topic, by its name.
        now: The time of records that are sent without one, in milliseconds.
    """

    def __init__(self, partitions: Callable[[str], int], now: Callable[[], int]) -> None:
        self.topics: dict[str, list[Log]] = {}
        self.committed: dict[TP, int] = {}
        self._partitions = partitions
        self._now = now
        self._count = 0
        self._keyless: dict[str, int] = {}
        self._waiting: set[asyncio.Event] = set()

    def create(self, topic: str, partitions: int | None = None) -> list[Log]:
        """Create a topic if it isn't there, and return its partitions."""
        logs = self.topics.get(topic)
        if logs is None:
            count = partitions or self._partitions(topic)
            logs = self.topics[topic] = [Log() for _ in range(count)]
        return logs

    def partition(self, topic: str, key: bytes | None) -> int:
        """Return the partition of a key, as Kafka chooses; keyless records take turns."""
        count = len(self.create(topic))
        if key is not None:
            return partition_of(key, count)
        turn = self._keyless[topic] = self._keyless.get(topic, -1) + 1
        return turn % count

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> tuple[int, int]:
        """Append a record; return its partition and offset.

        Raises:
            ProducerError: There's no such partition.
        """
        logs = self.create(topic)
        if partition is None:
            partition = self.partition(topic, key)
        if not 0 <= partition < len(logs):
            raise ProducerError(
                f"Topic {topic!r} has no partition {partition}: it has {len(logs)}, from 0"
            )
        log = logs[partition]
        log.timestamps.append(self._now() if timestamp is None else timestamp)
        log.keys.append(key)
        log.values.append(value)
        log.headers.append(headers)
        log.sequences.append(self._count)
        self._count += 1
        for event in self._waiting:
            event.set()
        return partition, len(log) - 1

    def end(self, tp: TP) -> int:
        """Return the offset after the last record."""
        logs = self.topics.get(tp.topic, ())
        return len(logs[tp.partition]) if tp.partition < len(logs) else 0

    def read(self, tp: TP, offset: int) -> RawBatch:
        """Return the records of a partition from ``offset`` on."""
        log = self.topics[tp.topic][tp.partition]
        end = len(log)
        headers = log.headers[offset:]
        values, keys = log.values[offset:], log.keys[offset:]
        payload = _bytes_in(keys) + _bytes_in(values)
        return RawBatch(
            tp.topic,
            tp.partition,
            list(range(offset, end)),
            log.timestamps[offset:],
            keys,
            values,
            headers if any(headers) else None,
            end,
            end,
            0,
            payload + RECORD_OVERHEAD * len(values),
        )

    def subscribe(self, event: asyncio.Event) -> None:
        """Set ``event`` whenever a record arrives."""
        self._waiting.add(event)

    def unsubscribe(self, event: asyncio.Event) -> None:
        """End :meth:`subscribe`."""
        self._waiting.discard(event)

    def in_order(self, topic: str, start: int = 0) -> list[tuple[int, int]]:
        """Return partition and offset of the topic's records in the order they came."""
        logs = self.topics.get(topic, ())
        found = sorted(
            (sequence, partition, offset)
            for partition, log in enumerate(logs)
            for offset, sequence in enumerate(log.sequences)
        )
        return [(partition, offset) for _, partition, offset in islice(found, start, None)]


def _bytes_in(column: Sequence[bytes | None]) -> int:
    return sum(map(len, filter(None, column)))
