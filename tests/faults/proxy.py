"""A TCP proxy that does to connections what networks do: delay, freeze, cut, lose an answer."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from streamproc.dev.process import LOOPBACK, free_port

#: Requests of Kafka whose lost answers leave doubt: Produce, OffsetCommit, AddPartitionsToTxn,
#: EndTxn, TxnOffsetCommit.
DOUBTFUL = frozenset({0, 8, 24, 26, 28})
_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


class Frames:
    """Finds messages in a stream of bytes that come with their length in four bytes first."""

    def __init__(self) -> None:
        self._rest = b""
        self._skip = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the first 12 bytes of each message that begins in ``data``."""
        heads = []
        data = self._rest + data
        while True:
            skipped = min(self._skip, len(data))
            data, self._skip = data[skipped:], self._skip - skipped
            if self._skip or len(data) < 12:
                break
            heads.append(data[:12])
            self._skip = 4 + int.from_bytes(data[:4], "big")
        self._rest = data
        return heads


class Connection:
    """One client's connection and the one to the server behind it."""

    def __init__(self, proxy: Proxy, pid: int | None) -> None:
        self.proxy, self.pid = proxy, pid
        self.writers: list[asyncio.StreamWriter] = []
        self._frames = Frames(), Frames()
        #: Correlation ids of requests whose answer is to be lost; None in it: any answer.
        self._lost: set[int | None] = set()
        #: A request was swallowed: nothing more passes.
        self._is_stuck = False

    def reset(self) -> None:
        """Cut both sides, with what is under way."""
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def pump(self, reader: Any, writer: Any, is_answer: bool) -> None:
        try:
            while data := await reader.read(_CHUNK):
                while self.proxy.is_frozen(self):
                    await self.proxy.changed.wait()
                if self.proxy.latency:
                    await asyncio.sleep(self.proxy.latency)
                if self._note(data, is_answer):
                    self.proxy.answers_lost += 1
                    return self.reset()
                if self._is_stuck:
                    continue
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            self.reset()
        return None

    def _note(self, data: bytes, is_answer: bool) -> bool:
        """Look at what passes; True for an answer that is to be lost."""
        if not self.proxy.is_kafka:
            if is_answer:
                return None in self._lost
            if self.proxy.take_loss(self):
                self._lost.add(None)
            return False
        heads = self._frames[is_answer].feed(data)
        if is_answer:
            return any(int.from_bytes(head[4:8], "big") in self._lost for head in heads)
        if any(int.from_bytes(head[4:6], "big") in self.proxy.held for head in heads):
            self._is_stuck = True
            self.proxy.requests_held += 1
        for head in heads:
            if int.from_bytes(head[4:6], "big") in DOUBTFUL and self.proxy.take_loss(self):
                self._lost.add(int.from_bytes(head[8:12], "big"))
        return False


class Proxy:
    """Listens on :attr:`port` and passes everything to ``target``, until told otherwise.

    Faults are for all connections, or for those of processes (``only``: process ids).

    Args:
        target: Port of the server.
        is_kafka: Answers are lost of requests that change something, by looking into them.
        pids: Gives the process ids of clients that faults may be aimed at.
    """

    def __init__(
        self,
        target: int,
        *,
        port: int | None = None,
        is_kafka: bool = False,
        pids: Callable[[], Collection[int]] = list,
    ) -> None:
        self.target, self.port = target, port or free_port()
        self.is_kafka = is_kafka
        self.latency = 0.0
        self.answers_lost = 0
        #: Kinds of requests (API keys) that are swallowed, with their connections left open.
        self.held: set[int] = set()
        self.requests_held = 0
        self.pids = pids
        self._connections: set[Connection] = set()
        self._frozen: Callable[[Connection], bool] = _nobody
        self._refused: Callable[[Connection], bool] = _nobody
        self._losses = 0
        self._losers: Callable[[Connection], bool] = _nobody
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> Proxy:
        self._thread.start()
        self._call(self._listen())
        return self

    def stop(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults

    def freeze(self, only: Collection[int] = ()) -> None:
        """Let nothing pass and close nothing, as a network without a route does."""
        self._call(self._set(frozen=_of(only)))

    def refuse(self, only: Collection[int] = ()) -> None:
        """Cut connections, and new ones too."""
        self._call(self._set(refused=_of(only)))
        self.cut(only)

    def heal(self) -> None:
        """Let everything pass again."""
        self.latency, self._losses = 0.0, 0
        self._call(self._set(frozen=_nobody, refused=_nobody))

    def cut(self, only: Collection[int] = ()) -> None:
        """Reset the connections that are there."""
        self._call(self._cut(_of(only)))

    def lose_answers(self, count: int = 1, only: Collection[int] = ()) -> None:
        """Cut the connections of the next requests after the server has answered them."""
        self._losers, self._losses = _of(only), count

    # -- used by connections, in the loop's thread

    def is_frozen(self, connection: Connection) -> bool:
        return self._frozen(connection)

    def take_loss(self, connection: Connection) -> bool:
        if self._losses and self._losers(connection):
            self._losses -= 1
            return True
        return False

    # -- inside

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self.changed = asyncio.Event()
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set(self, **rules: Callable[[Connection], bool]) -> None:
        for name, rule in rules.items():
            setattr(self, f"_{name}", rule)
        self.changed.set()
        self.changed = asyncio.Event()

    async def _cut(self, chosen: Callable[[Connection], bool]) -> None:
        for connection in list(self._connections):
            if chosen(connection):
                connection.reset()

    async def _accept(self, reader: Any, writer: Any) -> None:
        connection = Connection(self, pid_of(writer.get_extra_info("peername")[1], self.pids()))
        connection.writers.append(writer)
        self._connections.add(connection)
        try:
            while self.is_frozen(connection):
                await self.changed.wait()
            if self._refused(connection):
                return connection.reset()
            there = await asyncio.open_connection(LOOPBACK, self.target)
            connection.writers.append(there[1])
            await asyncio.gather(
                connection.pump(reader, there[1], is_answer=False),
                connection.pump(there[0], writer, is_answer=True),
            )
        except OSError:
            connection.reset()
        finally:
            self._connections.discard(connection)
            for each in connection.writers:
                each.close()
        return None


def _nobody(connection: Connection) -> bool:
    return False


def _of(only: Collection[int]) -> Callable[[Connection], bool]:
    pids = set(only)
    return lambda connection: not pids or connection.pid in pids


def pid_of(port: int, pids: Collection[int]) -> int | None:
    """Return which of ``pids`` has the connection from a local port (Linux)."""
    with suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                return _owner(f"socket:[{fields[9]}]", pids)
    return None


def _owner(link: str, pids: Collection[int]) -> int | None:
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") == link:
                        return pid
    return None
