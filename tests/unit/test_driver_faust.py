"""The test driver with what Faust apps use: replies, channels, leaders, other agents."""

import asyncio

import pytest

import streamproc
from streamproc.aggregates import Count, Sum
from streamproc.errors import DriverError
from streamproc.testing import TestDriver


class Reading(streamproc.Record):
    sensor: str
    value: float


def make_app(name):
    app = streamproc.App(name, broker="kafka://nowhere")
    return app, app.topic("numbers", key_type=str, value_type=int)


def test_agents_that_ask_each_other():
    app, numbers = make_app("asking")
    answers = []

    @app.agent(value_type=int)
    async def double(stream):
        async for value in stream:
            yield 2 * value

    @app.agent(numbers)
    async def ask(stream):
        async for value in stream:
            answers.append(await double.ask(value))

    with TestDriver(app) as driver:
        driver.topic("numbers").pipe_many([("a", 1), ("b", 2)])
        # The first request subscribes to the replies, and the rebalance gives it again.
        assert set(answers) == {2, 4}


def test_channels_in_memory_and_cast():
    app, numbers = make_app("channels")
    channel = app.channel(value_type=int)
    seen = []

    @app.agent(channel)
    async def collect(stream):
        async for value in stream:
            seen.append(value)

    @app.agent(numbers)
    async def pass_on(stream):
        async for value in stream:
            await channel.put(value)
            await collect.cast(value + 100)

    with TestDriver(app) as driver:
        driver.topic("numbers").pipe("a", 1)
        assert len(seen) == 2


@pytest.mark.parametrize("options", [{"concurrency": 3}, {"isolated_partitions": True}])
def test_agents_of_several_actors(options):
    app, numbers = make_app("actors")
    seen = []

    @app.agent(numbers, **options)
    async def work(stream):
        async for value in stream:
            await asyncio.sleep(0.01)
            seen.append(value)

    with TestDriver(app, partitions=3) as driver:
        driver.topic("numbers").pipe_many((str(n), n) for n in range(30))
        assert sorted(seen) == list(range(30))
        driver.checkpoint()
        assert sum(driver.committed.values()) == 30
        driver.rebalance(without={0})
        driver.rebalance()
        driver.topic("numbers").pipe("a", 30)
        assert sorted(seen) == list(range(31))


def test_timers_of_the_leader_and_tasks():
    app, _ = make_app("leading")
    seen = []

    @app.timer(5, on_leader=True)
    async def lead():
        seen.append("leader")

    @app.task
    async def at_start():
        seen.append("task")

    with TestDriver(app) as driver:
        driver.advance(11)
    assert seen == ["task", "leader", "leader"]


def test_records_acked_by_hand():
    app, numbers = make_app("acking")
    held = []

    @app.agent(numbers)
    async def hold(stream):
        async for events in stream.noack_take(10, within=1):
            held.extend(events)

    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe_many([("a", 1), ("a", 2)])
        driver.advance(2)
        assert driver.committed == {}
        held[0].ack()
        driver.checkpoint()
        assert driver.committed == {("numbers", 0): 1}


def test_a_global_table_follows_its_topic():
    app, numbers = make_app("globals")
    names = app.GlobalTable("names", key_type=str, value_type=str, default=str)
    seen = []

    @app.agent(numbers)
    async def look(stream):
        async for key, value in stream.items():
            if value:
                names[key] = f"number {value}"
            seen.append(names.get(key))

    with TestDriver(app, partitions=2) as driver:
        numbers_in = driver.topic("numbers")
        numbers_in.pipe("a", 1)
        numbers_in.pipe("a", 0)
        assert seen == ["number 1", "number 1"]
        assert driver.table("names") == {"a": "number 1"}
        driver.checkpoint()
        driver.crash()
        assert driver.table("names") == {"a": "number 1"}


def test_through_and_echo():
    app, numbers = make_app("passing")
    seen = []

    @app.agent(numbers)
    async def work(stream):
        async for value in stream.echo("copies").through("between"):
            seen.append(value)

    with TestDriver(app) as driver:
        driver.topic("numbers").pipe_many([("a", 1), ("a", 2)])
        assert seen == [1, 2]
        assert driver.output("copies").values() == [1, 2]


def test_an_app_of_faust_models():
    import faust

    class Point(faust.Record, serializer="json"):
        x: int

    app = streamproc.App("models", broker="kafka://nowhere")
    points = app.topic("points", value_type=Point)
    out = app.topic("out", value_type=Point)

    @app.agent(points)
    async def move(stream):
        async for point in stream:
            await out.send(value=Point(x=point.x + 1))

    with TestDriver(app) as driver:
        driver.topic("points").pipe(None, Point(x=1))
        assert driver.output(out).read().value == Point(x=2)


def test_messages_sent_from_a_test_or_a_timer():
    app, numbers = make_app("sending")

    @app.timer(1)
    async def send():
        await numbers.send(key="a", value=1)

    seen = []

    @app.agent(numbers)
    async def look(stream):
        async for value in stream:
            seen.append(value)

    with TestDriver(app) as driver:
        driver.advance(3.5)
        assert seen == [1, 1, 1]


def test_windowed_tables():
    app, numbers = make_app("windowed")
    sums = app.Table("sums", key_type=str, value_type=int, default=int).tumbling(10, expires=60)

    @app.agent(numbers)
    async def add(stream):
        async for key, value in stream.items():
            sums[key] += value

    start = 1767225600000
    with TestDriver(app, partitions=2) as driver:
        numbers_in = driver.topic("numbers")
        numbers_in.pipe("a", 1, timestamp=start)
        numbers_in.pipe("a", 2, timestamp=start + 9_999)
        numbers_in.pipe("b", 3, timestamp=start + 5_000)
        driver.checkpoint()
        numbers_in.pipe("a", 4, timestamp=start + 10_000)
        driver.crash()
        expected = {
            "a": {(start, start + 10_000): 3, (start + 10_000, start + 20_000): 4},
            "b": {(start, start + 10_000): 3},
        }
        assert {key: driver.table("sums").windows(key) for key in "ab"} == expected
        assert driver.table(sums).windows("c") == {}
        assert driver.table(sums).partition(1) == {} or driver.table(sums).partition(0) == {}
        assert len(driver.table(sums)) == 3
        assert driver.table(sums)["b", (start / 1000, start / 1000 + 10)] == 3


def test_running_aggregations():
    app, numbers = make_app("running")
    app.stream(numbers).aggregate(name="totals", n=Count(), total=Sum())
    with TestDriver(app, partitions=2) as driver:
        driver.topic("numbers").pipe_many([("a", 1), ("b", 2), ("a", 3)])
        assert driver.table("totals") == {"a": {"n": 2, "total": 4}, "b": {"n": 1, "total": 2}}
        with pytest.raises(DriverError, match="has no windows"):
            driver.table("totals").windows("a")
