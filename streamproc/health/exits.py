"""Ending the process, whatever its threads do."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Exit code of a worker that ended itself since nothing went on (EX_SOFTWARE).
EXIT_STALLED = 70
#: Exit code of a worker that was told to stop, and of which something would not (EX_TEMPFAIL).
EXIT_UNCLEAN = 75
#: Longest wait for the last words, in seconds: what hangs may hold a lock of the log.
LAST_WORDS_TIMEOUT = 2.0


def end_now(code: int, reason: str, details: Callable[[], str] = str) -> None:
    """End the process at once, as a kill does, with ``reason`` as its last log line."""

    def say() -> None:
        logger.critical("The worker ends with exit code %s: %s%s", code, reason, details())
        logging.shutdown()
        sys.stdout.flush()

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS_TIMEOUT)
    os._exit(code)


class StopLimit:
    """Ends the process when a stop takes too long, threads that don't end included.

    Args:
        seconds: How long a stop may take.
        end: Called in a thread of its own then, with the reason of the stop.
    """

    def __init__(self, seconds: float, end: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._end = end
        self._reason: str | None = None
        self._begun = threading.Event()

    def start(self) -> None:
        """Start the thread now: a signal's handler can't safely do so."""
        threading.Thread(target=self._run, name="stop-limit", daemon=True).start()

    def begin(self, reason: str) -> None:
        """A stop has begun, for this reason; the first counts."""
        if self._reason is None:
            self._reason = reason
            self._begun.set()

    def _run(self) -> None:
        self._begun.wait()
        time.sleep(self.seconds)
        self._end(f"{self._reason}; it did not stop within {self.seconds:g} s")
