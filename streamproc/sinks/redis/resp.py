"""Redis' wire protocol (RESP2) for pipelines of writes.

redis-py packs and parses for every use; a sink only sends arguments that are text,
bytes or numbers, and of a reply only wants to know whether it is an error. Doing just
that makes a pipeline of HSETs about four times faster (see docs/sinks.md).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Counts replies in the bytes that arrive and keeps the errors among them."""

    def __init__(self) -> None:
        self.count = 0
        self.errors: dict[int, str] = {}
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the server."""
        data = self._data + data if self._data else data
        position = 0
        while (end := self._reply_end(data, position)) >= 0:
            if data[position] == 45:  # "-": an error
                self.errors[self.count] = data[position + 1 : end - 2].decode(errors="replace")
            self.count += 1
            position = end
        self._data = data[position:]

    def _reply_end(self, data: bytes, position: int) -> int:
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
            end = self._reply_end(data, end)
            if end < 0:
                return -1
        return end
