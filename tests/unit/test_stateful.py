"""Own logic with state and timers against brute force, and what its context promises."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_bench import OPTIONS, Event, StepBench, events

import streamproc as faust
from streamproc.errors import ConfigurationError
from streamproc.streams.stateful import Stateful, state_form
from streamproc.streams.timing import Inputs, Timing

ONE = Inputs(None, 1)


def stateful(function, on_timer=None, state=None, out_of_orderness=0, idle_timeout=10_000):
    form, make = state_form(state)
    return StepBench(
        lambda table: Stateful("test", table, ONE, function, on_timer, make),
        form,
        Timing(out_of_orderness, idle_timeout).watermarks(ONE),
    )


def sums(key, value, context):
    """Keeps a list; sets a timer, cancels ONE, or both, as the value says."""
    context.state.append(value)
    context.emit(("record", value, context.watermark, sum(context.state)))
    if value % 3:
        context.set_timer(context.time + value % 7, tag=value % 2)
    if value % 5 == 0:
        context.cancel_timer(tag=value % 2)
    if value % 11 == 0:
        context.state = None


def fired(key, tag, context):
    state = context.state
    context.emit(("timer", tag, context.watermark, list(state)), time=context.time + 1)
    if tag:
        context.set_timer(context.time + 3, tag=0)
    if len(state) > 3:
        context.state = []


class Brute:
    """The same logic, one record at a time, over plain dicts."""

    def __init__(self, bound):
        self.bound = bound
        self.states, self.timers, self.results = {}, [], []
        self.highest = None

    @property
    def mark(self):
        return None if self.highest is None else self.highest - self.bound

    def record(self, event):
        key, value, time = event.key, event.value, event.time
        state = self.states.setdefault(key, [])
        state.append(value)
        self.results.append((key, ("record", value, self.mark, sum(state)), time))
        if value % 3:
            self.set(key, time + value % 7, value % 2)
        if value % 5 == 0:
            self.timers = [each for each in self.timers if each[::2] != (key, value % 2)]
        if value % 11 == 0:
            del self.states[key]
        self.highest = time if self.highest is None else max(self.highest, time)
        self.fire()

    def set(self, key, time, tag):
        if (key, time, tag) not in self.timers:
            self.timers.append((key, time, tag))

    def fire(self):
        while due := [each for each in self.timers if each[1] < self.mark]:
            timer = min(due, key=lambda each: each[1])
            self.timers.remove(timer)
            key, time, tag = timer
            state = self.states.setdefault(key, [])
            self.results.append((key, ("timer", tag, self.mark, list(state)), time + 1))
            if tag:
                self.set(key, time + 3, 0)
            if len(state) > 3:
                self.states[key] = []


def of_key(results, key):
    return [result for result in results if result[0] == key]


@OPTIONS
@given(events(keys="abc"), st.integers(0, 10), st.data())
def test_state_and_timers(sequence, bound, data):
    bench = stateful(sums, fired, list, bound)
    bench.run(sequence, data)
    brute = Brute(bound)
    for event in sequence:
        brute.record(event)
    for key in "abc":
        assert of_key(bench.results, key) == of_key(brute.results, key)
    assert dict(bench.state.scan()).keys() >= {key for key, _, _ in brute.timers}
    bench.batch([Event("z", 0, 10**6)])
    assert not bench.rejected
    assert all(not timers for _, ((_, timers), _) in bench.state.entries.scan())


def values(bench):
    return [value for _, value, _ in bench.results]


def test_all_timers_that_are_due_fire_in_the_order_of_their_times():
    bench = stateful(
        lambda key, value, context: [context.set_timer(each) for each in value],
        lambda key, tag, context: context.emit(context.time),
    )
    bench.batch([Event("a", [5, 1, 9], 0), Event("b", [7, 3, 20], 0)])
    bench.restart()
    bench.batch([Event("c", [], 10)])
    assert values(bench) == [1, 3, 5, 7, 9]
    bench.batch([Event("c", [], 20)])
    assert values(bench) == [1, 3, 5, 7, 9]
    bench.batch([Event("c", [], 21)])
    assert values(bench) == [1, 3, 5, 7, 9, 20]
    bench.assert_empty()


def test_a_timer_fires_when_nothing_comes_any_more():
    bench = stateful(
        lambda key, value, context: context.set_timer(context.time + 60_000, "end"),
        lambda key, tag, context: context.emit(tag),
    )
    bench.batch([Event("a", 1, 0)])
    bench.silence(0)
    bench.silence(30)
    assert values(bench) == []
    bench.silence(31)
    assert bench.results == [("a", "end", 60_000)]
    bench.assert_empty()


def test_a_timer_that_is_due_already_fires_before_the_next_record():
    bench = stateful(
        lambda key, value, context: (context.set_timer(0), context.emit(value)),
        lambda key, tag, context: context.emit("timer"),
    )
    bench.batch([Event("a", 1, 10), Event("a", 2, 11), Event("a", 3, 12)])
    assert values(bench) == [1, "timer", 2, "timer", 3, "timer"]


def test_a_time_and_tag_are_one_timer():
    def function(key, value, context):
        context.set_timer(5)
        context.set_timer(5)
        context.set_timer(5, "other")

    bench = stateful(function, lambda key, tag, context: context.emit(tag))
    bench.batch([Event("a", 1, 0), Event("a", 2, 1), Event("b", 3, 100)])
    assert [value for key, value, _ in bench.results if key == "a"] == [None, "other"]


def test_timers_are_cancelled_by_time_or_by_tag():
    answers = []

    def function(key, value, context):
        context.set_timer(5, "x")
        context.set_timer(6, "x")
        context.set_timer(7, "y")
        answers.append(context.cancel_timer(5, "x"))
        answers.append(context.cancel_timer(5, "x"))
        if value == "all":
            answers.append(context.cancel_timer(tag="x"))

    bench = stateful(function, lambda key, tag, context: context.emit((context.time, tag)))
    bench.batch([Event("a", 1, 0), Event("b", "all", 0)])
    bench.batch([Event("c", 1, 4), Event("z", "all", 7)])
    assert answers[:5] == [True, False, True, False, True]
    assert [value for key, value, _ in bench.results if key == "a"] == [(6, "x")]
    assert not [value for key, value, _ in bench.results if key == "b"]


def test_one_timer_may_cancel_another_that_is_due_as_well():
    def on_timer(key, tag, context):
        context.emit(tag)
        context.cancel_timer(tag="second")

    def function(key, value, context):
        context.set_timer(1, "first")
        context.set_timer(2, "second")

    bench = stateful(function, on_timer)
    bench.batch([Event("a", 1, 0), Event("b", 1, 9)])
    assert of_key(bench.results, "a") == [("a", "first", 1)]


def test_a_record_that_raises_is_rejected_and_changes_nothing():
    def function(key, value, context):
        context.state = context.state + value
        context.set_timer(5, value)
        context.emit(context.state)
        if value == 2:
            raise ValueError("two")

    bench = stateful(function, lambda key, tag, context: context.emit(("timer", tag)), int)
    bench.batch([Event("a", 1, 0), Event("a", 2, 1), Event("a", 3, 2)])
    assert values(bench) == [1, 4]
    assert [(each.origin, str(each.error)) for each in bench.rejected] == [(1, "two")]
    bench.batch([Event("b", 0, 9)])
    assert [value for key, value, _ in bench.results if key == "a"][2:] == [
        ("timer", 1),
        ("timer", 3),
    ]


def test_a_timer_that_raises_is_rejected_and_gone():
    def on_timer(key, tag, context):
        raise ValueError(tag)

    bench = stateful(lambda key, value, context: context.set_timer(5, "tag"), on_timer)
    bench.batch([Event("a", 1, 0), Event("b", 1, 100)])
    assert [str(each.error) for each in bench.rejected] == ["tag", "tag"]
    assert bench.rejected[0].value == {"timer": 5, "tag": "tag"}
    bench.assert_empty()


def test_what_is_emitted_may_have_another_key_and_time():
    bench = stateful(lambda key, value, context: context.emit(value, key="other", time=7))
    bench.batch([Event("a", 1, 0)])
    assert bench.results == [("other", 1, 7)]


class Totals(faust.Record):
    count: int = 0
    tags: tuple[str, ...] = ()


class Seen(msgspec.Struct):
    times: dict[int, str] = {}


@pytest.mark.parametrize(
    "state", [Totals, Seen, dict, list, set, int, dict[int, str], lambda: {1: (2, None)}]
)
def test_a_state_comes_back_as_what_it_was(state):
    def function(key, value, context):
        kept = context.state
        if isinstance(kept, Totals):
            kept.count += 1
        elif isinstance(kept, Seen):
            kept.times[value] = "x"
        elif isinstance(kept, dict):
            kept[value] = "x"
        elif isinstance(kept, list):
            kept.append((value, None))
        elif isinstance(kept, set):
            kept.add(value)
        else:
            context.state = kept + value
        context.emit(context.state)

    bench = stateful(function, state=state)
    bench.batch([Event("a", 1, 0)])
    before = bench.state.load("a")[0]
    bench.restart()
    after = bench.state.load("a")[0]
    assert after == before
    assert type(after) is type(before)
    bench.batch([Event("a", 2, 1)])
    assert not bench.rejected


def test_a_state_that_is_only_read_is_not_written():
    bench = stateful(lambda key, value, context: context.emit(context.state), state=int)
    bench.batch([Event("a", 1, 0)])
    bench.checkpoint()
    bench.batch([Event("a", 1, 0)])
    assert not bench.state.is_dirty


def test_a_state_set_to_none_is_freed():
    def function(key, value, context):
        context.state = value

    bench = stateful(function)
    bench.batch([Event("a", 1, 0), Event("b", 1, 0), Event("a", None, 1)])
    assert dict(bench.state.scan()) == {"b": 1}


def test_a_state_is_made_by_a_type_or_a_function():
    with pytest.raises(ConfigurationError, match="state=3"):
        state_form(3)
