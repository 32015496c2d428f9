"""The test driver: checkpoints, restarts, crashes, rebalances, sinks and flows."""

import pytest

import streamproc
from streamproc.aggregates import Count, Mean
from streamproc.errors import DriverError
from streamproc.sinks import RedisHash
from streamproc.sinks.base import Sink
from streamproc.testing import TestDriver
from streamproc.windows import tumbling

START = 1767225600000


class Reading(streamproc.Record):
    sensor: str
    value: float


class Sums:
    """Two tables by two agents, and what was seen in order."""

    def __init__(self):
        self.app = app = streamproc.App("sums", broker="kafka://nowhere")
        self.readings = app.topic("readings", key_type=str, value_type=Reading)
        self.sums = app.Table("sums", key_type=str, value_type=float, default=float)
        self.counts = app.Table("counts", key_type=str, value_type=int, default=int)
        self.seen = []

        @app.agent(self.readings)
        async def add(stream):
            async for batch in stream.batches():
                for reading in batch:
                    self.sums[reading.sensor] += reading.value

        @app.agent(self.readings)
        async def count(stream):
            async for reading in stream:
                self.counts[reading.sensor] += 1
                self.seen.append(reading.value)


@pytest.fixture
def sums():
    return Sums()


@pytest.fixture(params=["memory", "app"])
def driver(request, sums):
    with TestDriver(sums.app, partitions=2, stores=request.param) as driver:
        yield driver


def pipe(driver, *values):
    driver.topic("readings").pipe_many(
        (sensor, Reading(sensor=sensor, value=value)) for value in values for sensor in "ab"
    )


# -- checkpoints


def test_a_checkpoint_commits_what_is_done(driver):
    pipe(driver, 1, 2, 3)
    assert sum(driver.committed.values()) == 0
    driver.checkpoint()
    assert sum(driver.committed.values()) == 6


def test_time_runs_checkpoints_too(driver):
    pipe(driver, 1)
    driver.advance(0.9)
    assert sum(driver.committed.values()) == 0
    driver.advance(0.2)
    assert sum(driver.committed.values()) == 2


# -- crash, restart, rebalance


def test_after_a_crash_what_was_not_checkpointed_comes_again(driver, sums):
    pipe(driver, 1, 2)
    driver.checkpoint()
    pipe(driver, 3, 4)
    sums.seen.clear()
    driver.crash()
    assert sorted(sums.seen) == [3, 3, 4, 4]
    assert driver.table("counts") == {"a": 4, "b": 4}
    assert driver.table("sums") == {"a": 10, "b": 10}
    pipe(driver, 5)
    assert driver.table("counts") == {"a": 5, "b": 5}


def test_counts_are_exact_whatever_crashes_and_checkpoints_come_between(driver):
    for value in range(10):
        pipe(driver, value)
        if value % 3 == 0:
            driver.checkpoint()
        if value % 4 == 1:
            driver.crash()
    driver.crash()
    driver.crash()
    assert driver.table("counts") == {"a": 10, "b": 10}
    assert driver.table("sums") == {"a": 45, "b": 45}


def test_a_restart_loses_nothing_and_repeats_nothing(driver, sums):
    pipe(driver, 1, 2)
    sums.seen.clear()
    driver.restart()
    assert sums.seen == []
    assert driver.table("sums") == {"a": 3, "b": 3}
    pipe(driver, 3)
    assert driver.table("counts") == {"a": 3, "b": 3}


def test_time_goes_on_over_a_crash(driver):
    driver.advance("5m")
    driver.crash()
    assert driver.now == START + 300_000
    driver.restart()
    assert driver.now == START + 300_000


def test_partitions_are_taken_away_and_given_back(driver, sums):
    pipe(driver, 1, 2)
    there = driver.table("counts").partition(1)
    driver.rebalance(without={1})
    with pytest.raises(DriverError, match="has no partition 1 here"):
        driver.table("counts").partition(1)
    sums.seen.clear()
    pipe(driver, 3)
    assert len(sums.seen) == 2 - len(there)
    driver.rebalance()
    assert driver.table("counts") == {"a": 3, "b": 3}
    assert driver.table("sums") == {"a": 6, "b": 6}


def test_a_record_that_is_being_retried_survives_a_crash():
    app = streamproc.App("retrying", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)
    counts = app.Table("counts", key_type=str, value_type=int, default=int)
    fail = [True]

    @app.agent(topic)
    async def work(stream):
        async for value in stream:
            if fail:
                fail.clear()
                raise ValueError(value)
            counts["all"] += value

    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe_many([(None, 1), (None, 2)])
        driver.crash()
        assert driver.table("counts") == {"all": 3}
        assert len(driver.errors) == 1


@pytest.mark.parametrize("stores", ["memory", "app"])
def test_a_crash_at_any_moment_counts_each_record_once(sums, stores):
    # With the stores of the app each start takes a while: a few places only.
    for steps in range(80) if stores == "memory" else range(0, 40, 13):
        with TestDriver(sums.app, partitions=2, stores=stores) as driver:
            piped = []

            def put(value, driver=driver, piped=piped):
                piped.append(value)
                pipe(driver, value)

            put(1)
            with driver.crash_after(steps):
                put(2)
                driver.checkpoint()
                put(3)
                driver.checkpoint()
            put(4)
            assert driver.table("counts") == dict.fromkeys("ab", len(piped)), steps
            assert driver.table("sums") == dict.fromkeys("ab", sum(piped)), steps


def test_a_block_that_is_done_before_does_not_crash(driver, sums):
    with driver.crash_after(10_000):
        pipe(driver, 1)
    sums.seen.clear()
    pipe(driver, 2)
    driver.advance("1h")
    assert sums.seen == [2, 2]


# -- sinks


class Recorder(Sink):
    """A sink that must never be reached."""

    async def open(self, app):
        raise AssertionError

    async def write(self, values):
        raise AssertionError

    async def flush(self):
        raise AssertionError

    async def check(self):
        raise AssertionError


def app_with_sinks(*sinks):
    app = streamproc.App("sinking", broker="kafka://nowhere")
    topic = app.topic("readings", key_type=str, value_type=Reading)

    @app.agent(topic, sink=list(sinks))
    async def forward(stream):
        async for reading in stream:
            yield {"sensor": reading.sensor, "last": reading.value}

    return app


def test_results_of_agents_come_to_the_driver_and_not_to_redis():
    stats = RedisHash("stats:{sensor}")
    with TestDriver(app_with_sinks(stats)) as driver:
        pipe(driver, 1)
        assert sorted(each["sensor"] for each in driver.sink(stats).results) == ["a", "b"]
        assert ("HSET", "stats:a", "sensor", "a", "last", 1.0) in driver.sink(stats).commands
        driver.sink(stats).clear()
        pipe(driver, 2)
        assert [each["last"] for each in driver.sink(stats).results] == [2, 2]


def test_any_sink_is_recorded_and_left_as_it_was():
    sink = Recorder()
    app = app_with_sinks(sink)
    for _ in range(2):
        with TestDriver(app) as driver:
            pipe(driver, 1)
            assert len(driver.sink(sink).results) == 2
            driver.crash()  # nothing was checkpointed: the results come again
            assert len(driver.sink(sink).results) == 4
            assert driver.sink(sink).commands == []
    assert vars(sink) == {}


def test_a_sink_written_to_in_an_agent_is_recorded_from_its_first_value():
    app = streamproc.App("writing", broker="kafka://nowhere")
    topic = app.topic("readings", key_type=str, value_type=Reading)
    stats = RedisHash("stats:{sensor}")

    @app.agent(topic)
    async def forward(stream):
        async for batch in stream.batches():
            await stats.write(batch)

    with TestDriver(app, partitions=1) as driver:
        pipe(driver, 1)
        assert [each.sensor for each in driver.sink(stats).results] == ["a", "b"]
        driver.checkpoint()
        assert len(driver.sink(stats).commands) == 2


def test_values_that_do_not_fit_a_sink_are_told():
    stats = RedisHash("stats:{nothing}")
    with TestDriver(app_with_sinks(stats)) as driver:
        pipe(driver, 1)
        assert driver.dead_letters()[0].error == "SinkError"


# -- flows


def flow_app(sink, *, repartition, **options):
    app = streamproc.App("flowing", broker="kafka://nowhere")
    readings = app.topic("readings", key_type=str, value_type=Reading)
    (
        app.stream(readings)
        .filter(lambda reading: reading.value >= 0)
        .key_by("sensor", repartition=repartition)
        .window(tumbling("10s", **options))
        .aggregate(name="stats", n=Count(), mean=Mean("value"))
        .to(sink)
    )
    return app


@pytest.mark.parametrize("repartition", [True, False])
def test_windows_of_a_flow_close_by_silence(repartition):
    results = Recorder()
    with TestDriver(flow_app(results, repartition=repartition), partitions=2) as driver:
        for second in range(-1, 10):
            driver.topic("readings").pipe_many(
                (sensor, Reading(sensor=sensor, value=second), START + second * 1000)
                for sensor in "ab"
            )
        assert driver.sink(results).results == []
        assert driver.table("stats").windows("a") == {
            (START, START + 10_000): {"n": 10, "mean": 4.5}
        }
        driver.advance("5m")
        closed = driver.sink(results).results
        assert sorted((each.key, each.n, each.mean) for each in closed) == [
            ("a", 10, 4.5),
            ("b", 10, 4.5),
        ]
        assert driver.table("stats").windows("a") == {}


def test_windows_of_a_flow_close_by_event_time():
    results = Recorder()
    with TestDriver(flow_app(results, repartition=False, grace=0), partitions=1) as driver:
        readings = driver.topic("readings")
        for second in (0, 9, 10, 30):
            readings.pipe("a", Reading(sensor="a", value=second), timestamp=START + second * 1000)
        assert [each.mean for each in driver.sink(results).results] == [4.5, 10.0]


def test_windows_survive_crashes():
    results = Recorder()
    with TestDriver(flow_app(results, repartition=False), partitions=1) as driver:
        readings = driver.topic("readings")
        for second in range(10):
            readings.pipe("a", Reading(sensor="a", value=second), timestamp=START + second * 1000)
            driver.crash()
            if second % 2:
                driver.checkpoint()
        driver.crash()
        assert driver.table("stats").windows("a") == {
            (START, START + 10_000): {"n": 10, "mean": 4.5}
        }
        driver.rebalance(without={0})
        driver.rebalance()
        driver.restart()
        driver.advance("5m")
        assert [(each.key, each.n) for each in driver.sink(results).results] == [("a", 10)]


def test_what_a_flow_repartitioned_comes_again_after_a_crash():
    """At least once: a crash between sending and checkpoint sends again."""
    results = Recorder()
    with TestDriver(flow_app(results, repartition=True), partitions=1) as driver:
        driver.topic("readings").pipe("x", Reading(sensor="a", value=1), timestamp=START)
        driver.checkpoint()
        driver.crash()
        assert driver.table("stats").windows("a") == {(START, START + 10_000): {"n": 1, "mean": 1}}
        driver.topic("readings").pipe("x", Reading(sensor="a", value=1), timestamp=START)
        driver.crash()
        assert driver.table("stats").windows("a")[START, START + 10_000]["n"] == 3


@pytest.mark.parametrize("partitions", [8, 4, 2, 3])
def test_a_table_that_fits_no_topic_is_told_at_the_start(caplog, partitions):
    app = streamproc.App("uneven", broker="kafka://nowhere")
    app.Table("counts", key_type=str, value_type=int, partitions=partitions)

    async def read(stream):
        async for _ in stream:
            pass

    for name in ("four", "two"):
        app.agent(app.topic(name), name=name)(read)
    with TestDriver(app, partitions={"four": 4, "two": 2}):
        pass
    told = f"Table 'counts' has {partitions} partitions, and the topics that are read have 2 and 4"
    assert (told in caplog.text) == (partitions not in (4, 2))
