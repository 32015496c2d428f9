"""What tests of exactly-once sinks need: a place in a partition, workers, a faulty network."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from streamproc.tables.place import Place, current_place

READER = "t@agent"


class At(Place):
    """A record in hand."""

    __slots__ = ("_offset", "_reader")

    def __init__(self, partition: int, offset: int, reader: str = READER) -> None:
        super().__init__()
        self.partition = partition
        self._reader, self._offset = reader, offset

    def source(self) -> tuple[str, int] | None:
        return self._reader, self._offset


@contextlib.contextmanager
def at(partition: int, offset: int, reader: str = READER) -> Iterator[At]:
    """Have a record in hand."""
    place = At(partition, offset, reader)
    token = current_place.set(place)
    try:
        yield place
    finally:
        current_place.reset(token)


def new_app(url: str, app_id: str = "app") -> Any:
    """An app as far as sinks know it."""
    return SimpleNamespace(conf=SimpleNamespace(id=app_id), redis_url=url, exactly_once=True)


def partitions(*numbers: int, topic: str = "t") -> set[TP]:
    return {TP(topic, number) for number in numbers}


async def checkpoint(sinks: Sequence[Any], positions: dict[int, int]) -> None:
    """What the checkpoint does to transactional sinks."""
    for sink in sinks:
        sink.take()
    for sink in sinks:
        await sink.commit({number: {READER: offset} for number, offset in positions.items()})


async def process(sinks: Sequence[Any], partition: int, offset: int, value: Any) -> None:
    """Write the results of one record."""
    with at(partition, offset):
        for sink in sinks:
            await sink.write([value])


class Network:
    """A TCP proxy before a server that spoils the next EXEC as told.

    ``fault`` is "before" (cut before it is sent on), "after" (cut when it was answered) or
    "late" (cut, and sent on a while later, when the client has long tried again).
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self._target = port
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self.fault: str | None = None
        #: Faults that happened.
        self.faults = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[Network]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        back = asyncio.create_task(self._answer(from_server, writer))
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # streams would log it
                await self._forward(reader, to_server, writer, back)
        finally:
            back.cancel()
            writer.close()
            to_server.close()

    async def _forward(self, reader: Any, to_server: Any, writer: Any, back: Any) -> None:
        tail = b""
        while data := await reader.read(1 << 16):
            tail = (tail + data)[-32:]
            if self.fault is None or not tail.endswith(b"\r\nEXEC\r\n"):
                to_server.write(data)
                continue
            fault, self.fault = self.fault, None
            self.faults += 1
            if fault == "before":
                return
            if fault == "late":
                back.cancel()
                writer.transport.abort()
                await asyncio.sleep(self._random.uniform(0, 0.02))
            else:
                back.cancel()  # what answers is lost
            to_server.write(data)
            await to_server.drain()
            await asyncio.sleep(self._random.uniform(0, 0.01))
            return

    async def _answer(self, from_server: Any, writer: Any) -> None:
        while data := await from_server.read(1 << 16):
            writer.write(data)
        writer.close()
