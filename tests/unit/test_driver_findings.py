"""What the test driver shows of the worker in corners that are hard to meet with a broker."""

import asyncio

import streamproc
from streamproc.sinks import RedisHash
from streamproc.testing import TestDriver

START = 1767225600000


def make_app(name):
    app = streamproc.App(name, broker="kafka://nowhere")
    return app, app.topic("numbers", key_type=str, value_type=int)


def test_a_worker_that_had_no_partitions_processes_those_it_gets():
    app, numbers = make_app("taken")
    seen = []

    @app.agent(numbers)
    async def look(stream):
        async for value in stream:
            await asyncio.sleep(0)
            seen.append(value)

    with TestDriver(app, partitions=4) as driver:
        driver.rebalance(without=range(4))
        for partition in range(4):
            driver.topic("numbers").pipe(None, partition, partition=partition)
        assert seen == []
        driver.rebalance()
        assert sorted(seen) == [0, 1, 2, 3]


def test_an_agent_that_raises_is_not_waited_for_by_its_own_commit():
    app, numbers = make_app("raising")
    counts = app.Table("counts", key_type=str, value_type=int, default=int)
    left = [1]

    @app.agent(numbers)
    async def fail(stream):
        async for value in stream:
            counts["all"] += value
            if left:
                left.pop()
                raise ValueError(value)

    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe("a", 1)
        assert len(driver.errors) == 1
        assert driver.now - START < 500


def test_each_result_that_does_not_fit_its_sink_is_a_dead_letter():
    app, numbers = make_app("misfits")

    @app.agent(numbers, sink=[RedisHash("stats:{nothing}")])
    async def forward(stream):
        async for value in stream:
            yield {"value": value}

    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe_many([("a", 1), ("b", 2), ("c", 3)])
        assert [letter.offset for letter in driver.dead_letters()] == [0, 1, 2]


def test_a_changelog_has_as_many_partitions_as_the_source():
    app, numbers = make_app("counted")
    counts = app.Table("counts", key_type=str, value_type=int, default=int)

    @app.agent(numbers)
    async def count(stream):
        async for key, _ in stream.items():
            counts[key] += 1

    with TestDriver(app, partitions={"numbers": 2}) as driver:
        driver.topic("numbers").pipe("a", 1)
        driver.checkpoint()
        assert app.consumer.topic_partitions("counted-counts-changelog") == 2
