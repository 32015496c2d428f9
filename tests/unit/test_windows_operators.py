"""Window operators: order, failures, processing time, several inputs, memory."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import AggregateError
from streamproc.windows import (
    Hopping,
    Session,
    Sliding,
    Tumbling,
    hopping,
    session,
    sliding,
    tumbling,
)
from streamproc.windows.memory import DueIndex, MemoryKeys, MemoryWindows


class Summing:
    """A program: count and sum; None can't be added."""

    def new(self):
        return [0, 0]

    def update(self, states, keys, values, timestamps, missing):
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            acc = states.get(key)
            if acc is None:
                acc = states[key] = missing(key)
            if value is None:
                raise AggregateError("no", aggregate="sum", field=None, value=value, row=row)
            acc[0] += 1
            acc[1] += value

    def merge(self, left, right):
        return [left[0] + right[0], left[1] + right[1]]


def made(spec, **options):
    state = MemoryWindows() if isinstance(spec, Tumbling | Hopping) else MemoryKeys()
    return spec.operator(Summing(), state, **options), state


def feed(operator, *records, now=0.0, input=0):
    keys, values, times = zip(*records, strict=True)
    return operator.process(list(keys), list(values), list(times), now, input)


def test_a_record_at_the_end_closes_and_is_not_in_it():
    operator, _ = made(tumbling("10ms"))
    assert feed(operator, ("a", 1, 0), ("a", 2, 9)).finals == []
    assert feed(operator, ("a", 4, 10)).finals == [("a", 0, 10, [2, 3])]


def test_grace_and_out_of_orderness_both_wait():
    operator, _ = made(tumbling("10ms", grace="2ms", out_of_orderness="3ms"))
    assert feed(operator, ("a", 1, 0), ("a", 1, 14)).finals == []
    assert feed(operator, ("a", 1, 15)).finals == [("a", 0, 10, [1, 1])]


def test_finals_in_order_of_end_then_arrival():
    operator, _ = made(tumbling("10ms"))
    output = feed(operator, ("z", 1, 10), ("y", 1, 11), ("z", 1, 12), ("b", 1, 20), ("c", 1, 40))
    assert [(key, start) for key, start, _, _ in output.finals] == [
        ("z", 10),
        ("y", 10),
        ("b", 20),
    ]


def test_partly_late():
    operator, _ = made(hopping("10ms", "5ms"))
    output = feed(operator, ("a", 1, 3), ("a", 1, 10), ("a", 8, 7), ("a", 1, 4))
    assert output.partly_late == [2]
    assert output.late == [3]
    output = operator.tick(0.0)
    output = operator.tick(1000.0)
    assert output.finals == [("a", 5, 15, [2, 9]), ("a", 10, 20, [1, 1])]


def test_late_for_a_session_unless_it_touches_an_open_one():
    operator, _ = made(session("10ms"))
    output = feed(operator, ("a", 1, 100), ("a", 1, 91), ("b", 1, 90), ("a", 1, 82), ("a", 1, 72))
    assert output.late == [2, 4]
    assert operator.tick(0.0).finals == []
    assert operator.tick(100.0).finals == [("a", 82, 110, [3, 3])]


def test_session_updates_retract_what_grew():
    operator, _ = made(session("10ms", emit="updates", out_of_orderness="50ms"))
    first = feed(operator, ("a", 1, 0), ("a", 2, 15), ("b", 5, 3))
    assert first.updates == [("a", 0, 10, [1, 1]), ("a", 15, 25, [1, 2]), ("b", 3, 13, [1, 5])]
    assert first.retracted == []
    second = feed(operator, ("a", 4, 8))
    assert second.updates == [("a", 0, 25, [3, 7])]
    assert sorted(second.retracted) == [("a", 0, 10), ("a", 15, 25)]
    third = feed(operator, ("a", 1, 9))
    assert third.updates == [("a", 0, 25, [4, 8])]
    assert third.retracted == []


def test_sliding_windows_are_made_by_their_last_time():
    operator, _ = made(sliding("10ms"))
    output = feed(operator, ("a", 1, 0), ("a", 2, 5), ("a", 4, 5), ("a", 8, 10), ("a", 0, 11))
    assert output.finals == [
        ("a", -9, 1, [1, 1]),
        ("a", -4, 6, [3, 7]),
        ("a", 1, 11, [3, 14]),
    ]


@pytest.mark.parametrize("emit", ["final", "updates"])
def test_windows_close_in_silence(emit):
    operator, state = made(tumbling("10s", emit=emit))
    feed(operator, ("a", 1, 4000), now=50.0)
    assert operator.tick(59.9).finals == []
    finals = operator.tick(60.0).finals
    assert finals == ([("a", 0, 10_000, [1, 1])] if emit == "final" else [])
    assert not state.windows
    # The data goes on where it was: it is late now, each time.
    assert feed(operator, ("a", 1, 5000), ("a", 1, 9999), now=61.0).late == [0, 1]
    assert feed(operator, ("a", 1, 15_000), now=61.0).late == []


def test_processing_time():
    operator, state = made(tumbling("10s", time="processing"))
    assert feed(operator, ("a", 1, 0), ("a", 2, 10**15), now=100.0).finals == []
    output = feed(operator, ("a", 4, -7), now=109.999)
    assert output.finals == []
    assert output.late == []
    assert operator.tick(110.0).finals == [("a", 100_000, 110_000, [3, 7])]
    # A clock that goes back doesn't take time back.
    assert feed(operator, ("a", 1, 0), now=105.0).late == []
    assert list(state.windows) == [110_000]


def test_processing_time_sessions_after_a_long_silence():
    operator, _ = made(session("10s", time="processing"))
    feed(operator, ("a", 1, 0), now=100.0)
    output = feed(operator, ("a", 1, 0), ("a", 1, 0), now=500.0)
    assert output.finals == [("a", 100_000, 110_000, [1, 1])]
    assert operator.tick(510.0).finals == [("a", 500_000, 510_000, [2, 2])]


def test_the_slower_input_decides():
    spec = tumbling("10ms")
    operator, _ = made(spec, watermark=spec.watermark(inputs=2))
    assert feed(operator, ("a", 1, 5), ("a", 1, 500), input=0).finals == []
    output = feed(operator, ("a", 1, 3), ("a", 1, 10), ("a", 1, 9), input=1)
    assert output.late == [2]
    assert output.finals == [("a", 0, 10, [2, 2])]


SPECS = [
    Tumbling(10, out_of_orderness=5),
    Hopping(10, 4, out_of_orderness=5),
    Sliding(10, out_of_orderness=5),
]


@given(
    st.sampled_from(SPECS),
    st.lists(
        st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 9), st.integers(0, 40)),
        min_size=1,
    ),
)
def test_failed_records_are_as_if_not_there(spec, records):
    operator, _ = made(spec)
    output = feed(operator, *records)
    late = set(output.late)
    assert sorted(output.failed) == [
        row for row, record in enumerate(records) if record[1] is None and row not in late
    ]
    operator.tick(0.0)
    finals = output.finals + operator.tick(1000.0).finals
    expected = []
    for row, record in enumerate(records):
        if record[1] is None or row in late:
            continue
        expected.append(record)
    if isinstance(spec, Tumbling):
        assert sum(final[3][0] for final in finals) == len(expected)
    assert all(final[3][0] > 0 for final in finals)
    assert len({final[:3] for final in finals}) == len(finals)


def test_failed_records_of_sessions():
    operator, state = made(session("10ms"))
    output = feed(operator, ("a", 1, 0), ("a", None, 5), ("a", 2, 6), ("b", None, 6))
    assert sorted(output.failed) == [1, 3]
    operator.tick(0.0)
    assert operator.tick(1000.0).finals == [("a", 0, 16, [2, 3]), ("b", 6, 16, [0, 0])]
    assert not state.entries


def test_failed_after_late_rows_are_rows_of_the_batch():
    operator, _ = made(tumbling("10ms"))
    output = feed(operator, ("a", 1, 10), ("a", 1, 0), ("b", None, 11), ("a", 1, 12))
    assert output.late == [1]
    assert list(output.failed) == [2]


@given(st.lists(st.tuples(st.sampled_from(["set", "remove", "due"]), *[st.integers(0, 9)] * 2)))
def test_due_index_like_a_dict(steps):
    index, dues = DueIndex(), {}
    for what, key, due in steps:
        if what == "set":
            index.set(key, due)
            dues[key] = due
        elif what == "remove" and key in dues:
            index.remove(key)
            del dues[key]
        else:
            found = index.due(due)
            assert sorted(found) == sorted(one for one in dues if dues[one] <= due)
            assert [dues[one] for one in found] == sorted(dues[one] for one in found)
    assert len(index) == len(dues)


def test_due_index_does_not_grow():
    index = DueIndex()
    for number in range(10_000):
        index.set("a", 10**6 - number)
        index.set("b", 10**6 + number)
    assert len(index._heap) <= 2 * 2 + 65
    index.remove("a")
    index.remove("b")
    assert index.due(10**9) == []
    assert not index._planned


@pytest.mark.parametrize(
    "spec",
    [Tumbling(10), Hopping(10, 5), Sliding(10), Session(5), Tumbling(10, emit="updates")],
    ids=lambda spec: f"{type(spec).__name__}-{spec.emit}",
)
def test_flat_memory_over_50_000_windows(spec):
    operator, state = made(spec)

    def run(first, windows):
        for start in range(first, first + windows, 50):
            times = [10 * number for number in range(start, start + 50)]
            keys = [f"key {number % 1000}" for number in range(start, start + 50)]
            operator.process(keys, times, times, 0.0)

    run(0, 2000)
    tracemalloc.start()
    try:
        run(2000, 4000)
        before, _ = tracemalloc.get_traced_memory()
        run(6000, 50_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 30_000
    operator.tick(0.0)
    operator.tick(1000.0)
    assert not (state.windows if isinstance(state, MemoryWindows) else state.entries)
