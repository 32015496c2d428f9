"""What went wrong in an app under test, so that no test passes by accident."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

LOGGERS = ("streamproc", "faust", "mode")


class Failures(logging.Handler):
    """Collects the exceptions that the framework caught and logged.

    It goes on after an agent, a timer or a task raised, and says so in the log: that is
    the one place where all of them come by.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []
        self.seen = 0
        self.enabled = True

    def __enter__(self) -> Failures:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, entry: logging.LogRecord) -> None:
        """Keep the exception of a log record."""
        error = entry.exc_info[1] if entry.exc_info else None
        if self.enabled and isinstance(error, Exception):
            self.add(error)

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what a callback raised, or a task that nobody awaited."""
        error = context.get("exception")
        if self.enabled and isinstance(error, Exception):
            self.add(error)
            loop.default_exception_handler(context)

    def add(self, error: BaseException) -> None:
        """Keep an exception, once."""
        if not any(known is error for known in self.errors):
            self.errors.append(error)

    def read(self) -> list[BaseException]:
        """Return all; they count as seen by the test."""
        self.seen = len(self.errors)
        return list(self.errors)

    @property
    def unseen(self) -> list[BaseException]:
        """Those that the test hasn't looked at."""
        return self.errors[self.seen :]
