"""What an agent was given last, and what it is to be given next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from streamproc.kafka.progress import Delivery


class Span(NamedTuple):
    """The records ``start`` to ``end`` (exclusive) of a delivery."""

    delivery: Delivery
    start: int
    end: int


class Redo:
    """Spans to be given before anything else, in order."""

    def __init__(self) -> None:
        self._queue: deque[list[Span]] = deque()

    def pop(self) -> list[Span] | None:
        """Take what is to be given next, leaving out partitions that are gone."""
        while self._queue:
            spans = self._queue.popleft()
            for span in spans:
                if span.delivery.progress.closed:
                    span.delivery.release()
            spans = [span for span in spans if not span.delivery.progress.closed]
            if spans:
                return spans
        return None

    def first(self, *runs: Sequence[Span]) -> None:
        """Give each of ``runs`` by itself, before all that waits."""
        self._queue.extendleft(list(run) for run in reversed(runs))
