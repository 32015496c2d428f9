"""Topics that hand out batches and send them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import faust.topics
from faust import Schema

from streamproc.kafka.fetch import Headers
from streamproc.kafka.progress import Delivery, Progress
from streamproc.records.codecs import find_codec
from streamproc.records.pickles import refuse_pickle
from streamproc.records.times import EventTimes
from streamproc.streams.decode import DeliveryDecoder
from streamproc.streams.spans import Span
from streamproc.tables.place import note_write

T = TypeVar("T")


async def _within(timeout: float | None, result: Awaitable[T]) -> T:
    return await (result if timeout is None else asyncio.wait_for(result, timeout))


class Topic(faust.topics.Topic):  # type: ignore[misc]
    """A Kafka topic; Faust's, with batches.

    Its queue holds :class:`~streamproc.kafka.progress.Progress` objects: tokens that say
    "this partition has a backlog". A partition has at most one token in the queue, so
    that partitions take turns.
    """

    #: Read by the conductor: False where the queue belongs to Faust's own code.
    takes_batches = True
    #: Name of the agent that reads it, for the position that tables keep.
    reader = ""

    _decoder: DeliveryDecoder | None = None
    _event_stream: Any = None
    _shared: Span | None = None

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        schema = self.schema
        models = (getattr(t, "_options", None) for t in (schema.key_type, schema.value_type))
        refuse_pickle(
            *(schema.key_serializer, schema.value_serializer),
            *(app.conf.key_serializer, app.conf.value_serializer),
            *(getattr(model, "serializer", None) for model in models),
        )

    def clone_using_queue(self, queue: Any) -> Any:
        channel = super().clone_using_queue(queue)
        channel.takes_batches = False
        return channel

    async def next_delivery(self, max_records: int, timeout: float | None) -> Delivery | None:
        """Wait for records and take up to ``max_records`` of one partition, undecoded.

        Returns None when nothing came in ``timeout`` seconds.
        """
        while True:
            try:
                progress: Progress = await _within(timeout, self.queue.get())
            except asyncio.TimeoutError:
                return None
            if progress.closed or not progress.has_backlog:
                progress.queued = False
                continue
            delivery = progress.take(max_records)
            if progress.has_backlog:
                self.queue.force_put_nowait(progress)
            else:
                progress.queued = False
            return delivery

    # Actors of one agent (concurrency) take records from a batch that they share.

    @property
    def has_shared(self) -> bool:
        return self._shared is not None

    def share(self, span: Span) -> None:
        """Offer the records of ``span`` to all actors."""
        self._shared = span
        span.delivery.handed = 0

    def next_shared(self) -> Span | None:
        """Take one record of the shared batch, or None when there is none left."""
        shared = self._shared
        if shared is None:
            return None
        delivery, start, end = shared
        if delivery.progress.closed:
            self._shared = None
            delivery.release()
            return None
        delivery.handed = start + 1
        self._shared = Span(delivery, start + 1, end) if start + 1 < end else None
        return Span(delivery, start, start + 1)

    @cached_property
    def refill_lock(self) -> asyncio.Lock:
        return asyncio.Lock()

    @cached_property
    def event_times(self) -> EventTimes | None:
        """How records tell their event time; None where Kafka's timestamp is it."""
        return EventTimes.of(self.value_type)

    @property
    def decoder(self) -> DeliveryDecoder:
        if self._decoder is None:
            self._decoder = DeliveryDecoder(self)
        return self._decoder

    async def __anext__(self) -> Any:
        """Hand out events one by one, for code that iterates over a topic itself."""
        if not self.takes_batches:
            return await super().__anext__()
        if self._event_stream is None:
            self._event_stream = self.app.stream(self).events()
        return await self._event_stream.__anext__()

    async def send(self, **options: Any) -> Any:
        """Send one record; see Faust's ``Topic.send``."""
        self._note_send()
        return await super().send(**options)

    def send_soon(self, **options: Any) -> Any:
        """Send one record from a function that isn't async; see Faust's ``Topic.send_soon``."""
        self._note_send()
        return super().send_soon(**options)

    def _note_send(self) -> None:
        if self.app.exactly_once:
            # Should the record in hand fail, what was sent of it must not count.
            note_write()

    async def send_batch(
        self,
        values: Sequence[Any],
        *,
        keys: Sequence[Any] | None = None,
        timestamps: Sequence[int] | None = None,
        headers: Sequence[Headers | None] | None = None,
        partition: int | None = None,
    ) -> None:
        """Send many values at once, at about 1 µs each.

        Args:
            values: Values, encoded by the topic's ``value_type`` and serializer.
            keys: Parallel to ``values``; records of one key keep their order.
            timestamps: Milliseconds, parallel to ``values``; the time of sending if None.
            headers: Parallel to ``values``: (name, bytes) pairs.
            partition: Send all to this partition instead of by key.

        Returns when the records are handed to the client. Source offsets are committed
        only after the broker has acknowledged them.

        Raises:
            EncodeError: A key or value can't be encoded.
            ProducerError: The topic isn't there, or a record is larger than allowed.
        """
        self._note_send()
        producer = await self._get_producer()
        prepare_value, prepare_key = self._encoders
        await producer.send_batch(
            self.get_topic_name(),
            None if keys is None else list(map(prepare_key, keys)),
            list(map(prepare_value, values)),
            timestamps=timestamps,
            headers=headers,
            partition=partition,
        )

    @property
    def _encoders(self) -> tuple[Any, Any]:
        encoders = self.__dict__.get("_encoder_pair")
        if encoders is None:
            encoders = self.__dict__["_encoder_pair"] = (
                _encoder(self, "value"),
                _encoder(self, "key"),
            )
        return encoders  # type: ignore[no-any-return]


def _encoder(topic: Topic, part: str) -> Any:
    schema = topic.schema
    declared = getattr(schema, f"{part}_type")
    serializer = getattr(schema, f"{part}_serializer") or getattr(
        topic.app.conf, f"{part}_serializer"
    )
    if type(schema) is Schema and isinstance(serializer or "raw", str):
        codec = find_codec(serializer or "raw")
        if codec is not None:
            return codec.encoder(declared)
    dumps = getattr(schema, f"dumps_{part}")
    return lambda payload: dumps(topic.app, payload, headers={})[0]
