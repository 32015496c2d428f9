"""Time that all workers share, and an event loop for each that runs a round at a time.

A worker that isn't given a round stands still, as a process does that is stopped.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import ulp

from streamproc.testing.loop import FIRST_TIME, Limit, VirtualLoop


class Time:
    """The time of a run, in seconds."""

    def __init__(self) -> None:
        self.now = FIRST_TIME

    def time(self) -> float:
        return self.now


class SimLoop(VirtualLoop):
    """The loop of one worker."""

    def __init__(self) -> None:
        self.source = Time()
        super().__init__()
        # Nobody else has the time, or sockets.
        self._selector.select = lambda timeout=None: []

    def time(self) -> float:
        return self.source.now

    @property
    def is_ready(self) -> bool:
        """True when a round would do something now."""
        if self._ready:
            return True
        due = self.next_timer
        return due is not None and due <= self.source.now

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            # As the loop's own; a fired or cancelled timer isn't to be waited for.
            heapq.heappop(scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return scheduled[0]._when if scheduled else None

    def round(self) -> None:
        """Run the callbacks that are ready."""
        self.source.now += ulp(self.source.now)
        self._thread_id = threading.get_ident()
        asyncio._set_running_loop(self)
        try:
            self._run_once()
        finally:
            self._thread_id = None
            asyncio._set_running_loop(None)

    def run(self, limit: Limit) -> None:
        """Run until nothing is ready; time stands still."""
        for _ in range(10_000):
            if not self._ready:
                return
            self.round()
        raise RuntimeError("Something runs for ever")


@contextmanager
def async_generators() -> Iterator[None]:
    """Let each loop know of the async generators that run in it."""

    def begin(generator: object) -> None:
        asyncio.get_running_loop()._asyncgen_firstiter_hook(generator)

    old = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(begin, lambda generator: None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*old)
