"""Open windows in stores: wherever checkpoints, evictions, closings and crashes fall."""

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
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

from streamproc.kafka.fetch import RawBatch
from streamproc.tables.changelog import Applier, common_positions, records_of
from streamproc.tables.keyed import EntryCodec
from streamproc.tables.state import POSITION_KEY
from streamproc.tables.stores import MemoryStore, RocksStore
from streamproc.tables.windowstate import AlignedWindows, KeyedWindows
from streamproc.windows import Hopping, Session, Sliding, Tumbling

READER = "in@reader"
END = 10**6


class Stored(Listing):
    """A program whose accumulators can be stored."""

    fingerprint = "listing"
    encode = staticmethod(msgspec.msgpack.encode)
    decode = staticmethod(msgspec.msgpack.decode)

    def result(self, acc, window=None):
        return {"all": acc}


CODEC = EntryCodec(
    "t",
    lambda key: None if key is None else json.dumps(key).encode(),
    lambda raw: tuple(json.loads(raw)) if raw[:1] == b"[" else json.loads(raw),
    msgspec.msgpack.encode,
    msgspec.msgpack.decode,
)


def state_of(spec, store, cache_bytes=10**6):
    kind = AlignedWindows if hasattr(spec, "starts") else KeyedWindows
    return kind(0, store, CODEC, spec, Stored(), cache_bytes)


class Changelog:
    """The changelog of one partition."""

    def __init__(self):
        self.keys, self.values = [], []

    def append(self, keys, values):
        self.keys += keys
        self.values += values

    def __len__(self):
        return len(self.keys)

    def compacted(self):
        last = {key: offset for offset, key in enumerate(self.keys)}
        return sorted(last.values())

    def read(self, begin, compacted):
        offsets = self.compacted() if compacted else range(len(self))
        offsets = [offset for offset in offsets if offset >= begin]
        return RawBatch(
            topic="changelog",
            partition=0,
            offsets=offsets,
            timestamps=[0] * len(offsets),
            keys=[self.keys[offset] for offset in offsets],
            values=[self.values[offset] for offset in offsets],
            headers=None,
            next_offset=len(self),
            high_watermark=len(self),
            timestamp_type=0,
            size=1,
        )

    def left(self):
        """Return the keys that have a value."""
        return {self.keys[offset] for offset in self.compacted() if self.values[offset] is not None}


class World:
    """Windows of one partition, what they are made of, and what a crash leaves of them.

    The source is records, and silences (ms) between them; both have a place in it.
    """

    def __init__(self, spec, source, cache_bytes, store):
        self.spec = spec
        self.source = source
        self.cache_bytes = cache_bytes
        self.log = Changelog()
        self.flush = None
        self.finals, self.late, self.partly, self.shown = [], [], [], {}
        self.start(store)

    def start(self, store, compacted=False):
        """Recover, as a worker does."""
        self.flush = None
        self.state = state_of(self.spec, store, self.cache_bytes)
        applier = Applier(self.state)
        raw = self.log.read(self.state.changelog_offset, compacted)
        if raw.offsets:
            applier.apply(raw)
        applier.finish(len(self.log), common_positions([applier]))
        self.place = self.state.positions.get(READER, 0)
        if self.state.needs_repair:
            self.take({})
            self.write()
        # What came before, and the silence since then.
        heard = max(
            (place for place in range(self.place) if self.source[place].__class__ is tuple),
            default=0,
        )
        self.state.tick(self.now(heard))
        self.results(self.state.tick(self.now(self.place)))

    def now(self, place):
        silences = [each for each in self.source[:place] if each.__class__ is int]
        return 1000 + sum(silences) / 1000

    def step(self, size):
        """Process up to ``size`` records, or a silence."""
        now = self.now(self.place)
        if self.source[self.place].__class__ is int:
            self.place += 1
            self.results(self.state.tick(self.now(self.place)))
            return
        records = []
        while len(records) < size and self.place < len(self.source):
            if self.source[self.place].__class__ is int:
                break
            records.append(self.source[self.place])
            self.place += 1
        keys, values, times = map(list, zip(*records, strict=True))
        output = self.state.operator.process(keys, values, times, now)
        self.late += [values[row] for row in output.late]
        self.partly += [values[row] for row in output.partly_late]
        self.results(output)

    def results(self, output):
        self.finals += deepcopy(output.finals)
        for window in output.retracted:
            self.shown.pop(window, None)
        self.shown.update({each[:3]: deepcopy(each[3]) for each in output.updates})

    def take(self, positions=None):
        if self.flush is None:
            self.flush = self.state.flush({READER: self.place} if positions is None else positions)

    def write(self, appended=None, stored=True):
        flush, self.flush = self.flush, None
        if flush is None:
            return
        keys, values = records_of(flush)
        count = len(keys) if appended is None else min(appended, len(keys))
        self.log.append(keys[:count], values[:count])
        if count == len(keys) and stored:
            flush.write(len(self.log))


def as_source(segments):
    source = []
    for records, silence in segments:
        source += [tuple(record) for record in records]
        if silence:
            source.append(silence)
    return source


#: What happens between two batches; in how many of the cases a worker ends.
QUIET = st.sampled_from(["", "", "take", "write", "both"])
ROUGH = st.sampled_from(["", "take", "write", "both", "crash", "restart"])


def check(spec, oracle, segments, data, new_store, rough=True):
    source = [*as_source(segments), END]
    cache_bytes = data.draw(st.sampled_from([0, 1, 10**6]), "cache bytes")
    world = World(spec, source, cache_bytes, new_store(None))
    # Other batches the second time would show other sessions on their way.
    fixed = spec.emit == "updates"
    sizes = {}
    crashes = 0
    while world.place < len(source):
        size = sizes.get(world.place) if fixed else None
        if size is None:
            size = sizes[world.place] = data.draw(st.integers(1, 12), "batch size")
        world.step(size)
        what = data.draw(ROUGH if rough and crashes < 4 else QUIET)
        if what in ("take", "both"):
            world.take()
        if what in ("write", "both"):
            world.write()
        if what == "restart" and not fixed:
            world.write()
            world.take()
            world.write()
        if what in ("crash", "restart"):
            crashes += 1
            if what == "crash" and world.flush is not None:
                world.write(data.draw(st.none() | st.integers(0, 6)), data.draw(st.booleans()))
            kept = world.state.store if data.draw(st.booleans(), "kept") else None
            whole = world.log.keys and world.log.keys[-1] == POSITION_KEY
            compacted = kept is None and bool(whole) and data.draw(st.booleans(), "compacted")
            world.start(new_store(kept), compacted)
    world.write()
    world.take()
    world.write()
    expected, late, partly = oracle(spec, [*segments, ([], END)])
    if crashes == 0:
        assert world.late == late
        assert world.partly == partly
        assert len(world.finals) == len(as_list(expected)) * (spec.emit == "final")
    assert set(world.late) == set(late)
    assert set(world.partly) == set(partly)
    if spec.emit == "final":
        distinct = [each for row, each in enumerate(world.finals) if each not in world.finals[:row]]
        assert as_list(distinct) == as_list(expected)
    elif crashes == 0:
        assert as_list(world.shown) == as_list(expected)
    else:
        # A crash leaves those that it kept from being retracted.
        wanted = as_list(expected)
        assert [each for each in as_list(world.shown) if list(each) in map(list, wanted)] == wanted
    state = world.state
    assert list(state.store.items()) == []
    assert world.log.left() <= {POSITION_KEY}
    assert state.count() == 0
    assert list(state.scan_windows()) == []
    assert not state.is_dirty


@pytest.mark.parametrize("spec", [Tumbling(10), Hopping(10, 5), Session(10), Sliding(10)])
def test_a_window_between_two_checkpoints_is_written_nowhere(spec):
    state = state_of(spec, MemoryStore())
    state.operator.process(["a", "b", "a"], [1, 2, 3], [0, 1, 100], 0.0)
    state.operator.process(["c"], [4], [1000], 0.0)
    assert {key for key, *_ in state.scan_windows()} == {"c"}
    flush = state.flush({READER: 4})
    assert [key for key in flush.keys if b"c" not in key] == []
    flush.write(2)
    # What was written has to be deleted.
    state.operator.process(["d"], [4], [2000], 0.0)
    flush = state.flush({READER: 5})
    assert {value is None for value in flush.values} == {False, True}


def in_memory(kept):
    """A memory store is gone with its worker."""
    return MemoryStore()


KINDS = {
    "tumbling": (
        st.builds(Tumbling, st.integers(1, 30), offset=st.integers(-40, 40), **OPTIONS),
        aligned_oracle,
    ),
    "hopping": (
        st.integers(1, 30).flatmap(
            lambda size: st.builds(
                Hopping, st.just(size), st.integers(1, size), offset=st.integers(-40, 40), **OPTIONS
            )
        ),
        aligned_oracle,
    ),
    "sliding": (st.builds(Sliding, st.integers(1, 30), **OPTIONS), sliding_oracle),
    "session": (st.builds(Session, st.integers(1, 12), **OPTIONS), session_oracle),
    "bounded session": (
        st.integers(1, 12).flatmap(
            lambda gap: st.builds(Session, st.just(gap), st.integers(gap, gap + 30), **OPTIONS)
        ),
        session_oracle,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), cases(keys="ab"))
@settings(deadline=None, max_examples=200)
def test_windows_survive_their_worker(kind, data, segments):
    specs, oracle = KINDS[kind]
    check(data.draw(specs), oracle, segments, data, in_memory)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), cases(keys=["a", None, ("x", 1)]))
@settings(deadline=None, max_examples=40)
def test_each_window_closes_once(kind, data, segments):
    specs, oracle = KINDS[kind]
    check(data.draw(specs), oracle, segments, data, in_memory, rough=False)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_survive_on_disk(kind):
    specs, oracle = KINDS[kind]
    with TemporaryDirectory() as folder:
        numbers = iter(range(10**6))

        def on_disk(kept):
            if kept is not None:
                kept.close()
            return RocksStore(kept.path if kept else Path(folder) / str(next(numbers)))

        @given(st.data(), cases(keys="ab"))
        @settings(deadline=None, max_examples=8)
        def run(data, segments):
            check(data.draw(specs), oracle, segments, data, on_disk)

        run()
