"""The consumer's own thread: group membership, fetching and commits, beside the agents.

aiokafka lives in it, so that heartbeats go on while agents compute. Its methods are called
from the worker's loop and run in the thread's. Checked against faust-streaming 0.15.3 and
aiokafka 0.14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from time import monotonic
from typing import Any

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
)
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streamproc.kafka.committed import (
    Committed,
    read_committed_offset,
    with_notes,
)
from streamproc.kafka.connect import start_when_reachable
from streamproc.kafka.fetch import RawBatch, end_fetches, fetch_batches, follow_leaders
from streamproc.kafka.membership import Heartbeats, Span, commit, has_leader, span_of
from streamproc.kafka.transactions import GroupMember, fetch_stable_offsets

#: Longest wait of one fetch call, in seconds; a wake-up ends it early.
FETCH_TIMEOUT = 0.5

#: Longest wait for the first fetch of partitions whose end is asked for, in seconds.
HIGHWATER_TIMEOUT = 2.0

#: Longest time, in seconds, that a commit is tried; and the last one of a worker that stops.
COMMIT_TIMEOUT, LAST_COMMIT_TIMEOUT = 30.0, 4.0

#: What a commit raises whose worker isn't, or soon won't be, the partitions' owner.
REFUSALS = (
    CommitFailedError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The thread that talks to Kafka, so that heartbeats go on while agents compute."""

    _wake: asyncio.Event
    _heartbeats: Heartbeats | None = None

    async def on_start(self) -> None:
        self._wake = asyncio.Event()
        self.time_started = monotonic()
        self._consumer = await start_when_reachable(
            lambda: self._create_consumer(loop=self.thread_loop),
            service=self,
            what="Consumer",
            address=self.transport.url,
        )
        if self._consumer is not None:
            follow_leaders(self._consumer._fetcher)
            end_fetches(self._consumer._fetcher)
        if self._consumer is not None and not self.app.client_only:
            self._heartbeats = Heartbeats(self._consumer._coordinator)
        if self.app.exactly_once and self._consumer is not None:
            coordinator = self._consumer._coordinator
            coordinator._do_fetch_commit_offsets = partial(fetch_stable_offsets, coordinator)

    @property
    def member(self) -> GroupMember:
        """The worker as the group knows it now."""
        coordinator = self._ensure_consumer()._coordinator
        return GroupMember(
            coordinator.group_id,
            coordinator.generation,
            coordinator.member_id,
            self.app.conf.consumer_group_instance_id,
        )

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        if conf.broker_session_timeout > conf.broker_request_timeout:
            raise ImproperlyConfigured(
                f"broker_session_timeout={conf.broker_session_timeout} cannot be greater than "
                f"broker_request_timeout={conf.broker_request_timeout}"
            )
        # Recovery of tables needs Faust's assignor to tell active from standby partitions.
        needs_faust = conf.table_standby_replicas > 0 or bool(self.app.tables.changelog_topics)
        self._assignor = self.app.assignor if needs_faust else RoundRobinPartitionAssignor
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset=conf.consumer_auto_offset_reset,
            max_poll_interval_ms=_ms(conf.broker_max_poll_interval or 0),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=_ms(self.app.fetch_max_wait),
            request_timeout_ms=_ms(conf.broker_request_timeout),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=_ms(conf.broker_session_timeout),
            rebalance_timeout_ms=_ms(conf.broker_rebalance_timeout),
            heartbeat_interval_ms=_ms(conf.broker_heartbeat_interval),
            isolation_level=(
                "read_committed"
                if self.app.read_committed or self.app.exactly_once
                else "read_uncommitted"
            ),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )

    async def fetch(self, partitions: Collection[TP]) -> tuple[int, list[RawBatch]]:
        """Fetch batches of ``partitions`` (called from the worker's own loop).

        Returns them with the group's generation at the moment they were taken.
        """
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._fetch(partitions), self.thread_loop)
        )

    async def _fetch(self, partitions: Collection[TP]) -> tuple[int, list[RawBatch]]:
        consumer = self._ensure_consumer()
        if consumer._closed or consumer._fetcher._closed:
            raise ConsumerStoppedError
        consumer._coordinator.check_errors()
        with consumer._subscription.fetch_context():
            batches = await fetch_batches(
                consumer._fetcher,
                partitions,
                timeout=FETCH_TIMEOUT,
                wake=self._wake,
                may_take=lambda: self.consumer.flow_active,
            )
        return self.app.consumer_generation_id, batches

    def wake_fetch(self) -> None:
        """End a waiting fetch, since the partitions to ask for have changed."""
        self.thread_loop.call_soon_threadsafe(self._wake.set)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; False when it may be tried again or the partitions are gone."""
        assignment = self.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in assignment}
        wanted = self.app.checkpoint.claims.noted(mine, self.consumer.positions)
        try:
            await commit(self._ensure_consumer(), wanted, self._commit_timeout)
        except REFUSALS as exc:
            self.log.info("Offsets were not committed, the group is rebalancing: %s", exc)
            return False
        except (KafkaError, asyncio.TimeoutError) as exc:
            self.log.warning("Offsets were not committed, will try again: %r", exc)
            return False
        now = monotonic()
        self.tp_last_committed_at.update(dict.fromkeys(offsets, now))
        return True

    @property
    def _commit_timeout(self) -> float:
        return LAST_COMMIT_TIMEOUT if self.app.should_stop else COMMIT_TIMEOUT

    async def _highwaters(self, partitions: list[TP]) -> Mapping[TP, int]:
        """Return where partitions end, by ListOffsets and by what was fetched of them.

        ListOffsets of the embedded broker forgets all but the first record of the last batch.
        """
        consumer = self._ensure_consumer()
        listed = await consumer.end_offsets(partitions)
        deadline = monotonic() + HIGHWATER_TIMEOUT
        while any(consumer.highwater(tp) is None for tp in partitions):
            if monotonic() > deadline:
                break
            await asyncio.sleep(0.01)
        return {tp: max(listed[tp], consumer.highwater(tp) or 0) for tp in partitions}

    async def missing_topics(self, topics: Collection[str]) -> set[str]:
        """Return those of ``topics`` that the broker doesn't have, asking it anew."""
        return set(await self.call_thread(self._missing_topics, topics))

    def is_at_end(self, tp: TP) -> bool:
        """True when all that the broker has of an assigned partition was fetched."""
        assignment = self._ensure_consumer()._subscription.subscription.assignment
        state = assignment and assignment.state_value(driver.ensure_aiokafka_TP(tp))
        if not state or not state.has_valid_position or state.highwater is None:
            return False
        return bool(state.position >= state.highwater)

    @property
    def heartbeat_age(self) -> float | None:
        """Seconds since the group confirmed this worker; None: it is no member."""
        return self._heartbeats.age if self._heartbeats else None

    def span(self, tp: TP) -> Span | None:
        """Where an assigned partition is read, and where it ends; None: not known yet."""
        return span_of(self._consumer, tp) if self._consumer else None

    def has_leader(self, tp: TP) -> bool:
        """True when there is a connection to the partition's leader."""
        return self._consumer is not None and has_leader(self._consumer, tp)

    async def behind(self, topic: str, partitions: Collection[int]) -> set[int]:
        """Return the partitions that the group has not yet committed to their ends."""
        return set(await self.call_thread(self._behind, topic, partitions))

    async def _behind(self, topic: str, partitions: Collection[int]) -> set[int]:
        consumer = self._ensure_consumer()
        wanted = [driver.ensure_aiokafka_TP(TP(topic, each)) for each in partitions]
        committed = await consumer._coordinator.fetch_committed_offsets(wanted)
        done = {tp: found.offset for tp, found in committed.items() if found.offset >= 0}
        ends = await consumer.end_offsets(wanted)
        begun = [tp for tp in wanted if tp not in done]
        if begun:
            from_end = self.app.conf.consumer_auto_offset_reset == "latest"
            done |= ends if from_end else await consumer.beginning_offsets(begun)
        return {tp.partition for tp in wanted if done[tp] < ends[tp]}

    async def _committed(self, partitions: Collection[TP]) -> dict[TP, Committed]:
        coordinator = self._ensure_consumer()._coordinator
        wanted = [driver.ensure_aiokafka_TP(tp) for tp in partitions]
        found = await coordinator.fetch_committed_offsets(wanted)
        return {
            TP(*tp): read_committed_offset(each) for tp, each in found.items() if each.offset >= 0
        }

    async def committed(self, partitions: Collection[TP]) -> dict[TP, Committed]:
        """Return what the group has committed of ``partitions``."""
        return dict(await self.call_thread(self._committed, partitions))

    async def begin(self, partitions: Collection[TP]) -> dict[TP, Committed] | None:
        """Commit where reading begins of those that the group has no offset of.

        Returns what it has then, and None when it refuses this.

        Raises:
            KafkaError: The broker didn't answer, or not with offsets.
        """
        committed: dict[TP, Committed] | None = await self.call_thread(self._begin, partitions)
        return committed

    async def _begin(self, partitions: Collection[TP]) -> dict[TP, Committed] | None:
        consumer = self._ensure_consumer()
        known = await self._committed(partitions)
        new = [driver.ensure_aiokafka_TP(tp) for tp in partitions if tp not in known]
        if not new:
            return known
        from_end = self.app.conf.consumer_auto_offset_reset == "latest"
        starts = await (consumer.end_offsets if from_end else consumer.beginning_offsets)(new)
        try:
            await commit(consumer, with_notes(starts, {}), self._commit_timeout)
        except REFUSALS:
            return None
        except asyncio.TimeoutError as exc:
            raise RequestTimedOutError from exc
        return known | {TP(*tp): Committed(offset) for tp, offset in starts.items()}

    async def is_member(self, known: Mapping[TP, int]) -> bool:
        """Ask the group, by committing ``known`` offsets again, whether it still counts us.

        True as well when the broker doesn't answer.
        """
        return bool(await self.call_thread(self._is_member, known))

    async def _is_member(self, known: Mapping[TP, int]) -> bool:
        offsets = self.app.checkpoint.claims.noted(known, self.consumer.positions)
        try:
            await commit(self._ensure_consumer(), offsets, self._commit_timeout)
        except REFUSALS:
            return False
        except (KafkaError, asyncio.TimeoutError):
            return True
        return True

    def topic_partitions(self, topic: str) -> int | None:
        """Return the number of partitions of a topic, or None if it isn't known.

        aiokafka's snapshot, which Faust asks, is empty in a static member that came back.
        """
        if self._consumer is None:
            return None
        partitions = self._consumer._client.cluster.partitions_for_topic(topic)
        return len(partitions) if partitions else None

    async def rejoin(self) -> None:
        """Ask the group for a rebalance, with what topics there are now."""
        await self.call_thread(self._rejoin)

    async def _rejoin(self) -> None:
        consumer = self._ensure_consumer()
        await consumer._client.force_metadata_update()
        consumer._coordinator.request_rejoin()

    async def _missing_topics(self, topics: Collection[str]) -> set[str]:
        client = self._ensure_consumer()._client
        missing = {each for each in topics if not client.cluster.partitions_for_topic(each)}
        if missing:
            await client.force_metadata_update()
        return {each for each in missing if not client.cluster.partitions_for_topic(each)}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
