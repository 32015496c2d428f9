"""What tests of exactly-once sinks need: a place in a partition, workers, a faulty network."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from streamproc.errors import Fenced
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
    """A TCP proxy before a server that spoils the next end of a transaction as told.

    ``fault`` is "before" (cut before it is sent on), "after" (cut when it was answered) or
    "late" (cut, and sent on a while later, when the client has long tried again).
    """

    def __init__(self, port: int, seed: int = 0, end: bytes = b"\r\nEXEC\r\n") -> None:
        self._end = end
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
            if self.fault is None or not tail.endswith(self._end):
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


@contextlib.asynccontextmanager
async def asyncio_timeout(seconds: float) -> AsyncIterator[None]:
    """End the test when it hangs (asyncio.timeout is not there in Python 3.10)."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        yield
    finally:
        timer.cancel()


class Job:
    """A count and a list a partition, by workers that crash; what Kafka would have committed."""

    def __init__(
        self, network: Network, make: Callable[[], list[Any]], app: Callable[[], Any], seed: int
    ) -> None:
        self.network = network
        self.make, self.app = make, app
        self.random = random.Random(seed)
        self.committed = dict.fromkeys(range(3), 0)
        self.crashes = self.zombies = self.cancelled = 0

    async def start(self) -> list[Any]:
        app, sinks = self.app(), self.make()
        for sink in sinks:
            await sink.open(app)
            await sink.claim(partitions(*self.committed))
        return sinks

    async def run(self, total: int) -> None:
        """Process ``total`` records a partition with a fault in most checkpoints."""
        sinks = await self.start()
        at_offset = dict(self.committed)
        old: list[list[Any]] = []
        while min(self.committed.values()) < total:
            for partition, offset in at_offset.items():
                end = min(total, offset + self.random.randrange(5))
                for n in range(offset, end):
                    await process(sinks, partition, n, n)
                at_offset[partition] = end
            self.network.fault = self.random.choice([None, "before", "after", "late"])
            kind = self.random.random()
            if kind < 0.3:
                self.crashes += 1
                await self.give_up(sinks, at_offset)
                if self.random.random() < 0.5:  # the records are read again in the process
                    for sink in sinks:
                        sink.discard()
                        if self.random.random() < 0.5:
                            await sink.claim(partitions(*self.committed))
                else:
                    old.append(sinks)
                    sinks = await self.start()
                at_offset = dict(self.committed)
            else:
                await checkpoint(sinks, at_offset)
                if kind < 0.4:  # offsets are not committed, and the worker goes on
                    at_offset = dict(self.committed)
                else:
                    self.committed = dict(at_offset)
            if old and self.random.random() < 0.3:
                self.zombies += 1
                for sink in self.random.choice(old):
                    await self.wake(sink)
        for sink in [*sinks, *(sink for pair in old for sink in pair)]:
            await sink.close()

    async def give_up(self, sinks: list[Any], at_offset: dict[int, int]) -> None:
        """Begin a checkpoint, or not, and leave it anywhere in it."""
        if self.random.random() < 0.3:
            return
        task = asyncio.create_task(checkpoint(sinks, at_offset))
        for _ in range(self.random.randrange(30)):
            await asyncio.sleep(0)
        await asyncio.sleep(self.random.choice([0, 0, 0.0005, 0.001, 0.002]))
        self.cancelled += not task.done()
        task.cancel()
        await asyncio.wait([task])

    async def wake(self, sink: Any) -> None:
        """Let a worker go on that doesn't know that others have its partitions."""
        partition = self.random.randrange(3)
        with at(partition, 10_000):
            await sink.write([-1])
        with pytest.raises(Fenced):
            await checkpoint([sink], {partition: 10_001})
