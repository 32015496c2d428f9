"""Window specifications: options, and the windows of a time."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError
from streamproc.windows import Hopping, Tumbling, hopping, session, sliding, tumbling

TIMES = st.integers(-(10**18), 10**18) | st.integers(-100, 100)


def test_durations_become_milliseconds():
    spec = hopping(
        timedelta(minutes=1), 0.5, offset="-1h", grace="5s", out_of_orderness=2, idle_timeout="1m"
    )
    assert (spec.size, spec.step, spec.offset) == (60_000, 500, -3_600_000)
    assert (spec.grace, spec.out_of_orderness, spec.idle_timeout) == (5000, 2000, 60_000)


def test_defaults():
    spec = tumbling("10s")
    assert spec == Tumbling(10_000)
    assert (spec.offset, spec.grace, spec.emit, spec.time) == (0, 0, "final", "event")
    assert (spec.out_of_orderness, spec.idle_timeout, spec.late) == (0, 10_000, None)
    assert tumbling("10s", idle_timeout=None).idle_timeout is None
    assert session("5s").max_length is None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tumbling(0), "size must be above 0"),
        (lambda: tumbling(-1), "negative"),
        (lambda: tumbling("ten"), "'ten' is not a duration"),
        (lambda: hopping(10, 0), "step must be above 0"),
        (lambda: hopping(10, 11), "step .11000 ms. is longer than size .10000 ms."),
        (lambda: sliding(0), "size must be above 0"),
        (lambda: session(0), "gap must be above 0"),
        (lambda: session(10, max_length=9), "max_length .9000 ms. is shorter than gap"),
        (lambda: tumbling(1, emit="all"), "emit must be 'final' or 'updates', is 'all'"),
        (lambda: tumbling(1, time="wall"), "time must be 'event' or 'processing'"),
        (lambda: tumbling(1, idle_timeout=0), "idle_timeout must be above 0.*None"),
        (lambda: tumbling(1, grace=1, time="processing"), "grace has no meaning"),
        (lambda: sliding(1, out_of_orderness=1, time="processing"), "out_of_orderness has no"),
        (lambda: Tumbling(1, grace=-1), "grace must not be negative"),
    ],
)
def test_errors_say_what_is_wrong(make, match):
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_half_open():
    spec = tumbling("10ms")
    assert list(spec.starts(0)) == [0]
    assert list(spec.starts(9)) == [0]
    assert list(spec.starts(10)) == [10]
    assert list(spec.starts(-1)) == [-10]
    assert list(hopping("10ms", "4ms").starts(10)) == [4, 8]
    assert list(hopping("10ms", "4ms").starts(8)) == [0, 4, 8]
    assert list(hopping("10ms", "4ms").starts(-1)) == [-8, -4]


@given(TIMES, st.integers(1, 40), st.integers(1, 40), st.integers(-50, 50))
def test_starts_are_all_that_hold_the_time(time, size, step, offset):
    size, step = max(size, step), min(size, step)
    spec = Hopping(size, step, offset)
    near = range(time - size - 5, time + 6)
    expected = [
        start for start in near if (start - offset) % step == 0 and start <= time < start + size
    ]
    assert list(spec.starts(time)) == expected
    assert spec.latest_end(time) == expected[-1] + size
    same = Tumbling(size, offset)
    assert list(same.starts(time)) == list(Hopping(size, size, offset).starts(time))
    assert same.latest_end(time) == same.starts(time)[0] + size


@given(st.lists(TIMES, min_size=1), st.integers(1, 40), st.integers(1, 40), st.integers(-50, 50))
def test_batches_like_single_times(times, size, step, offset):
    flat = Tumbling(size, offset)
    assert flat.assign(times) == [flat.starts(time)[0] for time in times]
    for spec in (flat, Hopping(max(size, step), min(size, step), offset)):
        groups = spec.group(times)
        assert sorted((row, start) for start, rows in groups.items() for row in rows) == [
            (row, start) for row, time in enumerate(times) for start in spec.starts(time)
        ]
        assert all(list(rows) == sorted(rows) for rows in groups.values())
        single = spec.single(min(times), max(times))
        if single is not None:
            assert all(spec.starts(time) == single for time in times)
        elif len(set(times)) == 1:
            pytest.fail("one time is always in the same windows")
