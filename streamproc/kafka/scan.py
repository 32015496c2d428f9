"""Reading all of a topic from outside, sending records on, and deleting them.

For tools: no consumer group, no commits. Ends are those of fetch responses, as everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import (
    KafkaError,
    TopicAuthorizationFailedError,
)
from faust.transport.drivers import aiokafka as driver

from streamproc.errors import BrokerUnavailable, ConfigurationError, ProducerError
from streamproc.kafka.connect import _quiet
from streamproc.kafka.fetch import Headers
from streamproc.kafka.refusal import find_refusal
from streamproc.kafka.security import NO_SECURITY

#: Milliseconds that one fetch waits, and fetches without a record after which a partition
#: counts as read to its end: what is left there are marks of transactions.
FETCH_MS, QUIET_FETCHES = 200, 5
MAX_REQUEST_SIZE = 32 * 1024 * 1024
REQUEST_MS = 10_000


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a topic.

    Attributes:
        partition: Its partition.
        offset: Its offset.
        timestamp: Milliseconds since 1970.
        key: The key's bytes.
        value: The value's bytes; None is a tombstone.
        headers: Its headers.
    """

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class TopicScan:
    """Looks at topics of a cluster; an asynchronous context manager.

    Args:
        bootstrap: "host:port,host:port".
        security: Arguments of aiokafka's clients about login and TLS.
    """

    def __init__(self, bootstrap: str, security: Mapping[str, Any] = NO_SECURITY) -> None:
        self._bootstrap = bootstrap
        self._security = security
        options = {"bootstrap_servers": bootstrap, **security}
        self._admin = AIOKafkaAdminClient(request_timeout_ms=REQUEST_MS, **options)
        self._consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_MS // 2,
            request_timeout_ms=REQUEST_MS,
            **options,
        )
        self._producer: Any = None

    async def __aenter__(self) -> TopicScan:
        """Connect.

        Raises:
            BrokerUnavailable: No broker answers.
            ConfigurationError: A broker refuses us.
        """
        try:
            with _quiet(True):
                await self._admin.start()
                await self._consumer.start()
        except (KafkaError, OSError, asyncio.TimeoutError) as exc:
            await self.__aexit__()
            refusal = await find_refusal(self._bootstrap, self._security)
            if refusal is not None:
                raise ConfigurationError(str(refusal)) from exc
            raise BrokerUnavailable(
                f"No Kafka broker answers at {self._bootstrap}. Check the address, and that the "
                "broker runs."
            ) from exc
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._producer is not None:
            await self._producer.stop()
        await self._consumer.stop()
        await self._admin.close()

    async def has_topic(self, topic: str) -> bool:
        """Return whether there is such a topic, so that none is created by asking for it."""
        return topic in await self._admin.list_topics()

    async def read(self, topic: str) -> AsyncIterator[tuple[list[StoredRecord], float]]:
        """Read a topic that exists, from its begin to where it ends now.

        Gives runs of records of one partition each, and which part of the topic is read.

        Raises:
            ConfigurationError: The user may not read it.
        """
        described = await self._admin.describe_topics([topic])
        parts = [TopicPartition(topic, each["partition"]) for each in described[0]["partitions"]]
        consumer = self._consumer
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        begins = {tp: await consumer.position(tp) for tp in parts}
        ends: dict[TopicPartition, int] = {}
        left, quiet = set(parts), 0
        while left:
            try:
                fetched = await consumer.getmany(*left, timeout_ms=FETCH_MS)
            except TopicAuthorizationFailedError as exc:
                raise ConfigurationError(f"The user may not read topic {topic!r}") from exc
            for tp in left:
                if tp not in ends and (end := consumer.highwater(tp)) is not None:
                    ends[tp] = end
            quiet = 0 if fetched or len(ends) < len(parts) else quiet + 1
            positions = {tp: await consumer.position(tp) for tp in parts}
            total = sum(ends.values()) - sum(begins.values())
            done = sum(positions.values()) - sum(begins.values())
            for tp, records in fetched.items():
                yield (
                    [_stored(each) for each in records if each.offset < ends[tp]],
                    (min(1.0, done / total) if total > 0 else 1.0),
                )
            left = {tp for tp in left if tp not in ends or positions[tp] < ends[tp]}
            if quiet >= QUIET_FETCHES:
                return

    async def send(self, topic: str, records: Iterable[tuple[StoredRecord, int | None]]) -> int:
        """Send records to a topic and return how many, when all are acknowledged.

        Args:
            topic: Its name.
            records: Records, and the partition that each goes to; None: by its key.

        Raises:
            ProducerError: The broker refused a record.
        """
        try:
            producer = await self._started_producer()
            count = len(await producer.partitions_for(topic))
            futures = [
                await producer.send(
                    topic,
                    record.value,
                    record.key,
                    partition if partition is None or partition < count else None,
                    record.timestamp,
                    list(record.headers),
                )
                for record, partition in records
            ]
            await producer.flush()
            for future in futures:
                future.result()
        except (KafkaError, OSError, asyncio.TimeoutError) as exc:
            raise ProducerError(f"Records could not be sent to {topic!r}: {exc!r}") from exc
        return len(futures)

    async def _started_producer(self) -> Any:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap,
                acks="all",
                enable_idempotence=False,
                max_request_size=MAX_REQUEST_SIZE,
                **self._security,
            )
            await self._producer.start()
        return self._producer

    async def delete_before(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Delete the records of a topic that are before these offsets, by partition.

        Raises:
            BrokerUnavailable: The broker can't do it, or does not answer.
        """
        wanted = {
            TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)
            for partition, offset in offsets.items()
        }
        try:
            await self._admin.delete_records(wanted)
        except (KafkaError, OSError, asyncio.TimeoutError) as exc:
            raise BrokerUnavailable(
                f"The broker did not delete records of {topic!r}: {exc!r}. It must know "
                "DeleteRecords, as Apache Kafka does, and the user needs the right DELETE on the "
                "topic."
            ) from exc


def _stored(record: Any) -> StoredRecord:
    return StoredRecord(
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        tuple(record.headers),
    )


def place_of(app: Any) -> tuple[str, dict[str, Any]]:
    """Return where an App's brokers are ("host:port,..."), and aiokafka's security arguments."""
    conf = app.conf
    bootstrap = ",".join(f"{url.host or '127.0.0.1'}:{url.port or 9092}" for url in conf.broker)
    return bootstrap, driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)
