"""A step of a flow by itself: fed in batches, checkpointed, restarted and killed at will."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task
from streamproc.tables.stores import MemoryStore
from streamproc.tables.timedstate import TimedState, keys_as_they_are

OPTIONS = settings(max_examples=500, deadline=None)

#: What happens between two batches.
BETWEEN = st.sampled_from(["nothing"] * 6 + ["checkpoint", "restart", "crash"])


@dataclass(frozen=True)
class Event:
    """A record of a test: ``side`` says which input it comes in by."""

    key: Any
    value: Any
    time: int
    side: int = 0


class StepBench:
    """One partition of a step with timed state, over a store in memory.

    The cache holds next to nothing, so that entries are read from the store again.
    """

    def __init__(self, make, form, watermarks):
        self._make = make
        self._form = form
        self._watermarks = watermarks
        self.store = MemoryStore()
        self.results, self.late, self.rejected = [], [], []
        self.done = 0
        self.now = 1000.0
        self._saved = (0, 0, 0, 0)
        self._flushed = 0
        self._open()

    def _open(self):
        self.state = TimedState(
            0, self.store, keys_as_they_are("test"), self._form, 1, self._watermarks
        )
        self.step = self._make(SimpleNamespace(states={0: self.state}))

    def checkpoint(self):
        flush = self.state.flush({"reader": self._flushed})
        self._flushed += 1
        flush.write(self._flushed)
        self._saved = (self.done, len(self.results), len(self.late), len(self.rejected))

    def restart(self):
        self.checkpoint()
        self._open()

    def crash(self):
        """Lose what isn't checkpointed: it will come again."""
        self.done, results, late, rejected = self._saved
        del self.results[results:], self.late[late:], self.rejected[rejected:]
        self._open()

    def batch(self, events):
        rows = Rows(
            [event.key for event in events],
            [event.value for event in events],
            [event.time for event in events],
            range(len(events)),
            events[0].side,
        )
        task = Task(0, self.now, self.now)
        self._take(self.step.process(rows, task), task)
        self.done += len(events)

    def silence(self, seconds, quiet=frozenset()):
        self.now += seconds
        task = Task(0, self.now, self.now, quiet)
        rows = self.step.tick(task)
        if rows is not None:
            self._take(rows, task)

    def _take(self, rows, task):
        self.results += zip(rows.keys, rows.values, rows.times, strict=True)
        self.late += [value for _, late in task.late for value in late.values]
        self.rejected += task.rejected

    def run(self, events, data):
        """Feed events in batches of one side each, with checkpoints, restarts and crashes."""
        crashes = 3
        while self.done < len(events):
            rest = events[self.done :]
            run = 1
            while run < len(rest) and rest[run].side == rest[0].side:
                run += 1
            self.batch(rest[: data.draw(st.integers(1, run), label="batch")])
            event = data.draw(BETWEEN, label="between")
            if event == "crash" and crashes:
                crashes -= 1
                self.crash()
            elif event == "checkpoint":
                self.checkpoint()
            elif event == "restart":
                self.restart()

    def assert_empty(self):
        """See that nothing is left, in memory or in the store."""
        assert not list(self.state.entries.scan())
        assert all(len(index) == 0 for index in self.state._index_list)
        self.checkpoint()
        assert self.store.is_empty()


def events(sides=1, most=40, keys="ab"):
    """Return a strategy of events in about the order of their times, closer or further apart."""

    def build(drawn):
        step, jitter, rows = drawn
        time, made = 0, []
        for number, (key, side, ahead, back) in enumerate(rows):
            time += ahead % (step + 1)
            made.append(Event(key, number, time - back % (jitter + 1), side))
        return made

    one = st.tuples(
        st.sampled_from(keys),
        st.integers(0, sides - 1),
        st.integers(0, 15),
        st.integers(0, 20),
    )
    rows = st.lists(one, min_size=1, max_size=most)
    return st.tuples(st.sampled_from([1, 3, 15]), st.sampled_from([0, 2, 20]), rows).map(build)
