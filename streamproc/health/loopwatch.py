"""A thread that notices when the event loop is blocked, by code that should have awaited."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic

from streamproc.health.exits import EXIT_STALLED, end_now

logger = logging.getLogger(__name__)

#: Seconds between two signs of life of the loop, and between two looks at them.
TICK = 0.5
#: Seconds after which the process is ended from outside of Python.
LAST_RESORT = 5.0


class LoopWatch:
    """Ends the process when the event loop has been blocked for ``timeout`` seconds.

    At half that time the stacks of all threads go to the log, once. Code that doesn't even
    let other threads run (a regular expression that never ends) is found by a timer outside
    of Python, :data:`LAST_RESORT` seconds later: the exit code is 1 then, and the stacks are
    the last words.

    Args:
        timeout: Seconds.
        on_blocked: Called from the thread with the reason, before the process ends.
    """

    def __init__(self, timeout: float, on_blocked: Callable[[str], None]) -> None:
        self._timeout = timeout
        self._on_blocked = on_blocked
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Begin; called in the loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        if self._stopped.is_set():
            return
        self._beats += 1
        faulthandler.dump_traceback_later(
            self._timeout + LAST_RESORT, exit=True, file=sys.__stderr__ or sys.stderr
        )
        self._loop.call_later(TICK, self._beat)

    def _watch(self) -> None:
        beats, blocked, last = self._beats, 0.0, monotonic()
        told = False
        while not self._stopped.wait(TICK):
            now = monotonic()
            if self._beats != beats:
                beats, blocked, told = self._beats, 0.0, False
            else:
                # No more than that: if this thread didn't run either, the process was frozen.
                blocked += min(now - last, 4 * TICK)
            last = now
            if blocked >= self._timeout / 2 and not told:
                told = True
                logger.error(
                    "The event loop has been blocked for %.1f s, so that nothing goes on; the "
                    "worker ends at %s s. All threads:\n%s",
                    blocked,
                    self._timeout,
                    self._stacks(),
                )
            if blocked >= self._timeout:
                self._end(blocked)

    def _end(self, blocked: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        where = traceback.extract_stack(frame)[-1] if frame else None
        place = f", in {where.filename}:{where.lineno} ({where.name})" if where else ""
        reason = f"the event loop was blocked for {blocked:.0f} s{place}"
        self._on_blocked(reason)
        end_now(EXIT_STALLED, reason)

    def _stacks(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for ident, frame in sys._current_frames().items():
            parts.append(f"Thread {names.get(ident, ident)}:\n")
            parts.extend(traceback.format_stack(frame))
        return "".join(parts)
