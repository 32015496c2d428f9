"""Deduplicate and throttle against brute force."""

from hypothesis import given
from hypothesis import strategies as st
from step_bench import OPTIONS, Event, StepBench, events

from streamproc.streams.limits import COUNTED, PASSED, Deduplicate, Throttle
from streamproc.streams.timing import Inputs, Timing

ONE = Inputs(None, 1)
SIZES = st.one_of(st.integers(1, 4), st.integers(1, 50))
BOUNDS = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 25))


def deduplicate(within, out_of_orderness=0, pick=None):
    return StepBench(
        lambda table: Deduplicate("test", table, ONE, within, pick),
        PASSED,
        Timing(out_of_orderness, 10_000).watermarks(ONE),
    )


def throttle(limit, per, out_of_orderness=0, by_key=True):
    return StepBench(
        lambda table: Throttle("test", table, ONE, limit, per, by_key),
        COUNTED,
        Timing(out_of_orderness, 10_000).watermarks(ONE),
    )


def marks(sequence, out_of_orderness):
    """Return the watermark before each event."""
    found, highest = [], float("-inf")
    for event in sequence:
        found.append(highest - out_of_orderness)
        highest = max(highest, event.time)
    return found


def distinct(sequence, within, out_of_orderness):
    passed = []
    for event, mark in zip(sequence, marks(sequence, out_of_orderness), strict=True):
        remembered = [
            each for each in passed if each.key == event.key and each.time + within > mark
        ]
        if all(abs(each.time - event.time) >= within for each in remembered):
            passed.append(event)
    return [event.value for event in passed]


def limited(sequence, limit, per, out_of_orderness, by_key):
    passed = []
    for event, mark in zip(sequence, marks(sequence, out_of_orderness), strict=True):
        period = event.time // per
        if (period + 1) * per <= mark:
            continue
        same = [
            each
            for each in passed
            if each.time // per == period and (not by_key or each.key == event.key)
        ]
        if len(same) < limit:
            passed.append(event)
    return [event.value for event in passed]


def values(bench):
    return [value for _, value, _ in bench.results]


@OPTIONS
@given(events(), SIZES, BOUNDS, st.data())
def test_what_passes_deduplication_is_what_brute_force_lets_pass(sequence, within, bound, data):
    bench = deduplicate(within, bound)
    bench.run(sequence, data)
    assert values(bench) == distinct(sequence, within, bound)
    bench.batch([Event("z", None, 10**6)])
    bench.batch([Event("z", None, 10**6 + within + bound)])
    assert [key for key, _ in bench.state.scan()] == ["z"]


@OPTIONS
@given(events(), st.integers(1, 3), SIZES, BOUNDS, st.booleans(), st.data())
def test_what_passes_a_throttle_is_what_brute_force_lets_pass(
    sequence, limit, per, bound, by_key, data
):
    bench = throttle(limit, per, bound, by_key)
    bench.run(sequence, data)
    assert values(bench) == limited(sequence, limit, per, bound, by_key)
    bench.batch([Event("z", None, 10**6)])
    assert len(list(bench.state.scan())) == 1


def test_records_in_order_that_repeat_pass_once_in_the_time():
    bench = deduplicate(1000)
    bench.batch([Event("a", 1, 0), Event("a", 2, 999), Event("a", 3, 1000), Event("b", 4, 1000)])
    assert values(bench) == [1, 3, 4]


def test_duplicates_may_be_told_by_a_function_of_the_value():
    bench = deduplicate(1000, pick=lambda value: value["id"])
    bench.batch([Event("a", {"id": 1}, 0), Event("b", {"id": 1}, 5), Event("b", {}, 6)])
    assert values(bench) == [{"id": 1}]
    assert [each.value for each in bench.rejected] == [{}]
    assert isinstance(bench.rejected[0].error, KeyError)


def test_what_is_remembered_is_freed_as_event_time_passes():
    bench = deduplicate(1000)
    for second in range(200):
        bench.batch([Event(f"key {second}", second, second * 1000)])
        bench.checkpoint()
    assert len(list(bench.state.scan())) == 1
    assert len(bench.store._entries) == 1


def test_a_throttle_counts_the_records_of_a_period_that_is_over_as_late():
    bench = throttle(1, 1000)
    bench.batch([Event("a", 1, 5500), Event("a", 2, 4999), Event("a", 3, 5000)])
    assert values(bench) == [1]
    assert bench.step.late_total == 1


def test_without_keys_a_throttle_counts_all_together():
    bench = throttle(2, 1000, by_key=False)
    bench.batch([Event("a", 1, 0), Event("b", 2, 1), Event("c", 3, 2), Event("a", 4, 1000)])
    assert values(bench) == [1, 2, 4]


def test_an_upstream_partition_that_is_silent_does_not_hold_time_back():
    two = Inputs(None, 2)
    bench = StepBench(
        lambda table: Deduplicate("test", table, two, 1000, None),
        PASSED,
        Timing(0, 10_000).watermarks(two),
    )
    bench.batch([Event("a", 1, 0), Event("b", 2, 5000)])
    assert len(list(bench.state.scan())) == 2
    assert bench.step.ticks
    bench.silence(4)
    bench.batch([Event("c", 3, 6000)])
    bench.silence(8)
    assert [key for key, _ in bench.state.scan()] == ["c"]
