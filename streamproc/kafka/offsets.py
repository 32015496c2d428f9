"""How far topics and a consumer group are: ends and committed offsets of partitions.

Ends are the high watermarks of fetch responses, which are right on every broker; what
ListOffsets says is not (the embedded broker counts only the last batch's first record).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from streamproc.kafka.security import NO_SECURITY


@dataclass
class Offsets:
    """Ends and committed offsets as far as they are known; an offset is a count from 0."""

    ends: dict[TopicPartition, int] = field(default_factory=dict)
    committed: dict[TopicPartition, int] = field(default_factory=dict)

    def lag(self, partition: TopicPartition) -> int:
        """Records of a partition that are not committed yet."""
        return max(0, self.ends.get(partition, 0) - self.committed.get(partition, 0))

    def end(self, topics: Iterable[str]) -> int:
        """Offsets that these topics have given; marks of transactions have some, too."""
        wanted = set(topics)
        return sum(end for tp, end in self.ends.items() if tp.topic in wanted)

    @property
    def done(self) -> int:
        """Records that are committed."""
        return sum(self.committed.values())

    @property
    def total_lag(self) -> int:
        """Records of all the group's partitions that are not committed yet."""
        return sum(self.lag(tp) for tp in self.committed)


class OffsetWatch:
    """Follows the ends of topics and the committed offsets of a group, reading no records."""

    def __init__(
        self,
        bootstrap: str,
        group: str,
        sources: Iterable[str],
        others: Iterable[str] = (),
        security: Mapping[str, Any] = NO_SECURITY,
    ) -> None:
        """Watch ``sources`` (topics the group reads) and only the ends of ``others``.

        ``security`` are arguments of aiokafka's clients about login and TLS.
        """
        self._security = security
        self.offsets = Offsets()
        self._bootstrap = bootstrap
        self._group = group
        self._source_topics = sorted(set(sources))
        self._topics = sorted({*self._source_topics, *others})
        self._sources: list[TopicPartition] = []

    async def start(self) -> None:
        """Connect; the topics must exist."""
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, **self._security)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            max_partition_fetch_bytes=1024,
            **self._security,
        )
        await self._admin.start()
        await self._consumer.start()
        partitions = [
            TopicPartition(topic, number)
            for topic, numbers in (await self._partitions()).items()
            for number in sorted(numbers)
        ]
        self._sources = [tp for tp in partitions if tp.topic in self._source_topics]
        self.offsets.ends = dict.fromkeys(partitions, 0)
        self.offsets.committed = dict.fromkeys(self._sources, 0)
        if partitions:
            self._consumer.assign(partitions)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()
        await self._admin.close()

    async def poll(self) -> Offsets:
        """Bring :attr:`offsets` up to date; what can't be asked now stays as it was."""
        for tp in self.offsets.ends:
            end = self._consumer.highwater(tp)
            if end is not None and end > self.offsets.ends[tp]:
                self.offsets.ends[tp] = end
                # Go on from the end: the next fetch brings no records, only a new end.
                self._consumer.seek(tp, end)
        # A group that has no member yet has no coordinator.
        with contextlib.suppress(GroupCoordinatorNotAvailableError, KafkaError):
            # Partitions are named because the embedded broker can't list them.
            found = await self._admin.list_consumer_group_offsets(
                self._group, partitions=self._sources
            )
            for tp, committed in found.items():
                self.offsets.committed[tp] = max(0, committed.offset)
        return self.offsets

    async def _partitions(self) -> dict[str, set[int]]:
        described = await self._admin.describe_topics(self._topics)
        return {
            topic["topic"]: {partition["partition"] for partition in topic["partitions"]}
            for topic in described
        }


async def count_records(
    bootstrap: str,
    topic: str,
    on_count: Callable[[int], None],
    security: Mapping[str, Any] = NO_SECURITY,
) -> None:
    """Read a topic for ever, and tell how many records have been in it so far.

    Offsets don't say: marks of transactions have some, too, and so has what was deleted.
    """
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        **security,
    )
    await consumer.start()
    try:
        count = 0
        while True:
            found = await consumer.getmany(timeout_ms=1000)
            count += sum(map(len, found.values()))
            on_count(count)
    finally:
        await consumer.stop()
