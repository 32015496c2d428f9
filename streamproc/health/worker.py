"""The process of a worker: signals, how long it may take to stop, and its exit code.

The first SIGTERM or SIGINT lets the worker finish the records in hand, commit them and
leave the group: exit code 0. A second one ends it at once, which loses nothing, as a crash
loses nothing. Checked against mode 0.4 and faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from time import monotonic
from typing import Any

from faust.worker import Worker as FaustWorker
from mode.utils.futures import maybe_cancel

from streamproc.health.exits import EXIT_STALLED, EXIT_UNCLEAN, StopLimit, end_now
from streamproc.health.loopwatch import LoopWatch
from streamproc.health.watchdog import Watchdog, where_agents_wait
from streamproc.kafka.repeats import thin_out

#: Seconds, after ``drain_timeout``, within which a worker that stops has to end. With the
#: default of 20 s it is gone before Kubernetes kills it (30 s).
STOP_MARGIN = 8.0
#: A signal so soon after another, in seconds, is the same: a terminal and a process manager
#: both pass Ctrl-C on.
SAME_SIGNAL = 0.5


class Worker(FaustWorker):  # type: ignore[misc]
    """Runs an App, in a process of its own by :meth:`execute_from_commandline`.

    One that is started in another way, beside other things, never ends the process.
    """

    _owns_process = False
    _told_to_stop_at: float | None = None
    _loop_watch: LoopWatch | None = None
    _signal_stop_future: asyncio.Future[None] | None = None

    def __init__(self, app: Any, *services: Any, **options: Any) -> None:
        super().__init__(app, *services, **options)
        self._stop_limit = StopLimit(app.drain_timeout + STOP_MARGIN, self._end_unclean)

    def on_init_dependencies(self) -> Any:
        return [
            Watchdog(self.app, self._give_up, beacon=self.beacon),
            *super().on_init_dependencies(),
        ]

    async def on_first_start(self) -> None:
        if self._owns_process:
            self._stop_limit.start()
        await super().on_first_start()
        thin_out()
        timeout = self.app.health.stall_timeout
        # A debugger blocks the loop for as long as one looks.
        if timeout is not None and self._owns_process and not self.debug:
            self._loop_watch = LoopWatch(timeout, self._on_blocked)
            self._loop_watch.start()

    def _on_blocked(self, reason: str) -> None:
        self.app.health.gave_up = reason

    def _give_up(self, reason: str) -> None:
        """Stop as after a signal: what other agents have done is committed."""
        health = self.app.health
        health.gave_up, health.stopping = reason, True
        self._stop_limit.begin(reason)
        if self._signal_stop_future is None:
            self._signal_stop_time = self.loop.time()
            self._signal_stop_future = asyncio.ensure_future(self._stop_stalled())

    async def _stop_stalled(self) -> None:
        await self.stop()
        maybe_cancel(self._starting_fut)

    # -- signals

    def _install_signal_handlers_unix(self) -> None:
        super()._install_signal_handlers_unix()
        if not self._owns_process:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.remove_signal_handler(number)
            # Those of the loop would have to wait while it is blocked.
            signal.signal(number, self._on_stop_signal)

    def _on_stop_signal(self, number: int, frame: Any) -> None:
        now = monotonic()
        if self._told_to_stop_at is None:
            self._told_to_stop_at = now
            self._stop_limit.begin(f"it got {signal.Signals(number).name}")
            stop = self._on_sigint if number == signal.SIGINT else self._on_sigterm
            self.loop.call_soon_threadsafe(stop)
        elif now - self._told_to_stop_at > SAME_SIGNAL:
            # No log: this may be in the middle of writing to it.
            os.write(2, b"Second signal: the worker ends at once\n")
            os._exit(128 + number)

    def _schedule_shutdown(self, signal: signal.Signals) -> None:
        self.app.health.stopping = True
        super()._schedule_shutdown(signal)

    # -- the end

    def _end_unclean(self, reason: str) -> None:
        code = EXIT_STALLED if self.app.health.gave_up else EXIT_UNCLEAN
        end_now(code, reason, lambda: where_agents_wait(self.app))

    def stop_and_shutdown(self) -> None:
        self.app.health.stopping = True
        self._stop_limit.begin(f"it failed: {self.app.crash_reason!r}")
        super().stop_and_shutdown()

    def execute_from_commandline(self) -> None:
        """Run until the worker has ended, and leave with its exit code."""
        self._owns_process = True
        try:
            super().execute_from_commandline()
        except SystemExit as end:
            # What was raised while it started is the context.
            gave_up = self.app.health.gave_up
            reason = gave_up or self.crash_reason or end.__context__
            if reason is None:
                raise
            code = EXIT_STALLED if gave_up else end.code
            self.log.critical("The worker ends with exit code %s: %s", code, reason)
            sys.exit(code)
        finally:
            if self._loop_watch is not None:
                self._loop_watch.stop()
