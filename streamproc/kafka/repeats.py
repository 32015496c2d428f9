"""Keeping the log readable while a broker is away.

aiokafka logs every attempt of every request, some forty lines a second.
"""

from __future__ import annotations

import logging
from time import monotonic

#: Seconds between two lines of the same kind.
INTERVAL = 10.0


class Repeats(logging.Filter):
    """Lets a warning or error of the same wording through once in ``INTERVAL``.

    The next one that gets through says how many were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, str(record.msg))
        now = monotonic()
        since, left_out = self._last.get(kind, (now - INTERVAL, 0))
        if now - since < INTERVAL:
            self._last[kind] = (since, left_out + 1)
            return False
        self._last[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like it in {now - since:.0f} s)"
        return True


_repeats = Repeats()


def thin_out() -> None:
    """Let the loggers of aiokafka leave out what they have just said."""
    for name in list(logging.root.manager.loggerDict):
        if name == "aiokafka" or name.startswith("aiokafka."):
            logger = logging.getLogger(name)
            if _repeats not in logger.filters:
                logger.addFilter(_repeats)
