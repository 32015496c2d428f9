"""Looking at a Kafka cluster from outside: what is in it, who reads it.

Ends of partitions are the high watermarks of fetch responses; see
:mod:`streamproc.kafka.offsets`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from streamproc.errors import BrokerUnavailable
from streamproc.kafka.security import NO_SECURITY

#: Offsets at the end of a partition among which its last record is looked for: the very last is
#: often the mark of a transaction.
_TAIL = 10
_DEAD_STATES = ("Dead", "Empty", "")


@dataclass
class TopicState:
    """One topic."""

    #: End of each partition: the offset after its last record.
    ends: dict[int, int]
    #: Records that came while we looked.
    new: int = 0
    #: Timestamp of the newest record that was found, ms since 1970.
    newest: int | None = None
    #: Whether some offsets are known to be marks of transactions, and no records.
    is_marked: bool = False

    @property
    def end(self) -> int:
        """Sum of the ends."""
        return sum(self.ends.values())


@dataclass
class GroupState:
    """A consumer group."""

    #: ``Stable``, ``PreparingRebalance``, ``Empty``...; empty when there's no such group.
    state: str = ""
    members: int = 0
    #: Committed offset by topic and partition; -1: none.
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    #: Records committed while we looked.
    progress: int = 0

    @property
    def active(self) -> bool:
        """Whether it has members."""
        return self.members > 0 and self.state not in _DEAD_STATES


@dataclass
class _Read:
    """What was read of a partition."""

    first: int
    next: int = 0
    count: int = 0
    newest: int = 0

    def add(self, records: list[Any]) -> None:
        self.next = records[-1].offset + 1
        self.count += len(records)
        self.newest = max(self.newest, *(record.timestamp for record in records))

    def has_gaps(self, end: int) -> bool:
        """Return whether there are offsets up to ``end`` that have no record."""
        return max(self.next, end) - self.first > self.count


class Inspector:
    """Looks at topics and a group of a cluster that answers; reads only what it must."""

    def __init__(self, bootstrap: str, security: Mapping[str, Any] = NO_SECURITY) -> None:
        """Ask the brokers ``host:port,host:port``; ``security``: arguments of aiokafka."""
        options = {"bootstrap_servers": bootstrap, **security}
        self._admin = AIOKafkaAdminClient(request_timeout_ms=10_000, **options)
        self._consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            request_timeout_ms=10_000,
            **options,
        )

    async def __aenter__(self) -> Inspector:
        try:
            await self._admin.start()
            await self._consumer.start()
        except BaseException as exc:
            await self.__aexit__(type(exc), exc)
            raise
        return self

    async def __aexit__(self, _kind: Any = None, exc: Any = None, _traceback: Any = None) -> None:
        """Disconnect.

        Raises:
            BrokerUnavailable: In place of an error of the Kafka client.
        """
        await self._consumer.stop()
        await self._admin.close()
        if isinstance(exc, KafkaError | asyncio.TimeoutError):
            raise BrokerUnavailable(str(exc) or type(exc).__name__) from exc

    async def brokers(self) -> int:
        """Return how many brokers the cluster has."""
        return len((await self._admin.describe_cluster())["brokers"])

    async def topic_names(self) -> set[str]:
        """Return the names of all topics, so that none is created by asking for it."""
        return set(await self._admin.list_topics())

    async def topics(
        self, names: Iterable[str], group: str, seconds: float
    ) -> tuple[dict[str, TopicState], GroupState]:
        """Look at topics that exist, and at how far ``group`` is, for ``seconds``."""
        partitions = await self._partitions(names)
        if not partitions:
            return {}, await self.group(group, [])
        self._consumer.assign(partitions)
        first = await self._ends(partitions, timeout=10.0)
        before = await self.group(group, partitions)
        for tp, end in first.items():
            self._consumer.seek(tp, max(0, end - _TAIL))
        read = await self._read(seconds)
        last = await self._ends(partitions, timeout=1.0)
        after = await self.group(group, partitions)
        after.progress = _total(after) - _total(before)
        return _topic_states(first, last, read), after

    async def _partitions(self, names: Iterable[str]) -> list[TopicPartition]:
        described = await self._admin.describe_topics(sorted(names))
        return [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in described
            for partition in topic["partitions"]
        ]

    async def _ends(
        self, partitions: list[TopicPartition], timeout: float
    ) -> dict[TopicPartition, int]:
        """Return the high watermarks, as far as they are known in time."""
        deadline = time.monotonic() + timeout
        ends: dict[TopicPartition, int] = {}
        while len(ends) < len(partitions) and time.monotonic() < deadline:
            await self._consumer.getmany(timeout_ms=50, max_records=1)
            known = {tp: self._consumer.highwater(tp) for tp in partitions}
            ends = {tp: end for tp, end in known.items() if end is not None}
        return ends

    async def _read(self, seconds: float) -> dict[TopicPartition, _Read]:
        """Read for ``seconds``; return what came of each partition."""
        read: dict[TopicPartition, _Read] = {}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: Mapping[TopicPartition, list[Any]] = await self._consumer.getmany(timeout_ms=100)
            for tp, records in found.items():
                read.setdefault(tp, _Read(records[0].offset)).add(records)
        return read

    async def group(self, name: str, partitions: list[TopicPartition]) -> GroupState:
        """Return the state of a group and what it has committed of ``partitions``."""
        state = GroupState()
        try:
            for reply in await self._admin.describe_consumer_groups([name]):
                for _error, _name, found, _kind, _protocol, members, *_ in reply.groups:
                    state.state, state.members = found, len(members)
            if partitions:
                # Partitions are named because the embedded broker can't list them.
                offsets = await self._admin.list_consumer_group_offsets(name, partitions=partitions)
                state.committed = {(tp.topic, tp.partition): o.offset for tp, o in offsets.items()}
        except KafkaError:
            return state  # a group that never had a member has no coordinator
        return state


def _total(group: GroupState) -> int:
    return sum(max(0, offset) for offset in group.committed.values())


def _topic_states(
    first: Mapping[TopicPartition, int],
    last: Mapping[TopicPartition, int],
    read: Mapping[TopicPartition, _Read],
) -> dict[str, TopicState]:
    states: dict[str, TopicState] = {}
    for tp, end in last.items():
        state = states.setdefault(tp.topic, TopicState({}))
        state.ends[tp.partition] = end
        state.new += max(0, end - first.get(tp, end))
        if tp in read:
            state.newest = max(state.newest or 0, read[tp].newest)
            state.is_marked |= read[tp].has_gaps(first.get(tp, 0))
    return states
