"""The test driver: what goes in and comes out, state, time, failures."""

import asyncio
import time
from datetime import timedelta

import pytest

import streamproc
from streamproc.errors import DriverError
from streamproc.testing import TestDriver


class Reading(streamproc.Record):
    sensor: str
    value: float


START = 1767225600000  # 2026-01-01


class SensorApp:
    """An app with a table, a forwarding agent, a timer and a repartition."""

    def __init__(self, **options):
        self.app = app = streamproc.App("driven", broker="kafka://nowhere:1", **options)
        self.readings = app.topic("readings", key_type=str, value_type=Reading)
        self.alerts = app.topic("alerts", key_type=str, value_type=Reading)
        self.counts = app.Table("counts", key_type=str, value_type=int, default=int)

        @app.agent(self.readings)
        async def count(stream):
            async for reading in stream:
                self.counts[reading.sensor] += 1
                if reading.value > 10:
                    await self.alerts.send(key=reading.sensor, value=reading)


@pytest.fixture
def sensors():
    return SensorApp()


@pytest.fixture
def driver(sensors):
    with TestDriver(sensors.app) as driver:
        yield driver


# -- records


def test_a_record_is_processed_when_pipe_returns(driver):
    driver.topic("readings").pipe("a", Reading(sensor="a", value=11))
    alert = driver.output("alerts").read()
    assert (alert.key, alert.value) == ("a", Reading(sensor="a", value=11))
    assert driver.table("counts")["a"] == 1


def test_what_came_out_has_its_place_and_time(driver):
    driver.topic("readings").pipe("a", Reading(sensor="a", value=11), timestamp=START + 5)
    alert = driver.output("alerts").read()
    assert alert.timestamp == START
    assert alert.offset == 0
    assert alert.raw_key == b"a"
    assert alert.raw_value == b'{"sensor":"a","value":11.0}'


def test_output_is_read_once_and_in_order_over_partitions(driver):
    readings = driver.topic("readings")
    readings.pipe_many((str(n), Reading(sensor=str(n), value=11 + n)) for n in range(20))
    alerts = driver.output("alerts")
    assert sorted(alerts.read_all(), key=lambda each: each.value.value)[3].key == "3"
    assert alerts.is_empty
    readings.pipe("x", Reading(sensor="x", value=99))
    readings.pipe("y", Reading(sensor="y", value=98))
    assert alerts.pairs() == [
        ("x", Reading(sensor="x", value=99)),
        ("y", Reading(sensor="y", value=98)),
    ]
    with pytest.raises(DriverError, match="nothing to topic 'alerts' after the 22 records"):
        alerts.read()


def test_many_records_come_as_a_batch():
    app = streamproc.App("batches", broker="kafka://nowhere")
    topic = app.topic("numbers", key_type=str, value_type=int)
    sizes = []

    @app.agent(topic)
    async def sizes_of(stream):
        async for batch in stream.batches():
            sizes.append((batch.partition, list(batch.values), list(batch.timestamps)))

    with TestDriver(app, partitions=1) as driver:
        driver.topic(topic).pipe_many([("a", 1, START), ("b", 2, START + 1), ("c", 3)])
        assert sizes == [(0, [1, 2, 3], [START, START + 1, START])]


def test_partition_is_kafkas_or_the_one_given(driver):
    readings = driver.topic("readings")
    readings.pipe("a", Reading(sensor="a", value=1))  # murmur2 of b"a" in 4 partitions
    readings.pipe("a", Reading(sensor="b", value=1), partition=3)
    assert driver.table("counts").partition(0) == {"a": 1}
    assert driver.table("counts").partition(3) == {"b": 1}
    with pytest.raises(streamproc.errors.ProducerError, match="no partition 4: it has 4, from 0"):
        readings.pipe("a", Reading(sensor="a", value=1), partition=4)


def test_headers_and_tombstones_reach_the_agent():
    app = streamproc.App("headers", broker="kafka://nowhere")
    topic = app.topic("things", key_type=str, value_type=int)
    seen = []

    @app.agent(topic)
    async def look(stream):
        async for event in stream.events():
            seen.append((event.key, event.value, dict(event.headers), event.message.timestamp))

    with TestDriver(app) as driver:
        things = driver.topic("things")
        things.pipe("a", 1, headers={"trace": "xyz", "raw": b"\x00"}, timestamp="2026-01-02")
        things.pipe("a", None)
    assert seen == [
        ("a", 1, {"trace": b"xyz", "raw": b"\x00"}, START / 1000 + 86400),
        ("a", None, {}, START / 1000),
    ]


def test_records_with_another_type_are_refused(driver):
    readings = driver.topic("readings")
    with pytest.raises(DriverError, match=r"takes values of type Reading, and .* is none: Exp"):
        readings.pipe("a", {"sensor": "a", "value": "much"})
    with pytest.raises(DriverError, match="To see what the app does with bytes"):
        readings.pipe("a", "text")
    with pytest.raises(DriverError, match="is not a time"):
        readings.pipe("a", Reading(sensor="a", value=1), timestamp="yesterday")
    readings.pipe("a", {"sensor": "a", "value": 3.0})  # what would be in the topic as JSON
    assert driver.table("counts") == {"a": 1}


def test_unknown_topics_and_tables_are_told(driver, sensors):
    with pytest.raises(DriverError, match="does not read topic 'raedings'; it reads readings"):
        driver.topic("raedings")
    with pytest.raises(DriverError, match="has no table 'count'; it has counts"):
        driver.table("count")
    with pytest.raises(DriverError, match="sent nothing to a topic 'alrets'"):
        driver.output("alrets")
    assert driver.output(sensors.alerts).read_all() == []


def test_partitions_may_differ_by_topic(sensors):
    with TestDriver(sensors.app, partitions={"readings": 2}) as driver:
        driver.topic("readings").pipe("a", Reading(sensor="a", value=1), partition=1)
        with pytest.raises(streamproc.errors.ProducerError, match="it has 2"):
            driver.topic("readings").pipe("a", Reading(sensor="a", value=1), partition=2)
        with pytest.raises(DriverError, match="has no partition 9 here"):
            driver.table("counts").partition(9)


# -- tables


def test_a_table_is_read_over_all_partitions(driver):
    names = [str(n) for n in range(20)]
    driver.topic("readings").pipe_many((n, Reading(sensor=n, value=0)) for n in names)
    counts = driver.table("counts")
    assert counts == dict.fromkeys(names, 1)
    assert len(counts) == 20
    assert dict(counts.items()) == dict(counts)
    assert counts.get("nobody") is None
    with pytest.raises(KeyError):
        counts["nobody"]


# -- several agents, repartition


def test_agents_feed_each_other_through_topics():
    app = streamproc.App("chain", broker="kafka://nowhere")
    first = app.topic("first", key_type=str, value_type=int)
    second = app.topic("second", key_type=str, value_type=int)
    third = app.topic("third", key_type=str, value_type=int)

    @app.agent(first)
    async def double(stream):
        async for key, value in stream.items():
            await second.send(key=key, value=2 * value)

    @app.agent(second)
    async def add_one(stream):
        async for batch in stream.batches():
            await third.send_batch([value + 1 for value in batch], keys=batch.keys)

    with TestDriver(app) as driver:
        driver.topic("first").pipe_many([("a", 1), ("b", 2), ("a", 3)])
        assert sorted(driver.output("third").pairs()) == [("a", 3), ("a", 7), ("b", 5)]


def test_group_by_repartitions():
    app = streamproc.App("grouping", broker="kafka://nowhere")
    readings = app.topic("readings", key_type=str, value_type=Reading)
    counts = app.Table("counts", key_type=str, value_type=int, default=int)

    @app.agent(readings)
    async def count(stream):
        async for reading in stream.group_by(lambda reading: reading.sensor, name="sensor"):
            counts[reading.sensor] += 1

    with TestDriver(app) as driver:
        driver.topic("readings").pipe_many(
            (str(n), Reading(sensor=f"s{n % 3}", value=n)) for n in range(30)
        )
        assert driver.table("counts") == {"s0": 10, "s1": 10, "s2": 10}


# -- time


def test_time_stands_still_unless_advanced(driver):
    assert driver.now == START
    driver.topic("readings").pipe("a", Reading(sensor="a", value=1))
    assert driver.now == START
    driver.advance("90s")
    assert driver.now == START + 90_000
    driver.advance(timedelta(seconds=1))
    driver.advance(0.5)
    assert driver.now == START + 91_500


def test_take_within_gives_what_it_has_when_time_passes():
    app = streamproc.App("taking", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)
    taken = []

    @app.agent(topic)
    async def take(stream):
        async for values in stream.take(3, within=10):
            taken.append(list(values))

    with TestDriver(app, partitions=1) as driver:
        numbers = driver.topic("numbers")
        numbers.pipe(None, 1)
        driver.advance(9)
        numbers.pipe(None, 2)
        assert taken == []
        driver.advance(0.999)
        assert taken == []
        driver.advance(0.001)
        assert taken == [[1, 2]]
        numbers.pipe_many([(None, 3), (None, 4), (None, 5), (None, 6)])
        assert taken == [[1, 2], [3, 4, 5]]
        driver.advance(10)
        assert taken == [[1, 2], [3, 4, 5], [6]]


def test_timers_and_crontabs_fire_at_their_times():
    app = streamproc.App("timing", broker="kafka://nowhere")
    fired = []

    @app.timer(10)
    async def every_ten_seconds():
        fired.append(("timer", time.time()))

    @app.crontab("30 6 * * *")
    async def at_half_past_six():
        fired.append(("crontab", time.time()))

    with TestDriver(app) as driver:
        driver.advance("35s")
        assert [name for name, _ in fired] == ["timer"] * 3
        assert fired[0][1] == pytest.approx(START / 1000 + 10)
        fired.clear()
        driver.advance("1d")
        assert fired.count(("timer", fired[0][1])) == 1
        (crontab,) = [at for name, at in fired if name == "crontab"]
        assert crontab == pytest.approx(START / 1000 + 6.5 * 3600)
        assert len(fired) == 8641


def test_sleeping_agents_take_virtual_time():
    app = streamproc.App("sleeping", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)
    done = []

    @app.agent(topic)
    async def work(stream):
        async for value in stream:
            await asyncio.sleep(20)
            done.append((value, time.time(), time.monotonic()))

    real = time.monotonic()
    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe_many([(None, 1), (None, 2)])
        assert [value for value, *_ in done] == [1, 2]
        assert done[1][1] - done[0][1] == pytest.approx(20)
        assert done[1][2] - done[0][2] == pytest.approx(20)
        assert driver.now == START + 40_000
    assert time.monotonic() - real < 20


def test_an_agent_may_use_threads():
    app = streamproc.App("threads", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)
    done = []

    @app.agent(topic)
    async def work(stream):
        async for value in stream:
            done.append(await asyncio.to_thread(lambda value=value: value + 1))

    with TestDriver(app) as driver:
        driver.topic("numbers").pipe(None, 1)
        assert done == [2]
        assert driver.now == START


# -- failures


class Failing(SensorApp):
    """An app with an agent that fails at some readings."""

    def __init__(self, failures, **options):
        super().__init__(**options)
        self.left = failures

        @self.app.agent(self.alerts)
        async def fail(stream):
            async for reading in stream:
                if self.left:
                    self.left -= 1
                    raise ValueError(f"no good: {reading.value}")


def test_a_record_that_fails_twice_is_done_then():
    failing = Failing(failures=2)
    with TestDriver(failing.app) as driver:
        driver.topic("alerts").pipe("a", Reading(sensor="a", value=1))
        assert [str(error) for error in driver.errors] == ["no good: 1.0"] * 2
        assert driver.dead_letters() == []
        assert driver.now > START  # the retries waited


def test_rejected_records_are_dead_letters():
    failing = Failing(failures=100, max_retries=1)
    with TestDriver(failing.app) as driver:
        driver.topic("alerts").pipe("a", Reading(sensor="a", value=1), partition=2)
        driver.topic("readings").pipe("b", b"not json", timestamp=START - 1)
        failed, undecoded = driver.dead_letters()
        assert (failed.topic, failed.partition, failed.offset) == ("alerts", 2, 0)
        assert (failed.error, failed.reason) == ("ValueError", "no good: 1.0")
        assert failed.stage.endswith("fail")
        assert (undecoded.stage, undecoded.error) == ("value", "DecodeError")
        assert (undecoded.key, undecoded.value) == (b"b", b"not json")
        assert undecoded.timestamp == START - 1


def test_errors_that_nobody_looked_at_fail_the_test():
    failing = Failing(failures=1)
    with (
        pytest.raises(DriverError, match=r"raised ValueError\('no good: 1.0'\).*driver.errors"),
        TestDriver(failing.app) as driver,
    ):
        driver.topic("alerts").pipe("a", Reading(sensor="a", value=1))


def test_dead_letters_that_nobody_looked_at_fail_the_test(sensors):
    with (
        pytest.raises(
            DriverError, match=r"rejected 1 records, the first at readings/\d@0 \(value\)"
        ),
        TestDriver(sensors.app) as driver,
    ):
        driver.topic("readings").pipe("a", b"{}")


def test_an_assertion_of_the_test_comes_first():
    failing = Failing(failures=1)
    with pytest.raises(ZeroDivisionError), TestDriver(failing.app) as driver:  # noqa: PT012
        driver.topic("alerts").pipe("a", Reading(sensor="a", value=1))
        1 / 0  # noqa: B018


def test_an_app_that_stops_itself_is_told():
    app = streamproc.App("stopping", broker="kafka://nowhere")

    @app.timer(1)
    async def fail():
        raise RuntimeError("no more")

    with TestDriver(app) as driver:
        with pytest.raises(DriverError, match=r"stopped itself: RuntimeError\('no more'\)"):
            driver.advance(2)
        driver.crash()
        driver.advance(0.5)


def test_a_task_that_nobody_awaits_fails_the_test():
    app = streamproc.App("spawning", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)

    async def fail(value):
        raise ValueError(value)

    @app.agent(topic)
    async def spawn(stream):
        async for value in stream:
            asyncio.create_task(fail(value))  # noqa: RUF006

    with (
        pytest.raises(DriverError, match=r"The app raised ValueError\(7\)"),
        TestDriver(app, partitions=1) as driver,
    ):
        driver.topic("numbers").pipe(None, 7)


def unencodable():
    app = streamproc.App("unencodable", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)
    counts = app.Table("counts", key_type=str, value_type=int, default=int)

    @app.agent(topic)
    async def count(stream):
        async for _ in stream:
            counts["all"] = object()

    return app


def test_a_checkpoint_that_fails_is_told():
    with TestDriver(unencodable(), partitions=1) as driver:
        driver.topic("numbers").pipe(None, 1)
        with pytest.raises(streamproc.errors.StreamprocError, match="object"):
            driver.checkpoint()


def test_a_last_checkpoint_that_fails_is_told():
    with (
        pytest.raises(streamproc.errors.StreamprocError, match="object"),
        TestDriver(unencodable(), partitions=1) as driver,
    ):
        driver.topic("numbers").pipe(None, 1)


def test_records_that_are_never_done_are_told():
    app = streamproc.App("hanging", broker="kafka://nowhere")
    topic = app.topic("numbers", value_type=int)

    hangs = [True]

    @app.agent(topic)
    async def hang(stream):
        async for _ in stream:
            while hangs[0]:  # noqa: ASYNC110
                await asyncio.sleep(60)

    with TestDriver(app, partitions=1) as driver:
        with pytest.raises(DriverError, match="not done in numbers/0"):
            driver.topic("numbers").pipe(None, 1)
        hangs.clear()
        hangs.append(False)
        driver.crash()


# -- the app and its loop


def test_an_app_is_as_before_afterwards(sensors):
    for _ in range(3):
        with TestDriver(sensors.app) as driver:
            driver.topic("readings").pipe("a", Reading(sensor="a", value=11))
            assert driver.table("counts") == {"a": 1}
            assert len(driver.output("alerts").read_all()) == 1
        assert not sensors.app.started
        assert sensors.app.conf.topic_partitions == 8


async def test_a_driver_works_inside_of_a_running_loop(sensors):
    loop = asyncio.get_running_loop()
    with TestDriver(sensors.app) as driver:
        driver.topic("readings").pipe("a", Reading(sensor="a", value=11))
        await asyncio.sleep(0)
        driver.advance("1h")
        assert asyncio.get_running_loop() is loop
        assert driver.table("counts") == {"a": 1}


def test_two_drivers_of_one_app_are_refused(sensors):
    with TestDriver(sensors.app), pytest.raises(DriverError, match="is running already"):
        TestDriver(sensors.app).__enter__()


def test_drivers_of_two_apps_live_side_by_side():
    one, two = SensorApp(), SensorApp()
    with TestDriver(one.app) as first, TestDriver(two.app) as second:
        first.topic("readings").pipe("a", Reading(sensor="a", value=1))
        second.advance(60)
        first.topic("readings").pipe("a", Reading(sensor="a", value=1))
        assert first.table("counts") == {"a": 2}
        assert second.table("counts") == {}
        assert (first.now, second.now) == (START, START + 60_000)


def test_the_clocks_of_the_test_stay_real(driver):
    before = time.time()
    driver.advance("10h")
    assert time.time() - before < 3600


def test_options_are_checked(sensors):
    with pytest.raises(DriverError, match="'memory' and 'app'"):
        TestDriver(sensors.app, stores="rocks")
    with pytest.raises(DriverError, match="is not a time"):
        TestDriver(sensors.app, start_time="once")
