"""The checkpoint: what makes a worker at-least-once, and its state exact.

One object a worker. Sinks, tables, producer and consumer know its small protocol and
nothing of each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Protocol

from streamproc.errors import ProducerError, SinkError, StreamprocError

logger = logging.getLogger(__name__)

#: Changed entries of tables, in memory, at which a checkpoint comes before its time, and
#: at which streams wait for it.
EARLY_ENTRIES, MOST_ENTRIES = 100_000, 200_000
#: Batches between two looks at how many there are.
BATCHES_PER_LOOK = 8
#: Longest wait for agents to come to the end of a record, in seconds.
GATE_TIMEOUT = 1.0


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


class Gate:
    """Where streams stop between two records while a checkpoint looks at the tables.

    A stream is inside from when it gives out records until they are done. The state of
    tables fits the offsets exactly while nobody is inside.
    """

    def __init__(self) -> None:
        self.shut = False
        #: Nobody may enter, since tables have more changes than memory should hold.
        self.full = False
        self._inside: set[Any] = set()
        #: Partitions in hand of streams that say so: a checkpoint leaves them out.
        self.in_hand: dict[Any, int] = {}
        self._opened = asyncio.Event()
        self._left = asyncio.Event()
        #: Those that a checkpoint waited for in vain; it doesn't wait again.
        self._slow: set[Any] = set()
        self._warned = False

    async def enter(self, stream: Any) -> None:
        """Wait until the gate is open; the stream is inside then."""
        while self.shut or self.full:
            await self._opened.wait()
        self._inside.add(stream)

    def keep_out(self, stream: Any, partition: int) -> None:
        """Keep checkpoints from ``partition`` until the stream, which is inside, leaves.

        What they would find there is neither before nor after the records in hand.
        """
        self.in_hand[stream] = partition

    def leave(self, stream: Any) -> None:
        """The stream has no record in hand."""
        self._inside.discard(stream)
        self.in_hand.pop(stream, None)
        self._slow.discard(stream)
        if self.shut:
            self._left.set()

    @contextmanager
    def _closed(self) -> Iterator[None]:
        self.shut = True
        self._opened.clear()
        self._left.clear()
        try:
            yield
        finally:
            self.shut = False
            self._open()

    def _open(self) -> None:
        if not (self.shut or self.full):
            self._opened.set()

    def set_full(self, full: bool) -> None:
        """Let streams wait before their next batch, or go on."""
        self.full = full
        self._opened.clear()
        self._open()

    async def hold(self, take: Any) -> Any:
        """Call ``take()`` while no stream is inside, and return what it returns."""
        with self._closed():
            deadline = monotonic() + GATE_TIMEOUT
            while self._inside - self._slow and (left := deadline - monotonic()) > 0:
                self._left.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._left.wait(), left)
            self._slow |= self._inside
            if self._slow - set(self.in_hand) and not self._warned:
                self._warned = True
                logger.warning(
                    "Agents take longer than %s s for a record, so checkpoints do not wait for "
                    "them: after a crash, table updates of the record in hand may count twice. "
                    "Streams: %s",
                    GATE_TIMEOUT,
                    ", ".join(map(repr, self._inside - set(self.in_hand))),
                )
            return take()


class Checkpoint:
    """The commit cycle of a worker; see :meth:`commit`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.gate = Gate()
        #: Set when a checkpoint should come before its time.
        self.wanted = asyncio.Event()
        self._batches = 0
        self._abandoned = False
        self._participants: list[Flushable] = []

    def add(self, participant: Flushable) -> None:
        """Flush ``participant`` in every checkpoint, before offsets are committed."""
        if participant not in self._participants:
            self._participants.append(participant)

    async def abandon(self, error: BaseException) -> None:
        """Stop the worker and commit nothing more: its state may hold a part of a batch.

        A restart goes on from the last checkpoint.
        """
        self._abandoned = True
        logger.error("The worker stops and goes back to its last checkpoint: %s", error)
        await self.app.crash(error)

    async def halt(self, error: BaseException) -> None:
        """Abandon, and never return: the task that calls it ends with the worker."""
        await self.abandon(error)
        await asyncio.Event().wait()

    def on_progress(self) -> None:
        """A batch is done: see that changes of tables do not grow without bound."""
        self._batches += 1
        if self._batches % BATCHES_PER_LOOK == 0 and self.app.tables:
            self._bound_changes()

    def _bound_changes(self) -> None:
        changes = self.app.tables.dirty_count
        if changes > EARLY_ENTRIES:
            self.wanted.set()
        full = changes > MOST_ENTRIES
        if full != self.gate.full:
            self.gate.set_full(full)

    async def commit(self) -> bool:
        """Make results durable, then commit the source offsets they came from.

        1. Note the offset up to which agents are done, and take what tables have changed.
           With tables, streams wait between two records for this moment; partitions in
           which an operator has a batch in hand for longer are left to the next checkpoint.
        2. Flush the sinks.
        3. Publish messages that Faust attached to those offsets.
        4. Flush the producer: every record sent is acknowledged.
        5. Write the tables: to the changelogs, and when those have it to the stores. Not if
           the group has given the partitions to others: their state must not be mixed up.
        6. Commit the offsets noted in step 1.

        A failure leaves the offsets where they were, so that a restart processes again
        what isn't durable. Tables are written after all results, with the offsets they
        go up to: what a restart finds there need not be processed again. Returns True
        when offsets were committed.
        """
        app = self.app
        if self._abandoned:
            return False
        try:
            if app.tables:
                offsets, flushes = await self.gate.hold(self._take)
            else:
                offsets, flushes = self._offsets(), []
            if not offsets and not flushes:
                return False
            await asyncio.gather(*(each.flush() for each in self._participants))
            await app.consumer._handle_attached(offsets)
            await app.producer.flush()
            if flushes:
                if not await app.consumer.is_member():
                    logger.warning(
                        "The group has given the partitions of this worker to others: what it did "
                        "since its last checkpoint is left to them"
                    )
                    app.tables.discard()
                    return False
                await app.tables.write(flushes)
        except (SinkError, ProducerError) as exc:
            logger.error("Results are not durable")
            await self.abandon(exc)
            return False
        except StreamprocError as exc:
            logger.error("The tables can't be written")
            await self.abandon(exc)
            return False
        if flushes:
            self._bound_changes()
        return bool(offsets and await app.consumer.commit_offsets(offsets))

    def _take(self) -> tuple[dict[Any, int], list[Any]]:
        app = self.app
        left_out = set(self.gate.in_hand.values())
        offsets = self._offsets()
        if left_out:
            offsets = {tp: each for tp, each in offsets.items() if tp.partition not in left_out}
        return offsets, app.tables.take(app.topics.positions(), left_out)

    def _offsets(self) -> dict[Any, int]:
        committed = self.app.consumer.committed_offset
        return {
            tp: offset
            for tp, offset in self.app.topics.committable().items()
            if offset > (committed(tp) or 0)
        }
