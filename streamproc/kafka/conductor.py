"""From fetched runs to the channels that read them, a batch at a time.

Faust's conductor is kept for what subscribes and for its indices. Channels that take
whole batches get a :class:`~streamproc.kafka.progress.Progress` a partition; a channel
that shares its queue with Faust's own code (the changelogs that Faust recovers tables
from) gets Faust's per-event form. Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from faust.transport.conductor import Conductor as FaustConductor
from faust.types import TP
from mode import Service
from mode.utils.futures import notify

from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.progress import Progress


def _reads_batches(channel: Any) -> bool:
    # A topic that nobody iterates over is there to be subscribed to; nothing empties its queue.
    return bool(getattr(channel, "takes_batches", False) and channel.is_iterator)


class Conductor(FaustConductor):  # type: ignore[misc]
    """Hands fetched batches to channels and knows what may be committed."""

    # Faust waits 45 s after the first change, so that an agent added at run time
    # would start that late.
    _resubscribe_sleep_lock_seconds = 1.0

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._progress: dict[TP, list[tuple[Any, Progress]]] = {}
        self._per_event: dict[TP, Any] = {}
        # Up to where each partition was handed on since it was assigned.
        self._next_offsets: dict[TP, int] = {}

    @Service.task
    async def _subscriber(self) -> None:
        """Subscribe to what is read, and again when that changes.

        Faust's own forgets what changes while it subscribes or while the group rebalances.
        """
        app = self.app
        if not (app.client_only or app.producer_only):
            await app.agents.wait_until_agents_started()
            await app.tables.wait_until_tables_registered()
        changed = self._subscription_changed = asyncio.Event()
        while not self.should_stop:
            changed.clear()
            topics = await self._update_indices()
            if app.should_stop:
                # A worker that failed at its start must not join the group while it stops.
                return
            await app.consumer.subscribe(topics)
            notify(self._subscription_done)
            await changed.wait()
            await self.sleep(self._resubscribe_sleep_lock_seconds)
            while app.rebalancing and not self.should_stop:
                await self.sleep(0.1)

    async def on_partitions_assigned(self, assigned: set[TP]) -> None:
        await super().on_partitions_assigned(assigned)
        self.start_progress()

    async def on_client_only_start(self) -> None:
        await super().on_client_only_start()
        self.start_progress()

    def add(self, topic: Any) -> None:
        """Subscribe a channel; it reads at once what is assigned already."""
        super().add(topic)
        if not _reads_batches(topic) or topic.active_partitions is not None:
            return
        for tp, pairs in self._progress.items():
            if tp.topic in topic.topics and topic not in (channel for channel, _ in pairs):
                self._tp_index[tp].add(topic)
                pairs.append((topic, Progress(tp, self._next_offsets.get(tp), topic.reader)))
                self.app.consumer.on_reader()

    async def _update_indices(self) -> Any:
        names = await super()._update_indices()
        if self.app.client_only:
            # Faust knows only the topics there are at start, which is before the first request.
            await self.on_client_only_start()
        return names

    def start_progress(self) -> None:
        """Begin anew with what is assigned."""
        self.close_progress()
        for tp, channels in self._tp_index.items():
            batched = filter(_reads_batches, channels)
            self._progress[tp] = [
                (each, Progress(tp, reader=each.reader))
                # In an order that is the same in each run.
                for each in sorted(batched, key=lambda each: each.reader)
            ]
            others = {each for each in channels if not getattr(each, "takes_batches", False)}
            if others:
                self._per_event[tp] = super()._build_handler(tp, others)

    def close_progress(self) -> None:
        """Forget backlogs and deliveries in flight (partitions are revoked)."""
        for progress in self.progress():
            progress.close()
        self._progress = {}
        self._per_event = {}
        self._next_offsets = {}

    def _key(self, tp: TP) -> TP:
        # Faust's index for a client knows partition 0 only.
        return TP(tp.topic, 0) if self.app.client_only else tp

    def is_read(self, tp: TP) -> bool:
        """True when a channel takes what is fetched of ``tp``.

        A topic may be subscribed to before somebody iterates over it.
        """
        key = self._key(tp)
        return bool(self._progress.get(key)) or key in self._per_event

    def progress(self, tp: TP | None = None) -> Iterator[Progress]:
        """Iterate over the progress of all channels, or of those that read ``tp``."""
        if tp is None:
            return (each for pairs in self._progress.values() for _, each in pairs)
        return (each for _, each in self._progress.get(tp, ()))

    def deliver(self, raw: RawBatch) -> None:
        """Put a fetched run into the backlog of each channel that takes batches."""
        tp = self._key(TP(raw.topic, raw.partition))
        self._next_offsets[tp] = raw.next_offset
        for channel, progress in self._progress.get(tp, ()):
            progress.add(raw)
            if not progress.queued or channel.queue.empty():
                progress.queued = True
                channel.queue.force_put_nowait(progress)

    async def deliver_per_event(self, raw: RawBatch, to_message: Any) -> None:
        """Give a fetched run, event by event, to channels that need Faust's own form."""
        tp = TP(raw.topic, raw.partition)
        handler = self._per_event.get(tp)
        if handler is None:
            return
        for row in range(len(raw)):
            await handler(to_message(raw, row))
            if row % 100 == 99:
                await asyncio.sleep(0)

    def needs_per_event(self, tp: TP) -> bool:
        return tp in self._per_event

    def quiet_partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic in which nothing waits, as far as is known."""
        return [
            tp.partition
            for tp, pairs in self._progress.items()
            if tp.topic == topic
            and self.app.consumer.is_at_end(tp)
            and all(each.idle and not each.has_backlog for _, each in pairs)
        ]

    def held_bytes(self, tp: TP) -> int:
        """Bytes fetched of ``tp`` and not yet done, for the slowest of its channels."""
        return max((each.held_bytes for each in self.progress(tp)), default=0)

    def start_at(self, starts: Mapping[int, Mapping[str, int]]) -> None:
        """Pass over records whose updates tables have: by partition, an offset a reader."""
        for progress in self.progress():
            offset = starts.get(progress.tp.partition, {}).get(progress.reader)
            if offset is not None:
                progress.start_at(offset)

    def go_back_to(self, tp: TP, offset: int) -> None:
        """Let all readers of a partition take its records from ``offset`` on again."""
        for progress in self.progress(tp):
            progress.go_back_to(offset)

    def cut_at(self, offsets: Mapping[int, Mapping[str, int]]) -> None:
        """Hand out no run that goes over one of these offsets, by partition and reader."""
        for progress in self.progress():
            offset = offsets.get(progress.tp.partition, {}).get(progress.reader)
            if offset is not None:
                progress.cuts = sorted({*progress.cuts, offset})

    def positions(self) -> dict[int, dict[str, int]]:
        """Return, by partition, the offset up to which each reader is done."""
        positions: dict[int, dict[str, int]] = {}
        for progress in self.progress():
            offset = progress.committable()
            if offset is not None:
                known = positions.setdefault(progress.tp.partition, {})
                # Streams without a name share one entry.
                known[progress.reader] = min(offset, known.get(progress.reader, offset))
        return positions

    def committable(self) -> dict[TP, int]:
        """Return the offset of each partition up to which all its channels are done."""
        offsets: dict[TP, int] = {}
        for tp, pairs in self._progress.items():
            if not pairs or not self.acks_enabled_for(tp.topic):
                continue
            positions = [progress.committable() for _, progress in pairs]
            if None not in positions:
                offsets[tp] = min(position for position in positions if position is not None)
        return offsets
