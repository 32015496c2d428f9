"""Watermarks: how they move, hold back, and go on in silence."""

import json
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError
from streamproc.windows import Watermark, hopping, sliding, tumbling

TIMES = st.integers(-(10**15), 10**15) | st.integers(-50, 50)


def test_none_before_the_first_record_then_the_highest_less_the_bound():
    watermark = Watermark(out_of_orderness=5)
    assert watermark.current is None
    assert watermark.observe(0, 100, 0.0)
    assert watermark.current == 95
    assert not watermark.observe(0, 90, 0.0)
    assert watermark.current == 95
    assert watermark.observe(0, 101, 0.0)
    assert watermark.current == 96


def test_lowest_of_several_inputs():
    watermark = Watermark(inputs=2)
    assert not watermark.observe(0, 100, 0.0)
    assert watermark.current is None
    assert watermark.observe(1, 50, 0.0)
    assert watermark.current == 50
    assert not watermark.observe(0, 200, 0.0)
    assert watermark.observe(1, 150, 0.0)
    assert watermark.current == 150


def test_an_input_never_heard_of_holds_back_until_the_timeout():
    watermark = Watermark(idle_timeout=10_000, inputs=2)
    watermark.observe(0, 100, 5.0)
    assert not watermark.tick(14.9)
    watermark.observe(0, 200, 14.9)
    assert watermark.tick(15.0)
    assert watermark.current == 200
    # It comes back behind the watermark, which holds still until it has caught up.
    watermark.observe(1, 120, 15.0)
    assert watermark.current == 200
    watermark.observe(0, 300, 15.0)
    assert watermark.current == 200
    watermark.observe(1, 250, 15.0)
    assert watermark.current == 250


def test_one_idle_input_does_not_hold_the_others_back():
    watermark = Watermark(idle_timeout=1000, inputs=2)
    watermark.observe(0, 100, 0.0)
    watermark.observe(1, 100, 0.0)
    watermark.observe(0, 500, 0.9)
    assert watermark.current == 100
    assert watermark.tick(1.0)
    assert watermark.current == 500


def test_touch_keeps_an_input_that_has_records_waiting():
    watermark = Watermark(idle_timeout=1000, inputs=2)
    watermark.observe(0, 100, 0.0)
    watermark.observe(1, 100, 0.0)
    watermark.observe(0, 500, 0.9)
    watermark.touch(1, 0.9)
    assert not watermark.tick(1.0)
    assert watermark.current == 100


def test_a_late_batch_alone_makes_nothing_idle():
    watermark = Watermark(idle_timeout=1000)
    watermark.observe(0, 100, 0.0)
    watermark.observe(0, 110, 60.0)
    assert watermark.current == 110


def test_in_silence_event_time_goes_on_with_the_clock():
    watermark = Watermark(out_of_orderness=500, idle_timeout=10_000)
    watermark.observe(0, 4000, 100.0)
    assert not watermark.tick(109.9)
    assert watermark.current == 3500
    assert watermark.tick(110.0)
    assert watermark.current == 13_500
    assert watermark.tick(112.0)
    assert watermark.current == 15_500
    # Records behind it leave it where it is, and are judged by it.
    assert not watermark.observe(0, 5000, 113.0)
    assert watermark.current == 15_500
    assert watermark.late_rows(tumbling(10), [9000, 10_000, 20_000]) == [0]


def test_in_silence_of_all_inputs_the_furthest_counts():
    watermark = Watermark(idle_timeout=1000, inputs=3)
    watermark.observe(0, 100, 0.0)
    watermark.observe(1, 9000, 0.5)
    assert watermark.tick(1.4)
    assert watermark.current == 9000
    assert watermark.tick(1.5)
    assert watermark.current == 10_000


def test_no_idle_timeout_waits_for_ever():
    watermark = Watermark(idle_timeout=None, inputs=2)
    watermark.observe(0, 100, 0.0)
    assert not watermark.tick(1e9)
    assert watermark.current is None


def test_silence_before_any_record_says_nothing():
    watermark = Watermark()
    assert not watermark.tick(0.0)
    assert not watermark.tick(100.0)
    assert watermark.current is None


def test_restart_keeps_the_watermark_and_counts_silence_anew():
    watermark = Watermark(5, 1000, inputs=2)
    watermark.observe(0, 100, 0.0)
    watermark.observe(1, 80, 0.0)
    watermark.observe(0, 300, 0.9)
    plain = json.loads(json.dumps(watermark.to_plain()))
    again = Watermark.from_plain(plain, 5, 1000)
    assert again.current == 75
    assert not again.tick(7000.0)
    again.observe(0, 300, 7000.9)
    assert again.tick(7001.0)
    assert again.current == 295


def test_restart_with_more_or_fewer_inputs():
    watermark = Watermark(inputs=2)
    watermark.observe(0, 100, 0.0)
    watermark.observe(1, 80, 0.0)
    more = Watermark.from_plain(watermark.to_plain(), inputs=3)
    more.observe(0, 200, 0.0)
    more.observe(1, 200, 0.0)
    assert more.current == 80
    fewer = Watermark.from_plain(watermark.to_plain(), inputs=1)
    fewer.observe(0, 200, 0.0)
    assert fewer.current == 200


def test_no_inputs():
    with pytest.raises(ConfigurationError, match="at least one input"):
        Watermark(inputs=0)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(TIMES, min_size=1, max_size=8)), max_size=8),
    st.integers(0, 20),
    st.booleans(),
)
def test_running_is_the_watermark_record_by_record(batches, out_of_orderness, silence):
    batchwise = Watermark(out_of_orderness, 1000, inputs=3)
    single = Watermark(out_of_orderness, 1000, inputs=3)
    for number, (input, times) in enumerate(batches):
        if silence:
            batchwise.tick(number)
            single.tick(number)
        expected = []
        bound = batchwise.bound(max(times), input)
        running = batchwise.running(times, input)
        for time in times:
            expected.append(-inf if single.current is None else single.current)
            single.observe(input, time, number)
        assert running == expected
        assert all(type(one) is int for one in running if one != -inf)
        assert max(running) <= bound
        batchwise.observe(input, max(times), number)
        assert batchwise.current == single.current


@given(
    st.lists(TIMES, max_size=20),
    st.integers(0, 20),
    st.sampled_from([tumbling("10ms"), hopping("10ms", "3ms", grace="4ms"), sliding("7ms")]),
)
def test_late_rows(times, out_of_orderness, spec):
    watermark = Watermark(out_of_orderness)
    expected, highest = [], None
    for row, time in enumerate(times):
        if highest is not None:
            close = spec.latest_end(time) + spec.grace
            if close <= highest - out_of_orderness:
                expected.append(row)
        highest = time if highest is None else max(highest, time)
    assert watermark.late_rows(spec, times) == expected
