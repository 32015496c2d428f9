"""Time that all workers share, and an event loop for each that runs a round at a time.

A worker that isn't given a round stands still, as a process does that is stopped.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
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
    """The loop of one worker.

    A round is what asyncio's own does, without what it does for sockets, signals and a debugger.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _timer_cancelled_count: int

    def __init__(self) -> None:
        self.source = Time()
        super().__init__()

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
        while scheduled and scheduled[0]._cancelled:  # type: ignore[attr-defined]
            self._pop_timer()
        return scheduled[0].when() if scheduled else None

    def _pop_timer(self) -> asyncio.TimerHandle:
        timer = heapq.heappop(self._scheduled)
        timer._scheduled = False  # type: ignore[attr-defined]
        if timer._cancelled:  # type: ignore[attr-defined]
            self._timer_cancelled_count -= 1
        return timer

    def round(self) -> None:
        """Run the callbacks that are ready, and let the least time pass."""
        self.source.now += ulp(self.source.now)
        self._step()

    def _step(self) -> None:
        now, ready = self.source.now, self._ready
        while (due := self.next_timer) is not None and due <= now:
            ready.append(self._pop_timer())
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:  # type: ignore[attr-defined]
                    handle._run()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(None)

    def run(self, limit: Limit) -> None:
        """Run until nothing is ready; time stands still."""
        for _ in range(10_000):
            if not self._ready:
                return
            self._step()
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
