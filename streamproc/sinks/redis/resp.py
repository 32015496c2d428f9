"""Redis' wire protocol (RESP2) for pipelines of writes.

redis-py packs and parses for every use; a sink only sends arguments that are text,
bytes or numbers, and of a reply only wants to know whether it is an error. Doing just
that makes a pipeline of HSETs about four times faster (see docs/sinks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamproc.sinks.redis.values import Arg

#: A command and its arguments, as ``redis.Redis.execute_command(*command)`` takes them.
Command = tuple[Arg, ...]


def encode(arg: Arg) -> bytes:
    """Return an argument as bytes."""
    if isinstance(arg, bytes):
        return arg
    if not isinstance(arg, str):
        return repr(arg).encode()
    try:
        return arg.encode(errors="surrogateescape")  # gives binary keys their bytes back
    except UnicodeEncodeError:
        return arg.encode(errors="surrogatepass")  # half a surrogate pair, from broken JSON


def pack(commands: Sequence[Command]) -> bytes:
    """Return ``commands`` as they go over the wire."""
    out: list[bytes] = []
    append = out.append
    known: dict[str, bytes] = {}  # commands and names of fields come again and again
    for command in commands:
        append(b"*%d\r\n" % len(command))
        for arg in command:
            if type(arg) is str:
                packed = known.get(arg)
                if packed is None:
                    data = encode(arg)
                    packed = known[arg] = b"$%d\r\n%b\r\n" % (len(data), data)
                append(packed)
            else:
                data = arg if type(arg) is bytes else encode(arg)
                append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


class Replies:
    """Counts ``expected`` replies in the bytes that arrive and keeps the errors among them.

    Attributes:
        errors: Error replies by index.
        rest: Bytes that aren't of those replies.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self.errors: dict[int, str] = {}
        self.rest = b""

    @property
    def complete(self) -> bool:
        """True when all expected replies are there."""
        return self.count >= self.expected

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the server."""
        data = self.rest + data if self.rest else data
        position = 0
        while self.count < self.expected and (end := _reply_end(data, position)) >= 0:
            if data[position] == 45:  # "-": an error
                self.errors[self.count] = data[position + 1 : end - 2].decode(errors="replace")
            self._note(data, position)
            self.count += 1
            position = end
        self.rest = data[position:]

    def _note(self, data: bytes, position: int) -> None:
        """Look at the reply that starts at ``position`` of ``data``."""


class ValueReplies(Replies):
    """Replies that are read, for commands that ask: ``values`` in their order."""

    def __init__(self, expected: int) -> None:
        super().__init__(expected)
        self.values: list[Any] = []

    def _note(self, data: bytes, position: int) -> None:
        self.values.append(_value(data, position)[0])


class TransactionReplies:
    """The replies to MULTI, ``count`` commands and EXEC.

    Attributes:
        refused: Why commands were not accepted, by index; then none was run.
        errors: Error replies of commands that were run, by index.
        applied: False when EXEC ran nothing, since a watched key was changed.
        failure: The error that EXEC answered, if it did.
    """

    def __init__(self, count: int) -> None:
        self.refused: dict[int, str] = {}
        self.errors: dict[int, str] = {}
        self.applied = False
        self.failure = ""
        self.complete = False
        self._queued: Replies | None = Replies(count + 1)
        self._ran: Replies | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the server."""
        if self._queued is not None:
            self._queued.feed(data)
            if not self._queued.complete:
                return
            self.refused = {index - 1: error for index, error in self._queued.errors.items()}
            data, self._queued = self._queued.rest, None
        if self._ran is None:
            data = self._rest = self._rest + data
            end = data.find(b"\r\n")
            if end < 0:
                return
            head, data = data[:end], data[end + 2 :]
            if head[:1] != b"*":
                self.failure = head[1:].decode(errors="replace")
            self.applied = head[:1] == b"*" and head != b"*-1"
            self._ran = Replies(int(head[1:]) if self.applied else 0)
        self._ran.feed(data)
        self.errors = self._ran.errors
        self.complete = self._ran.complete


def _reply_end(data: bytes, position: int) -> int:
    """Return where the reply that starts at ``position`` ends, or -1 if bytes are missing."""
    line_end = data.find(b"\r\n", position)
    if line_end < 0:
        return -1
    kind = data[position]
    end = line_end + 2
    if kind in b"+-:":
        return end
    length = int(data[position + 1 : line_end])
    if kind == 36:  # "$": length, bytes
        end += length + 2 if length >= 0 else 0
        return end if end <= len(data) else -1
    for _ in range(length):  # "*": that many replies
        end = _reply_end(data, end)
        if end < 0:
            return -1
    return end


def _value(data: bytes, position: int) -> tuple[Any, int]:
    """Return the reply that starts at ``position`` of ``data``, and where it ends."""
    line_end = data.find(b"\r\n", position)
    kind, line = data[position], data[position + 1 : line_end]
    end = line_end + 2
    if kind == 58:  # ":": a number
        return int(line), end
    if kind in b"+-":
        return line.decode(errors="replace"), end
    length = int(line)
    if length < 0:
        return None, end
    if kind == 36:  # "$": length, bytes
        return data[end : end + length], end + length + 2
    values = []
    for _ in range(length):  # "*": that many replies
        value, end = _value(data, end)
        values.append(value)
    return values, end
