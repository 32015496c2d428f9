"""The checkpoint: what a worker's guarantees come from.

One object a worker. Sinks, tables, producer and consumer know its small protocol and
nothing of each other.

At least once: results are durable before the offsets of their records are committed.
Exactly once: outputs, changelogs and offsets are one Kafka transaction, and the group
refuses it from a worker that has lost its partitions (KIP-447). Transactional sinks keep
offsets with their results, under both; they are written before anything is committed in
Kafka, so that what is processed again after a crash is known to them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from streamproc.claims import Claims
from streamproc.errors import (
    Fenced,
    ProducerError,
    SinkError,
    StreamprocError,
    TransactionAborted,
)
from streamproc.gate import Gate

logger = logging.getLogger(__name__)

#: Changed entries of tables, in memory, at which a checkpoint comes before its time, and
#: at which streams wait for it.
EARLY_ENTRIES, MOST_ENTRIES = 100_000, 200_000
#: Batches between two looks at how many there are.
BATCHES_PER_LOOK = 8


class Flushable(Protocol):
    """Something that keeps results in a buffer until it is told to make them durable."""

    async def flush(self) -> None:
        """Return when everything accepted so far is durable."""


class Writer(Protocol):
    """A synchronous writer that keeps results in a buffer."""

    def flush(self) -> None:
        """Return when everything written so far is durable."""


class WaitingWriters(set[Writer]):
    """Writers that hold records: a synchronous reader flushes them before it commits.

    ``stalled`` is True once a writer could not write: the reader waits for it before it
    gives out the next record.
    """

    stalled = False


waiting_writers = WaitingWriters()


class Taken(NamedTuple):
    """What a checkpoint is about: source offsets, changes of tables, positions of readers."""

    offsets: dict[Any, int]
    flushes: list[Any]
    positions: dict[int, dict[str, int]]


class Checkpoint:
    """The commit cycle of a worker; see :meth:`commit`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.gate = Gate()
        #: Set when a checkpoint should come before its time.
        self.wanted = asyncio.Event()
        #: What was done since the last checkpoint counts for nothing: nothing of it may be
        #: committed until the worker has gone back.
        self.is_void = False
        self._batches = 0
        self._records = 0
        self._bytes = 0
        self._abandoned = False
        self._participants: list[Flushable] = []
        #: The transactional sinks, and what they have.
        self.claims = Claims(app)
        self._going_back: asyncio.Future[None] | None = None
        # Held while a transaction is ended, which streams do not wait for.
        self._ending = asyncio.Lock()

    def add(self, participant: Flushable) -> None:
        """Flush ``participant`` in every checkpoint, before offsets are committed."""
        if participant not in self._participants:
            self._participants.append(participant)

    async def add_transactional(self, sink: Any) -> None:
        """Commit ``sink`` in every checkpoint; it claims the partitions there are."""
        claims, app = self.claims, self.app
        if sink not in claims.sinks:
            claims.sinks.append(sink)
            partitions = app.consumer.assignment()
            if partitions and not app.rebalancing:
                claims.note(await app.consumer.committed(partitions))
                if await claims.claim_for(sink, partitions):
                    await self.start_over(SinkError(f"{sink!r} has fewer results than there were"))
                elif claims.has_later_results(sink):
                    # The batch in hand may go over the offset up to which it has them.
                    await self.start_over(
                        SinkError(f"{sink!r} has results of records that are processed again")
                    )

    # -- when

    def on_read(self, records: int, size: int) -> None:
        """Records were read: see that a checkpoint comes after so many, or so many bytes."""
        self._records += records
        self._bytes += size
        app = self.app
        if self._records >= app.checkpoint_records or self._bytes >= app.checkpoint_bytes:
            self.wanted.set()

    def on_progress(self) -> None:
        """A batch is done: see that changes of tables do not grow without bound."""
        self._batches += 1
        if self._batches % BATCHES_PER_LOOK == 0:
            self._bound_changes()

    def _bound_changes(self) -> None:
        changes = self.app.tables.dirty_count if self.app.tables else 0
        sinks_are_full = any(sink.is_full for sink in self.claims.sinks)
        if changes > EARLY_ENTRIES or sinks_are_full:
            self.wanted.set()
        full = changes > MOST_ENTRIES or sinks_are_full
        if full != self.gate.full:
            self.gate.set_full(full)

    # -- giving up

    async def abandon(self, error: BaseException) -> None:
        """Stop the worker and commit nothing more: its state may hold a part of a batch.

        A restart goes on from the last checkpoint.
        """
        if self._abandoned:
            return  # it stops already
        self._abandoned = True
        logger.error("The worker stops and goes back to its last checkpoint: %s", error)
        await self.app.crash(error)

    @property
    def is_closed(self) -> bool:
        """True when the worker commits nothing more."""
        return self._abandoned

    def close(self) -> None:
        """Begin no other checkpoint: the worker stops."""
        self._abandoned = True

    async def halt(self, error: BaseException) -> None:
        """Abandon, and never return: the task that calls it ends with the worker."""
        await self.abandon(error)
        await asyncio.Event().wait()

    async def start_over(self, error: BaseException, *, from_changelogs: bool = False) -> None:
        """Go back to the last checkpoint without leaving the process, and go on from there.

        Returns at once. Streams end their records in hand, of which nothing counts.

        Args:
            error: Why.
            from_changelogs: It isn't known which checkpoint is the last one: rebalance, which
                reads of the changelogs what tables don't have.
        """
        if self.is_going_back:
            return
        self.make_void()
        is_fenced = isinstance(error, Fenced) and not isinstance(error, TransactionAborted)
        if is_fenced:
            logger.warning("%s. What was done since the last checkpoint is left to others", error)
        else:
            logger.warning("Going back to the last checkpoint: %s", error)
        self._going_back = asyncio.ensure_future(self._go_back(from_changelogs or is_fenced))

    @property
    def is_going_back(self) -> bool:
        """True while the worker goes back to its last checkpoint."""
        return self._going_back is not None and not self._going_back.done()

    async def leave_to_rebalance(self) -> None:
        """The group rebalances: its next assignment begins at the checkpoint, however far
        going back to it is."""
        if self._going_back is not None and self.is_going_back:
            self._going_back.cancel()
            await asyncio.wait([self._going_back])

    def make_void(self) -> None:
        """Let nothing count that was done since the last checkpoint."""
        self.is_void = True
        self.app.consumer.stop_flow()
        self.app.topics.close_progress()

    async def _go_back(self, rejoins: bool) -> None:
        app = self.app
        try:
            if app.rebalancing:
                # The new assignment begins at the checkpoint, unless it has begun already.
                await app.tables.recovery.completed.wait()
                if not self.is_void:
                    return
            if rejoins:
                await app.consumer.rejoin()
                return
            generation = app.consumer_generation_id
            # What waits for a commit and is cancelled must not cancel the commit.
            await asyncio.shield(app.consumer.maybe_wait_for_commit_to_finish())
            async with self._standstill():
                if app.rebalancing or generation != app.consumer_generation_id:
                    return
                await self._clear()
                await app.consumer.rewind()
                app.consumer.resume_flow()
        except Fenced:
            await app.consumer.rejoin()
        except Exception as exc:
            logger.exception("The last checkpoint can't be gone back to: %r", exc)
            await self.abandon(exc)

    async def clear(self) -> None:
        """Forget what was done since the last checkpoint, if it is void.

        Streams end their records in hand first: what they did and sent later would count.
        """
        if self.is_void:
            async with self._standstill():
                await self._clear()

    @asynccontextmanager
    async def _standstill(self) -> AsyncIterator[None]:
        """No stream has a record in hand, and no transaction is being ended."""
        async with self._ending, self.gate.hold(patiently=True):
            yield

    async def _clear(self) -> None:
        if not self.is_void:
            return
        if self.app.exactly_once:
            await self.app.producer.abort_transaction()
            self.app.dead_letters.forget()
        for sink in self.claims.sinks:
            sink.discard()
        self.app.tables.roll_back()
        self.is_void = False

    # -- the cycle

    async def commit(self) -> bool:
        """Make results durable, then commit the source offsets they came from.

        1. Note the offset up to which agents are done, and take what tables and
           transactional sinks have got. Streams wait between two records for this moment;
           partitions in which an operator has a batch in hand for longer are left to the
           next checkpoint.
        2. Flush the sinks.
        3. Publish messages that Faust attached to those offsets.
        4. Flush the producer: every record sent is acknowledged.
        5. Commit the transactional sinks, with the offsets.
        6. Write the tables: to the changelogs, and when those have it to the stores. Not if
           the group has given the partitions to others: their state must not be mixed up.
        7. Commit the offsets noted in step 1.

        With exactly once, step 7 ends the transaction that holds all that was sent, and stores
        are written after it. Streams go on meanwhile, but what they send waits for the next
        transaction: it would be part of this one, and the offsets of its records not.

        A failure leaves the offsets where they were, so that a restart processes again
        what isn't durable. Tables are written after all results, with the offsets they
        go up to: what a restart finds there need not be processed again. Returns True
        when offsets were committed.
        """
        if self._abandoned or self.is_void or not self.app.consumer.is_positioned:
            return False
        self._records = self._bytes = 0
        try:
            if self.app.exactly_once:
                return await self._end_transaction()
            taken = await self._taken()
            return taken is not None and await self._commit_at_least_once(taken)
        except Fenced as exc:
            await self.start_over(exc)
        except ProducerError as exc:
            if self.app.exactly_once:
                await self.start_over(exc, from_changelogs=True)
            else:
                logger.error("Results are not durable")
                await self.abandon(exc)
        except SinkError as exc:
            logger.error("Results are not durable")
            await self.abandon(exc)
        except StreamprocError as exc:
            logger.error("The tables can't be written")
            await self.abandon(exc)
        return False

    async def _taken(self) -> Taken | None:
        if not (self.app.tables or self.claims.sinks):
            return self._take()
        async with self.gate.hold(patiently=self.is_exact):
            # What was waited for may have failed with a half of its changes made.
            return None if self._abandoned or self.is_void else self._take()

    @property
    def is_exact(self) -> bool:
        """True when results and offsets must be of the very same records."""
        return bool(self.app.exactly_once or self.claims.sinks)

    def _take(self) -> Taken:
        app = self.app
        left_out = set(self.gate.in_hand.values())
        offsets = self._offsets()
        if left_out:
            offsets = {tp: each for tp, each in offsets.items() if tp.partition not in left_out}
        positions = app.topics.positions()
        flushes = app.tables.take(positions, left_out) if app.tables else []
        for sink in self.claims.sinks:
            sink.take(left_out)
        kept = {part: each for part, each in positions.items() if part not in left_out}
        return Taken(offsets, flushes, kept)

    async def _flush(self, taken: Taken) -> None:
        app = self.app
        await asyncio.gather(*(each.flush() for each in self._participants))
        await app.consumer._handle_attached(taken.offsets)
        await app.producer.flush()
        for sink in self.claims.sinks:
            await sink.commit(taken.positions)

    async def _commit_at_least_once(self, taken: Taken) -> bool:
        app = self.app
        if not (taken.offsets or taken.flushes or self._has_results):
            return False
        await self._flush(taken)
        if taken.flushes:
            if not await app.consumer.is_member():
                raise Fenced("The group has given the partitions of this worker to others")
            await app.tables.write(taken.flushes)
        self._bound_changes()
        return bool(taken.offsets and await app.consumer.commit_offsets(taken.offsets))

    async def _end_transaction(self) -> bool:
        async with self._ending, AsyncExitStack() as stack:
            async with self.gate.hold(patiently=True):
                if self._abandoned or self.is_void:
                    return False
                await stack.enter_async_context(self.app.producer.alone())
                taken = self._take()
            return await self._commit_exactly_once(taken)

    async def _commit_exactly_once(self, taken: Taken) -> bool:
        app = self.app
        if not (taken.offsets or taken.flushes or self._has_results or app.producer.has_sent):
            return False
        member = app.consumer.member
        await app.dead_letters.send_held(taken.offsets)
        await self._flush(taken)
        sent = await app.tables.send(taken.flushes)
        await app.producer.flush()
        # What was sent without any record (by timers) is fenced by offsets that don't change.
        offsets = {**app.consumer.last_committed(), **taken.offsets}
        positions = {**app.consumer.positions, **taken.positions}
        await app.producer.end_transaction(self.claims.noted(offsets, positions), member)
        app.consumer.positions = positions
        app.tables.keep(sent)
        self._bound_changes()
        app.consumer.on_committed(taken.offsets)
        return bool(taken.offsets)

    @property
    def _has_results(self) -> bool:
        return any(sink.has_taken for sink in self.claims.sinks)

    def _offsets(self) -> dict[Any, int]:
        committed = self.app.consumer.committed_offset
        return {
            tp: offset
            for tp, offset in self.app.topics.committable().items()
            if offset > (committed(tp) or 0)
        }
