"""What transactional sinks have of the partitions that are read, and what the group knows of it.

At an assignment each sink claims the partitions, which shuts out earlier owners, and says how
far its results go. Offsets name in their metadata the sinks that have results, so that one that
was emptied is told from a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from streamproc.errors import Fenced, SinkBehind
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


class Claims:
    """The transactional sinks of a worker, and their results by source partition."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sinks: list[Any] = []
        #: By source partition, the sinks that have results of it, as the group knew them last.
        self._known: dict[Any, frozenset[str]] = {}

    async def claim(self, partitions: Collection[Any]) -> Mapping[Any, int]:
        """Claim the results of ``partitions`` in all transactional sinks.

        Returns the offsets from which to read, where a sink is behind the group: its server
        was emptied, or restored from an older copy.

        Raises:
            SinkBehind: It is, and what is missing can't be made again.
            Fenced: The group has given the partitions to others.
        """
        behind: dict[Any, int] = {}
        if self.sinks:
            self.note(await self.app.consumer.committed(partitions))
        for sink in self.sinks:
            for tp, offset in (await self.claim_for(sink, partitions)).items():
                behind[tp] = min(offset, behind.get(tp, offset))
        if self.sinks and not await self.app.consumer.is_member():
            # It may have come late, after that of an owner who goes on from other state. Who
            # is a member now had it first: later owners claim after it.
            raise Fenced("The group has given the partitions of this worker to others")
        return behind

    async def claim_for(self, sink: Any, partitions: Collection[Any]) -> dict[Any, int]:
        """Claim the results of ``partitions`` in one sink; see :meth:`claim`."""
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
        claimed = {sink.results_id for sink in self.sinks if _has_results(sink, tp)}
        return (claimed | self._known.get(tp, frozenset())) - {""}

    def has_later_results(self, sink: Any) -> bool:
        """True when a sink has results of records that are not done here yet."""
        return any(
            sink.claimed.get(each.tp.partition, {}).get(each.reader, 0) > (each.committable() or 0)
            for each in self.app.topics.progress()
        )


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
