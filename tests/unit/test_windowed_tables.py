"""Windows of tables against a brute-force oracle, and what Faust's spelling means with ours."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import faust
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamproc
from streamproc.errors import ConfigurationError, DecodeError, StoreError, TableError
from streamproc.tables.place import Place, current_place
from streamproc.tables.stores import MemoryStore
from streamproc.tables.windowed import Follower
from streamproc.testing import TestDriver
from streamproc.web.query import Query
from streamproc.web.reading import read_page
from streamproc.windows import hopping, session, tumbling
from streamproc.windows.ranges import (
    HoppingWindow,
    SlidingWindow,
    TumblingWindow,
    window_of,
)


class FakePlace(Place):
    """Where an agent is that has a batch in hand."""

    def __init__(self, partition=0):
        super().__init__()
        self.partition = partition
        self.in_hand = None
        self.at = 0

    def batch(self):
        return self.in_hand

    def row(self):
        return self.at

    def event_times(self, batch):
        return batch.timestamps


def batch_of(records, topic="t", partition=0):
    """Make what both a delivery and a batch look like; records are (key, time, value)."""
    keys, times, values = zip(*records, strict=True) if records else ((), (), ())

    class Columns(SimpleNamespace):
        def __len__(self):
            return len(self.values)

    tp = SimpleNamespace(topic=topic, partition=partition)
    return Columns(
        keys=list(keys),
        timestamps=list(times),
        values=list(values),
        offsets=list(range(len(keys))),
        progress=SimpleNamespace(tp=tp),
    )


class Run:
    """A windowed table, its agent, and its checkpoints; restarted and killed at will."""

    def __init__(self, window, *, default=int, store=None, cache_bytes=None, **options):
        self.closed = []
        self.app = streamproc.App("test", broker="kafka://127.0.0.1:1", store="memory://")
        if cache_bytes is not None:
            self.app.table_cache_bytes = cache_bytes
        table = self.app.Table(
            "counts",
            default=default,
            key_type=str,
            on_window_close=lambda key, value: self.closed.append((key, value)),
            **options,
        )
        self.table = table
        self.counts = table.using_window(window)
        self.store = store or MemoryStore()
        self.offset = 0
        self.start()

    def start(self):
        """Start anew with what the store has."""
        self.table.states[0] = self.table.windows.new_state(0, self.store)
        self.table.states[0].check()
        self.counts._cursors.clear()
        self.place = FakePlace()
        self.follower = Follower([self.table.windows], self.place)

    @property
    def state(self):
        return self.table.states[0]

    def checkpoint(self, position):
        flush = self.state.flush({"t@": position})
        if flush is not None:
            self.offset += len(flush.keys) + 1
            flush.write(self.offset)

    async def process(self, records, *, by_batch=False):
        """Process records of (key, time, whether the agent writes) as one batch."""
        if not records:
            return
        batch = batch_of(records)
        place = self.place
        place.in_hand, place.at = batch, 0
        current_place.set(place)
        if by_batch:
            self.counts.update(batch, lambda count, writes: count + 1)
        else:
            for row, (key, _, writes) in enumerate(records):
                place.at = row
                if writes:
                    self.counts[key] += 1
        await self.follower.finish(batch, len(batch))
        place.in_hand = None


def starts_of(window, time):
    """Tell the windows of a time by trying all of them."""
    spec = window.spec
    step = getattr(spec, "step", window.length)
    first = (time - window.length) // step * step - step
    return [
        start
        for start in range(first, time + 2 * step, step)
        if start <= time < start + window.length and start % step == 0
    ]


def oracle(window, records):
    """Return what is closed, and what stays open: counts by key and start."""
    counts, highest, late = Counter(), None, 0
    life = window.length + window.grace

    def is_over(start):
        return highest is not None and start + life <= highest

    for key, time, writes in records:
        starts = [start for start in starts_of(window, time) if not is_over(start)]
        if writes:
            late += not starts
            counts.update((key, start) for start in starts)
        highest = time if highest is None else max(highest, time)
    closed = {at: count for at, count in counts.items() if is_over(at[1])}
    return closed, {at: count for at, count in counts.items() if at not in closed}, late


WINDOWS = st.builds(
    lambda step, times, grace: HoppingWindow(step * times / 1000, step / 1000, grace / 1000),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 40),
)


def with_a_write(records):
    """A topic's records count from the first on that its agent writes for."""
    return [(key, time, writes or not row) for row, (key, time, writes) in enumerate(records)]


RECORDS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(-50, 300), st.booleans()), max_size=60
).map(with_a_write)


def cut(items, points):
    """Cut a list at some points."""
    bounds = [0, *sorted({point for point in points if 0 < point < len(items)}), len(items)]
    return [(begin, items[begin:end]) for begin, end in itertools.pairwise(bounds)]


def plain(run):
    return {(key, round(start * 1000)): value for (key, (start, _)), value in run.state.scan()}


@settings(max_examples=300, deadline=None)
@given(
    WINDOWS,
    RECORDS,
    st.lists(st.integers(0, 60)),
    st.data(),
)
def test_any_order_split_and_restart_is_as_the_oracle(window, records, points, data):
    run = Run(window, cache_bytes=data.draw(st.sampled_from([0, 1000, 1 << 20])))

    async def go():
        for begin, part in cut(records, points):
            await run.process(part)
            what = data.draw(st.sampled_from(["go on", "checkpoint", "restart"]))
            if what != "go on":
                run.checkpoint(begin + len(part))
            if what == "restart":
                late, run_late = run.state.late_total, getattr(run, "late", 0)
                run.late = run_late + late
                run.start()

    asyncio.run(go())
    closed, left, late = oracle(window, records)
    assert plain(run) == left
    assert len(run.closed) == len(closed), "each window and key once"
    assert {(key, round(bounds[0] * 1000)): n for (key, bounds), n in run.closed} == closed
    assert run.table.windows.late_total == late


@settings(max_examples=200, deadline=None)
@given(WINDOWS, RECORDS, st.lists(st.integers(0, 60)), st.data())
def test_a_crash_anywhere_skips_no_window(window, records, points, data):
    run = Run(window)

    async def go():
        parts = cut(records, points)
        at, kept, crashes = 0, 0, 0
        while at < len(parts):
            await run.process(parts[at][1])
            at += 1
            what = data.draw(st.sampled_from(["go on", "checkpoint", "crash"]))
            if what == "checkpoint":
                run.checkpoint(at)
                kept = at
            elif what == "crash" and crashes < 5:
                crashes += 1
                run.start()
                at = kept

    asyncio.run(go())
    closed, left, _ = oracle(window, records)
    assert plain(run) == left
    calls = {}
    for (key, bounds), count in run.closed:
        at = key, round(bounds[0] * 1000)
        # Called again after a crash, it gets the same.
        assert calls.setdefault(at, count) == count
    assert calls == closed


@settings(max_examples=100, deadline=None)
@given(WINDOWS, RECORDS, st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_batch_form_equals_event_form(window, records, points, others):
    records = [(key, time, True) for key, time, _ in records]
    by_event, by_batch = Run(window), Run(window)

    async def go():
        for _, part in cut(records, points):
            await by_event.process(part)
        for _, part in cut(records, others):
            await by_batch.process(part, by_batch=True)

    asyncio.run(go())
    assert plain(by_event) == plain(by_batch)
    assert sorted(by_event.closed) == sorted(by_batch.closed)


@settings(max_examples=50, deadline=None)
@given(RECORDS)
def test_a_closed_window_leaves_nothing(records):
    run = Run(TumblingWindow(0.01, 0.005))

    async def go():
        for begin, part in cut(records, range(0, 60, 7)):
            await run.process(part)
            run.checkpoint(begin + len(part))
        await run.process([("z", 10_000, False)] if not records else [("z", 10_000, True)])
        run.checkpoint(100)
        # Tombstones of what was on its way to the store come with the next one.
        await run.process([("z", 20_000, True)])
        run.checkpoint(101)
        run.checkpoint(102)

    asyncio.run(go())
    left = [raw for raw, _ in run.store.items()]
    assert len(left) == 1, "the last record's window alone"
    windows = run.state.windows
    assert len(windows._open) == len(windows._heap) == len(windows._planned) == 1


# -- bounds


def test_windows_are_exact():
    window = TumblingWindow(10)
    assert window.ranges(9.999) == [(0.0, 10.0)]
    assert window.ranges(10) == [(10.0, 20.0)]
    assert window.current(-0.001) == (-10.0, 0.0)
    hops = HoppingWindow("10s", timedelta(seconds=5), expires="2s")
    assert hops.ranges(12) == [(5.0, 15.0), (10.0, 20.0)]
    assert hops.earliest(12) == (5.0, 15.0)
    assert hops.current(12) == (10.0, 20.0)
    assert hops.delta(12, 5) == (5.0, 15.0)
    assert hops.stale(12, 22)
    assert not hops.stale(12, 21.999)
    assert (hops.size, hops.step, hops.expires) == (10, 5, 2)
    assert TumblingWindow(0.5).ranges(1.25) == [(1.0, 1.5)]
    assert SlidingWindow(10, 5, None).ranges(100) == [(90.0, 105.0)]
    assert not TumblingWindow(10).stale(0, 1e9)


@pytest.mark.parametrize(
    ("given", "expires"),
    [
        (faust.TumblingWindow(10.0, expires=2.0), 2.0),
        (faust.HoppingWindow(10.0, 10.0), None),
        (tumbling("10s", grace="2s"), 2.0),
        (hopping(10, 10), 0.0),
    ],
)
def test_windows_of_others(given, expires):
    window = window_of(given)
    assert window.ranges(12) == [(10.0, 20.0)]
    assert window.expires == expires


def test_sliding_window_of_faust():
    window = window_of(faust.SlidingWindow(10.0, 5.0, 60.0))
    assert window.ranges(100.0) == [(90.0, 105.0)]
    assert (window.before, window.after, window.expires) == (10, 5, 60)


@pytest.mark.parametrize(
    "given", [session("10s"), object(), tumbling(10, emit="updates"), tumbling(10, late=print)]
)
def test_windows_that_tables_have_not(given):
    with pytest.raises(ConfigurationError):
        window_of(given)


def test_wrong_sizes():
    app = streamproc.App("test", broker="kafka://127.0.0.1:1")
    for size in (0, -1, "x"):
        with pytest.raises(ConfigurationError):
            app.Table(f"counts{size}").tumbling(size)
    with pytest.raises(ConfigurationError, match="step"):
        app.Table("gaps").hopping(5, 10)
    with pytest.raises(ConfigurationError, match="Global"):
        app.GlobalTable("everywhere").tumbling(10)


def test_window_as_an_argument():
    app = streamproc.App("test", broker="kafka://127.0.0.1:1")
    windowed = app.Table("counts", default=int, window=faust.TumblingWindow(10.0, expires=1.0))
    assert windowed.windows.window.expires == 1.0
    assert windowed.name == "counts"


def test_changelog_keeps_more_than_open_windows():
    app = streamproc.App("test", broker="kafka://127.0.0.1:1")
    kept = app.Table("kept").tumbling(10).table.changelog_topic
    assert kept.compacting
    assert not kept.deleting
    assert not kept.retention
    closed = app.Table("closed").tumbling(10, expires="1h").table.changelog_topic
    assert closed.compacting
    assert closed.deleting
    assert closed.retention == 3610 + 7 * 24 * 3600


# -- Faust's spelling


class Order(streamproc.Record):
    created: float
    amount: int = 0
    day: datetime | None = None


class Timed(streamproc.Record, event_time="at"):
    at: int


@pytest.fixture
def run():
    return Run(HoppingWindow(10, 5, 100))


def put(run, *records):
    """Put a batch in the agent's hand, its last record first of all."""
    run.place.in_hand = batch_of(records)
    run.place.at = len(records) - 1
    current_place.set(run.place)


def event(value=None, seconds=0.0):
    message = SimpleNamespace(timestamp=seconds, partition=0, topic="t")
    return faust.Event(None, None, value, {}, message)


def test_operators_in_place(run):
    put(run, ("k", 12_000, None))
    for change, expected in [
        (lambda one: one.__iadd__(7), 7),
        (lambda one: one.__isub__(1), 6),
        (lambda one: one.__imul__(4), 24),
        (lambda one: one.__ifloordiv__(5), 4),
        (lambda one: one.__ipow__(2), 16),
        (lambda one: one.__imod__(10), 6),
        (lambda one: one.__ilshift__(2), 24),
        (lambda one: one.__irshift__(1), 12),
        (lambda one: one.__iand__(10), 8),
        (lambda one: one.__ior__(3), 11),
        (lambda one: one.__ixor__(1), 10),
        (lambda one: one.__itruediv__(4), 2.5),
    ]:
        change(run.counts["k"])
        assert run.counts["k"].value() == expected
    assert dict(run.table.items()) == {("k", (5.0, 15.0)): 2.5, ("k", (10.0, 20.0)): 2.5}


def test_set_delete_contains(run):
    put(run, ("k", 12_000, None))
    run.counts["k"] = 5
    assert "k" in run.counts
    assert "other" not in run.counts
    assert run.counts["k"][5.0, 15.0] == 5
    run.counts["k"][5.0, 15.0] = 6
    assert run.table[("k", (5.0, 15.0))] == 6
    del run.counts["k"]
    assert "k" not in run.counts
    assert list(run.table.items()) == []
    assert run.counts["k"].value() == 0


def test_a_deleted_entry_stays_deleted_after_a_restart(run):
    put(run, ("k", 12_000, None), ("l", 12_000, None))
    run.counts["k"] = 5
    run.counts["l"] = 5
    run.checkpoint(1)
    del run.counts["k"]
    assert run.state.count() == 2
    run.checkpoint(2)
    run.start()
    assert {key for (key, _), _ in run.state.scan()} == {"l"}


def test_no_default_is_a_key_error():
    run = Run(TumblingWindow(10, 5), default=None)
    put(run, ("k", 12_000, None))
    with pytest.raises(KeyError):
        run.counts["k"] += 1
    with pytest.raises(KeyError):
        run.counts["k"].value()
    run.counts["k"] = 1
    run.counts["k"] += 1
    assert run.counts["k"].value() == 2


def test_reading_at_other_times(run):
    put(run, ("k", 2_000, None), ("k", 12_000, None))
    run.place.at = 0
    run.counts["k"] = 1
    run.place.at = 1
    run.counts["k"] = 2
    of = event(seconds=2.0)
    assert run.counts["k"].value() == 2
    assert run.counts["k"].value(of) == run.counts["k"].current(of) == 1
    assert run.counts["k"][of].value() == 1
    assert run.counts["k"].delta(10, event(seconds=12.0)) == 1
    assert run.counts["k"].delta("5s", event(seconds=12.0)) == 2
    assert run.counts.get_timestamp() == 12.0
    assert run.counts["k"].now() == 0
    assert dict(run.counts.items()) == {"k": 2}
    assert dict(run.counts.items(of)) == {"k": 1}
    assert list(run.counts.keys()) == list(run.counts) == ["k"]
    assert list(run.counts.values()) == [2]
    assert dict(run.counts.items().delta(10, event(seconds=12.0))) == {"k": 1}
    assert dict(run.counts.items().current(of)) == {"k": 1}
    assert dict(run.counts.items().now()) == {}
    assert len(run.counts) == 1
    assert "k" in run.counts.as_ansitable(title="windows of {table.name}")
    with pytest.raises(NotImplementedError):
        run.counts["k"].keys()
    with pytest.raises(NotImplementedError):
        run.counts["k"][of] = 1


def test_key_index_gives_every_key():
    run = Run(TumblingWindow(10, 1000))
    index = run.table.using_window(TumblingWindow(10, 1000), key_index=True)
    run.counts = index
    run.start()
    put(run, ("a", 1000, None), ("b", 12_000, None))
    run.place.at = 0
    index["a"] += 1
    run.place.at = 1
    index["b"] += 1
    assert dict(index.items()) == {"a": 0, "b": 1}
    assert sorted(index.keys()) == ["a", "b"]


def test_update_by_another_event(run):
    put(run, ("k", 2_000, None))
    run.counts["k"].apply(lambda old, new: old + new, 3, event(seconds=30.0))
    assert dict(run.table.items()) == {("k", (25.0, 35.0)): 3, ("k", (30.0, 40.0)): 3}


def test_relative_to_a_field():
    run = Run(TumblingWindow(10, 5))
    run.counts = by_field = run.counts.relative_to_field(Order.created)
    assert by_field.relative_to_field(Order.amount) is by_field.relative_to_field(Order.amount)
    put(run, ("k", 5_000, Order(created=100.5)), ("k", 6_000, Order(created=112.0)))
    for row in range(2):
        run.place.at = row
        by_field["k"] += 1
    assert dict(run.table.items()) == {("k", (100.0, 110.0)): 1, ("k", (110.0, 120.0)): 1}
    batch = run.place.in_hand
    run.place.in_hand = batch
    asyncio.run(run.follower.finish(batch, 2))
    assert run.state.now == 112_000, "the watermark is of that time too"


@pytest.mark.parametrize(
    ("field", "value", "seconds"),
    [
        (Order.created, Order(created=12.5), 12.5),
        (Order.amount, Order(created=0, amount=12), 12.0),
        (Timed.at, Timed(at=12_500), 12.5),
        (Order.day, Order(created=0, day=datetime(1970, 1, 2, tzinfo=timezone.utc)), 86400.0),
        (Order.day, Order(created=0), 7.0),
    ],
)
def test_units_of_fields(run, field, value, seconds):
    by_field = run.counts.relative_to_field(field)
    assert by_field.get_timestamp(event(value, 7.0)) == seconds


def test_relative_to_other_things(run):
    of = event(Order(created=3.0), 7.0)
    assert run.counts.get_timestamp(of) == 7.0
    assert run.counts.get_timestamp(event(Timed(at=1_500), 7.0)) == 1.5
    assert run.counts.relative_to(100.0).get_timestamp() == 100.0
    moment = datetime(1970, 1, 1, 0, 1, tzinfo=timezone.utc)
    assert run.counts.relative_to(moment).get_timestamp() == 60.0
    assert run.counts.relative_to(lambda event: event.value.created).get_timestamp(of) == 3.0
    assert run.counts.relative_to(lambda event: moment).get_timestamp(of) == 60.0
    assert run.counts.relative_to_now().relative_to_stream().get_timestamp(of) == 7.0
    with pytest.raises(ConfigurationError):
        run.counts.relative_to("yesterday")


def test_relative_to_now_closes_by_the_clock(run, monkeypatch):
    run = Run(TumblingWindow(10, 5))
    run.counts = run.counts.relative_to_now()
    monkeypatch.setattr("streamproc.tables.clocks.time.time", lambda: 1003.0)
    put(run, ("k", 2_000, None))
    run.counts["k"] += 1
    assert run.counts["k"].now() == run.counts["k"].value() == 1
    assert dict(run.counts.items().now()) == {"k": 1}
    run.state.watermark.tick(1014.999)
    assert not run.state.has_due
    run.checkpoint(1)
    run.start()
    assert run.state.watermark.current == 1014_999
    assert run.state.by_wall
    run.state.watermark.tick(1015.0)
    asyncio.run(run.table.windows.close_due(0))
    assert run.closed == [(("k", (1000.0, 1010.0)), 1)]


def test_outside_of_an_agent(run):
    current_place.set(None)
    with pytest.raises(TableError, match=r"relative_to_now"):
        run.counts["k"].value()
    with pytest.raises(TableError, match="has windows"):
        run.state.get("k")
    with pytest.raises(TableError, match="apart"):
        run.state.get(("k", (0.0, 5.0)))


def test_a_partition_that_is_not_here(run):
    put(run, ("k", 2_000, None))
    run.place.partition = 3
    with pytest.raises(TableError, match="partition 3"):
        run.counts["k"] += 1


# -- closing


def test_late_writes_are_dropped_counted_and_logged_once(caplog):
    run = Run(TumblingWindow(10, 2))
    records = [("k", 1_000, True), ("k", 12_000, True), ("k", 1_000, True), ("k", 2_000, True)]
    asyncio.run(run.process(records))
    assert run.closed == [(("k", (0.0, 10.0)), 1)]
    assert run.table.windows.late_total == run.state.late_total == 2
    (line,) = [record for record in caplog.records if "closed" in record.message]
    assert "11.000 s before" in line.message or "counts" in line.message


def test_kept_for_ever_without_expires():
    run = Run(TumblingWindow(10))
    asyncio.run(run.process([("k", 1_000, True), ("k", 10**12, True), ("k", 1_000, True)]))
    assert run.closed == []
    assert run.state.count() == 2
    assert run.table.windows.late_total == 0


def test_async_callbacks_and_their_order():
    run = Run(TumblingWindow(10, 0))
    order = []

    async def closed(key, value):
        await asyncio.sleep(0)
        order.append((key, value))

    run.table._on_window_close = closed
    asyncio.run(run.process([("a", 15_000, True), ("a", 1_000, True), ("b", 30_000, True)]))
    # The second is behind the watermark: its window was over.
    assert order == [(("a", (10.0, 20.0)), 1)]


def test_a_callback_that_fails_is_called_again_then_rejected(monkeypatch):
    run = Run(TumblingWindow(10, 0))
    monkeypatch.setattr("streamproc.tables.windowed.FIRST_BACKOFF", 0.0)
    calls, letters = Counter(), []

    def closed(key, value):
        calls[key[0]] += 1
        if key[0] == "bad" or calls[key[0]] == 1:
            raise ValueError(key)

    async def send_result(*letter):
        letters.append(letter[:5])

    run.table._on_window_close = closed
    run.app.dead_letters.send_result = send_result
    records = [("good", 1_000, True), ("bad", 1_000, True), ("x", 20_000, True)]
    asyncio.run(run.process(records))
    assert calls == {"good": 2, "bad": 1 + run.app.max_retries}
    key = ("bad", (0.0, 10.0))
    assert letters == [("counts", 0, key, 1, "counts on_window_close")]
    assert plain(run) == {("x", 20_000): 1}


def test_a_window_is_not_freed_when_its_closing_is_cut_off():
    run = Run(TumblingWindow(10, 0))

    async def closed(key, value):
        await asyncio.sleep(3600)

    async def go():
        task = asyncio.ensure_future(run.process([("k", 1_000, True), ("x", 20_000, True)]))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    run.table._on_window_close = closed
    asyncio.run(go())
    assert plain(run) == {("k", 0): 1, ("x", 20_000): 1}
    assert not run.state.is_closing
    run.checkpoint(2)
    run.start()
    assert run.state.has_due, "the next worker closes it at once"


def test_two_topics_are_as_far_as_the_slower():
    run = Run(TumblingWindow(10, 0))

    async def go():
        await run.process([("k", 1_000, True)])
        other = FakePlace()
        other.in_hand = batch_of([("k", 2_000, True)], topic="slow")
        current_place.set(other)
        run.counts["k"] += 1
        await Follower([run.table.windows], other).finish(other.in_hand, 1)
        await run.process([("k", 50_000, True)])
        assert run.closed == []
        run.checkpoint(1)
        run.start()
        assert list(run.state.inputs) == ["t", "slow"]
        place = FakePlace()
        place.in_hand = batch_of([("k", 60_000, False)], topic="slow")
        await Follower([run.table.windows], place).finish(place.in_hand, 1)

    asyncio.run(go())
    assert run.closed == [(("k", (0.0, 10.0)), 2)]


def test_silence_closes(monkeypatch):
    run = Run(tumbling(10, grace=2, idle_timeout="3s"))
    asyncio.run(run.process([("k", 1_000, True)]))
    watermark = run.state.watermark
    heard = watermark._heard[0]
    watermark.tick(heard + 10.9)
    assert not run.state.has_due
    watermark.tick(heard + 11)
    assert run.state.has_due
    asyncio.run(run.table.windows.close_due(0))
    assert run.closed == [(("k", (0.0, 10.0)), 1)]


def test_a_record_without_a_valid_time():
    run = Run(TumblingWindow(10, 0))
    put(run, ("k", None, None), ("k", 5_000, None))
    run.place.at = 0
    with pytest.raises(DecodeError, match="no valid event time"):
        run.counts["k"] += 1
    run.place.at = 1
    run.counts["k"] += 1
    asyncio.run(run.follower.finish(run.place.in_hand, 2))
    assert run.state.now == 5_000


def test_other_windows_are_refused():
    run = Run(TumblingWindow(10, 0))
    asyncio.run(run.process([("k", 1_000, True)]))
    run.checkpoint(1)
    with pytest.raises(StoreError, match=r"size=10000.*size=5000"):
        Run(TumblingWindow(5, 0), store=run.store)
    Run(TumblingWindow(10, 60), store=run.store)


def test_pages_show_the_windows_of_a_key(run):
    asyncio.run(run.process([("a", 1_000, True), ("b", 12_000, True)]))
    run.table.partitions = 1
    run.app.consumer.topic_partitions = lambda name: 1
    page = read_page(run.table, Query(key="a"), [0])
    entries = [msgspec.json.decode(row.entry) for row in page.rows]
    assert [(each["start"], each["end"], each["value"]) for each in entries] == [
        (-5_000, 5_000, 1),
        (0, 10_000, 1),
    ]
    assert len(read_page(run.table, Query(), [0]).rows) == 4


def test_a_write_outside_of_an_agent_goes_to_the_partition_of_the_key(run):
    current_place.set(None)
    run.app.consumer.topic_partitions = lambda name: 8
    partition = run.table.partition_of("k")
    run.table.states = {partition: run.state}
    run.table[("k", (0.0, 10.0))] = 3
    assert run.counts["k"][0.0, 10.0] == 3
    run.table.states = {(partition + 1) % 8: run.table.states[partition]}
    with pytest.raises(TableError, match="which this worker doesn't have"):
        run.table[("k", (0.0, 10.0))] = 3


# -- a whole app


def agent_app(closed, *, by_batch):
    app = streamproc.App("driven", broker="kafka://127.0.0.1:1", store="memory://")
    counts = app.Table(
        "counts",
        key_type=str,
        value_type=int,
        default=int,
        on_window_close=lambda key, value: closed.append((key, value)),
    ).hopping("10s", "5s", expires="3s")
    topic = app.topic("numbers", key_type=str, value_type=int)

    async def by_events(stream):
        async for key, number in stream.items():
            counts[key] += number

    async def by_batches(stream):
        async for batch in stream.batches():
            counts.update(batch, lambda total, number: total + number)

    app.agent(topic, name="count")(by_batches if by_batch else by_events)
    return app


PARTS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), min_size=1, max_size=8),
        st.sampled_from(["go on", "go on", "checkpoint", "restart", "crash", "rebalance"]),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(PARTS, st.booleans())
def test_an_app_that_is_restarted_killed_and_rebalanced(parts, by_batch):
    closed = []
    with TestDriver(agent_app(closed, by_batch=by_batch), partitions=2) as driver:
        for partition, records, what in parts:
            driver.topic("numbers").pipe_many(
                [(f"{key}{partition}", 1, second * 1000) for key, second in records],
                partition=partition,
            )
            if what == "rebalance":
                driver.rebalance(without={partition})
                driver.rebalance()
            elif what != "go on":
                getattr(driver, what)()
        left = {
            (key, round(start * 1000)): n for (key, (start, _)), n in driver.table("counts").items()
        }
    finals, open_windows = {}, {}
    for own in (0, 1):
        records = [
            (f"{key}{own}", second * 1000, True)
            for partition, part, _ in parts
            for key, second in part
            if partition == own
        ]
        done, still, _ = oracle(HoppingWindow(10, 5, 3), records)
        finals |= done
        open_windows |= still
    assert left == open_windows
    assert {(key, round(bounds[0] * 1000)): n for (key, bounds), n in closed} == finals
    if all(what != "crash" for *_, what in parts):
        assert len(closed) == len(finals), "each window and key once"


def test_an_app_in_silence():
    closed = []
    with TestDriver(agent_app(closed, by_batch=False), partitions=2) as driver:
        for partition in (0, 1):
            driver.topic("numbers").pipe(f"k{partition}", 1, timestamp=1_000, partition=partition)
        driver.advance("9s")
        assert closed == []
        driver.restart()
        driver.advance("30s")
        assert sorted(closed) == [
            ((key, window), 1) for key in ("k0", "k1") for window in ((-5.0, 5.0), (0.0, 10.0))
        ]
        assert driver.table("counts") == {}
        driver.checkpoint()
        driver.crash()
        driver.advance("1m")
        assert len(closed) == 4
        assert driver.table("counts") == {}


LOOPS = {}


def loop(function):
    LOOPS[function.__name__] = function
    return function


@loop
async def one_by_one(stream, counts):
    async for key, number in stream.items():
        counts[key] += number


@loop
async def events(stream, counts):
    async for event in stream.events():
        counts[event.key][event].apply(lambda old, new: old + new, event.value)


@loop
async def waiting(stream, counts):
    async for key, number in stream.items():
        await asyncio.sleep(0.01)
        counts[key] += number


@loop
async def buffers_of_events(stream, counts):
    async for buffer in stream.take_events(3, within=1):
        for each in buffer:
            counts[each.key].apply(lambda old, new: old + new, each.value, each)


@loop
async def acks_by_hand(stream, counts):
    async for buffer in stream.noack_take(3, within=1):
        for each in buffer:
            counts[each.key].apply(lambda old, new: old + new, each.value, each)
            each.ack()


@loop
async def filtered_batches(stream, counts):
    async for batch in stream.filter(lambda number: number > 0).batches():
        counts.update(batch, lambda total, number: total + number)


@pytest.mark.parametrize(
    ("name", "concurrency"),
    [*((name, 1) for name in LOOPS), ("one_by_one", 3), ("events", 3), ("waiting", 3)],
)
def test_all_forms_of_loops(name, concurrency):
    closed = []
    app = streamproc.App("loops", broker="kafka://127.0.0.1:1", store="memory://")
    counts = app.Table(
        "counts",
        key_type=str,
        value_type=int,
        default=int,
        on_window_close=lambda key, value: closed.append((key, value)),
    ).tumbling("10s", expires=0)
    topic = app.topic("numbers", key_type=str, value_type=int)

    async def count(stream):
        await LOOPS[name](stream, counts)

    app.agent(topic, name="count", concurrency=concurrency)(count)
    with TestDriver(app, partitions=2) as driver:
        for partition, keys in enumerate(["ab", "cd"]):
            records = [(key, 1, second * 1000) for second in range(25) for key in keys]
            zeros = [("zero", 0, 1_000)] if name == "filtered_batches" else []
            driver.topic("numbers").pipe_many(zeros + records, partition=partition)
        driver.advance("5s")
        assert sorted(closed) == [
            ((key, (start, start + 10.0)), 10) for key in "abcd" for start in (0.0, 10.0)
        ]
        assert driver.table("counts") == {(key, (20.0, 30.0)): 5 for key in "abcd"}


def test_a_callback_writes_to_a_table_of_the_same_partition():
    app = streamproc.App("rollup", broker="kafka://127.0.0.1:1", store="memory://")
    totals = app.Table("totals", key_type=str, value_type=int, default=int)

    async def on_close(key, value):
        await asyncio.sleep(0)
        totals[key[0]] += value

    counts = app.Table(
        "counts", key_type=str, value_type=int, default=int, on_window_close=on_close
    ).tumbling("10s", expires=0)
    topic = app.topic("numbers", key_type=str, value_type=int)

    @app.agent(topic, name="count")
    async def count(stream):
        async for key, number in stream.items():
            counts[key] += number

    with TestDriver(app, partitions=4) as driver:
        # Not where the key's hash would have it.
        records = [("k", 1, second * 1000) for second in range(25)]
        for partition in (1, 2):
            driver.topic("numbers").pipe_many(records, partition=partition)
        assert driver.table("totals").partition(1) == {"k": 20}
        driver.advance("1m")
        driver.checkpoint()
        driver.crash()
        assert [driver.table("totals").partition(n) for n in range(4)] == [
            {},
            {"k": 25},
            {"k": 25},
            {},
        ]


def test_a_state_that_is_taken_away_while_a_callback_waits():
    run = Run(TumblingWindow(10, 0))
    calls = []

    async def closed(key, value):
        calls.append(key)
        run.table.states = {}
        run.state_taken.windows._store = None  # as closed as a store can be

    run.state_taken = run.state
    run.table._on_window_close = closed
    records = [("a", 1_000, True), ("b", 1_000, True), ("x", 20_000, True)]
    asyncio.run(run.process(records))
    assert len(calls) == 1


def test_a_callback_that_would_never_be_called_is_noticed(caplog):
    Run(TumblingWindow(10))
    assert "never called" in caplog.text


def test_time_in_which_the_worker_stood_still_is_no_silence():
    run = Run(tumbling(10, idle_timeout="3s"))
    asyncio.run(run.process([("k", 1_000, True)]))
    windows, heard = run.table.windows, run.state.watermark._heard[0]

    async def tick(after, was_still):
        loop = asyncio.get_running_loop()
        loop.time = lambda: heard + after
        await windows._tick(0, was_still)

    run.app.topics.quiet_partitions = lambda topic: [0]
    asyncio.run(tick(60, True))
    assert run.closed == []
    asyncio.run(tick(62.9, False))
    assert run.closed == []
    asyncio.run(tick(69, False))
    assert run.closed == [(("k", (0.0, 10.0)), 1)]
