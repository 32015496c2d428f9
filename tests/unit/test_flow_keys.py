"""Keys of flows: of any type, after restarts, and in topics of their own; and merged inputs."""

import pytest

import streamproc as faust
from streamproc.aggregates import Count, Sum
from streamproc.kafka.producer import partition_of
from streamproc.testing import TestDriver
from streamproc.windows import tumbling


class Number(faust.Record):
    n: int
    kind: str = ""


@pytest.fixture
def app(tmp_path):
    return faust.App("keys", broker="kafka://localhost:1", datadir=str(tmp_path), store="memory://")


def numbers(app, name="numbers", **options):
    return app.stream(app.topic(name, value_type=Number, **options)).flow()


def test_keys_of_a_topic_without_a_key_type_survive_a_restart(app):
    flow, results = numbers(app), []
    flow.aggregate(n=Count()).to(lambda result: results.append((result.key, result.n)))
    flow.window(tumbling("10s")).aggregate(total=Sum("n")).to(
        lambda result: results.append((result.key, result.total))
    )
    with TestDriver(app) as driver:
        driver.topic("numbers").pipe(b"\xff", Number(3), timestamp=1000)
        driver.restart()
        driver.topic("numbers").pipe(b"\xff", Number(4), timestamp=2000)
        driver.advance("60s")
    assert results == [(b"\xff", 1), (b"\xff", 2), (b"\xff", 7)]


KEYS = ["text", "7", 7, 2.5, True, ("a", 1), ("a", ("b", None)), b"\xfe\xff"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_comes_back_as_it_was_and_where_other_topics_have_it(app, key):
    flow, seen = numbers(app), []

    def note(key, value, context):
        seen.append((key, context.partition))

    flow.key_by(lambda number: key).stateful(note)
    with TestDriver(app) as driver:
        driver.topic("numbers").pipe("any", Number(1))
    ((found, partition),) = seen
    assert (found, type(found)) == (key, type(key))
    if isinstance(key, str):
        assert partition == partition_of(key.encode(), 4)


def test_two_flows_of_one_source_with_new_keys_do_not_mix(app):
    flow, small, large = numbers(app), [], []
    flow.filter(lambda each: each.n < 10).key_by("kind").to(lambda each: small.append(each.n))
    flow.filter(lambda each: each.n >= 10).key_by("kind").to(lambda each: large.append(each.n))
    with TestDriver(app) as driver:
        driver.topic("numbers").pipe_many([("k", Number(n, "x")) for n in (1, 11, 2, 12)])
    assert (small, large) == ([1, 2], [11, 12])


def test_results_of_windows_keep_their_type_with_a_new_key(app):
    results = []
    (
        numbers(app, key_type=str)
        .window(tumbling("10s"))
        .aggregate(n=Count())
        .key_by(lambda result: result.window_end.second)
        .to(results.append)
    )
    with TestDriver(app) as driver:
        driver.topic("numbers").pipe("k", Number(1), timestamp=1000)
        driver.topic("numbers").pipe("k", Number(1), timestamp=11_000)
    (result,) = results
    assert (result.key, result.n, result.window_start.timestamp()) == ("k", 1, 0)


def test_a_silent_flow_does_not_hold_back_a_busy_one_that_it_is_merged_with(app):
    left, right = numbers(app, "left"), numbers(app, "right")
    results = []
    (
        left.merge(right)
        .window(tumbling("10s", idle_timeout="5s"))
        .aggregate(n=Count())
        .to(lambda result: results.append(result.n))
    )
    with TestDriver(app, partitions=1) as driver:
        driver.topic("left").pipe("k", Number(1), timestamp=1000)
        for second in range(1, 30):
            driver.topic("right").pipe("k", Number(1), timestamp=second * 1000)
            driver.advance("1s")
    assert results == [10, 10]
