"""A consumer group member in a thread of its own, for synchronous code.

Heartbeats go on while the caller's code computes. Records come out as
:class:`~streamproc.kafka.fetch.RawBatch`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)

from streamproc.errors import BrokerUnavailable, ConfigurationError, ProducerError
from streamproc.kafka.connect import _quiet
from streamproc.kafka.fetch import Headers, RawBatch, fetch_batches
from streamproc.kafka.refusal import find_refusal
from streamproc.kafka.topics import create_topics

T = TypeVar("T")
Place = tuple[str, int]

#: Seconds between two looks for a topic or broker that isn't there yet.
RETRY_INTERVAL = 0.25
#: Longest time that leaving may take while the broker is away, in seconds.
CLOSE_TIMEOUT = 10.0
#: Largest letter, in bytes; brokers may take less.
MAX_REQUEST_SIZE = 32 * 1024 * 1024
MAX_FETCH_BYTES, MIN_FETCH_BYTES = 1024 * 1024, 32 * 1024


class Fetched(NamedTuple):
    """A run of records, and the assignment of partitions that it belongs to."""

    generation: int
    raw: RawBatch


class Letter(NamedTuple):
    """A record to send."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class ReaderThread(ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads topics as a member of a consumer group.

    ``buffer`` holds what was fetched, about ``buffer_bytes`` with what aiokafka holds;
    ``generation`` counts the times that partitions were taken away; ``joined`` is True
    while the group has given this member its partitions, even if it gave none.

    Args:
        bootstrap: "host:port,host:port".
        topics: Names of the topics.
        group: Consumer group.
        connect_timeout: Seconds to wait for the broker and the topics.
        buffer_bytes: Bytes of records to fetch ahead.
        on_revoke: Called, outside of the event loop, when partitions are taken away;
            returns the offsets that are done, which are committed before they go.
        options: More settings of ``AIOKafkaConsumer``.

    Raises:
        BrokerUnavailable: No broker answered in time.
        ConfigurationError: The broker refuses us, a topic isn't there, or there is no such
            option.
    """

    def __init__(
        self,
        bootstrap: str,
        topics: list[str],
        group: str,
        *,
        connect_timeout: float,
        buffer_bytes: int,
        on_revoke: Callable[[], Mapping[Place, int]],
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - set(inspect.signature(AIOKafkaConsumer).parameters))
        if unknown:
            raise ConfigurationError(f"KafkaReader has no option {unknown[0]!r}")
        self.bootstrap = bootstrap
        self.topics = topics
        self.generation = 0
        self.joined = False
        self.buffer: deque[Fetched] = deque()
        self._buffer_bytes = buffer_bytes
        self._on_revoke = on_revoke
        self._group = group
        self._options = options
        self._consumer: Any = None
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
        await self._connect(until, timeout)
        await self._wait_for_topics(until)
        self._consumer.subscribe(self.topics, listener=self)

    async def _connect(self, until: float, timeout: float) -> None:
        told = False
        while True:
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap,
                group_id=self._group,
                enable_auto_commit=False,
                # However long the caller computes, its heartbeats say that it is alive.
                max_poll_interval_ms=2**31 - 1,
                **self._options,
            )
            try:
                with _quiet(told):
                    await self._consumer.start()
                return
            except KafkaConnectionError as exc:
                await self._consumer.stop()
                await self._check_refusal()
                if monotonic() > until:
                    raise BrokerUnavailable(
                        f"No Kafka broker answered at {self.bootstrap} within {timeout:g} s. "
                        "Check the address and that the broker runs."
                    ) from exc
            told = True
            await asyncio.sleep(RETRY_INTERVAL)

    @property
    def _security(self) -> dict[str, Any]:
        return {
            name: option
            for name, option in self._options.items()
            if name.startswith(("security", "sasl", "ssl"))
        }

    async def _check_refusal(self) -> None:
        # aiokafka says only that it could not connect.
        with _quiet(True):
            refusal = await find_refusal(self.bootstrap, self._security)
        if refusal is not None:
            raise ConfigurationError(f"{refusal}.")

    async def _wait_for_topics(self, until: float) -> None:
        while missing := sorted(set(self.topics) - await self._consumer.topics()):
            if monotonic() > until:
                raise ConfigurationError(
                    f"Topic {missing[0]!r} doesn't exist at {self.bootstrap}. Create it, or check "
                    "its name."
                )
            await asyncio.sleep(RETRY_INTERVAL)

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self.generation += 1
        self.joined = False
        await self._commit(await asyncio.to_thread(self._on_revoke))

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Bound what is fetched ahead; positions are the committed offsets."""
        self.joined = True
        if assigned and "max_partition_fetch_bytes" not in self._options:
            # Half for what the caller has, half for what is fetched meanwhile.
            share = self._buffer_bytes // (2 * len(assigned))
            self._consumer._fetcher._max_partition_fetch_bytes = min(
                max(share, MIN_FETCH_BYTES), MAX_FETCH_BYTES
            )

    def fetch(self, timeout: float) -> None:
        """Move what has been fetched into ``buffer``, waiting up to ``timeout`` seconds.

        Raises:
            ConfigurationError: The broker doesn't allow the topic or the group.
        """
        # The result stays in the buffer even if the caller is interrupted meanwhile.
        self._call(self._fetch(timeout))

    async def _fetch(self, timeout: float) -> None:
        if not self.joined:
            await asyncio.sleep(min(timeout, 0.05))
        assignment = self._consumer.assignment()
        try:
            self._consumer._coordinator.check_errors()
            if not self.joined or not assignment:
                await asyncio.sleep(timeout)
                return
            batches = await fetch_batches(
                self._consumer._fetcher, assignment, timeout=timeout, wake=self._wake
            )
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as exc:
            raise ConfigurationError(
                f"Kafka at {self.bootstrap} doesn't allow reading {', '.join(self.topics)} as "
                f"group {self._group!r}: {exc}"
            ) from exc
        # The group may have rebalanced during the wait. What was taken at its end belongs
        # to the assignment of now, and dropping it would skip it.
        if self.joined:
            generation = self.generation
            self.buffer.extend(Fetched(generation, raw) for raw in batches)

    def commit(self, offsets: Mapping[Place, int]) -> bool:
        """Commit offsets; those of partitions that are gone are left out.

        Returns False when they must be committed again: the group is rebalancing.
        """
        return self._call(self._commit(offsets))

    async def _commit(self, offsets: Mapping[Place, int]) -> bool:
        assigned = self._consumer.assignment()
        wanted = {TopicPartition(*place): offset for place, offset in offsets.items()}
        wanted = {tp: offset for tp, offset in wanted.items() if tp in assigned}
        if not wanted:
            return True
        try:
            await self._consumer.commit(wanted)
        except (IllegalStateError, KafkaError):
            return False
        return True

    def send(self, topic: str, letters: Sequence[Letter]) -> None:
        """Send records and wait until the broker has them; the topic is made if missing.

        A record that is too large for the broker goes without its value; the header
        ``dead-letter-left-out`` then has its size.

        Raises:
            ProducerError: The broker did not take them.
        """
        self._call(self._send(topic, letters))

    async def _send(self, topic: str, letters: Sequence[Letter]) -> None:
        try:
            if self._producer is None:
                await create_topics(self.bootstrap, [topic], security=self._security)
                self._producer = AIOKafkaProducer(
                    bootstrap_servers=self.bootstrap,
                    acks="all",
                    max_request_size=MAX_REQUEST_SIZE,
                    **self._security,
                )
                await self._producer.start()
            await asyncio.gather(*(self._send_one(topic, letter) for letter in letters))
        except KafkaError as exc:
            raise ProducerError(f"Cannot send to topic {topic!r}: {exc!r}") from exc

    async def _send_one(self, topic: str, letter: Letter) -> None:
        key, value, headers = letter
        try:
            await self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        except MessageSizeTooLargeError:
            size = ("dead-letter-left-out", str(len(value or b"")).encode())
            await self._producer.send_and_wait(topic, None, key=key, headers=[*headers, size])

    def close(self) -> None:
        """Leave the group and end the thread."""
        if not self._thread.is_alive():
            return
        try:
            self._call(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _stop(self) -> None:
        for client in (self._producer, self._consumer):
            if client is None:
                continue
            try:
                await asyncio.wait_for(client.stop(), CLOSE_TIMEOUT)
            except asyncio.TimeoutError:
                continue  # the broker is away and will miss our heartbeats
