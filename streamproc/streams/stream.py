"""Streams: the records of a topic, as batches, values, events, or buffered lists.

All forms run on the same deliveries of whole batches; a loop over single values costs
0.2 µs each. A stream over something that isn't a Kafka topic (a channel in memory, a
list) is Faust's own. Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import wraps
from inspect import isawaitable
from time import monotonic
from typing import Any

from faust.exceptions import Skip
from faust.streams import _current_event
from faust.types.tuples import ConsumerMessage

from streamproc.errors import ConfigurationError
from streamproc.kafka.progress import Delivery
from streamproc.streams.batch import Batch
from streamproc.streams.flow import FLOW_OPERATORS, Flow
from streamproc.streams.guarded import GuardedStream
from streamproc.streams.position import StreamPlace
from streamproc.streams.spans import Redo, Span
from streamproc.streams.topic import Topic
from streamproc.tables.place import current_place
from streamproc.tables.windowed import Follower


class BatchMessage(ConsumerMessage):  # type: ignore[misc]
    """A Faust message that knows its place in a delivery, for acks by hand."""

    __slots__ = ("delivery", "row")


class Stream(GuardedStream):
    """A stream of records; see the module's text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._delivery: Delivery | None = None
        self._row = 0
        self._end_row = 0
        self._open: list[Span] = []
        self._by_hand = False
        self._event: Any = None
        self._event_at: tuple[Delivery | None, int] = (None, -1)
        self._iteration = 0
        self._started_by_iteration = False
        super().__init__(*args, **kwargs)
        self._redo = Redo()
        self._failures = self.app.failures
        self._gate = self.app.checkpoint.gate
        self._place = StreamPlace(self)
        self._follower: Follower | None = None
        if self.reads_batches and self.prefix:
            self.channel.reader = self.prefix

    # -- what is being processed

    @property
    def reads_batches(self) -> bool:
        """True when the stream reads a Kafka topic on the batch data path."""
        return isinstance(self.channel, Topic) and self.channel.takes_batches

    @property
    def _acks_by_row(self) -> bool:
        """True when records are done in any order: by several actors, or by hand."""
        return self.concurrency_index is not None or not self.enable_acks

    @property
    def current_event(self) -> Any:
        """The event being processed; made when asked for, so that nobody else pays."""
        delivery = self._delivery
        if delivery is None:
            return self._event if self._event_at[0] is None else None
        if self._event_at != (delivery, self._row):
            self._event = self._make_event(delivery, self._row)
            self._event_at = (delivery, self._row)
        return self._event

    @current_event.setter
    def current_event(self, event: Any) -> None:
        # Faust's own iteration, over something that isn't a Kafka topic, sets it.
        self._event = event
        self._event_at = (None, -1)

    def _current(self) -> Any:
        return self.current_event

    def _make_event(self, delivery: Delivery, row: int) -> Any:
        tp = delivery.progress.tp
        headers = delivery.headers[row] if delivery.headers is not None else ()
        message = BatchMessage(
            tp.topic,
            tp.partition,
            delivery.offsets[row],
            delivery.timestamps[row] / 1000.0,
            delivery.timestamp_type,
            headers,
            delivery.raw_keys[row],
            delivery.raw_values[row],
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        message.delivery, message.row = delivery, row
        return self.app.create_event(delivery.keys[row], delivery.values[row], headers, message)

    @property
    def may_want_reply(self) -> bool:
        """True when the current record may be a request (it has headers)."""
        return self._delivery is None or self._delivery.headers is not None

    # -- operators

    def flow(self, name: str | None = None) -> Flow:
        """Return the stream as a :class:`Flow`, a chain of operators without an agent.

        ``app.stream(topic).map(...)`` and the other operators do so by themselves.

        Args:
            name: Names its agent and the tables in it; made from the topic's name if None.

        Raises:
            ConfigurationError: It isn't over a Kafka topic, or has processors already.
        """
        if not self.reads_batches:
            raise ConfigurationError(f"{self.channel} is no Kafka topic: operators need one")
        if len(self._processors) > len(self._filters):
            raise ConfigurationError("A stream with processors of Faust can't become a flow")
        # Nobody iterates over the stream itself.
        self.app.topics.discard(self.channel)
        flow = Flow.of(self.app, self.channel.clone(is_iterator=False), name)
        if self._policy is not None:
            flow.on_error(self._policy)
        for condition in self._filters:
            flow = flow.filter(condition)
        return flow

    # -- iteration

    async def batches(self) -> AsyncIterator[Batch[Any]]:
        """Iterate over batches: runs of records of one partition, in offset order.

        A batch counts as done when the loop asks for the next one; its offsets are
        committed at the next checkpoint. Processors (``filter`` and the like) are
        applied to each value.

        Raises:
            ConfigurationError: The stream isn't over a Kafka topic.
        """
        if not self.reads_batches:
            raise ConfigurationError(f"{self.channel} is no Kafka topic: use take() on it")
        mine = await self._begin()
        try:
            while not self.should_stop:
                spans = await self._next_spans(self._take_batch)
                for span in spans:
                    await self._hand_out([span])
                    batch = await self._batch_of(span)
                    if len(batch):
                        yield batch
                    await self._finish_open()
        except StopAsyncIteration:
            return  # thrown into the channel to end the iteration
        finally:
            await self._end(mine)

    async def _batch_of(self, span: Span) -> Batch[Any]:
        batch = Batch.of(*span)
        if self._processors or self.join_strategy:
            kept = await self._processed([span])
            rows = [row - span.start for _, row, _ in kept]
            batch = Batch(
                batch.topic,
                batch.partition,
                [batch.keys[row] for row in rows],
                [value for _, _, value in kept],
                [batch.offsets[row] for row in rows],
                [batch.timestamps[row] for row in rows],
                [batch.headers[row] for row in rows],
            )
        self.events_total += len(batch)
        return batch

    def __aiter__(self) -> AsyncIterator[Any]:
        if not self.reads_batches:
            iterator: AsyncIterator[Any] = super().__aiter__()
            return iterator
        if self._acks_by_row:
            return self._iterate_shared()
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Any]:
        mine = await self._begin()
        processors = self._processors
        gate, place = self._gate, self._place
        try:
            while not self.should_stop:
                spans = await self._next_spans(self._take_batch)
                for delivery, start, end in spans:
                    await gate.enter(self)
                    values = delivery.values
                    progress = delivery.progress
                    self._delivery, self._end_row = delivery, end
                    place.partition = progress.tp.partition
                    self.events_total += end - start
                    if processors or self.join_strategy:
                        for row in range(start, end):
                            if progress.closed:
                                end = row
                                break
                            self._row = row
                            # Results in a buffer are not done.
                            if self._before_done is None:
                                delivery.cursor = row
                            if gate.shut:
                                await self._pass_gate(delivery, row)
                            place.wrote = False
                            try:
                                value = await self._process(values[row])
                            except Skip:
                                continue
                            yield value
                    else:
                        for row in range(start, end):
                            if progress.closed:
                                end = row
                                break
                            self._row = row
                            if self._before_done is None:
                                delivery.cursor = row
                            if gate.shut:
                                await self._pass_gate(delivery, row)
                            place.wrote = False
                            yield values[row]
                    await self._finish(Span(delivery, start, end))
        except StopAsyncIteration:
            return  # thrown into the channel to end the iteration
        finally:
            await self._end(mine)

    async def _iterate_shared(self) -> AsyncIterator[Any]:
        """Take records one by one from a batch that several actors share."""
        mine = await self._begin()
        try:
            while not self.should_stop:
                (span,) = await self._next_spans(self._take_shared)
                await self._gate.enter(self)
                delivery, row, _ = span
                self._delivery, self._row, self._end_row = delivery, row, row + 1
                self._place.partition = delivery.progress.tp.partition
                self._place.wrote = False
                self.events_total += 1
                try:
                    value = await self._process(delivery.values[row])
                except Skip:
                    delivery.ack(row)
                    self._gate.leave(self)
                    continue
                yield value
                await self._finish_results()
                if self.enable_acks:
                    delivery.ack(row)
                if self._follower is not None:
                    # Not what other actors have in hand still.
                    await self._follower.finish(delivery, delivery.cursor)
                self._delivery = None
                self._gate.leave(self)
                self.app.consumer.on_room(delivery.progress.tp)
        except StopAsyncIteration:
            return  # thrown into the channel to end the iteration
        finally:
            await self._end(mine)

    async def items(self) -> AsyncIterator[tuple[Any, Any]]:
        """Iterate over the stream as ``(key, value)`` pairs."""
        async for value in self:
            delivery = self._delivery
            yield (delivery.keys[self._row] if delivery else self.current_event.key), value

    async def events(self) -> AsyncIterator[Any]:
        """Iterate over the stream as Faust events."""
        async for _ in self:
            event = self.current_event
            if event is not None:
                yield event

    # -- taking deliveries

    async def _take_batch(self) -> list[Span]:
        return await self._take_spans(self.app.batch_size, None)

    async def _take_spans(self, max_records: int, timeout: float | None) -> list[Span]:
        """Take and decode the next delivery; an empty list when ``timeout`` passes."""
        while True:
            delivery = await self.channel.next_delivery(max_records, timeout)
            if delivery is None:
                return []
            await self._decode(delivery)
            if len(delivery):
                return [Span(delivery, 0, len(delivery))]
            delivery.complete()

    async def _take_shared(self) -> list[Span]:
        channel = self.channel
        while True:
            span: Span | None = channel.next_shared()
            if span is not None:
                return [span]
            async with channel.refill_lock:
                if not channel.has_shared:
                    (span,) = await self._take_batch()
                    channel.share(span)

    async def _decode(self, delivery: Delivery) -> None:
        rejected = self.channel.decoder.decode(delivery)
        if rejected:
            for each in rejected:
                await self._reject_undecoded(delivery, each.row, each.part, each.error)
            bad = {each.row for each in rejected}
            delivery.keep([row for row in range(len(delivery)) if row not in bad])
        self.app.monitor.stream_inbound_time[delivery.progress.tp] = monotonic()

    async def _process(self, value: Any) -> Any:
        for processor in self._processors:
            value = processor(value)
            if isawaitable(value):
                value = await value
        if self.join_strategy is not None:
            value = await self.on_merge(value)
        return value

    async def _processed(self, spans: list[Span]) -> list[tuple[Delivery, int, Any]]:
        """Apply processors to the values of ``spans``; skipped ones are left out."""
        kept: list[tuple[Delivery, int, Any]] = []
        plain = not self._processors and self.join_strategy is None
        for delivery, start, end in spans:
            values = delivery.values
            if plain:
                kept.extend((delivery, row, values[row]) for row in range(start, end))
                continue
            self._delivery = delivery
            for row in range(start, end):
                self._row = row
                try:
                    kept.append((delivery, row, await self._process(values[row])))
                except Skip:
                    if self._by_hand:
                        delivery.ack(row)
        return kept

    # -- handing out and finishing

    async def _begin(self) -> int:
        self._finalized = True
        self._has_operators = False
        self._iteration += 1
        if await self.maybe_start():
            self._started_by_iteration = True
        # A loop that was left by `break` has finished what it was given.
        if self._open:
            await self._finish_open()
        elif self._delivery is not None:
            delivery, row = self._delivery, self._row
            if self._acks_by_row:
                if self.enable_acks:
                    delivery.ack(row)
            else:
                if row + 1 < self._end_row:
                    self._redo.first([Span(delivery, row + 1, self._end_row)])
                await self._finish(Span(delivery, row, row + 1))
            self._delivery = None
        self._by_hand = False
        _current_event.set(self._current)
        current_place.set(self._place)
        self._follower = Follower.of(self.app.tables.values(), self._place)
        return self._iteration

    async def _end(self, mine: int) -> None:
        # The generator of an agent that failed may be finalized after its successor began.
        if mine != self._iteration:
            return
        self._channel_stop_iteration(self.channel)
        # The streams it is derived from go on: its next iteration takes what they forward.
        if self._started_by_iteration and (self._prev is None or self.app.should_stop):
            self._started_by_iteration = False
            await self.stop()
            self.service_reset()

    async def _hand_out(self, spans: list[Span]) -> None:
        await self._gate.enter(self)
        self._open = spans
        self._place.wrote = False
        self._delivery, self._row, _ = spans[0]
        partitions = {span.delivery.progress.tp.partition for span in spans}
        self._place.partition = partitions.pop() if len(partitions) == 1 else -1

    async def _pass_gate(self, delivery: Delivery, row: int) -> None:
        """Between two records of a batch: let a checkpoint have its moment."""
        await self._finish_before(delivery, row)
        self._gate.leave(self)
        self._between = True
        try:
            await self._gate.enter(self)
        finally:
            self._between = False

    async def _finish_open(self) -> None:
        spans = self._open
        if self._by_hand:
            self._open, self._delivery = [], None
            if self._follower is not None:
                for span in spans:
                    await self._follower.finish(span.delivery, span.delivery.cursor)
            self._gate.leave(self)
            return
        await self._finish_results()
        if self._follower is not None:
            for span in spans:
                await self._follower.finish(span.delivery, span.end)
        self._open = []
        self._delivery = None
        for span in spans:
            self._mark_done(span)
        self._gate.leave(self)

    async def _finish(self, span: Span) -> None:
        await self._finish_results()
        if self._follower is not None:
            await self._follower.finish(span.delivery, span.end)
        self._delivery = None
        self._mark_done(span)
        self._gate.leave(self)

    def _mark_done(self, span: Span) -> None:
        delivery = span.delivery
        if span.end >= len(delivery):
            delivery.complete()
        else:
            delivery.cursor = span.end
            if delivery.progress.closed:
                delivery.release()
        self.app.consumer.on_room(delivery.progress.tp)

    # -- Faust's operators

    async def _passive_drainer(self, channel: Any, declare: bool = False) -> None:
        """Drive a stream whose records are forwarded elsewhere (group_by, through)."""
        if not self.reads_batches:
            await super()._passive_drainer(channel, declare)
            return
        try:
            if declare:
                await channel.maybe_declare()
            self._passive_started.set()
            while not self.should_stop:
                try:
                    async for _ in self:
                        pass
                except Exception as exc:
                    self.log.exception("Forwarding to %s failed: %r", channel, exc)
                    await self.on_failure(f"forward to {channel}", exc)
        finally:
            self._channel_stop_iteration(channel)
            self._passive = False


def _beginning(name: str) -> Any:
    """Return a method that begins a flow with an operator."""

    @wraps(getattr(Flow, name))
    def begin(self: Stream, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.flow(), name)(*args, **kwargs)

    return begin


for _name in FLOW_OPERATORS:
    if not hasattr(Stream, _name):
        setattr(Stream, _name, _beginning(_name))
