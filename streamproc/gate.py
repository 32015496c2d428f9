"""The gate: where streams stop between two records while a checkpoint looks at the tables."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic
from typing import Any

logger = logging.getLogger(__name__)

#: Longest wait for agents to come to the end of a record, in seconds.
GATE_TIMEOUT = 1.0


class Gate:
    """Where streams stop between two records while a checkpoint looks at the tables.

    A stream is inside from when it gives out records until they are done. The state of
    tables fits the offsets exactly while nobody is inside.
    """

    def __init__(self) -> None:
        self.shut = False
        #: Nobody may enter, since tables have more changes than memory should hold.
        self.full = False
        # Who leaves first would open it for another that holds it, too.
        self._held = asyncio.Lock()
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

    @asynccontextmanager
    async def hold(self, *, patiently: bool = False) -> AsyncIterator[None]:
        """Keep the gate shut while nobody is inside; one at a time does.

        Args:
            patiently: Wait for slow agents too, however long they take.
        """
        async with self._held:
            with self._closed():
                await self._wait_until_left(patiently)
                yield

    async def _wait_until_left(self, patiently: bool) -> None:
        if patiently:
            self._slow.clear()
        deadline = None if patiently else monotonic() + GATE_TIMEOUT
        while self._inside - self._slow:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                break
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
