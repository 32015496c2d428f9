"""A consumer group member in a thread of its own, for synchronous code.

Heartbeats go on while the caller's code computes. Records come out as
:class:`~streamproc.kafka.fetch.RawBatch`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
)

from streamproc.errors import BrokerUnavailable, ConfigurationError, ProducerError
from streamproc.kafka.fetch import Headers, RawBatch, fetch_batches
from streamproc.kafka.topics import create_topics

T = TypeVar("T")
Place = tuple[str, int]

#: Seconds between two looks for a topic or broker that isn't there yet.
RETRY_INTERVAL = 0.25


class ReaderThread(ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads topics as a member of a consumer group.

    Args:
        bootstrap: "host:port,host:port".
        topics: Names of the topics.
        group: Consumer group.
        connect_timeout: Seconds to wait for the broker and the topics.
        on_revoke: Called in the reader's thread when partitions are taken away; returns
            the offsets that are done, which are committed before they go.
        options: More settings of ``AIOKafkaConsumer``.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: list[str],
        group: str,
        *,
        connect_timeout: float,
        on_revoke: Callable[[], Mapping[Place, int]],
        **options: Any,
    ) -> None:
        self.bootstrap = bootstrap
        self.topics = topics
        self.generation = 0
        self._on_revoke = on_revoke
        self._group = group
        self._options = options
        self._producer: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kafka-reader", daemon=True)
        self._thread.start()
        try:
            self._call(self._start(connect_timeout))
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, timeout: float) -> None:
        self._wake = asyncio.Event()
        until = monotonic() + timeout
        while True:
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap,
                group_id=self._group,
                enable_auto_commit=False,
                **self._options,
            )
            try:
                await self._consumer.start()
                break
            except AuthenticationFailedError as exc:
                raise ConfigurationError(
                    f"Kafka at {self.bootstrap} refused the credentials: {exc}"
                ) from exc
            except KafkaConnectionError as exc:
                await self._consumer.stop()
                if monotonic() > until:
                    raise BrokerUnavailable(
                        f"No Kafka broker answered at {self.bootstrap} within {timeout:g} s. "
                        "Check the address and that the broker runs."
                    ) from exc
                await asyncio.sleep(RETRY_INTERVAL)
        await self._wait_for_topics(until)
        self._consumer.subscribe(self.topics, listener=self)

    async def _wait_for_topics(self, until: float) -> None:
        while missing := sorted(set(self.topics) - await self._consumer.topics()):
            if monotonic() > until:
                raise ConfigurationError(
                    f"Topic {missing[0]!r} doesn't exist at {self.bootstrap}. Create it, or check "
                    "its name."
                )
            await asyncio.sleep(RETRY_INTERVAL)

    @property
    def assigned(self) -> bool:
        """True when the group has given this member its partitions."""
        return bool(self._consumer.assignment())

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self.generation += 1
        await self._commit(self._on_revoke())

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Positions are the committed offsets, which aiokafka fetches by itself."""

    def fetch(self, timeout: float) -> list[RawBatch]:
        """Return what has been fetched, waiting up to ``timeout`` seconds."""
        return self._call(self._fetch(timeout))

    async def _fetch(self, timeout: float) -> list[RawBatch]:
        assignment = self._consumer.assignment()
        if not assignment:
            await asyncio.sleep(min(timeout, 0.05))
            return []
        generation = self.generation
        batches = await fetch_batches(
            self._consumer._fetcher, assignment, timeout=timeout, wake=self._wake
        )
        return batches if generation == self.generation else []

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Commit offsets; those of partitions that are gone are left out."""
        self._call(self._commit(offsets))

    async def _commit(self, offsets: Mapping[Place, int]) -> None:
        assigned = self._consumer.assignment()
        wanted = {TopicPartition(*place): offset for place, offset in offsets.items()}
        wanted = {tp: offset for tp, offset in wanted.items() if tp in assigned}
        if not wanted:
            return
        try:
            await self._consumer.commit(wanted)
        except (IllegalStateError, KafkaError):
            # The group is rebalancing or the broker is away: the records are read again.
            return

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Send one record and wait until the broker has it.

        Raises:
            ProducerError: It did not take it.
        """
        self._call(self._send(topic, key, value, headers))

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        try:
            if self._producer is None:
                security = {
                    name: option
                    for name, option in self._options.items()
                    if name.startswith(("security", "sasl", "ssl"))
                }
                self._producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, **security)
                await self._producer.start()
            await self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        except KafkaError as exc:
            raise ProducerError(f"Cannot send to topic {topic!r}: {exc!r}") from exc

    def ensure_topic(self, name: str) -> None:
        """Create a topic unless it is there."""
        self._call(create_topics(self.bootstrap, [name]))

    def close(self) -> None:
        """Leave the group and end the thread."""
        if not self._thread.is_alive():
            return
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()
        consumer = getattr(self, "_consumer", None)
        if consumer is not None:
            await consumer.stop()
