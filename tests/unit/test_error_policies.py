"""Error policies of agents and flows, and that what fails changes nothing."""

import asyncio
import itertools
import time

import pytest

import streamproc
from streamproc import dead_letter, retry, skip, stop
from streamproc.errors import AgentTimeout, ConfigurationError, DriverError
from streamproc.sinks import RedisHash
from streamproc.streams.deadletters import LOG_INTERVAL
from streamproc.streams.guarded import GuardedStream
from streamproc.testing import TestDriver

FORMS = ["values", "events", "batches", "take", "concurrent", "isolated"]


def make_app(**options):
    return streamproc.App("errors", broker="kafka://nowhere", **options)


def pipe(driver, values, partition=0):
    driver.topic("numbers").pipe_many([(None, value) for value in values], partition=partition)
    driver.advance(1)  # for take(within=)


def bad(value):
    return value < 0


class Feeder:
    """An agent over ``numbers`` in one of the forms, that calls a function with each value."""

    def __init__(self, app, form, call, **options):
        self.seen = []
        topic = app.topic("numbers", value_type=int)
        if form == "concurrent":
            options["concurrency"] = 3
        if form == "isolated":
            options["isolated_partitions"] = True

        async def handle(value):
            self.seen.append(value)
            result = call(value)
            if result is not None:
                await result

        @app.agent(topic, name="feeder", **options)
        async def feeder(stream):
            if form == "batches":
                async for batch in stream.batches():
                    for value in batch:
                        await handle(value)
            elif form == "take":
                async for values in stream.take(4, within=0.5):
                    for value in values:
                        await handle(value)
            elif form == "events":
                async for event in stream.events():
                    await handle(event.value)
            else:
                async for value in stream:
                    await handle(value)


def raise_if_bad(value):
    if bad(value):
        raise ValueError(f"{value} is bad")


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_record_is_rejected_alone(form):
    app = make_app()
    feeder = Feeder(app, form, raise_if_bad, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2, -3, 4, -5, 6])
        letters = driver.dead_letters()
        assert [(each.offset, each.error) for each in letters] == [
            (2, "ValueError"),
            (4, "ValueError"),
        ]
        assert {1, 2, 4, 6} <= set(feeder.seen)
        if form != "concurrent":
            last = [value for value in feeder.seen if value > 0][-1]
            assert last == 6
        driver.checkpoint()
        assert driver.committed == {("numbers", 0): 6}


@pytest.mark.parametrize("form", ["values", "events", "concurrent"])
def test_a_record_is_tried_again_as_often_as_the_policy_says(form):
    app = make_app()
    feeder = Feeder(app, form, raise_if_bad, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [-1])
        (letter,) = driver.dead_letters()
        assert feeder.seen == [-1] * 3
        assert letter.headers["dead-letter-attempts"] == b"3"
        assert letter.headers["dead-letter-agent"] == b"feeder"
        assert letter.headers["dead-letter-app"] == b"errors"
        assert letter.headers["dead-letter-app-version"] == b"1"
        assert b"raise_if_bad" in letter.headers["dead-letter-traceback"]


def test_without_a_policy_the_app_decides():
    app = make_app(max_retries=1)
    feeder = Feeder(app, "values", raise_if_bad)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [-1])
        assert len(driver.dead_letters()) == 1
        assert feeder.seen == [-1] * 2


@pytest.mark.parametrize("form", FORMS)
def test_skipped_records_are_counted_and_logged(form, caplog):
    app = make_app()
    Feeder(app, form, raise_if_bad, on_error=skip)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, -2, 3])
        assert driver.dead_letters() == []
        driver.checkpoint()
        assert driver.committed == {("numbers", 0): 3}
        assert app.dead_letters.counts == {("numbers", "ValueError"): 1}
    assert "It was skipped" in caplog.text


def test_what_is_not_logged_of_rejections_is_counted_in_the_log(caplog):
    app = make_app(max_retries=0)
    Feeder(app, "values", raise_if_bad)
    others = "2 more of numbers rejected (ValueError)"
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [-1, -2, -3])
        assert caplog.text.count("was rejected") == 1
        assert others not in caplog.text
        driver.advance(LOG_INTERVAL)
        assert others in caplog.text
        pipe(driver, [-4, -5])
        assert caplog.text.count("was rejected") == 2
        assert len(driver.dead_letters()) == len(driver.errors) == 5
    assert "1 more of numbers rejected (ValueError)" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_stop_ends_the_worker_before_the_record(form):
    app = make_app()
    Feeder(app, form, raise_if_bad, on_error=retry(1).then(stop))
    with pytest.raises(DriverError, match="stopped itself"), TestDriver(app) as driver:
        pipe(driver, [1, -2, 3])
    assert driver.committed.get(("numbers", 0), 0) <= 1


def test_only_some_errors_are_worth_a_retry():
    app = make_app()

    def call(value):
        raise (TimeoutError if value else ValueError)(value)

    feeder = Feeder(app, "values", call, on_error=retry(2, on=(TimeoutError,)))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [0, 1])
        assert [each.error for each in driver.dead_letters()] == ["ValueError", "TimeoutError"]
        assert feeder.seen == [0, 1, 1, 1]


def test_asyncio_has_a_timeout_of_its_own_on_python_3_10():
    assert retry(on=TimeoutError).allows(asyncio.TimeoutError(), 1)


def test_times_between_retries_double_up_to_the_longest():
    app = make_app()
    times = []

    def call(value):
        times.append(time.time())
        raise ValueError

    Feeder(app, "values", call, on_error=retry(4, "1s", longest="3s"))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1])
        assert len(driver.dead_letters()) == 1
    gaps = [round(after - before, 1) for before, after in itertools.pairwise(times)]
    assert gaps == [1.0, 2.0, 3.0, 3.0]


def test_retries_without_end_go_on_until_it_succeeds():
    app = make_app()
    tries = []

    def call(value):
        tries.append(value)
        if len(tries) < 100:
            raise ConnectionError

    Feeder(app, "values", call, on_error=retry(None, "1s"))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2])
        assert tries == [1] * 100 + [2]
        assert len(driver.errors) == 99
        assert driver.dead_letters() == []


def test_a_function_is_called_at_each_failure():
    app = make_app(max_retries=1)
    called = []

    async def on_error(agent, error):
        called.append((agent.name, str(error)))

    Feeder(app, "values", raise_if_bad, on_error=on_error)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [-1])
        assert len(driver.dead_letters()) == 1
    assert called == [("feeder", "-1 is bad")] * 2


def test_what_is_no_policy_is_refused():
    app = make_app()
    with pytest.raises(ConfigurationError, match="neither retry"):
        app.agent("numbers", on_error="skip")(raise_if_bad)
    with pytest.raises(ConfigurationError, match="timeout"):
        app.agent("numbers", timeout=0)(raise_if_bad)
    with pytest.raises(ConfigurationError, match="at least 1"):
        retry(0)
    with pytest.raises(ConfigurationError, match="type of error"):
        retry(on="TimeoutError")
    with pytest.raises(ConfigurationError, match="after retries comes"):
        retry().then(retry())
    with pytest.raises(ConfigurationError, match="nothing comes after it"):
        skip.then(dead_letter)
    with pytest.raises(ConfigurationError, match="on_error"):
        app.stream("numbers").on_error(skip.action)


# -- order


@pytest.mark.parametrize("form", ["values", "batches", "take"])
def test_order_holds_for_each_key(form):
    app = make_app()
    done = []
    failed = set()

    def call(value):
        # Each fifth fails at first, each seventh always.
        if value % 7 == 0 or (value % 5 == 0 and value not in failed):
            failed.add(value)
            raise ValueError(value)
        done.append(value)

    Feeder(app, form, call, on_error=retry(1))
    with TestDriver(app, partitions=2) as driver:
        for partition in range(2):
            pipe(driver, [10 * n + partition + 1 for n in range(12)], partition)
        driver.advance(5)
        driver.errors  # noqa: B018
        rejected = [each.value for each in driver.dead_letters()]
    assert rejected
    for partition in range(2):
        # The last time that each was processed.
        order = list(dict.fromkeys(reversed([v for v in done if v % 10 == partition + 1])))[::-1]
        assert order == sorted(order)


# -- what a failed record has changed


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_tables_count_a_failed_record_once(form, when):
    app = make_app()
    table = app.Table("counts", default=int, value_type=int, key_type=str)
    tries = []

    def call(value):
        if when == "before":
            raise_if_bad(value)
        table[str(value)] += 1
        tries.append(value)
        if value == 5 and tries.count(5) == 1:
            raise ConnectionError("comes back")
        raise_if_bad(value)

    Feeder(app, form, call, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2, -3, 4, 5, -6, 7])
        driver.advance(5)
        driver.errors  # noqa: B018
        assert [each.offset for each in driver.dead_letters()] == [2, 5]
        driver.checkpoint()
        assert driver.table(table) == dict.fromkeys(["1", "2", "4", "5", "7"], 1)
        assert driver.committed == {("numbers", 0): 7}


def test_a_value_that_is_changed_in_place_counts_once():
    app = make_app()
    table = app.Table("lists", default=list, key_type=str)
    tries = []

    def call(value):
        found = table["all"]
        found.append(value)
        tries.append(value)
        if value == 2 and tries.count(2) < 3:
            raise ConnectionError("comes back")
        table["all"] = found

    Feeder(app, "values", call, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2, 3])
        driver.errors  # noqa: B018
        assert driver.table(table)["all"] == [1, 2, 3]


def test_windows_of_tables_count_a_failed_record_once():
    app = make_app()
    table = app.Table("windows", default=int, value_type=int, key_type=str).tumbling("10s")
    tries = []

    def call(value):
        table["n"] += 1
        tries.append(value)
        if value == 2 and tries.count(2) < 3:
            raise ConnectionError("comes back")

    Feeder(app, "values", call, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2, 3])
        driver.errors  # noqa: B018
        assert [value for _, value in driver.table(table).items()] == [3]


def test_skip_passes_over_a_record_that_has_changed_something():
    app = make_app()
    table = app.Table("counts", default=int, value_type=int, key_type=str)

    def call(value):
        table["n"] += 1
        raise_if_bad(value)

    feeder = Feeder(app, "values", call, on_error=skip)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, -2, 3])
        driver.errors  # noqa: B018
        assert driver.table(table)["n"] == 2
        assert driver.dead_letters() == []
        assert feeder.seen.count(-2) == 1


def test_results_of_a_failed_record_are_not_written():
    app = make_app()
    topic = app.topic("numbers", value_type=int)
    sink = RedisHash("numbers")

    @app.agent(topic, sink=[sink], on_error=retry(1))
    async def double(stream):
        async for value in stream:
            yield {"n": value * 10}
            raise_if_bad(value)
            yield {"n": value * 10 + 1}

    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, -2, 3])
        assert len(driver.dead_letters()) == 1
        assert [each["n"] for each in driver.sink(sink).results] == [10, 11, 30, 31]


def test_a_record_whose_results_are_handed_on_is_done_while_a_later_one_waits(monkeypatch):
    """A checkpoint between two tries commits as many offsets as a sink has results."""
    app = make_app()
    topic = app.topic("numbers", value_type=int)
    sink = RedisHash("numbers")
    failures = [3]

    @app.agent(topic, sink=[sink])
    async def forward(stream):
        async for value in stream:
            if value in failures:
                failures.remove(value)
                raise ValueError(value)
            yield {"n": value}

    pauses = []

    async def pause(self, seconds, delivery):
        pauses.append((list(app.topics.committable().values()), len(driver.sink(sink).results)))

    monkeypatch.setattr(GuardedStream, "_pause", pause)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 2, 3, 4])
        assert pauses == [([2], 2)]
        assert [each["n"] for each in driver.sink(sink).results] == [1, 2, 3, 4]
        assert len(driver.errors) == 1


def test_records_that_go_through_a_topic_of_another_key_count_once():
    app = make_app(processing_guarantee="exactly_once")
    table = app.Table("counts", default=int, value_type=int, key_type=int)
    topic = app.topic("numbers", value_type=int)

    @app.agent(topic, on_error=retry(1))
    async def count(stream):
        by_size = stream.group_by(lambda value: str(abs(value)), name="size")
        async for key, value in by_size.items():
            table[int(key)] += 1
            raise_if_bad(value)

    with TestDriver(app, partitions=2) as driver:
        pipe(driver, [1, -1, 2, 1, -2])
        driver.advance(5)
        driver.errors  # noqa: B018
        driver.checkpoint()
        assert len(driver.dead_letters()) == 2
        assert driver.table(table) == {1: 2, 2: 1}


def test_a_restarted_worker_begins_to_count_tries_anew():
    app = make_app()
    tries = []

    async def call(value):
        tries.append(value)
        if len(tries) == 2:
            await asyncio.sleep(3600)
        raise ValueError(value)

    Feeder(app, "values", call, on_error=retry(2))
    with TestDriver(app, partitions=1) as driver:
        driver._broker.append("numbers", None, b"1", partition=0)
        driver._run.wait_for(asyncio.sleep(1))
        assert len(tries) == 2
        driver.crash()
        assert len(tries) == 5
        assert len(driver.dead_letters()) == 1


# -- time limits


@pytest.mark.parametrize("form", FORMS)
def test_an_agent_that_waits_too_long_has_failed(form):
    app = make_app()
    hung = []

    async def call(value):
        if bad(value):
            hung.append(value)
            await asyncio.sleep(10_000)

    feeder = Feeder(app, form, call, timeout="5s", on_error=retry(1, on=AgentTimeout))
    with TestDriver(app, partitions=1) as driver:
        begin = driver.now
        pipe(driver, [1, -2, 3])
        (letter,) = driver.dead_letters()
        assert letter.offset == 1
        assert letter.error == "AgentTimeout"
        assert "hand for more than 5 s" in letter.reason
        assert b"asyncio.sleep" in letter.headers["dead-letter-traceback"]
        assert 10_000 <= driver.now - begin < 30_000
        driver.checkpoint()
        assert driver.committed == {("numbers", 0): 3}
    assert 3 in feeder.seen


def test_an_agent_that_is_slow_but_in_time_has_not():
    app = make_app()

    async def call(value):
        await asyncio.sleep(4)

    Feeder(app, "values", call, timeout="5s")
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, range(10))
        assert driver.dead_letters() == []
        assert driver.errors == []


# -- flows


def flow_over(app, policy=None):
    stream = app.stream(app.topic("numbers", value_type=int))
    if policy is not None:
        stream = stream.on_error(policy)
    return stream.map(lambda value: 1 / value if value else raise_if_bad(-1))


def test_flows_reject_by_default():
    app = make_app()
    out = app.topic("out", value_type=float)
    flow_over(app).to(out)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, 0, 2])
        assert [each.offset for each in driver.dead_letters()] == [1]
        assert driver.output(out).values() == [1.0, 0.5]


def test_flows_skip(caplog):
    app = make_app()
    out = app.topic("out", value_type=float)
    flow_over(app, skip).to(out)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [b"1", b"0", b"no number", b"2"])
        assert driver.dead_letters() == []
        assert driver.output(out).values() == [1.0, 0.5]
        assert sum(app.dead_letters.counts.values()) == 2


def test_flows_stop():
    app = make_app()
    flow_over(app, stop)
    with pytest.raises(DriverError, match="stopped itself"), TestDriver(app) as driver:
        pipe(driver, [1, 0, 2])


def test_flows_have_no_retries():
    with pytest.raises(ConfigurationError, match="enrich"):
        flow_over(make_app(), retry(3))


def test_the_policy_of_a_flow_holds_after_it_is_keyed_anew():
    app = make_app()
    flow = app.stream(app.topic("numbers", value_type=int)).on_error(skip)
    flow.key_by(abs).map(raise_if_bad)
    with TestDriver(app) as driver:
        pipe(driver, [1, -2])
        assert driver.dead_letters() == []
        assert sum(app.dead_letters.counts.values()) == 1


# -- records that don't decode


@pytest.mark.parametrize("policy", [dead_letter, skip])
def test_records_that_do_not_decode_go_the_same_way(policy):
    app = make_app()
    feeder = Feeder(app, "values", raise_if_bad, on_error=policy)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [b"1", b"x", b"2"])
        assert len(driver.dead_letters()) == (1 if policy is dead_letter else 0)
        assert feeder.seen == [1, 2]


def test_secrets_are_no_part_of_a_letter():
    app = make_app()

    def call(value):
        raise ConnectionError("redis://user:opensesame@db is away")

    Feeder(app, "values", call, on_error=dead_letter)
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1])
        (letter,) = driver.dead_letters()
        assert "redis://" in letter.reason
        assert not any(b"opensesame" in value for value in letter.headers.values())


# -- a checkpoint in the middle of it


@pytest.mark.parametrize("policy", [retry(1), retry(1).then(stop)], ids=str)
def test_a_checkpoint_takes_no_half_of_a_record(policy):
    app = make_app()
    table = app.Table("counts", default=int, value_type=int, key_type=str)

    failing = True

    async def call(value):
        table["n"] += 1
        await asyncio.sleep(0.5)  # while a checkpoint waits
        if failing:
            raise_if_bad(value)

    Feeder(app, "values", call, on_error=policy)
    with TestDriver(app, partitions=1) as driver:
        driver.topic("numbers").pipe(None, 1)
        driver.checkpoint()
        driver._broker.append("numbers", None, b"-2", partition=0)
        commits = []

        async def commit_meanwhile():
            await asyncio.sleep(0.1)
            commits.append(asyncio.ensure_future(app.consumer.commit()))

        driver._run.wait_for(commit_meanwhile())
        if policy.action is stop.action:
            with pytest.raises(DriverError, match="stopped itself"):
                driver.advance(10)
            failing = False
            driver.crash()
            assert driver.table(table)["n"] == 2
            return
        driver.advance(10)
        driver.errors  # noqa: B018
        assert len(driver.dead_letters()) == 1
        driver.checkpoint()
        assert driver.table(table)["n"] == 1


def test_the_worker_goes_back_far_only_once():
    app = make_app()
    table = app.Table("counts", default=int, value_type=int, key_type=str)

    def call(value):
        table["n"] += 1
        raise_if_bad(value)

    feeder = Feeder(app, "values", call, on_error=retry(3))
    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [*range(50), -1, 50])
        driver.errors  # noqa: B018
        assert len(driver.dead_letters()) == 1
        assert feeder.seen == [*range(50), -1, *range(50), -1, -1, -1, 50]
        assert driver.table(table)["n"] == 51


def test_with_exactly_once_nothing_that_a_failed_record_sent_counts():
    app = make_app(processing_guarantee="exactly_once")
    out = app.topic("out", value_type=int)
    topic = app.topic("numbers", value_type=int)

    @app.agent(topic, on_error=retry(2))
    async def send(stream):
        async for value in stream:
            await out.send(value=value)
            await out.send_batch([value * 10])
            out.send_soon(value=value * 100)
            raise_if_bad(value)

    with TestDriver(app, partitions=1) as driver:
        pipe(driver, [1, -2, 3])
        driver.errors  # noqa: B018
        driver.checkpoint()
        assert sorted(driver.output(out).values()) == [1, 3, 10, 30, 100, 300]
        assert [each.offset for each in driver.dead_letters()] == [1]
