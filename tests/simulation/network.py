"""What a worker has of the broker: slow, and gone when the worker is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.errors import KafkaConnectionError, ProducerFenced
from faust.types import TP
from mode import Service

from streamproc.errors import Fenced, TransactionAborted
from streamproc.kafka.committed import Committed
from streamproc.kafka.consumer import Consumer
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.thread import FETCH_TIMEOUT
from streamproc.kafka.transactions import GroupMember
from streamproc.testing.broker import Offsets
from streamproc.testing.transport import (
    Connection,
    MemoryChangelogs,
    MemoryClient,
    MemoryConsumer,
    MemoryGroup,
    MemoryTransport,
    _tell_assignor,
)
from tests.simulation.broker import HEARTBEAT


class SimConnection(Connection):
    """One life of a worker; each use of the broker is a step at which it may crash."""

    def __init__(self, world: Any, worker: Any) -> None:
        super().__init__(world.broker)
        self.world = world
        self.worker = worker

    @property
    def broker(self) -> Any:
        self.step("broker")
        return super().broker

    def step(self, what: str) -> None:
        """Crash here, if it is the worker's time."""
        if not self._is_cut:
            self.worker.count_step(what)
        if self._is_cut:
            raise asyncio.CancelledError

    async def wait(self) -> None:
        """Let some time pass, as for a request or its answer."""
        self.step("wait")
        await asyncio.sleep(self.world.latency())

    def new_transport(self, app: Any) -> MemoryTransport:
        return SimTransport(app.conf.broker_consumer, app, self)

    def new_group(self, consumer: MemoryConsumer, **kwargs: Any) -> MemoryGroup:
        return SimGroup(consumer, self, **kwargs)

    def new_client(self, transactional_id: str | None = None, timeout: float = 0.0) -> MemoryClient:
        return SimClient(self, transactional_id, timeout)

    def new_changelogs(self) -> MemoryChangelogs:
        return SimChangelogs(self)


class SimConsumer(MemoryConsumer):
    """The worker's consumer, with what the test driver has replaced put back."""

    _drain_once = Consumer._drain_once

    @Service.task
    async def _commit_handler(self) -> None:
        while not self.should_stop:
            await self.sleep(self.commit_interval)
            if not self.should_stop:
                await self.commit()

    async def force_commit(self, *args: Any, **kwargs: Any) -> bool:
        world = self.transport.connection.world
        world.trace("checkpoint begins")
        done = await super().force_commit(*args, **kwargs)
        self.transport.connection.worker.writes_tables = False
        world.trace("checkpoint ends", done)
        return done

    async def is_member(self) -> bool:
        answer = await super().is_member()
        self.transport.connection.worker.writes_tables = answer
        return answer

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self.transport.connection.world.trace("revoked")
        await super().on_partitions_revoked(revoked)


class SimTransport(MemoryTransport):
    Consumer = SimConsumer


class SimChangelogs(MemoryChangelogs):
    async def fetch(self, timeout: float = 0.5) -> list[RawBatch]:
        batches = await super().fetch(timeout)
        if any(
            position < self._connection.broker.end_of(tp, committed=True)
            for tp, position in self._positions.items()
        ):
            self._wake.set()
        await self._connection.wait()
        return batches


class SimGroup(MemoryGroup):
    """A member of the group, with heartbeats."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._nudged = asyncio.Event()
        self._generation = -1
        self._membership: Any = None

    async def on_stop(self) -> None:
        if self._membership is not None:
            self._membership.cancel()
        if self._member_id:
            self.connection.broker.leave(self._member_id)
        await super().on_stop()

    @property
    def member(self) -> GroupMember:
        return GroupMember(self.app.conf.id, self._generation, self._member_id)

    async def subscribe(self, topics: Collection[str]) -> None:
        self._subscription = set(topics)
        if self._membership is None:
            self._membership = self.add_future(self._be_member())
        else:
            self._nudged.set()

    async def rejoin(self) -> None:
        self._nudged.set()

    @property
    def is_settled(self) -> bool:
        return not self.app.rebalancing

    async def _be_member(self) -> None:
        while True:
            await self.rebalance()
            while not self._nudged.is_set():
                try:
                    await asyncio.wait_for(self._nudged.wait(), HEARTBEAT)
                except asyncio.TimeoutError:
                    await self.connection.wait()
                    broker = self.connection.broker
                    answer = broker.heartbeat(self._member_id, self._generation)
                    if answer == "unknown":
                        self._generation, self._member_id = -1, ""
                    if answer:
                        break

    async def rebalance(self) -> None:
        app, consumer = self.app, self.consumer
        self._nudged.clear()
        app.on_rebalance_start()
        await consumer.on_partitions_revoked(set(self._assignment))
        await self.connection.wait()
        broker = self.connection.broker
        self._member_id = broker.enter(self._member_id, self._subscription)
        self._generation, assigned = await broker.joined(self._member_id)
        await self.connection.wait()
        _tell_assignor(app.assignor, assigned)
        self._assignment = set(assigned)
        self._positions = {}
        app.consumer_generation_id = self._generation
        await consumer.on_partitions_assigned(set(assigned), self._generation)

    # -- requests

    async def fetch(self, partitions: Collection[TP]) -> tuple[int, list[RawBatch]]:
        await self.connection.wait()
        batches = self._take(partitions)
        if not batches:
            self._wake.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), FETCH_TIMEOUT)
            batches = self._take(partitions)
        generation = self.app.consumer_generation_id
        await self.connection.wait()
        return generation, batches

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        await self.connection.wait()
        return await super().seek_to_committed()

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        await self.connection.wait()
        done = await super().commit(offsets)
        await self.connection.wait()
        return done

    async def committed(self, partitions: Collection[TP]) -> dict[TP, Committed]:
        await self.connection.wait()
        return await super().committed(partitions)

    async def begin(self, partitions: Collection[TP]) -> dict[TP, Committed] | None:
        await self.connection.wait()
        answer = await super().begin(partitions)
        await self.connection.wait()
        return answer

    async def is_member(self, known: Mapping[TP, int]) -> bool:
        await self.connection.wait()
        answer = await super().is_member(known)
        await self.connection.wait()
        return answer


class SimClient(MemoryClient):
    """Sends in the background, in order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._unsent: asyncio.Queue[Any] = asyncio.Queue()
        self._unanswered: dict[asyncio.Future[Any], None] = {}
        #: What its transaction has, as aiokafka's producer is told to note.
        self.written: set[TP] = set()
        self.group: GroupMember | None = None
        self._sender: Any = None

    @property
    def world(self) -> Any:
        return self.connection.world

    async def start(self) -> None:
        await self.connection.wait()
        await self._until_ended()
        if self._transactional_id is not None:
            self.connection.worker.producers.add(self._transactional_id)
        await super().start()
        await self._until_ended()
        self._sender = asyncio.ensure_future(self._send_all())

    async def _until_ended(self) -> None:
        name = self._transactional_id
        while True:
            if name is None or not self.connection.broker.is_ending(name):
                return
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        await self._unsent.join()
        if self._sender is not None:
            self._sender.cancel()

    async def drop(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        for future in self._unanswered:
            if not future.done():
                future.set_exception(TransactionAborted("The transaction was aborted"))
                future.exception()

    def _submit(
        self, topic: str, partition: int, records: list[tuple[Any, ...]]
    ) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._unanswered[future] = None
        self.written.add(TP(topic, partition))
        self._unsent.put_nowait((topic, partition, records, future))
        return future

    async def _send_all(self) -> None:
        while True:
            topic, partition, records, future = await self._unsent.get()
            await self.connection.wait()
            await self._until_ended()
            answer = asyncio.get_running_loop().create_future()
            self._deliver(topic, partition, records, answer)
            if self._transactional_id is None and self.world.happens(0.02):
                # Its answer was lost, so it was sent again.
                answer = asyncio.get_running_loop().create_future()
                self._deliver(topic, partition, records, answer)
            await self.connection.wait()
            if not future.done():
                if answer.exception() is not None:
                    future.set_exception(answer.exception())
                else:
                    future.set_result(answer.result())
            self._unanswered.pop(future)
            self._unsent.task_done()

    async def end(self, offsets: Offsets, member: GroupMember) -> None:
        await self._unsent.join()
        await self._until_ended()
        await self.connection.wait()
        if offsets:
            if member.generation < 0:
                raise Fenced(f"Group {member!s} has no such member any more")
            self.ensure_begun()
            self.group = member
            self._try(self.connection.broker.add_offsets, offsets, member)
            await self.connection.wait()
        if self.has_begun:
            self.is_ending = True
            self._try(self.connection.broker.end, commit=True)
            if self.world.happens(0.05):
                # It was sent twice, and the first of them is on its way yet.
                self.is_in_doubt = True
                self.world.later(self.world.rng.random() * 3, self._come_late)
            await self.connection.wait()
            if self.world.happens(0.02):
                self.world.trace("answer lost")
                self._error = KafkaConnectionError("the answer was lost")
                raise self._error
            self._complete()

    def _come_late(self) -> None:
        self.world.trace("late end")
        with suppress(ProducerFenced):
            self.world.broker.end(self._session, commit=True)

    def _complete(self) -> None:
        self.written.clear()
        self.has_begun = self.is_ending = False
        self.group = None

    async def mark_aborted(self, partitions: Collection[TP], group: GroupMember | None) -> None:
        self.ensure_begun()
        self.written.update(partitions)
        await self.connection.wait()
        self._try(self.connection.broker.add_partitions, partitions, group)
        await self.abort_transaction()

    async def abort_transaction(self) -> None:
        await self.connection.wait()
        await super().abort_transaction()
        self._complete()
