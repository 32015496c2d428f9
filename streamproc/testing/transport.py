"""Consumer, producer and changelog reader over topics in memory.

They take the place of what talks to Kafka, and of nothing else: group membership is a
call, flow control, delivery, checkpoints and recovery are the worker's own. Checked
against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from faust.assignor.client_assignment import ClientAssignment
from faust.types import TP
from faust.types.tuples import RecordMetadata
from mode import Service

from streamproc.errors import Fenced, TransactionAborted
from streamproc.kafka.committed import Committed, read_committed_offset, with_notes
from streamproc.kafka.consumer import Consumer
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.membership import Span
from streamproc.kafka.producer import Producer
from streamproc.kafka.transactions import GroupMember, KafkaError
from streamproc.kafka.transport import Transport
from streamproc.testing.broker import MemoryBroker, Offsets, Session


class Connection:
    """What one run of an app has of the broker; cut when the run is killed."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._is_cut = False

    def cut(self) -> None:
        """Let nothing through any more."""
        self._is_cut = True

    @property
    def broker(self) -> MemoryBroker:
        if self._is_cut:
            # What a killed worker would still like to do in its last breath.
            raise asyncio.CancelledError
        return self._broker

    # What of the worker's goes over it.

    def new_transport(self, app: Any) -> MemoryTransport:
        return MemoryTransport(app.conf.broker_consumer, app, self)

    def new_group(self, consumer: MemoryConsumer, **kwargs: Any) -> MemoryGroup:
        return MemoryGroup(consumer, self, **kwargs)

    def new_client(self, transactional_id: str | None = None, timeout: float = 0.0) -> MemoryClient:
        return MemoryClient(self, transactional_id, timeout)

    def new_changelogs(self) -> MemoryChangelogs:
        return MemoryChangelogs(self)


class MemoryGroup(Service):  # type: ignore[misc]
    """The app's membership of its consumer group; takes the place of the consumer thread."""

    def __init__(self, consumer: MemoryConsumer, connection: Connection, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.consumer = consumer
        self.app = consumer.app
        self.connection = connection
        self.thread_loop = self.loop
        self._subscription: set[str] = set()
        self._assignment: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._wake = asyncio.Event()
        self._rebalance_lock = asyncio.Lock()
        self._member_id = ""
        #: Partitions that another worker has.
        self.taken: set[int] = set()

    async def on_start(self) -> None:
        self.connection.broker.subscribe(self._wake)

    async def on_stop(self) -> None:
        self.connection.broker.unsubscribe(self._wake)

    # -- membership

    async def subscribe(self, topics: Collection[str]) -> None:
        self._subscription = set(topics)
        # It returns before the group has rebalanced, as with a broker.
        self.add_future(self.rebalance())

    async def rejoin(self) -> None:
        """Let the group rebalance, with what topics there are now."""
        self.add_future(self.rebalance())

    @property
    def is_settled(self) -> bool:
        """True when no rebalance is under way."""
        return not self._rebalance_lock.locked() and not self.app.rebalancing

    async def rebalance(self) -> None:
        """Give up all partitions, and get those that are not taken."""
        async with self._rebalance_lock:
            app, consumer = self.app, self.consumer
            broker = self.connection.broker
            app.on_rebalance_start()
            await consumer.on_partitions_revoked(self._assignment)
            assigned = {
                TP(topic, partition)
                for topic in self._subscription
                for partition in range(len(broker.create(topic)))
                if partition not in self.taken
            }
            _tell_assignor(app.assignor, assigned)
            self._assignment = assigned
            self._positions = {}
            app.consumer_generation_id, self._member_id = broker.join()
            await consumer.on_partitions_assigned(set(assigned), app.consumer_generation_id)

    def assignment(self) -> set[TP]:
        return set(self._assignment)

    @property
    def member(self) -> GroupMember:
        """The worker as the group knows it now."""
        return GroupMember(self.app.conf.id, self.app.consumer_generation_id, self._member_id)

    @property
    def reads_committed(self) -> bool:
        return bool(self.app.read_committed or self.app.exactly_once)

    # -- records

    async def fetch(self, partitions: Collection[TP]) -> tuple[int, list[RawBatch]]:
        batches = self._take(partitions)
        if not batches:
            self._wake.clear()
            await self._wake.wait()
            batches = self._take(partitions)
        return self.app.consumer_generation_id, batches

    def _take(self, partitions: Collection[TP]) -> list[RawBatch]:
        if not self.consumer.flow_active:
            return []
        broker = self.connection.broker
        batches = []
        for tp in sorted(self.unread(partitions)):
            raw = broker.read(tp, self._positions[tp], committed=self.reads_committed)
            self._positions[tp] = raw.next_offset
            batches.append(raw)
        return batches

    def unread(self, partitions: Iterable[TP]) -> list[TP]:
        """Return those of ``partitions`` that have records to be fetched."""
        positions, end_of = self._positions, self.connection.broker.end_of
        committed = self.reads_committed
        return [
            tp
            for tp in partitions
            if tp in positions and positions[tp] < end_of(tp, committed=committed)
        ]

    def wake_fetch(self) -> None:
        self._wake.set()

    # -- offsets

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        broker = self.connection.broker
        while self.app.exactly_once and not broker.are_stable(self._assignment):
            self._wake.clear()
            await self._wake.wait()
        latest = self.app.conf.consumer_auto_offset_reset == "latest"
        for tp in self._assignment:
            start = broker.high_watermark(tp) if latest else 0
            self._positions[tp] = broker.committed.get(tp, start)
        return {tp: broker.committed.get(tp) for tp in self._assignment}

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        mine = {tp: offset for tp, offset in offsets.items() if tp in self._assignment}
        return self._commit(mine)

    def _commit(self, offsets: Mapping[TP, int]) -> bool:
        wanted = self.app.checkpoint.claims.noted(offsets, self.consumer.positions)
        return self.connection.broker.commit(self.member, wanted)

    async def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)

    def seek(self, partition: TP, offset: int) -> None:
        self._positions[TP(*partition)] = offset
        self._wake.set()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            self.seek(tp, offset)

    def highwater(self, tp: TP) -> int:
        return self.connection.broker.high_watermark(tp)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self.connection.broker.high_watermark(tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return dict.fromkeys(partitions, 0)

    def is_at_end(self, tp: TP) -> bool:
        return tp in self._positions and not self.unread([tp])

    @property
    def heartbeat_age(self) -> float | None:
        return 0.0 if self.app.consumer_generation_id else None

    def span(self, tp: TP) -> Span | None:
        return Span(self._positions[tp], self.highwater(tp)) if tp in self._positions else None

    def has_leader(self, tp: TP) -> bool:
        return True

    async def committed(self, partitions: Collection[TP]) -> dict[TP, Committed]:
        found = self.connection.broker.found
        return {tp: read_committed_offset(found[tp]) for tp in partitions if tp in found}

    async def begin(self, partitions: Collection[TP]) -> dict[TP, Committed] | None:
        broker = self.connection.broker
        known = await MemoryGroup.committed(self, partitions)
        latest = self.app.conf.consumer_auto_offset_reset == "latest"
        starts = {
            tp: broker.high_watermark(tp) if latest else 0 for tp in partitions if tp not in known
        }
        if starts and not broker.commit(self.member, with_notes(starts, {})):
            return None
        return known | {tp: Committed(offset) for tp, offset in starts.items()}

    async def is_member(self, known: Mapping[TP, int]) -> bool:
        return self._commit(known)

    async def behind(self, topic: str, partitions: Collection[int]) -> set[int]:
        broker = self.connection.broker
        tps = [TP(topic, partition) for partition in partitions]
        return {
            tp.partition for tp in tps if broker.committed.get(tp, 0) < broker.high_watermark(tp)
        }

    # -- topics

    def topic_partitions(self, topic: str) -> int | None:
        logs = self.connection.broker.topics.get(topic)
        return len(logs) if logs else None

    async def create_topic(self, topic: str, partitions: int, *args: Any, **kwargs: Any) -> None:
        self.connection.broker.create(topic, partitions)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int:
        return self.connection.broker.partition(topic, key) if partition is None else partition

    def close(self) -> None:
        """There is nothing to close."""


def _tell_assignor(assignor: Any, assigned: set[TP]) -> None:
    """Let it know what its own assignment would have been, had it made one."""
    actives: dict[str, list[int]] = {}
    for topic, partition in sorted(assigned):
        actives.setdefault(topic, []).append(partition)
    assignor._assignment = ClientAssignment(actives=actives, standbys={})
    assignor._active_tps, assignor._standby_tps = set(assigned), set()
    assignor.changelog_distribution = {str(assignor._url): actives}


class MemoryBatch:
    """Records that are sent at once; what ``create_batch`` of aiokafka returns."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []
        self._builder = self
        self._relative_offset = 0

    def append(self, offset: int, *record: Any) -> bool:
        self.records.append(record)
        return True

    def close(self) -> None:
        """It is complete."""


class MemoryClient:
    """What takes the place of aiokafka's producer, with transactions if it has an id.

    What is sent is acknowledged at once.
    """

    def __init__(
        self, connection: Connection, transactional_id: str | None, timeout: float
    ) -> None:
        self.connection = connection
        self._transactional_id = transactional_id
        self._timeout = timeout
        self._session: Session | None = None
        self._error: BaseException | None = None
        #: True while there is a transaction to be committed or aborted.
        self.has_begun = False
        #: True when a request may reach the broker later than those after it.
        self.is_in_doubt = False
        #: This broker forgets no partition of a transaction that it aborts.
        self.written: frozenset[Any] = frozenset()
        self.group = None
        self.is_ending = False
        self.client = _Cluster(connection)

    async def start(self) -> None:
        if self._transactional_id is not None:
            broker = self.connection.broker
            self._session = broker.open_session(self._transactional_id, self._timeout)

    async def stop(self) -> None:
        """There is nothing to stop."""

    async def drop(self) -> None:
        """Let go of it: its successor has fenced it."""

    async def mark_aborted(self, partitions: Any, group: Any) -> None:
        """Do nothing: all partitions have their markers."""

    # -- sending

    def create_batch(self) -> MemoryBatch:
        return MemoryBatch()

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int | None,
        timestamp_ms: int | None,
        headers: Any,
    ) -> asyncio.Future[Any]:
        if partition is None:
            partition = self.connection.broker.partition(topic, key)
        return self._submit(topic, partition, [(timestamp_ms, key, value, headers or ())])

    async def send_batch(
        self, batch: MemoryBatch, topic: str, *, partition: int
    ) -> asyncio.Future[Any]:
        return self._submit(topic, partition, batch.records)

    def _submit(
        self, topic: str, partition: int, records: list[tuple[Any, ...]]
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._deliver(topic, partition, records, future)
        return future

    def _deliver(
        self,
        topic: str,
        partition: int,
        records: list[tuple[Any, ...]],
        future: asyncio.Future[Any],
    ) -> None:
        broker = self.connection.broker
        first: int | None = None
        try:
            for timestamp, key, value, headers in records:
                _, offset = broker.append(
                    topic,
                    key,
                    value,
                    partition=partition,
                    timestamp=timestamp,
                    headers=tuple((name, content) for name, content in headers),
                    session=self._session,
                )
                first = offset if first is None else first
        except KafkaError as exc:
            self._error = exc
            future.set_exception(exc)
        else:
            tp = TP(topic, partition)
            future.set_result(RecordMetadata(topic, partition, tp, first or 0, None, 0))

    def _partition(self, topic: str, partition: Any, *args: Any, **kwargs: Any) -> int:
        key = kwargs.get("serialized_key")
        return self.connection.broker.partition(topic, key) if partition is None else partition

    # -- transactions

    def ensure_begun(self) -> None:
        if self._error is not None:
            raise TransactionAborted(f"The transaction can't be used any more ({self._error!r})")
        self.has_begun = True

    async def end(self, offsets: Offsets, member: GroupMember) -> None:
        if offsets:
            if member.generation < 0:
                raise Fenced(f"Group {member!s} has no such member any more")
            self.ensure_begun()
            self._try(self.connection.broker.add_offsets, offsets, member)
        if self.has_begun:
            self._try(self.connection.broker.end, commit=True)
            self.has_begun = False

    async def abort_transaction(self) -> None:
        self._try(self.connection.broker.end, commit=False)
        self.has_begun = False

    def _try(self, request: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(self._error, KafkaError):
            raise self._error
        try:
            request(self._session, *args, **kwargs)
        except (Fenced, KafkaError) as exc:
            self._error = exc
            raise


class _Cluster:
    """What the worker asks aiokafka's client about topics."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.cluster = self

    def topics(self) -> set[str]:
        return set(self._connection.broker.topics)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(len(self._connection.broker.create(topic))))

    async def _wait_on_metadata(self, topic: str) -> None:
        self._connection.broker.create(topic)

    async def fetch_all_metadata(self) -> _Cluster:
        await asyncio.sleep(0)  # agents begin while a broker would be asked
        return self


class MemoryConsumer(Consumer):
    """The worker's consumer, in a group of its own."""

    _thread: Any

    def _new_consumer_thread(self) -> Any:
        self._uncommitted = asyncio.Event()
        connection = self.transport.connection
        return connection.new_group(self, loop=self.loop, beacon=self.beacon)

    @property
    def group(self) -> MemoryGroup:
        group: MemoryGroup = self._thread
        return group

    @property
    def is_behind(self) -> bool:
        """True while records wait to be fetched, or the group rebalances."""
        if not self.group.is_settled or (self.assignment() and not self._positioned):
            return True
        return bool(self.group.unread(self._fetchable()))

    async def _drain_once(self) -> None:
        if self._fetchable():
            await super()._drain_once()
            return
        # The worker's own looks again twice a second, which adds up in virtual time.
        self._room.clear()
        await self._room.wait()

    def note_uncommitted(self) -> None:
        """Start the commit interval if there is something to commit."""
        app = self.app
        if not self._uncommitted.is_set() and (
            app.checkpoint._offsets()
            or app.tables.is_dirty
            or (app.exactly_once and app.producer.has_sent)
        ):
            self._uncommitted.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _commit_handler(self) -> None:
        # A year of virtual time should not take thirty million empty commits.
        while not self.should_stop:
            await self._uncommitted.wait()
            await self.sleep(self.commit_interval)
            self._uncommitted.clear()
            if not self.should_stop:
                await self.commit()

    @Service.task  # type: ignore[untyped-decorator]
    async def _commit_livelock_detector(self) -> None:
        """There is no broker that could be slow."""

    @Service.task  # type: ignore[untyped-decorator]
    async def _topic_check(self) -> None:
        """Topics are made when they are subscribed to."""


class MemoryProducer(Producer):
    """The worker's producer, over a client in memory."""

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        connection = self.transport.connection
        if not self.app.exactly_once:
            return connection.new_client()
        return connection.new_client(self._transactional_id, self.app.transaction_timeout)

    async def create_topic(self, topic: str, partitions: int, *args: Any, **kwargs: Any) -> None:
        self.transport.connection.broker.create(topic, partitions)

    def supports_headers(self) -> bool:
        return True


class MemoryChangelogs:
    """Reads changelogs; takes the place of a ``ChangelogReader``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._positions: dict[TP, int] = {}
        self._wake = asyncio.Event()

    async def start(self, service: Any) -> None:
        self._connection.broker.subscribe(self._wake)

    async def stop(self) -> None:
        self._connection.broker.unsubscribe(self._wake)

    def assign(self, offsets: Mapping[TP, int]) -> None:
        self._positions = dict(offsets)
        self._wake.set()

    async def starts(self, tps: Collection[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    async def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return {}

    def seek(self, tp: TP, offset: int) -> None:
        self._positions[tp] = offset
        self._wake.set()

    async def fetch(self, timeout: float = 0.5) -> list[RawBatch]:
        # The first call after assign returns at once: it tells where empty partitions end.
        await self._wake.wait()
        self._wake.clear()
        return self._take()

    def _take(self) -> list[RawBatch]:
        broker = self._connection.broker
        batches = []
        for tp, position in self._positions.items():
            if position < broker.end_of(tp, committed=True):
                raw = broker.read(tp, position, committed=True)
                self._positions[tp] = raw.next_offset
                batches.append(raw)
        return batches

    def positions(self) -> list[int | None]:
        return list(self._positions.values())

    def high_watermark(self, tp: TP) -> int | None:
        return self._connection.broker.high_watermark(tp)

    def position(self, tp: TP) -> int | None:
        return self._positions.get(tp)


class MemoryTransport(Transport):
    """Transport over topics in memory."""

    Consumer = MemoryConsumer
    Producer = MemoryProducer

    def __init__(self, urls: Any, app: Any, connection: Connection) -> None:
        super().__init__(urls, app)
        self.connection = connection
