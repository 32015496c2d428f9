"""What an agent was given last, and what is to be done when it fails at it.

A failed record is given again up to a number of times; then it goes to the dead
letters and the next ones are processed. A failed batch is given again the same number
of times, then its records one by one, so that only the bad ones are rejected.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from streamproc.kafka.progress import Delivery

#: Seconds before the first retry; doubled for each further one.
FIRST_BACKOFF = 0.1
#: Longest wait between two retries, in seconds.
LONGEST_BACKOFF = 5.0


class Span(NamedTuple):
    """The records ``start`` to ``end`` (exclusive) of a delivery."""

    delivery: Delivery
    start: int
    end: int


class Redo:
    """Spans to be given again, and how often the first of them has failed."""

    def __init__(self, max_retries: int) -> None:
        self.max_retries = max_retries
        self._queue: deque[list[Span]] = deque()
        self._isolating = 0
        self._failed: tuple[int, int] | None = None
        self._attempts = 0

    def pop(self) -> list[Span] | None:
        """Take what is to be given next, leaving out partitions that are gone."""
        while self._queue:
            spans = self._queue.popleft()
            if self._isolating:
                self._isolating -= 1
            for span in spans:
                if span.delivery.progress.closed:
                    span.delivery.release()
            spans = [span for span in spans if not span.delivery.progress.closed]
            if spans:
                return spans
        return None

    def first(self, spans: list[Span]) -> None:
        """Give ``spans`` before anything else."""
        self._queue.appendleft(spans)

    def failed(self, spans: list[Span], rest: list[Span]) -> list[Span]:
        """Note that ``spans`` failed; ``rest`` follows them. Return what to give up on."""
        first = (id(spans[0].delivery), spans[0].start)
        self._attempts = self._attempts + 1 if self._failed == first else 1
        self._failed = first
        single = len(spans) == 1 and spans[0].end - spans[0].start == 1
        if rest:
            self._queue.appendleft(rest)
        if single and (self._isolating_now or self._attempts > self.max_retries):
            return spans
        if self._attempts <= self.max_retries:
            self._queue.appendleft(spans)
            return []
        singles = [
            [Span(span.delivery, row, row + 1)]
            for span in spans
            for row in range(span.start, span.end)
        ]
        self._isolating = len(singles)
        self._queue.extendleft(reversed(singles))
        return []

    @property
    def _isolating_now(self) -> bool:
        return self._isolating > 0

    @property
    def backoff(self) -> float:
        """Seconds to wait before the next try."""
        return min(FIRST_BACKOFF * 2.0 ** max(0, self._attempts - 1), LONGEST_BACKOFF)
