"""Reading changelogs: partitions chosen by hand, from given offsets, in whole runs.

The consumer of the group never fetches them, so that recovery and standbys need no
flow control and a rebalance in the middle is the end of one task. Checked against
aiokafka 0.14.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import aiokafka
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streamproc.kafka.connect import start_when_reachable
from streamproc.kafka.fetch import RawBatch, end_fetches, fetch_batches, follow_leaders
from streamproc.kafka.topic_ids import fetch_topic_ids

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Largest reply of the broker for one partition, in bytes.
MAX_PARTITION_BYTES = 2 * 1024 * 1024
#: Seconds before the next try when a fetch failed.
RETRY_INTERVAL = 0.5


class ChangelogReader:
    """Fetches partitions from given offsets, outside of the consumer group."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._consumer: Any = None
        self._wake = asyncio.Event()
        self._wanted: dict[TopicPartition, int] = {}
        self._failure = ""

    async def start(self, service: Any) -> None:
        """Connect, waiting for a broker that isn't there yet."""
        transport = self.app.transport
        self._consumer = await start_when_reachable(
            self._create, service=service, what="Changelog reader", address=transport.url
        )
        if self._consumer is not None:
            follow_leaders(self._consumer._fetcher)
            end_fetches(self._consumer._fetcher)

    def _create(self) -> aiokafka.AIOKafkaConsumer:
        conf, transport = self.app.conf, self.app.transport
        return aiokafka.AIOKafkaConsumer(
            client_id=f"{conf.broker_client_id}-changelogs",
            group_id=None,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=MAX_PARTITION_BYTES,
            fetch_max_wait_ms=int(self.app.fetch_max_wait * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            isolation_level="read_committed",
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )

    def assign(self, offsets: Mapping[TP, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        self._wanted = {TopicPartition(*tp): offset for tp, offset in offsets.items()}
        if not self._wanted:
            self._consumer.unsubscribe()
            return
        self._consumer.assign(list(self._wanted))
        for tp, offset in self._wanted.items():
            if offset:
                self._consumer.seek(tp, offset)
        self._wake.set()

    async def starts(self, tps: Collection[TP]) -> dict[TP, int]:
        """Ask where partitions begin; waits while a broker is away."""
        wanted = [TopicPartition(*tp) for tp in tps]
        found = await self._answer(self._consumer.beginning_offsets, wanted)
        return {TP(*tp): offset for tp, offset in found.items()}

    async def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """Ask for the ids of topics, if the broker has some; waits while it is away."""
        return await self._answer(fetch_topic_ids, self._consumer._client, topics)

    async def _answer(self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        while True:
            try:
                return await ask(*args)
            except KafkaError as exc:
                self._failed(exc)
                await asyncio.sleep(RETRY_INTERVAL)

    def seek(self, tp: TP, offset: int) -> None:
        """Read a partition that is being read from another offset on."""
        self._consumer.seek(TopicPartition(*tp), offset)

    async def fetch(self, timeout: float = 0.5) -> list[RawBatch]:
        """Return runs of records, or nothing after ``timeout`` seconds."""
        fetcher = self._consumer._fetcher
        try:
            batches = await fetch_batches(fetcher, self._wanted, timeout=timeout, wake=self._wake)
        except KafkaError as exc:
            self._failed(exc)
            await asyncio.sleep(RETRY_INTERVAL)
            return []
        self._failure = ""
        return batches

    def _failed(self, exc: KafkaError) -> None:
        if repr(exc) != self._failure:
            self._failure = repr(exc)
            logger.warning("Reading changelogs failed, trying again: %r", exc)

    def high_watermark(self, tp: TP) -> int | None:
        """End of the partition by the last fetch of it, or None before the first.

        Fetches tell it right where ListOffsets of the embedded broker doesn't.
        """
        end: int | None = self._consumer.highwater(TopicPartition(*tp))
        return end

    def position(self, tp: TP) -> int | None:
        """Offset that is fetched next, or None while that isn't known.

        It passes over what isn't handed out: aborted records, and gaps that compaction
        left at the end.
        """
        state = self._consumer._subscription.subscription.assignment.state_value(
            TopicPartition(*tp)
        )
        return state.position if state is not None and state.has_valid_position else None

    def positions(self) -> list[int | None]:
        """The position of each partition that is read."""
        if self._consumer is None:
            return []
        return [self.position(TP(*tp)) for tp in self._wanted]

    async def stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
