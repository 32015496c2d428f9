"""What a server refused, counted and told."""

from __future__ import annotations

from streamproc.errors import SinkError
from streamproc.sinks.redis.commands import key_of
from streamproc.sinks.redis.resp import Command
from streamproc.sinks.refusals import Refusal

#: Failures told in one error.
_TOLD = 5


class Failures:
    """Counts failures, keeps the first few to tell, and the commands that were refused."""

    def __init__(self) -> None:
        self.count = 0
        self.refusals: list[Refusal] = []
        self._first: list[str] = []

    def add(self, reason: str, command: Command | None = None) -> None:
        """Count one; of a command, if it is about one."""
        self.count += 1
        if len(self._first) < _TOLD:
            self._first.append(reason)
        if command is not None:
            key, *_ = parts = list(map(_shown, command[1:])) or [None]
            self.refusals.append(Refusal(reason, key, [_shown(command[0]), *parts]))

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


def _shown(part: object) -> object:
    """Return a part of a command as JSON has it."""
    return part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else part
