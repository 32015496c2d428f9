"""Streams as lists of what came: ``take`` and what is like it.

Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from time import monotonic
from typing import Any

from mode.utils.times import want_seconds

from streamproc.streams.operators import OperatorStream
from streamproc.streams.spans import Span


class BufferedStream(OperatorStream):
    """The part of a stream that hands out several values at once."""

    # -- buffering

    async def take(self, max_: int, within: Any) -> AsyncIterator[Sequence[Any]]:
        """Buffer up to ``max_`` values, or what comes ``within`` seconds of the first."""
        if not self.reads_batches:
            async for values in super().take(max_, within):
                yield values
            return
        async for spans in self._buffers(max_, within):
            kept = await self._processed(spans)
            if kept:
                yield [value for _, _, value in kept]

    async def take_events(self, max_: int, within: Any) -> AsyncIterator[Sequence[Any]]:
        """As :meth:`take`, with events."""
        if not self.reads_batches:
            async for events in super().take_events(max_, within):
                yield events
            return
        async for spans in self._buffers(max_, within):
            kept = await self._processed(spans)
            if kept:
                yield [self._make_event(delivery, row) for delivery, row, _ in kept]

    async def take_with_timestamp(
        self, max_: int, within: Any, timestamp_field_name: str
    ) -> AsyncIterator[Sequence[Any]]:
        """As :meth:`take`; values that are dicts get the Kafka timestamp (seconds)."""
        if not self.reads_batches:
            async for values in super().take_with_timestamp(max_, within, timestamp_field_name):
                yield values
            return
        async for spans in self._buffers(max_, within):
            kept = await self._processed(spans)
            for delivery, row, value in kept:
                if isinstance(value, dict) and timestamp_field_name:
                    value[timestamp_field_name] = delivery.timestamps[row] / 1000.0
            if kept:
                yield [value for _, _, value in kept]

    async def noack_take(self, max_: int, within: Any) -> AsyncIterator[Sequence[Any]]:
        """As :meth:`take_events`; each event counts as done when it is acked by hand."""
        if not self.reads_batches:
            async for events in super().noack_take(max_, within):
                yield events
            return
        async for spans in self._buffers(max_, within, by_hand=True):
            kept = await self._processed(spans)
            if kept:
                yield [self._make_event(delivery, row) for delivery, row, _ in kept]

    async def _buffers(
        self, max_: int, within: Any, by_hand: bool = False
    ) -> AsyncIterator[list[Span]]:
        mine = await self._begin()
        self._by_hand = by_hand or not self.enable_acks
        seconds = want_seconds(within) if within else None
        try:
            while not self.should_stop:
                spans = await self._next_spans(partial(self._fill, max_, seconds))
                await self._hand_out(spans)
                yield spans
                await self._finish_open()
        except StopAsyncIteration:
            return  # thrown into the channel to end the iteration
        finally:
            await self._end(mine)

    async def _fill(self, max_: int, seconds: float | None) -> list[Span]:
        """Collect ``max_`` records, or what comes ``seconds`` after the first."""
        spans: list[Span] = await self._take_spans(max_, None)
        deadline = monotonic() + seconds if seconds is not None else None
        count = len(spans[0].delivery)
        while count < max_:
            left = deadline - monotonic() if deadline is not None else None
            if left is not None and left <= 0:
                break
            more = await self._take_spans(max_ - count, left)
            if not more:
                break
            count += len(more[0].delivery)
            spans += more
        self.events_total += count
        return spans
