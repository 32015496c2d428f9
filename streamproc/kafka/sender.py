"""Sending many records to a topic as whole record batches, outside of any worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.partitioner import murmur2

from streamproc.errors import BrokerUnavailable, ProducerError
from streamproc.kafka.security import NO_SECURITY

#: Key, value, timestamp in milliseconds (None: the time of sending).
Row = tuple[bytes | None, bytes, int | None]


class BatchSender:
    """An asynchronous context manager that sends to one topic, which must exist.

    Keys choose the partition as Kafka's default partitioner (murmur2) does; records without
    a key go to the partitions in turn.
    """

    def __init__(
        self, bootstrap: str, topic: str, security: Mapping[str, Any] = NO_SECURITY
    ) -> None:
        """Prepare to send to ``topic`` of the broker at ``bootstrap`` (``host:port``).

        ``security`` are arguments of aiokafka's clients about login and TLS.
        """
        self._bootstrap = bootstrap
        self._security = security
        self._topic = topic
        self._partitions: list[int] = []
        self._partition_of_key: dict[bytes, int] = {}
        self._keyless = 0

    async def __aenter__(self) -> BatchSender:
        """Connect.

        Raises:
            BrokerUnavailable: No broker answers.
        """
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            **self._security,
            acks="all",
            linger_ms=0,
            max_batch_size=256 * 1024,
            max_request_size=16 * 1024 * 1024,
        )
        try:
            await self._producer.start()
        except KafkaConnectionError as exc:
            raise BrokerUnavailable(f"No Kafka broker answers at {self._bootstrap}.") from exc
        self._partitions = sorted(await self._producer.partitions_for(self._topic))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._producer.stop()

    async def send(self, rows: Sequence[Row]) -> dict[int, int]:
        """Send rows, each partition's in order, and wait until all are acknowledged.

        Returns the offset after the last record, for each partition sent to.

        Raises:
            ProducerError: The broker refused a record.
        """
        by_partition: dict[int, list[Row]] = {}
        for row in rows:
            by_partition.setdefault(self._partition(row[0]), []).append(row)
        try:
            ends = await asyncio.gather(*(self._send_to(p, r) for p, r in by_partition.items()))
        except KafkaError as exc:
            raise ProducerError(f"The broker refused records for {self._topic!r}: {exc!r}") from exc
        return dict(zip(by_partition, ends, strict=True))

    def _partition(self, key: bytes | None) -> int:
        if key is None:
            self._keyless += 1
            return self._partitions[self._keyless % len(self._partitions)]
        if key not in self._partition_of_key:
            index = int(murmur2(key) & 0x7FFFFFFF) % len(self._partitions)
            self._partition_of_key[key] = self._partitions[index]
        return self._partition_of_key[key]

    async def _send_to(self, partition: int, rows: list[Row]) -> int:
        builder = self._producer.create_batch()
        for row in rows:
            if _append(builder, row) is None:
                await self._send_batch(builder, partition)
                # An empty batch takes a record of any size.
                builder = self._producer.create_batch()
                _append(builder, row)
        return await self._send_batch(builder, partition)

    async def _send_batch(self, builder: Any, partition: int) -> int:
        count = int(builder.record_count())
        builder.close()
        future = await self._producer.send_batch(builder, self._topic, partition=partition)
        return int((await future).offset) + count


def _append(builder: Any, row: Row) -> Any:
    key, value, timestamp = row
    return builder.append(timestamp=timestamp, key=key, value=value)
