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
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from streamproc.errors import (
    Fenced,
    ProducerError,
    SinkBehind,
    SinkError,
    StreamprocError,
    TransactionAborted,
)
from streamproc.gate import Gate
from streamproc.kafka.committed import (
    Committed,
    Notes,
    OffsetAndMetadata,
    Positions,
    TopicPartition,
    ahead_of,
    with_notes,
)

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
        self._transactional: list[Any] = []
        #: By source partition, the sinks that have results of it, as the group knew them last.
        self._known: dict[Any, frozenset[str]] = {}
        self._going_back: asyncio.Future[None] | None = None
        # Held while a transaction is ended, which streams do not wait for.
        self._ending = asyncio.Lock()

    def add(self, participant: Flushable) -> None:
        """Flush ``participant`` in every checkpoint, before offsets are committed."""
        if participant not in self._participants:
            self._participants.append(participant)

    async def add_transactional(self, sink: Any) -> None:
        """Commit ``sink`` in every checkpoint; it claims the partitions there are."""
        if sink not in self._transactional:
            self._transactional.append(sink)
            partitions = self.app.consumer.assignment()
            if partitions and not self.app.rebalancing:
                self.note(await self.app.consumer.committed(partitions))
                if await self._claim(sink, partitions):
                    await self.start_over(SinkError(f"{sink!r} has fewer results than there were"))
                elif self._has_later_results(sink):
                    # The batch in hand may go over the offset up to which it has them.
                    await self.start_over(
                        SinkError(f"{sink!r} has results of records that are processed again")
                    )

    def _has_later_results(self, sink: Any) -> bool:
        return any(
            sink.claimed.get(each.tp.partition, {}).get(each.reader, 0) > (each.committable() or 0)
            for each in self.app.topics.progress()
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
        sinks_are_full = any(sink.is_full for sink in self._transactional)
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
        for sink in self._transactional:
            sink.discard()
        self.app.tables.roll_back()
        self.is_void = False

    # -- at an assignment

    async def claim(self, partitions: Collection[Any]) -> Mapping[Any, int]:
        """Claim the results of ``partitions`` in all transactional sinks.

        Returns the offsets from which to read, where a sink is behind the group: its server
        was restored from an older copy.

        Raises:
            SinkBehind: It is, and what is missing can't be made again.
            Fenced: The group has given the partitions to others.
        """
        behind: dict[Any, int] = {}
        if self._transactional:
            self.note(await self.app.consumer.committed(partitions))
        for sink in self._transactional:
            for tp, offset in (await self._claim(sink, partitions)).items():
                behind[tp] = min(offset, behind.get(tp, offset))
        if self._transactional and not await self.app.consumer.is_member():
            # It may have come late, after that of an owner who goes on from other state. Who
            # is a member now had it first: later owners claim after it.
            raise Fenced("The group has given the partitions of this worker to others")
        return behind

    async def _claim(self, sink: Any, partitions: Collection[Any]) -> dict[Any, int]:
        app = self.app
        sources = {tp for tp in partitions if tp.topic not in app.tables.changelog_topics}
        claimed = await sink.claim(sources)
        app.topics.cut_at(claimed)
        behind: dict[Any, int] = {}
        lost = set()
        for progress in app.topics.progress():
            tp, reader = progress.tp, progress.reader
            # Not of readers that were renamed: their offsets stay where they were.
            offset = claimed.get(tp.partition, {}).get(reader)
            committed = app.consumer.committed_offset(tp) or 0
            passed = max(committed, app.consumer.positions.get(tp.partition, {}).get(reader, 0))
            if offset is not None and offset < passed:
                behind[tp] = min(offset, committed, behind.get(tp, offset))
            elif sink.results_id in self._known.get(tp, ()) and not _has_results(sink, tp):
                lost.add(tp)
        if lost:
            behind |= await app.consumer.beginnings(lost)
        return _by_policy(app, sink, behind) if behind else {}

    def note(self, committed: Mapping[Any, Committed]) -> None:
        """Take note of what the group has committed of the source partitions assigned."""
        self._known = {tp: frozenset(found.notes.sinks) for tp, found in committed.items()}

    def noted(
        self, offsets: Mapping[Any, int], positions: Positions
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return offsets as they are committed: with what goes up to them, and beyond."""
        tables = self.app.tables.names_up_to(offsets)
        notes = {
            tp: Notes(
                ahead_of(tp, offset, positions), sorted(self._sinks_of(tp)), sorted(tables[tp])
            )
            for tp, offset in offsets.items()
        }
        return with_notes(offsets, notes)

    def _sinks_of(self, tp: Any) -> set[str]:
        """Return the sinks that have results of a partition.

        Those that the group knew of stay: the results of one that isn't claimed yet may be lost.
        """
        claimed = {sink.results_id for sink in self._transactional if _has_results(sink, tp)}
        return (claimed | self._known.get(tp, frozenset())) - {""}

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
        if not (self.app.tables or self._transactional):
            return self._take()
        async with self.gate.hold(patiently=self.is_exact):
            # What was waited for may have failed with a half of its changes made.
            return None if self._abandoned or self.is_void else self._take()

    @property
    def is_exact(self) -> bool:
        """True when results and offsets must be of the very same records."""
        return bool(self.app.exactly_once or self._transactional)

    def _take(self) -> Taken:
        app = self.app
        left_out = set(self.gate.in_hand.values())
        offsets = self._offsets()
        if left_out:
            offsets = {tp: each for tp, each in offsets.items() if tp.partition not in left_out}
        positions = app.topics.positions()
        flushes = app.tables.take(positions, left_out) if app.tables else []
        for sink in self._transactional:
            sink.take(left_out)
        kept = {part: each for part, each in positions.items() if part not in left_out}
        return Taken(offsets, flushes, kept)

    async def _flush(self, taken: Taken) -> None:
        app = self.app
        await asyncio.gather(*(each.flush() for each in self._participants))
        await app.consumer._handle_attached(taken.offsets)
        await app.producer.flush()
        for sink in self._transactional:
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
        await app.producer.end_transaction(self.noted(offsets, positions), member)
        app.consumer.positions = positions
        app.tables.keep(sent)
        self._bound_changes()
        app.consumer.on_committed(taken.offsets)
        return bool(taken.offsets)

    @property
    def _has_results(self) -> bool:
        return any(sink.has_taken for sink in self._transactional)

    def _offsets(self) -> dict[Any, int]:
        committed = self.app.consumer.committed_offset
        return {
            tp: offset
            for tp, offset in self.app.topics.committable().items()
            if offset > (committed(tp) or 0)
        }


def _has_results(sink: Any, tp: Any) -> bool:
    """True when a sink's server has an offset of a reader of ``tp``, whatever its name."""
    return any(
        reader.partition("@")[0] == tp.topic for reader in sink.claimed.get(tp.partition, {})
    )


def _by_policy(app: Any, sink: Any, behind: dict[Any, int]) -> dict[Any, int]:
    """Say that a sink's server has forgotten results, and where to read from then."""
    places = ", ".join(f"{tp.topic}/{tp.partition} from {at}" for tp, at in behind.items())
    policy = app.when_sink_behind or ("stop" if app.tables else "replay")
    what = (
        f"{sink!r} has fewer results than the group has offsets: its server was emptied, or "
        f"restored from an older copy. Missing: {places}"
    )
    if policy == "stop":
        raise SinkBehind(
            f"{what}. App(when_sink_behind=...) says what to do: 'continue' goes on without "
            "them, 'replay' reads those records again (tables would count them again)"
        )
    if policy == "continue":
        logger.error("%s. Going on without them", what)
        return {}
    logger.error("%s. Reading those records again", what)
    return behind
