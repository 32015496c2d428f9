"""Flows: chains of operators against plain Python, record by record."""

import asyncio
from collections import Counter, defaultdict
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamproc
from streamproc.aggregates import Aggregate, Collect, Count, Max, Min, Sum
from streamproc.errors import ConfigurationError, DriverError
from streamproc.sinks import RedisHash
from streamproc.testing import TestDriver
from streamproc.windows import hopping, session, sliding, tumbling

START = 1767225600000  # 2026-01-01


class Reading(streamproc.Record):
    sensor: str
    value: float


class Flows:
    """An app with a topic of numbers, and a list of what came out of a flow."""

    def __init__(self, value_type=int, **options):
        self.app = streamproc.App("flows", broker="kafka://nowhere:1", **options)
        self.topic = self.app.topic("numbers", key_type=str, value_type=value_type)
        self.out = []

    @property
    def stream(self):
        return self.app.stream(self.topic)

    def driver(self, partitions=1):
        return TestDriver(self.app, partitions=partitions)

    def run(self, records, partitions=1):
        with self.driver(partitions) as driver:
            driver.topic("numbers").pipe_many(records)
        return self.out


def numbered(values):
    return [("k", value) for value in values]


# -- without state


def test_operators_do_what_their_names_say():
    flows, seen = Flows(), []
    (
        flows.stream.filter(lambda n: n % 2)
        .map(lambda n: n * 10)
        .peek(seen.append)
        .flat_map(lambda n: [n, n + 1] if n > 10 else [])
        .to(flows.out.append)
    )
    assert flows.run(numbered(range(6))) == [30, 31, 50, 51]
    assert seen == [10, 30, 50]


def test_a_value_goes_to_its_first_branch():
    flows = Flows()
    low, even, rest = flows.stream.branch(lambda n: n < 3, lambda n: n % 2 == 0)
    low.to(lambda n: flows.out.append(("low", n)))
    even.to(lambda n: flows.out.append(("even", n)))
    rest.to(lambda n: flows.out.append(("rest", n)))
    assert sorted(flows.run(numbered(range(7)))) == [
        ("even", 4),
        ("even", 6),
        ("low", 0),
        ("low", 1),
        ("low", 2),
        ("rest", 3),
        ("rest", 5),
    ]


def test_branches_come_together_again():
    flows = Flows()
    odd, even = flows.stream.branch(lambda n: n % 2)
    odd.map(lambda n: -n).merge(even).to(flows.out.append)
    assert sorted(flows.run(numbered(range(6)))) == [-5, -3, -1, 0, 2, 4]


def test_topics_come_together():
    flows = Flows()
    other = flows.app.topic("others", key_type=str, value_type=int)
    flows.stream.merge(flows.app.stream(other).map(lambda n: n + 100)).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe("k", 1)
        driver.topic("others").pipe("k", 1)
        driver.topic("numbers").pipe("k", 2)
    assert flows.out == [1, 101, 2]


def test_chains_share_their_beginning():
    flows, calls = Flows(), []
    shared = flows.stream.peek(calls.append)
    shared.map(lambda n: n + 1).to(flows.out.append)
    shared.map(lambda n: n - 1).to(flows.out.append)
    assert sorted(flows.run(numbered([10]))) == [9, 11]
    assert calls == [10]


def test_tombstones_are_left_out():
    flows = Flows()
    flows.stream.map(lambda n: n + 1).to(flows.out.append)
    assert flows.run([("a", 1), ("a", None), ("b", 2), ("b", None)]) == [2, 3]


def test_results_go_on_to_a_topic_by_name_and_object():
    flows = Flows(Reading)
    results = flows.app.topic("results", key_type=str, value_type=Reading)
    flows.stream.filter(lambda r: r.value > 0).to(results, "plain")
    with flows.driver() as driver:
        driver.topic("numbers").pipe("a", Reading("a", 1.0), timestamp=START + 7)
        driver.topic("numbers").pipe("b", Reading("b", -1.0))
        found = driver.output(results).read()
        assert (found.key, found.value, found.timestamp) == ("a", Reading("a", 1.0), START + 7)
        assert driver.output("plain").read().value == {"sensor": "a", "value": 1.0}


def test_results_go_to_an_async_function():
    flows = Flows()

    async def take(value):
        flows.out.append(value)

    flows.stream.to(take)
    assert flows.run(numbered([1, 2])) == [1, 2]


@pytest.mark.parametrize("target", [3, None, object()])
def test_what_takes_no_records_is_refused(target):
    with pytest.raises(ConfigurationError, match="is no sink, topic, table or function"):
        Flows().stream.to(target)


@pytest.mark.parametrize("operator", ["map", "filter", "flat_map", "peek", "branch"])
def test_async_functions_are_refused_where_nobody_awaits_them(operator):
    async def look_up(value):
        return value

    flow = Flows().stream.flow("orders")
    with pytest.raises(ConfigurationError, match=rf"'orders': {operator}\(look_up\) .* async"):
        getattr(flow, operator)(look_up)


@pytest.mark.parametrize(
    "define",
    [
        lambda flow: flow.key_by("sensr"),
        lambda flow: flow.deduplicate(key="sensr"),
        lambda flow: flow.join(flow.app.GlobalTable("places", key_type=str), on="sensr"),
        lambda flow: flow.enrich(dict, key="sensr"),
    ],
)
def test_a_field_that_records_do_not_have_is_refused_where_it_is_named(define):
    flow = Flows(Reading).stream.flow()
    with pytest.raises(ConfigurationError, match="no field 'sensr'; did you mean 'sensor'"):
        define(flow)


def test_the_log_names_the_error_that_rejected_a_record(caplog):
    flows = Flows()
    flows.stream.map({1: "one"}.__getitem__).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(numbered([1, 2]))
        assert len(driver.dead_letters()) == 1
    assert flows.out == ["one"]
    assert "numbers/0@1 was rejected (flow-numbers map __getitem__): KeyError: 2. " in caplog.text


# -- functions that raise


def raising_at(bad, function):
    def call(value):
        if value in bad:
            raise ValueError(f"not {value}")
        return function(value)

    return call


OPERATORS = {
    "map": (lambda flow, f: flow.map(f), lambda n: n + 1, lambda n: [n + 1]),
    "filter": (lambda flow, f: flow.filter(f), lambda n: n % 2, lambda n: [n] * (n % 2)),
    "flat_map": (lambda flow, f: flow.flat_map(f), lambda n: [n] * n, lambda n: [n] * n),
    "peek": (lambda flow, f: flow.peek(f), lambda n: None, lambda n: [n]),
    "key_by": (lambda flow, f: flow.key_by(f, repartition=False), str, lambda n: [n]),
}


@pytest.mark.parametrize("name", OPERATORS)
@given(st.lists(st.integers(0, 6), max_size=20), st.sets(st.integers(0, 6), max_size=3))
@settings(max_examples=6, deadline=None)
def test_only_records_at_which_a_function_raises_are_dead_letters(name, values, bad):
    operator, function, oracle = OPERATORS[name]
    flows = Flows(dead_letter_topic="dead")
    operator(flows.stream, raising_at(bad, function)).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(numbered(values))
        letters = driver.dead_letters()
    assert flows.out == [each for n in values if n not in bad for each in oracle(n)]
    assert [letter.offset for letter in letters] == [
        offset for offset, n in enumerate(values) if n in bad
    ]
    assert {letter.stage for letter in letters} <= {f"flow-numbers {name} call"}


def test_a_letter_says_which_operator_and_why():
    flows = Flows(dead_letter_topic="dead")
    flows.stream.flat_map(lambda n: [n, n]).map(raising_at({3}, str)).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(numbered([1, 3]))
        first, second = driver.dead_letters()
    assert flows.out == ["1", "1"]
    assert (first.topic, first.partition, first.offset) == ("numbers", 0, 1)
    assert (first.stage, first.error, first.reason) == (
        "flow-numbers map call",
        "ValueError",
        "not 3",
    )
    assert second.offset == 1


def test_a_target_that_raises_does_not_hold_up_the_others():
    flows = Flows(dead_letter_topic="dead")
    counted = flows.stream.aggregate(n=Count())
    counted.map(lambda result: result.n).to(raising_at({2}, flows.out.append))
    with flows.driver() as driver:
        for _ in range(4):
            driver.topic("numbers").pipe("k", 1)
        (letter,) = driver.dead_letters()
        # Nothing was counted twice because of it.
        assert driver.table("flow-numbers-aggregate")["k"] == {"n": 4}
    assert flows.out == [1, 3, 4]
    assert letter.reason == "not 2"


def test_results_that_do_not_fit_a_sink_do_not_hold_up_the_others():
    flows = Flows(Reading, dead_letter_topic="dead")
    sink = RedisHash("sensor:{sensor}", fields=["total"])
    (
        flows.stream.aggregate(total=Sum("value"))
        .map(lambda result: {"sensor": result.key, "total": result.total} if result.total else {})
        .to(sink)
    )
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(
            [("a", Reading("a", 1.0)), ("b", Reading("b", 0.0)), ("c", Reading("c", 3.0))]
        )
        (letter,) = driver.dead_letters()
        assert letter.offset == 1
        assert driver.table("flow-numbers-aggregate")["a"] == {"total": 1.0}
        assert len(driver.sink(sink).commands) == 2


def test_results_that_a_topic_can_not_take_do_not_hold_up_the_others():
    flows = Flows(dead_letter_topic="dead")
    results = flows.app.topic("results", key_type=str, value_type=int)
    flows.stream.map(lambda n: object() if n == 2 else n).to(results)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(numbered([1, 2, 3]))
        (letter,) = driver.dead_letters()
        assert letter.offset == 1
        assert driver.output(results).values() == [1, 3]


class Fragile(Aggregate):
    """Counts, and can't say what it counted when that is three."""

    def initialize(self):
        return 0

    def add(self, state, value, timestamp):
        return state + 1

    def merge(self, left, right):
        return left + right

    def result(self, state, window):
        assert state != 3
        return state


def test_an_operator_that_breaks_takes_the_worker_back_to_its_checkpoint():
    flows = Flows()
    flows.stream.aggregate(n=Fragile()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe("k", 1)
        driver.checkpoint()
        driver.topic("numbers").pipe("k", 1)
        with pytest.raises(DriverError, match="stopped itself"):
            driver.topic("numbers").pipe("k", 1)
        assert driver.committed == {("numbers", 0): 1}
        assert driver.errors
    assert [each.n for each in flows.out] == [1, 2]


# -- running aggregations


records = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 5)), max_size=40)


@given(records, st.data())
@settings(max_examples=15, deadline=None)
def test_running_aggregations(records, data):
    flows = Flows()
    flows.stream.aggregate(n=Count(), total=Sum(), low=Min(), high=Max()).to(flows.out.append)
    expected, left = {}, list(records)
    with flows.driver(2) as driver:
        while left:
            size = data.draw(st.integers(1, len(left)))
            driver.topic("numbers").pipe_many(left[:size])
            if data.draw(st.booleans()):
                data.draw(st.sampled_from([driver.restart, driver.crash, driver.checkpoint]))()
            left = left[size:]
        by_key = defaultdict(list)
        for key, value in records:
            by_key[key].append(value)
        expected = {
            key: {"n": len(v), "total": sum(v), "low": min(v), "high": max(v)}
            for key, v in by_key.items()
        }
        assert dict(driver.table("flow-numbers-aggregate").items()) == expected
    last = {each.key: each for each in flows.out}
    assert {
        key: {"n": r.n, "total": r.total, "low": r.low, "high": r.high} for key, r in last.items()
    } == expected


def test_records_that_can_not_be_aggregated_are_dead_letters():
    flows = Flows(dict, dead_letter_topic="dead")
    flows.stream.aggregate(total=Sum("v")).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(
            [("a", {"v": 1}), ("a", {}), ("b", {"v": "x"}), ("a", {"v": 2})]
        )
        assert [letter.offset for letter in driver.dead_letters()] == [1, 2]
    assert [(each.key, each.total) for each in flows.out] == [("a", 3)]


# -- keys


def test_records_of_a_key_meet():
    flows = Flows(Reading)
    flows.stream.key_by("sensor").aggregate(n=Count()).to(flows.out.append)
    with flows.driver(4) as driver:
        driver.topic("numbers").pipe_many(
            [(str(n), Reading(f"s{n % 3}", float(n))) for n in range(30)]
        )
    last = {each.key: each.n for each in flows.out}
    assert last == {"s0": 10, "s1": 10, "s2": 10}


def test_keys_of_any_kind_come_back_as_they_were():
    flows = Flows()
    flows.stream.key_by(lambda n: ("odd", n % 2)).aggregate(n=Count()).to(flows.out.append)
    flows.run(numbered(range(5)), partitions=2)
    assert {each.key: each.n for each in flows.out} == {("odd", 0): 3, ("odd", 1): 2}


# -- windows


WINDOWS = {
    "tumbling": tumbling(10),
    "hopping": hopping(20, 10),
    "sliding": sliding(10),
    "session": session(10),
    "updates": tumbling(10, emit="updates"),
}


def window_oracle(kind, records):
    """Return what windows of 10 s hold, of records in order of time."""
    found = defaultdict(list)
    if kind in ("tumbling", "updates", "hopping"):
        size, step = (20_000, 10_000) if kind == "hopping" else (10_000, 10_000)
        for key, value, time in records:
            start = time - time % step
            while start > time - size:
                found[key, start, start + size].append(value)
                start -= step
        return found
    for key in {key for key, _, _ in records}:
        mine = [(time, value) for each, value, time in records if each == key]
        if kind == "sliding":
            for end, _ in mine:
                inside = [value for time, value in mine if end - 10_000 < time <= end]
                found[key, end - 9999, end + 1] = inside
            continue
        group = []
        for time, value in [*mine, (10**15, None)]:
            if group and time - group[-1][0] >= 10_000:
                values = [value for _, value in group]
                found[key, group[0][0], group[-1][0] + 10_000] = values
                group = []
            group.append((time, value))
    return found


@pytest.mark.parametrize("kind", WINDOWS)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 90_000))),
    st.data(),
)
@settings(max_examples=8, deadline=None)
def test_windows(kind, records, data):
    # In order within a partition: nothing is late.
    records = sorted(((k, v, START + t) for k, v, t in records), key=lambda each: each[2])
    flows = Flows()
    flows.stream.window(WINDOWS[kind]).aggregate(values=Collect(limit=1000)).to(flows.out.append)
    left = list(records)
    with flows.driver(2) as driver:
        while left:
            size = data.draw(st.integers(1, len(left)))
            driver.topic("numbers").pipe_many(left[:size])
            if data.draw(st.booleans()):
                data.draw(st.sampled_from([driver.restart, driver.crash, driver.checkpoint]))()
            left = left[size:]
        driver.advance(120)
        (table,) = driver.app.tables.values()
        assert all(state.count() == 0 for state in table.states.values())
    found = {}
    for each in flows.out:
        window = each.key, milliseconds(each.window_start), milliseconds(each.window_end)
        found[window] = each.values
    assert found == dict(window_oracle(kind, records))


def milliseconds(moment):
    return round(moment.timestamp() * 1000)


def test_a_window_closes_once_and_by_silence():
    flows = Flows()
    flows.stream.window(tumbling(10)).aggregate(n=Count()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many([("a", 1, START), ("a", 1, START + 9999)])
        driver.advance(9)
        assert flows.out == []
        driver.advance(3)
        (result,) = flows.out
        driver.advance(100)
    assert len(flows.out) == 1
    assert (result.key, result.n) == ("a", 2)
    assert result.window_start == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert result.window_end == datetime(2026, 1, 1, 0, 0, 10, tzinfo=timezone.utc)


def test_a_window_closes_by_silence_after_a_rebalance():
    flows = Flows()
    flows.stream.window(tumbling(10)).aggregate(n=Count()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe("a", 1, timestamp=START)
        driver.checkpoint()
        driver.rebalance()
        driver.advance(30)
    assert [each.n for each in flows.out] == [1]


def late_records():
    return [
        ("a", 1, START),
        ("a", 2, START + 25_000),
        ("a", 3, START + 5000),
        ("b", 4, START + 15_000),
        ("a", 5, START + 26_000),
    ]


def test_late_records_are_counted_and_go_to_a_function():
    flows, late = Flows(), []
    flows.stream.window(tumbling(10, late=late.append)).aggregate(total=Sum()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(late_records())
        driver.advance(30)
        steps = [node.step for source in driver.app.flows for node in source.walk()]
        assert sum(getattr(step, "late_total", 0) for step in steps) == 2
    assert late == [3, 4]
    assert [each.total for each in flows.out] == [1, 7]


def test_late_records_go_to_a_topic():
    flows = Flows()
    late = flows.app.topic("late", key_type=str, value_type=int)
    flows.stream.window(tumbling(10, late=late)).aggregate(total=Sum()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(late_records())
        found = driver.output(late).read_all()
    assert [(each.key, each.value, each.timestamp) for each in found] == [
        ("a", 3, START + 5000),
        ("b", 4, START + 15_000),
    ]


def test_late_records_go_to_the_dead_letters():
    flows = Flows(dead_letter_topic="dead")
    flows.stream.window(tumbling(10, late="dead-letter")).aggregate(n=Count()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many(late_records())
        letters = driver.dead_letters()
    assert [letter.offset for letter in letters] == [2, 3]
    assert {letter.error for letter in letters} == {"LateRecord"}


def test_finals_go_to_a_table():
    flows = Flows()
    table = flows.app.Table("latest", key_type=str, default=None)
    (
        flows.stream.window(tumbling(10))
        .aggregate(total=Sum())
        .map(lambda result: result.total)
        .to(table)
    )
    with flows.driver(2) as driver:
        driver.topic("numbers").pipe_many(
            [("a", 1, START), ("b", 2, START), ("a", 5, START + 10_000)]
        )
        driver.advance(30)
        assert dict(driver.table(table).items()) == {"a": 5, "b": 2}


def test_aggregations_can_not_take_the_names_of_the_window():
    with pytest.raises(ConfigurationError, match="can't be named 'window_start'"):
        Flows().stream.window(tumbling(10)).aggregate(window_start=Count())


# -- agents


@given(records, st.integers(1, 7))
@settings(max_examples=10, deadline=None)
def test_a_flow_gives_what_an_agent_gives(records, batch_size):
    flows = Flows(batch_size=batch_size)
    by_flow, by_agent = [], []
    flows.stream.filter(lambda n: n >= 0).map(lambda n: n * 2).to(by_flow.append)
    flows.stream.flow("count").aggregate(total=Sum()).to(lambda each: None)
    totals = flows.app.Table("totals", key_type=str, value_type=int, default=int)

    @flows.app.agent(flows.topic)
    async def agent(stream):
        async for key, value in stream.items():
            totals[key] += value
            if value >= 0:
                by_agent.append(value * 2)

    with flows.driver(2) as driver:
        driver.topic("numbers").pipe_many(records)
        found = driver.table("count-aggregate").items()
        assert {key: each["total"] for key, each in found} == dict(driver.table(totals).items())
    assert Counter(by_flow) == Counter(by_agent)


def test_an_upstream_partition_that_is_behind_is_not_idle():
    flows = Flows()
    (
        flows.stream.key_by(lambda n: "all")
        .window(tumbling(10, idle_timeout=5))
        .aggregate(total=Sum())
        .to(flows.out.append)
    )
    with flows.driver(2) as driver:
        numbers = driver.topic("numbers")
        driver.rebalance(without={1})
        numbers.pipe("k", 1, timestamp=START, partition=1)
        numbers.pipe("k", 2, timestamp=START + 60_000, partition=0)
        driver.advance(600)
        assert flows.out == []
        # Another worker was slow with it; now it is done.
        driver.rebalance()
        driver.advance(60)
    assert [each.total for each in flows.out] == [1, 2]


def test_a_checkpoint_leaves_out_a_batch_in_hand():
    flows, stored = Flows(), []

    async def slow(result):
        await asyncio.sleep(10)
        (table,) = flows.app.tables.values()
        store = table.states[0].store
        offset = store.meta.positions.get("numbers@flow-numbers", 0)
        stored.append((offset, len(list(store.items()))))

    flows.stream.aggregate(n=Count()).to(slow)
    with flows.driver() as driver:
        driver.topic("numbers").pipe("a", 1)
        driver.checkpoint()
        driver.topic("numbers").pipe("b", 1)
    assert stored == [(0, 0), (1, 1)]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 9)), min_size=30, max_size=60),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_running_aggregations_that_do_not_fit_in_memory(records, data):
    flows = Flows(dict, table_cache_bytes=1, dead_letter_topic="dead")
    flows.stream.aggregate(n=Count(), total=Sum("v")).to(flows.out.append)
    left = [(key, {"v": value} if value else {}) for key, value in records]
    with flows.driver() as driver:
        while left:
            size = data.draw(st.integers(10, 20))
            driver.topic("numbers").pipe_many(left[:size])
            driver.checkpoint()
            left = left[size:]
        driver.dead_letters()
        expected = defaultdict(list)
        for key, value in records:
            if value:
                expected[key].append(value)
        assert dict(driver.table("flow-numbers-aggregate").items()) == {
            key: {"n": len(values), "total": sum(values)} for key, values in expected.items()
        }


def test_windows_of_processing_time_close_by_the_clock():
    flows = Flows()
    flows.stream.window(tumbling(10, time="processing")).aggregate(n=Count()).to(flows.out.append)
    with flows.driver() as driver:
        driver.topic("numbers").pipe_many([("a", 1, 5), ("a", 1, 10**12)])
        driver.advance(9)
        assert flows.out == []
        driver.advance(2)
        (result,) = flows.out
        driver.crash()
        driver.topic("numbers").pipe("b", 1)
        driver.advance(10)
    assert result.n == 2
    assert result.window_start == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert flows.out[-1].key == "b"


def test_updates_of_windows_come_with_each_batch():
    flows = Flows()
    flows.stream.window(tumbling(10, emit="updates")).aggregate(n=Count()).to(flows.out.append)
    with flows.driver() as driver:
        for time in (0, 1, 10_000):
            driver.topic("numbers").pipe("a", 1, timestamp=START + time)
        driver.advance(60)
    assert [each.n for each in flows.out] == [1, 2, 1]
