"""Connecting to a broker."""

import asyncio
from types import SimpleNamespace

import pytest

from streamproc.kafka.connect import start_when_reachable


class Client:
    """A client whose broker takes its time."""

    def __init__(self):
        self.starts, self.stops = asyncio.Event(), 0

    async def start(self):
        self.starts.set()
        await asyncio.Event().wait()

    async def stop(self):
        self.stops += 1


async def test_a_client_that_is_not_waited_for_any_more_is_closed():
    client = Client()
    connecting = asyncio.ensure_future(
        start_when_reachable(
            lambda: client, service=SimpleNamespace(should_stop=False), what="Client", address=[]
        )
    )
    await client.starts.wait()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert client.stops == 1
