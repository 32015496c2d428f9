"""The consumer of a worker: fetches batches, hands them on, commits what is done.

Group membership, assignment and seeking stay Faust's. Replaced here: the loop that
drains messages, offsets (a watermark a partition instead of a set of acks), back-pressure
(bounded by bytes, for each partition by itself), and the fetch wait, which Faust fixes
at 1.5 s. Checked against faust-streaming 0.15.3 and aiokafka 0.14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import monotonic
from typing import Any, TypeVar

from aiokafka.errors import ConsumerStoppedError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode import Service

from streamproc.errors import Fenced
from streamproc.kafka.committed import Committed, Positions, positions_ahead
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.membership import Span
from streamproc.kafka.thread import FETCH_TIMEOUT, ConsumerThread
from streamproc.kafka.transactions import GroupMember

T = TypeVar("T")

#: Longest wait for the last checkpoint of a worker that stops, in seconds.
LAST_CHECKPOINT_TIMEOUT = 5.0
#: Seconds between two looks at whether a worker that waits for a checkpoint has to stop.
STOP_CHECK_INTERVAL = 0.25

#: Seconds before the broker is asked again where partitions begin.
BEGIN_INTERVAL = 1.0

#: Seconds between two looks at whether subscribed topics exist.
TOPIC_CHECK_INTERVAL = 2.0


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Kafka consumer of a worker."""

    _thread: ConsumerThread
    _member: GroupMember | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._room = asyncio.Event()
        self._full: set[TP] = set()
        self._positioned = True
        #: How often reading went back to the last checkpoint.
        self._rewinds = 0
        #: Where reading began, of the partitions that there are.
        self._began: dict[TP, int] = {}
        self._last_committed: dict[TP, int] = {}
        #: How far readers were at the last commit, with exactly once.
        self.positions: Positions = {}
        #: Topics that something is sent to, and that don't exist.
        self.missing_outputs: set[str] = set()
        self._emptying = asyncio.Lock()
        super().__init__(*args, **kwargs)

    async def subscribe(self, topics: Collection[str]) -> None:
        """Subscribe; a client has nothing to subscribe to before its first request.

        A new subscription gives up the partitions of the old one at once, so what is done
        has to be committed before.
        """
        if self.assignment() and not self.app.client_only:
            await self.wait_empty()
            self.app.topics.close_progress()
        if topics:
            await super().subscribe(topics)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Fetch and hand on until stopped; run by Faust's Fetcher service."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                if not self.flow_active:
                    await self.wait_first(self.can_resume_flow.wait(), fetcher._stopped.wait())
                    continue
                await self._drain_once()
        except ConsumerStoppedError:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _drain_once(self) -> None:
        partitions = self._fetchable()
        if not partitions:
            self._room.clear()
            await self.wait_first(self._room.wait(), asyncio.sleep(FETCH_TIMEOUT))
            return
        self.not_waiting_next_records.clear()
        rewinds = self._rewinds
        try:
            generation, batches = await self._thread.fetch(partitions)
        except KafkaError as exc:
            self.log.warning("Fetching failed, trying again: %r", exc)
            await asyncio.sleep(1.0)
            return
        finally:
            self.not_waiting_next_records.set()
        if (
            not self.flow_active
            or rewinds != self._rewinds
            or generation != self.app.consumer_generation_id
        ):
            # What was fetched belongs to an assignment that is over.
            return
        for raw in batches:
            await self._hand_on(raw)
        # Producing and agents share this loop with us.
        await asyncio.sleep(0)

    async def _hand_on(self, raw: RawBatch) -> None:
        topics = self.app.topics
        tp = TP(raw.topic, raw.partition)
        self._read_offset[tp] = raw.next_offset - 1
        if tp not in self._began:
            self._began[tp] = raw.offsets[0] if raw.offsets else raw.next_offset
        self._track(tp, raw)
        self.app.checkpoint.on_read(len(raw), raw.size)
        if topics.needs_per_event(tp):
            await topics.deliver_per_event(raw, self._to_consumer_message)
        topics.deliver(raw)
        if topics.held_bytes(tp) > self.app.buffer_bytes:
            self._full.add(tp)

    def _track(self, tp: TP, raw: RawBatch) -> None:
        """Tell Faust's monitor, once a batch, what it else learns once a message."""
        monitor = self.app.monitor
        count = len(raw)
        monitor.track_tp_end_offset(tp, raw.high_watermark)
        monitor.messages_received_total += count
        monitor.messages_received_by_topic[raw.topic] += count
        monitor.tp_read_offsets[tp] = raw.next_offset

    def _fetchable(self) -> set[TP]:
        full = self._full
        if full:
            limit = self.app.buffer_bytes // 2
            topics = self.app.topics
            full -= {tp for tp in full if topics.held_bytes(tp) <= limit}
        # A client has no group, so nothing tells Faust what it is assigned.
        client_only = self.app.client_only
        active = set(self.assignment() if client_only else self._get_active_partitions())
        if not self._positioned:
            return set()
        # What comes before anybody reads a topic stays at the broker until somebody does.
        is_read = self.app.topics.is_read
        changelogs = self.app.tables.changelog_topics  # read by the recovery
        active = {tp for tp in active if is_read(tp) and tp.topic not in changelogs}
        return active - full if full else active

    def on_room(self, tp: TP) -> None:
        """A stream has finished records of ``tp``: fetch on if it had too many."""
        self.app.checkpoint.on_progress()
        if tp in self._full and self.app.topics.held_bytes(tp) <= self.app.buffer_bytes // 2:
            self._full.discard(tp)
            self._room.set()
            self._thread.wake_fetch()

    @property
    def is_positioned(self) -> bool:
        """False from an assignment until reading of it can begin: nothing is done meanwhile."""
        return self._positioned

    def is_at_end(self, tp: TP) -> bool:
        """True when all that the broker has of an assigned partition was fetched."""
        return self._thread.is_at_end(tp)

    @property
    def heartbeat_age(self) -> float | None:
        """Seconds since the group confirmed this worker; None: it is no member."""
        return self._thread.heartbeat_age

    def span(self, tp: TP) -> Span | None:
        """Where an assigned partition is read, and where it ends; None: not known yet."""
        return self._thread.span(tp)

    def began(self, tp: TP) -> int | None:
        """Where reading an assigned partition began; None: nothing has come yet."""
        return self._began.get(tp)

    def has_leader(self, tp: TP) -> bool:
        """True when there is a connection to the partition's leader."""
        return self._thread.has_leader(tp)

    async def behind(self, topic: str, partitions: Collection[int]) -> set[int]:
        """Return the partitions, whoever reads them, that the group isn't done with.

        All of them if the broker doesn't say.
        """
        try:
            return await self._thread.behind(topic, partitions)
        except KafkaError as exc:
            self.log.warning("It isn't known how far topic %s is read: %r", topic, exc)
            return set(partitions)

    async def rejoin(self) -> None:
        """Ask the group for a rebalance, with what topics there are now."""
        await self._thread.rejoin()

    def on_reader(self) -> None:
        """A channel has begun to read what is assigned: its partitions may be fetched now."""
        self._room.set()
        self._thread.wake_fetch()

    def resume_partitions(self, tps: Collection[TP]) -> None:
        super().resume_partitions(tps)
        self._room.set()
        self._thread.wake_fetch()

    def _to_consumer_message(self, raw: RawBatch, row: int) -> ConsumerMessage:
        return ConsumerMessage(
            raw.topic,
            raw.partition,
            raw.offsets[row],
            raw.timestamps[row] / 1000.0,
            raw.timestamp_type,
            raw.headers[row] if raw.headers is not None else (),
            raw.keys[row],
            raw.values[row],
            None,
            tp=TP(raw.topic, raw.partition),
            generation_id=self.app.consumer_generation_id,
        )

    def ack(self, message: Any) -> bool:
        """Mark one message as done: only those of batches count for offsets."""
        if message.acked:
            return False
        message.acked = True
        delivery = getattr(message, "delivery", None)
        if delivery is not None:
            delivery.ack(message.row)
        return True

    async def wait_empty(self) -> None:
        """Let streams finish the records they have begun, then commit what is done."""
        async with self._emptying:
            await self._wait_empty()

    async def _wait_empty(self) -> None:
        progress = list(self.app.topics.progress())
        for each in progress:
            each.close()
        deadline = monotonic() + self.app.drain_timeout
        # Where nothing is committed any more there is nothing to wait for.
        while not (self.app.checkpoint.is_closed or all(each.idle for each in progress)):
            if monotonic() > deadline:
                waiting = sorted({each.tp for each in progress if not each.idle})
                self.log.warning(
                    "Agents did not finish within %s s; these partitions are processed "
                    "again from their last committed offset: %s",
                    self.app.drain_timeout,
                    ", ".join(f"{tp.topic}/{tp.partition}" for tp in waiting),
                )
                if self.app.checkpoint.is_exact:
                    # A part of what they did can't be told from the rest.
                    self.app.checkpoint.make_void()
                break
            await asyncio.sleep(0.005)
        await self._make_last_checkpoint()

    async def _make_last_checkpoint(self) -> None:
        last = asyncio.ensure_future(self._commit_what_is_done())
        waited = 0.0
        while not last.done():
            await asyncio.wait({last}, timeout=STOP_CHECK_INTERVAL)
            # A worker that stops does not wait for servers that are away.
            waited += STOP_CHECK_INTERVAL if self.app.should_stop else 0.0
            if waited > LAST_CHECKPOINT_TIMEOUT and not last.done():
                self.log.warning(
                    "The last checkpoint did not end within %s s; what was done since the one "
                    "before is processed again",
                    LAST_CHECKPOINT_TIMEOUT,
                )
                self.app.checkpoint.close()
                return
        if not last.cancelled():
            last.result()

    async def _commit_what_is_done(self) -> None:
        # A commit that is under way took less than what is done now.
        await self.maybe_wait_for_commit_to_finish()
        await self.commit()

    async def on_task_error(self, exc: BaseException) -> None:
        """An agent raised: it is dealt with there, and the next checkpoint is soon enough."""

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._positioned = False
        self._last_committed = {}
        self.positions = {}
        self._began.clear()
        # aiokafka forgets it when it learns that the group has gone on without the worker,
        # and only then are the partitions revoked and what was done with them committed.
        self._member = self._thread.member
        # Faust does so when partitions are revoked, which needs some to be there.
        self.stop_flow()
        await super().on_partitions_assigned(assigned, generation_id)

    async def perform_seek(self) -> None:
        """Go to the committed offsets, then let source partitions be fetched.

        After the recovery of tables Faust resumes them before it seeks: what is fetched
        in between would be processed twice.
        """
        await asyncio.wait_for(super().perform_seek(), self.app.conf.broker_request_timeout)
        # Faust takes an offset of 0 for none; by it the group refuses a worker left behind.
        for tp in self.assignment():
            if self._read_offset[tp] == 0:
                self._committed_offset[tp] = 0
        for tp, offset in (await self.app.checkpoint.claims.claim(self.assignment())).items():
            await self.seek(tp, offset)
            self.app.topics.go_back_to(tp, offset)
            self._committed_offset[tp] = offset
        self._positioned = True
        self._room.set()
        self._thread.wake_fetch()

    async def rewind(self) -> None:
        """Read again from the last checkpoint on; nothing that was fetched counts."""
        # A fetch under way would take records from the new position, which nobody gets.
        self._thread.wake_fetch()
        await self.not_waiting_next_records.wait()
        self._rewinds += 1
        self._full.clear()
        self.app.topics.start_progress()
        self.app.topics.start_at(self.app.tables.start_positions())
        self.app.topics.start_at(self.positions)
        await self.perform_seek()
        for tp, offset in self._began.items():
            if not self.committed_offset(tp):  # aiokafka leaves it where it is
                await self.seek(tp, offset)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust forgets them before the last checkpoint, which asks by them whether the group
        # counts on the worker still.
        self._last_committed = self.last_committed()
        await self.app.checkpoint.leave_to_rebalance()
        if self.app.should_stop:
            # Faust leaves it at that then, and what is done would be forgotten that the last
            # checkpoint is about to commit.
            await self.wait_empty()
        await super().on_partitions_revoked(revoked)
        self._full.clear()
        self.app.topics.close_progress()

    async def on_stop(self) -> None:
        await self.app.checkpoint.leave_to_rebalance()
        if not all(each.closed for each in self.app.topics.progress()):
            await self.wait_empty()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Run a checkpoint; see :class:`streamproc.checkpoint.Checkpoint`."""
        state = self.app.sensors.on_commit_initiated(self)
        committed: bool = await self.app.checkpoint.commit()
        self.app.sensors.on_commit_completed(self, state)
        return committed

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        """Commit source offsets; False when they were refused and may be tried again."""
        if not await self._commit(offsets):
            return False
        self.on_committed(offsets)
        return True

    def on_committed(self, offsets: Mapping[TP, int]) -> None:
        """Note that the group has these offsets."""
        self._committed_offset.update(offsets)
        self.app.tables.on_commit(offsets)
        self.app.monitor.on_tp_commit(offsets)

    @property
    def member(self) -> GroupMember:
        """The worker as the group knew it when it assigned the partitions that are read."""
        return self._member or self._thread.member

    async def committed(self, partitions: Collection[TP]) -> dict[TP, Committed]:
        """Return what the group has committed of ``partitions``."""
        return await self._thread.committed(partitions)

    async def begin(self) -> dict[TP, Committed]:
        """Commit where reading begins of partitions that the group has no offset of.

        By offsets that there are, the group refuses what a worker does that it has left behind.
        Returns what the group has then.

        Raises:
            Fenced: It refuses this.
        """
        changelogs = self.app.tables.changelog_topics
        sources = [tp for tp in self.assignment() if tp.topic not in changelogs]
        committed = await self._answer(self._thread.begin, sources)
        if committed is None:
            raise Fenced("The group has given the partitions of this worker to others")
        if self.app.exactly_once:
            self.positions = positions_ahead(committed)
        return committed

    async def beginnings(self, partitions: Collection[TP]) -> dict[TP, int]:
        """Return the offset of the first record that there is; waits for the broker."""
        return dict(await self._answer(self.earliest_offsets, *partitions))

    async def _answer(self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        while True:
            try:
                return await ask(*args)
            except KafkaError as exc:
                self.log.warning("It isn't known where to begin, trying again: %r", exc)
                await asyncio.sleep(BEGIN_INTERVAL)

    def last_committed(self) -> dict[TP, int]:
        """Return the offsets that the group has of what is assigned, or was when it was revoked."""
        offsets = {tp: self.committed_offset(tp) for tp in self.assignment()}
        known = {tp: offset for tp, offset in offsets.items() if offset is not None}
        return known or self._last_committed

    async def is_member(self) -> bool:
        """False when the group has given the partitions to others, as after a long freeze."""
        for tp, offset in self.last_committed().items():
            return await self._thread.is_member({tp: offset})
        return True

    def committed_offset(self, tp: TP) -> int | None:
        offset: int | None = self._committed_offset[tp]
        return offset

    @Service.task
    async def _early_checkpoints(self) -> None:
        """Commit before the time when the checkpoint asks for it."""
        wanted = self.app.checkpoint.wanted
        while not self.should_stop:
            await self.wait(wanted)
            if not self.should_stop:
                wanted.clear()
                await self.commit()

    @Service.task
    async def _topic_check(self) -> None:
        """Say which topics that are read or sent to don't exist, and notice when they do."""
        told: set[str] = set()
        while not self.should_stop:
            await self.sleep(TOPIC_CHECK_INTERVAL)
            read = {name for channel in self.app.topics for name in channel.topics}
            written = self.app.producer.awaited_topics
            if self.should_stop or not read | written or self._thread._consumer is None:
                continue
            missing = await self._thread.missing_topics(read | written)
            self.missing_outputs = missing - read
            for topic in sorted(missing - told):
                self.log.error(
                    "Topic %r doesn't exist at the broker; %s. Create it (for example: "
                    "kafka-topics.sh --create --topic %s --partitions %d --bootstrap-server %s), "
                    "or check its name.",
                    topic,
                    "agents that read it wait" if topic in read else "what is sent to it waits",
                    topic,
                    self.app.conf.topic_partitions,
                    self._broker,
                )
            for topic in sorted(told - missing):
                self.log.info("Topic %r is there now", topic)
            told = missing

    @property
    def _broker(self) -> str:
        url = self.transport.url[0]
        return f"{url.host}:{url.port or self.transport.default_port}"
