"""Interval joins and as-of joins against brute force: any order, batches, restarts, crashes."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from step_bench import OPTIONS, Event, StepBench, events

from streamproc.streams.asof import AsofJoin, asof_watermarks
from streamproc.streams.intervals import IntervalJoin, TwoInputs
from streamproc.streams.timing import Inputs, Timing
from streamproc.tables.joinstate import sides_form

LEFT, RIGHT = 0, 1
SPANS = st.one_of(st.integers(0, 3), st.integers(0, 40))
BOUNDS = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 15))
BOTH = frozenset(["left", "right"])
INPUTS = TwoInputs(Inputs(None, 1), Inputs(None, 1), frozenset(["left"]), frozenset(["right"]))


def interval_join(before, after, how="inner", grace=0, out_of_orderness=0):
    return StepBench(
        lambda table: IntervalJoin(
            "test", table, INPUTS, before=before, after=after, how=how, grace=grace, late="late"
        ),
        sides_form("interval-join", None, None),
        Timing(out_of_orderness, 10_000).watermarks(INPUTS.count),
    )


def asof_join(tolerance, how="left", grace=0, out_of_orderness=0):
    return StepBench(
        lambda table: AsofJoin(
            "test", table, INPUTS, tolerance=tolerance, how=how, grace=grace, late="late"
        ),
        sides_form("asof-join", None, None, dues=2),
        asof_watermarks(Timing(out_of_orderness, 10_000), INPUTS),
    )


def judged(sequence, grace, out_of_orderness, marks_of):
    """Return the events on time of each side, and the values of late ones.

    ``marks_of(highest)`` gives the watermarks that records of each side are judged by.
    """
    highest = [float("-inf"), float("-inf")]
    sides, late = ([], []), []
    for event in sequence:
        mark = marks_of(highest)[event.side] - out_of_orderness
        if event.time + grace < mark:
            late.append(event.value)
        else:
            sides[event.side].append(event)
        highest[event.side] = max(highest[event.side], event.time)
    return *sides, late


def both_lowest(highest):
    return [min(highest)] * 2


def by_interval(lefts, rights, before, after, how):
    results, matched = [], set()
    for left in lefts:
        for right in rights:
            if left.key == right.key and left.time - before <= right.time <= left.time + after:
                matched |= {left.value, right.value}
                time = max(left.time, right.time)
                results.append((left.key, (left.value, right.value), time))
    if how in ("left", "outer"):
        alone = [each for each in lefts if each.value not in matched]
        results += [(each.key, (each.value, None), each.time) for each in alone]
    if how == "outer":
        alone = [each for each in rights if each.value not in matched]
        results += [(each.key, (None, each.value), each.time) for each in alone]
    return results


def by_latest(lefts, rights, tolerance, how):
    results = []
    for left in lefts:
        found = [each for each in rights if each.key == left.key and each.time <= left.time]
        found = [each for each in found if left.time - each.time <= tolerance]
        # Of equal times the one that came last.
        right = max(reversed(found), key=lambda each: each.time, default=None)
        if right is not None or how == "left":
            pair = left.value, None if right is None else right.value
            results.append((left.key, pair, left.time))
    return results


@OPTIONS
@given(
    events(sides=2),
    SPANS,
    SPANS,
    st.sampled_from(["inner", "left", "outer"]),
    BOUNDS,
    BOUNDS,
    st.data(),
)
def test_interval_join(sequence, before, after, how, grace, bound, data):
    bench = interval_join(before, after, how, grace, bound)
    bench.run(sequence, data)
    bench.silence(0, BOTH)
    bench.silence(10_000, BOTH)
    lefts, rights, late = judged(sequence, grace, bound, both_lowest)
    assert bench.late == late
    assert Counter(bench.results) == Counter(by_interval(lefts, rights, before, after, how))
    bench.assert_empty()


@OPTIONS
@given(
    events(sides=2),
    SPANS,
    st.sampled_from(["inner", "left"]),
    BOUNDS,
    BOUNDS,
    st.data(),
)
def test_asof_join(sequence, tolerance, how, grace, bound, data):
    bench = asof_join(tolerance, how, grace, bound)
    bench.run(sequence, data)
    bench.silence(0, BOTH)
    bench.silence(10_000, BOTH)

    def marks_of(highest):
        return min(highest), highest[RIGHT]

    lefts, rights, late = judged(sequence, grace, bound, marks_of)
    assert bench.late == late
    assert Counter(bench.results) == Counter(by_latest(lefts, rights, tolerance, how))
    bench.assert_empty()


@OPTIONS
@given(events(sides=2), st.integers(0, 40), st.data())
def test_an_asof_join_of_records_in_order_gives_them_in_order(sequence, tolerance, data):
    bench = asof_join(tolerance)
    bench.run(sorted(sequence, key=lambda event: event.time), data)
    times = [time for _, _, time in bench.results]
    assert times == sorted(times)


@OPTIONS
@given(events(sides=2), st.integers(0, 30), st.data())
def test_how_sides_interleave_does_not_change_an_asof_join(sequence, tolerance, data):
    # With enough grace nothing is late.
    results = []
    for order in (sequence, sorted(sequence, key=lambda event: event.side)):
        bench = asof_join(tolerance, grace=1000)
        bench.run(order, data)
        bench.silence(0, BOTH)
        bench.silence(20_000, BOTH)
        results.append(Counter(bench.results))
    assert results[0] == results[1]


def test_a_match_is_given_at_once_and_once():
    bench = interval_join(5, 5)
    bench.batch([Event("a", "l", 10, LEFT)])
    bench.batch([Event("a", "r4", 4, RIGHT), Event("a", "r5", 5, RIGHT)])
    bench.batch([Event("a", "r15", 15, RIGHT), Event("a", "r16", 16, RIGHT)])
    assert bench.results == [("a", ("l", "r5"), 10), ("a", ("l", "r15"), 15)]


def test_what_has_no_match_is_given_when_none_can_come():
    bench = interval_join(5, 5, "left", grace=2)
    bench.batch([Event("a", "l", 10, LEFT), Event("b", "later", 30, LEFT)])
    bench.batch([Event("b", "r", 17, RIGHT)])
    assert bench.results == []
    bench.batch([Event("b", "r", 18, RIGHT)])
    assert bench.results == [("a", ("l", None), 10)]


def test_a_silent_side_does_not_hold_the_other_back():
    bench = interval_join(5, 5, "left")
    bench.batch([Event("a", "l", 10, LEFT)])
    bench.silence(0, BOTH)
    bench.silence(9.9, BOTH)
    assert bench.results == []
    bench.silence(0.2, BOTH)
    assert bench.results == [("a", ("l", None), 10)]
    bench.assert_empty()


def test_a_side_with_records_waiting_is_not_silent():
    bench = interval_join(5, 5, "left")
    bench.batch([Event("a", "l", 10, LEFT)])
    for _ in range(10):
        bench.silence(5, frozenset(["left"]))
    assert bench.results == []
    bench.batch([Event("a", "r", 10, RIGHT)])
    assert bench.results == [("a", ("l", "r"), 10)]


def test_an_asof_join_waits_for_what_may_still_come():
    bench = asof_join(100)
    bench.batch([Event("a", "quote 1", 10, RIGHT)])
    bench.batch([Event("a", "trade", 15, LEFT)])
    bench.batch([Event("a", "quote 2", 15, RIGHT)])
    assert bench.results == []
    bench.batch([Event("b", "quote 3", 16, RIGHT)])
    assert bench.results == [("a", ("trade", "quote 2"), 15)]


def test_an_asof_join_keeps_the_latest_only():
    bench = asof_join(10**6)
    for time in range(1000):
        bench.batch([Event("a", time, time, RIGHT), Event("b", time, time, RIGHT)])
        bench.batch([Event("a", time, time, LEFT)])
    kept = dict(bench.state.scan())
    assert len(kept["a"]["right"]) <= 2
    assert len(kept["b"]["right"]) <= 2


def test_records_of_long_ago_are_not_kept():
    bench = interval_join(1000, 1000, "outer")
    for second in range(300):
        bench.batch([Event(f"left {second}", second, second * 1000, LEFT)])
        bench.batch([Event(f"right {second}", second, second * 1000, RIGHT)])
        bench.checkpoint()
    assert len(list(bench.state.scan())) < 8
    assert len(bench.store._entries) < 8
    assert len(bench.results) > 590
