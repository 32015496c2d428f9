"""What a server refused, counted and told."""

from __future__ import annotations

from streamproc.errors import SinkError
from streamproc.sinks.redis.commands import key_of
from streamproc.sinks.redis.resp import Command

#: Failures told in one error.
_TOLD = 5


class Failures:
    """Counts failures and keeps the first few to tell."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, reason: str) -> None:
        """Count one."""
        self.count += 1
        if len(self._first) < _TOLD:
            self._first.append(reason)

    def error(self, what: str) -> SinkError:
        """Return the error that tells of all of them."""
        more = self.count - len(self._first)
        told = "; ".join(self._first) + (f"; and {more} more" if more else "")
        return SinkError(f"{self.count} {what}: {told}")


def explain(command: Command, error: str) -> str:
    """Say why a command was refused, and what helps."""
    key = key_of(command)
    advice = ""
    if error.startswith("WRONGTYPE"):
        advice = "; the key holds another type: delete it, or use another key template"
    elif error.startswith("NOPERM"):
        advice = "; give the user this command and key by ACL SETUSER"
    return f"{command[0]!s} {key!r}: {error}{advice}"
