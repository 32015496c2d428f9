"""The checkpoint: what makes a worker at-least-once.

One object a worker. Sinks, producer and consumer know its small protocol and nothing
of each other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from streamproc.errors import ProducerError, SinkError

logger = logging.getLogger(__name__)


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


class Checkpoint:
    """The commit cycle of a worker; see :meth:`commit`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._participants: list[Flushable] = []

    def add(self, participant: Flushable) -> None:
        """Flush ``participant`` in every checkpoint, before offsets are committed."""
        if participant not in self._participants:
            self._participants.append(participant)

    async def commit(self) -> bool:
        """Make results durable, then commit the source offsets they came from.

        1. Note the offset of each partition up to which agents are done.
        2. Flush the sinks.
        3. Publish messages that Faust attached to those offsets.
        4. Flush the producer: every record sent is acknowledged.
        5. Commit the offsets noted in step 1.

        A failure leaves the offsets where they were, so that a restart processes again
        what isn't durable. Returns True when offsets were committed.
        """
        consumer = self.app.consumer
        offsets = {
            tp: offset
            for tp, offset in self.app.topics.committable().items()
            if offset > (consumer.committed_offset(tp) or 0)
        }
        if not offsets:
            return False
        try:
            await asyncio.gather(*(each.flush() for each in self._participants))
            await consumer._handle_attached(offsets)
            await self.app.producer.flush()
        except (SinkError, ProducerError) as exc:
            logger.error("Results are not durable, so the worker stops uncommitted: %s", exc)
            await self.app.crash(exc)
            return False
        return bool(await consumer.commit_offsets(offsets))
