"""The records that agents failed at, remembered until a checkpoint has passed them.

A failed record is given again by the stream that has it. One that had changed a table is not:
the worker goes back to its last checkpoint, reads it again, and must know it then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamproc.streams.spans import Span


class GivenUp(NamedTuple):
    """Why a record is not given again, and after how many tries."""

    stage: str
    error: BaseException
    attempts: int


@dataclass(slots=True)
class Failure:
    """A run of records of a partition that an agent failed at.

    Attributes:
        first: Offset of the first record.
        last: Offset of the last.
        attempts: How often the agent failed at all of them together.
        alone: How often it failed at single ones, by offset, since they are given one by
            one; None before.
        given_up: Why, of each record that isn't to be given again, by offset.
        rejected: Offsets of those whose letter has been sent.
        wrote: Whether something had been changed, so that the worker went back.
    """

    first: int
    last: int
    attempts: int = 0
    alone: dict[int, int] | None = None
    given_up: dict[int, GivenUp] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    wrote: bool = False

    def count(self, offset: int) -> int:
        """Count one more failure, of the record at ``offset`` if it was given alone."""
        if self.alone is None:
            self.attempts += 1
            return self.attempts
        self.alone[offset] = self.alone.get(offset, 0) + 1
        return self.alone[offset]

    def isolate(self) -> None:
        """Give its records one by one from now on, each as often as the policy says."""
        if self.alone is None:
            self.alone = {}

    def fails_at(self, offset: int) -> bool:
        """Return whether the agent may fail at ``offset``, for all that is known."""
        return offset == self.first or (self.alone is not None and offset in self.alone)

    def pieces(self, span: Span) -> Iterator[Span]:
        """Cut a span that is all of this failure into what is given at a time."""
        delivery, start, end = span
        if self.alone is None:
            yield span
            return
        for row in range(start, end):
            yield Span(delivery, row, row + 1)


class Failures:
    """The failures of a worker, by reader and partition.

    False while there are none, which is what streams look at for each batch.

    Args:
        app: The App, whose consumer knows how far checkpoints are.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._known: dict[tuple[str, int], list[Failure]] = {}
        #: How often each reader has failed, as long as the worker lives.
        self.counts: Counter[str] = Counter()
        self._pausing: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._known)

    def note(self, span: Span) -> tuple[Failure, int]:
        """Count one more failure at the records of ``span``; return it and how often."""
        self._forget_committed()
        self.counts[span.delivery.progress.reader] += 1
        failure = self._find(span)
        return failure, failure.count(span.delivery.offsets[span.start])

    @contextmanager
    def pause(self, span: Span) -> Iterator[None]:
        """The reader of ``span`` waits before it tries again."""
        reader = span.delivery.progress.reader
        self._pausing[reader] += 1
        try:
            yield
        finally:
            self._pausing[reader] -= 1

    def is_pausing(self, reader: str) -> bool:
        """True while a reader waits before it tries again."""
        return self._pausing[reader] > 0

    def _find(self, span: Span) -> Failure:
        failure = self.known(span)
        if failure is None:
            delivery, start, end = span
            failure = Failure(delivery.offsets[start], delivery.offsets[end - 1])
            known = self._known.setdefault(_place(delivery), [])
            known.append(failure)
            known.sort(key=lambda each: each.first)
        return failure

    def _forget_committed(self) -> None:
        committed = self.app.consumer.committed_offset
        for place, known in list(self._known.items()):
            reader, partition = place
            passed = committed((reader.partition("@")[0], partition)) or 0
            known[:] = [each for each in known if each.last >= passed]
            if not known:
                del self._known[place]

    def known(self, span: Span) -> Failure | None:
        """Return the failure that the first record of ``span`` was part of."""
        offset = span.delivery.offsets[span.start]
        for failure in self._known.get(_place(span.delivery), ()):
            if failure.first <= offset <= failure.last:
                return failure
        return None

    def cut(self, span: Span) -> list[Span]:
        """Cut a span so that records which failed before are apart from the others."""
        delivery, start, end = span
        offsets = delivery.offsets
        pieces: list[Span] = []
        for failure in self._known.get(_place(delivery), ()):
            begin = start
            while begin < end and offsets[begin] < failure.first:
                begin += 1
            stop = begin
            while stop < end and offsets[stop] <= failure.last:
                stop += 1
            if begin == stop:
                continue
            if start < begin:
                pieces.append(Span(delivery, start, begin))
            pieces += failure.pieces(Span(delivery, begin, stop))
            start = stop
        if start < end:
            pieces.append(Span(delivery, start, end))
        return pieces


def _place(delivery: Any) -> tuple[str, int]:
    progress = delivery.progress
    return progress.reader, progress.tp.partition
