"""Ending the process, whatever its threads do."""

from __future__ import annotations

import logging
import os
import sys
import threading

logger = logging.getLogger(__name__)

#: Exit code of a worker that ended itself since nothing went on (EX_SOFTWARE).
EXIT_STALLED = 70
#: Exit code of a worker that was told to stop, and of which something would not (EX_TEMPFAIL).
EXIT_UNCLEAN = 75
#: Longest wait for the last words, in seconds: what hangs may hold a lock of the log.
LAST_WORDS_TIMEOUT = 2.0


def end_now(code: int, reason: str) -> None:
    """End the process at once, as a kill does, with ``reason`` as its last log line."""

    def say() -> None:
        logger.critical("The worker ends with exit code %s: %s", code, reason)
        logging.shutdown()
        sys.stdout.flush()

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    speaker.join(LAST_WORDS_TIMEOUT)
    os._exit(code)
