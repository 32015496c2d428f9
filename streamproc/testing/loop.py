"""An event loop whose time is virtual: it stands still, or jumps to the next timer.

asyncio asks its selector to sleep until the next timer is due. The selector here never
sleeps for that: when nothing is ready it asks how far time may go, and either jumps to
the timer or stops the loop. So an hour of timers takes no time, and whoever runs the
loop knows that nothing more can happen now. Everything else is asyncio's own loop.

Sockets and threads of an agent still work: while records are in hand, the loop waits
for them in real time before it lets virtual time pass.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from contextlib import suppress
from math import ulp
from time import monotonic
from typing import Any

#: Loop time at the start; not 0, which some code takes for "never".
FIRST_TIME = 1000.0
#: Longest wait in real seconds for a socket or thread, while records are in hand.
OUTSIDE_TIMEOUT = 10.0

#: How much after its limit a timer may be due, in seconds: sums of floats differ.
TOLERANCE = 1e-9

Limit = Callable[[], float | None]


class Killed(BaseException):
    """The loop has done the steps that it was given, and whoever runs it is to be killed."""


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type, unused-ignore]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        self.loop.count_step()
        ready = super().select(0)
        if ready or timeout == 0:
            self.loop.creep()
            return ready
        if self.loop.waits_outside(len(self.get_map())):
            ready = super().select(self.loop.outside_left())
            if ready:
                return ready
        self.loop.idle(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time; see the module's text."""

    def __init__(self) -> None:
        self._now = FIRST_TIME
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 8 * ulp(FIRST_TIME)
        self._limit: Limit = lambda: None
        self._jobs = 0
        #: What outlives those who run in the loop.
        self._lasting: set[asyncio.TimerHandle] = set()
        #: Steps until :class:`Killed` is raised out of ``run``; None for never.
        self.steps_left: int | None = None
        self._outside_until: float | None = None
        #: True while a record is in hand, so that sockets and threads are worth waiting for.
        self.has_work: Callable[[], bool] = lambda: False

    def time(self) -> float:
        """Return virtual seconds."""
        return self._now

    # -- running

    def run(self, limit: Limit) -> None:
        """Run until nothing is ready and time may go no further.

        Args:
            limit: Called each time that nothing is ready. Returns the time up to which
                timers may fire, or None to stop. It may schedule callbacks.
        """
        outer = asyncio._get_running_loop()
        self._limit = limit
        # A test may itself run in a loop; the two take turns, as a debugger's would.
        asyncio._set_running_loop(None)
        try:
            self.run_forever()
        finally:
            asyncio._set_running_loop(outer)

    def idle(self, timeout: float | None) -> None:
        """Nothing is ready, and the next timer is due in ``timeout`` seconds."""
        limit = self._limit()
        if self._ready:  # type: ignore[attr-defined]
            return
        due = None if timeout is None else self._now + timeout
        if limit is None or due is None or due > limit + TOLERANCE:
            self.stop()
        else:
            self.jump(due)

    def jump(self, time: float) -> None:
        """Let it be ``time``, unless it is later already; no timer is due before."""
        self._now = max(self._now, time)
        self._clock_resolution = 8 * ulp(self._now)

    def creep(self) -> None:
        """Move on by the least that a float can.

        Code that waits for what is left until a time of its own can miss that by a rounding,
        and would wait for the rest for ever.
        """
        self._now += ulp(self._now)

    def count_step(self) -> None:
        """One round of callbacks is over."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.steps_left = None
                raise Killed

    def call_lasting(self, delay: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` later, whatever is killed until then."""

        def fire() -> None:
            self._lasting.discard(handle)
            callback()

        handle = self.call_later(delay, fire)
        self._lasting.add(handle)

    # -- sockets and threads

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """As asyncio's; counted, so that the loop knows that a thread is at work."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._on_job_done)
        return future

    def _on_job_done(self, future: Any) -> None:
        self._jobs -= 1

    def waits_outside(self, registered: int) -> bool:
        """True if a socket or thread may bring something that a record in hand waits for."""
        # One is the loop's own, by which threads wake it.
        if (self._jobs == 0 and registered <= 1) or not self.has_work():
            self._outside_until = None
            return False
        if self._outside_until is None:
            self._outside_until = monotonic() + OUTSIDE_TIMEOUT
        return True

    def outside_left(self) -> float:
        """Real seconds to wait."""
        return max(0.0, (self._outside_until or 0.0) - monotonic())

    # -- end

    def kill_tasks(self) -> None:
        """Cancel everything, and forget all callbacks and timers."""
        for _ in range(20):  # some tasks start others when they are cancelled
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.run(lambda: None)
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        closing = self.create_task(self.shutdown_asyncgens())
        self.run(lambda: None)
        with suppress(asyncio.InvalidStateError):
            closing.exception()
        self._asyncgens_shutdown_called = False  # it runs on, with the next start of the app
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled[:] = sorted(self._lasting)  # type: ignore[attr-defined]
