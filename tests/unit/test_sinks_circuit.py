"""A circuit lets one request at a time ask a server that keeps failing."""

import asyncio

import pytest

from streamproc.errors import ConfigurationError, SinkError, SinkUnavailable
from streamproc.sinks import RedisHash, circuit
from streamproc.sinks.circuit import Circuit
from streamproc.sinks.redis.link import Link
from streamproc.streams.policies import retry


class Server:
    """Fails until it is told to answer; sees how many ask at a time."""

    def __init__(self):
        self.answers = False
        self.asked = 0
        self.at_a_time = 0
        self.most = 0
        self.circuit = None
        self.states = set()

    async def request(self):
        self.asked += 1
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        self.states.add(self.circuit.state)
        await asyncio.sleep(0)
        self.at_a_time -= 1
        if not self.answers:
            raise SinkUnavailable("away")
        return "done"


async def until(condition):
    while not condition():  # noqa: ASYNC110 - it is about what others do in between
        await asyncio.sleep(0)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(circuit, "FIRST_DELAY", 0.0001)
    monkeypatch.setattr(circuit, "LONGEST_DELAY", 0.001)


async def test_one_request_at_a_time_asks_a_server_that_failed_often(short, caplog):
    link, server = Link("redis://localhost:1", cluster=False, timeout=1.0), Server()
    server.circuit = link.circuit
    assert link.circuit.state == "closed"
    caplog.set_level("INFO")
    sinks = [
        asyncio.create_task(link.persist(number, server.request, lambda: 1)) for number in range(8)
    ]
    await until(lambda: link.circuit.state != "closed")
    await asyncio.sleep(0.01)  # those that had begun before end
    server.most, server.asked = 0, 0
    server.states.clear()
    await until(lambda: server.asked >= 20)
    assert server.most == 1
    assert server.states == {"half-open"}
    assert link.state == "away"
    server.answers = True
    assert await asyncio.gather(*sinks) == ["done"] * 8
    assert link.circuit.state == "closed"
    assert link.state == "connected"
    opened = [each for each in caplog.messages if "in a row" in each]
    assert opened == ["Redis at redis://localhost:1 failed 5 times in a row: one request at a "
                      "time asks it from now on"]  # fmt: skip


async def test_a_refusal_is_an_answer(short):
    link = Link("redis://localhost:1", cluster=False, timeout=1.0)
    for _ in range(circuit.THRESHOLD - 1):
        link.circuit.on_failure()

    async def request():
        raise SinkError("refused")

    with pytest.raises(SinkError, match="refused"):
        await link.persist("who", request, lambda: 0)
    assert link.circuit.failures == 0


async def test_a_cancelled_probe_lets_others_try(short):
    broken = Circuit("server", threshold=1)
    broken.on_failure()

    async def probe():
        async with broken.turn():
            await asyncio.sleep(3600)

    task = asyncio.create_task(probe())
    await until(lambda: broken.state == "half-open")
    task.cancel()
    await asyncio.wait([task])
    assert broken.state == "open"
    async with broken.turn():
        broken.on_success()
    assert broken.state == "closed"


def test_delays_grow_up_to_a_longest():
    slow = Circuit("server")
    delays = []
    for _ in range(12):
        slow.on_failure()
        delays.append(slow.delay)
    assert 0.025 <= delays[0] <= 0.05
    assert all(2.5 <= each <= 5.0 for each in delays[8:])


def test_sinks_have_no_retries_of_their_own():
    with pytest.raises(ConfigurationError, match="wait for a server that is away by themselves"):
        RedisHash("h", on_error=retry(3))
    with pytest.raises(ConfigurationError, match="dead_letter, skip or stop"):
        RedisHash("h", on_error="skip")
    assert RedisHash("h").circuit == "closed"
