"""Windows against brute force: whatever the order, the batches and the restarts."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows_oracle import (
    OPTIONS,
    Listing,
    aligned_oracle,
    as_list,
    cases,
    session_oracle,
    sliding_oracle,
)

from streamproc.windows import Hopping, Session, Sliding, Tumbling
from streamproc.windows.memory import MemoryKeys, MemoryWindows


class Run:
    """An operator with its state in memory, restarted when asked to be."""

    def __init__(self, spec):
        self.spec = spec
        self.state = MemoryWindows() if hasattr(spec, "starts") else MemoryKeys()
        self.operator = spec.operator(Listing(), self.state)
        self.now = 1000.0
        self.finals, self.late, self.partly, self.shown = [], [], [], {}

    def restart(self):
        if isinstance(self.state, MemoryWindows):
            self.state = MemoryWindows(deepcopy(self.state.windows))
        else:
            self.state = MemoryKeys(deepcopy(self.state.stored()))
        plain = self.operator.watermark.to_plain()
        self.operator = self.spec.operator(Listing(), self.state, self.spec.watermark(plain=plain))

    def batch(self, records):
        keys = [record[0] for record in records]
        values = [record[1] for record in records]
        times = [record[2] for record in records]
        output = self.operator.process(keys, values, times, self.now)
        self.late += [values[row] for row in output.late]
        self.partly += [values[row] for row in output.partly_late]
        self.take(output)

    def silence(self, milliseconds):
        self.now += milliseconds / 1000
        self.take(self.operator.tick(self.now))

    def take(self, output):
        ends = [final[2] for final in output.finals]
        assert ends == sorted(ends)
        self.finals += deepcopy(output.finals)
        for window in output.retracted:
            assert window in self.shown
            del self.shown[window]
        seen = [update[:3] for update in output.updates]
        assert len(seen) == len(set(seen))
        self.shown.update({update[:3]: deepcopy(update[3]) for update in output.updates})

    def assert_empty(self):
        if isinstance(self.state, MemoryWindows):
            assert not self.state.windows
        else:
            assert not self.state.entries
            assert len(self.state.index) == 0


def check(spec, oracle, segments, data):
    run = Run(spec)
    for records, silence in segments:
        rest = records
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            if data.draw(st.booleans()):
                run.restart()
            run.batch(rest[:size])
            rest = rest[size:]
        run.silence(silence)
    run.silence(10**6)
    expected, late, partly = oracle(spec, [*segments, ([], 10**6)])
    assert run.late == late
    assert run.partly == partly
    if spec.emit == "final":
        assert as_list(run.finals) == as_list(expected)
        assert not run.shown
    else:
        assert not run.finals
        assert as_list(run.shown) == as_list(expected)
    run.assert_empty()


@given(
    st.builds(Tumbling, st.integers(1, 30), offset=st.integers(-40, 40), **OPTIONS),
    cases(),
    st.data(),
)
def test_tumbling(spec, segments, data):
    check(spec, aligned_oracle, segments, data)


@given(
    st.integers(1, 30),
    st.builds(dict, offset=st.integers(-40, 40), **OPTIONS),
    cases(),
    st.data(),
)
def test_hopping(size, options, segments, data):
    spec = Hopping(size, data.draw(st.integers(1, size)), **options)
    check(spec, aligned_oracle, segments, data)


@given(st.builds(Sliding, st.integers(1, 30), **OPTIONS), cases(), st.data())
def test_sliding(spec, segments, data):
    check(spec, sliding_oracle, segments, data)


@given(st.builds(Session, st.integers(1, 12), **OPTIONS), cases(150), st.data())
def test_session(spec, segments, data):
    check(spec, session_oracle, segments, data)


@given(st.integers(1, 12), st.builds(dict, **OPTIONS), cases(150), st.data())
def test_session_with_a_longest(gap, options, segments, data):
    spec = Session(gap, gap + data.draw(st.integers(0, 30)), **options)
    check(spec, session_oracle, segments, data)


@pytest.mark.parametrize("spec", [Tumbling(10), Hopping(10, 4), Sliding(10), Session(10)])
def test_nothing_comes_of_nothing(spec):
    run = Run(spec)
    run.batch([])
    run.silence(10**6)
    assert run.finals == []
    run.assert_empty()
