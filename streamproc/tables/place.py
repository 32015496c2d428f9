"""Where the code that is running stands: the partition and time of its records.

A stream says once a batch where its agent is, so that a table finds the partition
without being told. The place belongs to the agent's task, not to the worker: agents
that take turns do not see each other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any


class Place:
    """What an agent is working on.

    Attributes:
        partition: Partition of the records in hand; -1 when they are of several.
        wrote: True when the record in hand has changed a table, sent a record, or written
            to a transactional sink: it can't simply be given again.
    """

    __slots__ = ("partition", "wrote")

    def __init__(self) -> None:
        self.partition = -1
        self.wrote = False

    def source(self) -> tuple[str, int] | None:
        """Return the reader ("topic@agent") and the offset of what is in hand.

        Between records it is the offset that comes next; None if there is no reader.
        """
        return None

    def event_time(self) -> int | None:
        """Event time of the record in hand in milliseconds, or None if there is none."""
        return None

    def batch(self) -> Any:
        """The run of records that is being worked on, or None if there is none."""
        return None

    def row(self) -> int:
        """Which record of :meth:`batch` is in hand."""
        return 0

    def event_times(self, batch: Any) -> Sequence[int | None]:
        """Event times of the records of a batch in ms; None for one that has no valid time."""
        return ()

    def value(self) -> Any:
        """The record in hand."""
        return None


current_place: ContextVar[Place | None] = ContextVar("current_place", default=None)


def note_write() -> None:
    """Note that the record in hand, if there is one, can't simply be given again."""
    place = current_place.get()
    if place is not None:
        place.wrote = True
