"""Recovery from changelogs: exact wherever a worker died, and whatever it still has."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.kafka.fetch import RawBatch
from streamproc.tables import changelog
from streamproc.tables.changelog import Applier, common_positions, records_of
from streamproc.tables.keyed import EntryCodec, KeyedState
from streamproc.tables.stores import MemoryStore

CODEC = EntryCodec(
    "t", lambda key: json.dumps(key).encode(), json.loads, lambda n: b"%d" % n, json.loads
)
READER = "in@reader"


def run_of(records, next_offset=None):
    """A fetched run of ``(offset, key, value)``."""
    return RawBatch(
        topic="changelog",
        partition=0,
        offsets=[offset for offset, _, _ in records],
        timestamps=[0] * len(records),
        keys=[key for _, key, _ in records],
        values=[value for _, _, value in records],
        headers=None,
        next_offset=next_offset or records[-1][0] + 1,
        high_watermark=0,
        timestamp_type=0,
        size=10,
    )


class Log:
    """The changelog of one partition."""

    def __init__(self):
        self.records = []

    def append(self, keys, values):
        for key, value in zip(keys, values, strict=True):
            self.records.append((len(self.records), key, value))
        return len(self.records)

    def compacted(self):
        last = {key: offset for offset, key, _ in self.records}
        return [each for each in self.records if last[each[1]] == each[0]]


class World:
    """A source, two tables, their changelogs, and what is left of them after a crash."""

    def __init__(self, source):
        self.source = source
        self.logs = [Log(), Log()]
        self.stores = [MemoryStore(), MemoryStore()]
        self.committed = 0
        self.position = 0
        self.snapshots = []
        self.states = []

    def start(self, draw_split, compact=False):
        """Recover both tables, as a worker does after a rebalance."""
        self.states = [KeyedState(0, store, CODEC, 1000) for store in self.stores]
        appliers = [Applier(state) for state in self.states]
        for applier, log in zip(appliers, self.logs, strict=True):
            records = log.compacted() if compact else log.records
            left = [each for each in records if each[0] >= applier.state.changelog_offset]
            while left:
                size = draw_split(len(left))
                applier.apply(run_of(left[:size]))
                left = left[size:]
        common = common_positions(appliers)
        for applier, log in zip(appliers, self.logs, strict=True):
            applier.finish(len(log.records), common)
        self.position = self.committed
        starts = [state.positions.get(READER) for state in self.states]
        known = [start for start in starts if start is not None]
        if known:
            self.position = max(self.position, min(known))
        return self.repairs()

    def repairs(self):
        known = [state.positions[READER] for state in self.states if READER in state.positions]
        start = {READER: min(known)} if known else {}
        return [
            state.flush({} if state.marked else start) if state.needs_repair else None
            for state in self.states
        ]

    def write(self, flushes, appended=(None, None), stored=2):
        """Write as far as the worker lives: so many records of each, and so many stores."""
        whole = True
        for log, flush, limit in zip(self.logs, flushes, appended, strict=True):
            if flush is None:
                continue
            keys, values = records_of(flush)
            count = len(keys) if limit is None else min(limit, len(keys))
            log.append(keys[:count], values[:count])
            whole = whole and count == len(keys)
        if whole:
            for log, flush in list(zip(self.logs, flushes, strict=True))[:stored]:
                if flush is not None:
                    flush.write(len(log.records))
        return whole

    def process(self, count):
        first, second = self.states
        for record in self.source[self.position : self.position + count]:
            first.set(record, first.get(record, 0) + 1)
            key = record % 3
            if second.get(key, 0) == 4:
                second.delete(key)
            else:
                second.set(key, second.get(key, 0) + 1)
        self.position = min(len(self.source), self.position + count)

    def take(self):
        return [state.flush({READER: self.position}) for state in self.states]

    def check(self):
        counts, cycles = {}, {}
        for record in self.source[: self.position]:
            counts[record] = counts.get(record, 0) + 1
            key = record % 3
            if cycles.get(key) == 4:
                del cycles[key]
            else:
                cycles[key] = cycles.get(key, 0) + 1
        assert dict(self.states[0].scan()) == counts
        assert dict(self.states[1].scan()) == cycles


crash = st.tuples(
    st.just("crash"),
    st.one_of(st.none(), st.integers(0, 8)),
    st.one_of(st.none(), st.integers(0, 8)),
    st.integers(0, 2),
)
again = st.tuples(
    st.just("restart"),
    st.sampled_from(["keep", "lose", "lose first", "lose second", "old"]),
    st.booleans(),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("process"), st.integers(0, 9)),
        st.tuples(st.just("checkpoint"), st.booleans()),
        crash,
        again,
    ),
    max_size=25,
)


def lose(world, what):
    if what in ("lose", "lose first"):
        world.stores[0] = MemoryStore()
    if what in ("lose", "lose second"):
        world.stores[1] = MemoryStore()


def snapshot(world):
    copies = [MemoryStore(), MemoryStore()]
    for old, new in zip(world.stores, copies, strict=True):
        entries = list(old.items())
        new.write([key for key, _ in entries], [value for _, value in entries], old.meta)
    world.snapshots.append(copies)


def copy_of(stores):
    world = World([])
    world.stores = stores
    snapshot(world)
    return world.snapshots[0]


@settings(max_examples=400, deadline=None)
@given(steps, st.data())
def test_tables_fit_the_source_wherever_a_worker_died(steps, data):
    world = World([(n * n + n // 3) % 7 for n in range(200)])

    def split(length):
        return data.draw(st.integers(1, length))

    def start(how="keep", repairs=(None, None), compact=False):
        if how == "old" and world.snapshots:
            world.stores = copy_of(world.snapshots[len(world.snapshots) // 2])
        elif how != "old":
            lose(world, how)
        flushes = world.start(split, compact)
        return world.write(flushes, repairs)

    start()
    for what, *args in steps:
        if what == "process":
            world.process(args[0])
        elif what == "checkpoint":
            world.write(world.take())
            if args[0]:
                world.committed = world.position
            snapshot(world)
        elif what == "crash":
            *appended, stored = args
            world.write(world.take(), appended, stored)
            start()
            world.check()
        else:
            how, dies = args
            if dies:
                # It dies again in the middle of its repairs.
                start(how, (data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))))
                how = "keep"
            start(how)
            world.check()
    world.write(world.take())
    world.check()
    start("lose")
    world.check()
    # Compaction leaves the last of each key; nothing is torn now.
    start("lose", compact=True)
    world.check()


def applier_of(store=None, **options):
    return Applier(KeyedState(0, store or MemoryStore(), CODEC, 1000), **options)


def key(name):
    return json.dumps(name).encode()


def test_a_changelog_of_plain_faust_is_applied_to_its_end(monkeypatch):
    monkeypatch.setattr(changelog, "UNMARKED_LIMIT", 3)
    applier = applier_of()
    for offset in range(8):
        applier.apply(run_of([(offset, key(f"k{offset % 5}"), b"%d" % offset)]))
    applier.finish(8, common_positions([applier]))
    assert dict(applier.state.scan()) == {"k0": 5, "k1": 6, "k2": 7, "k3": 3, "k4": 4}
    assert applier.state.needs_repair
    # From here on it has positions, so that a torn flush is told from them.
    flush = applier.state.flush({})
    assert records_of(flush)[0] == [b"\x00position"]


def test_many_records_before_a_position_do_not_stay_in_memory(monkeypatch):
    monkeypatch.setattr(changelog, "LARGEST_FLUSH", 4)
    store = MemoryStore()
    state = KeyedState(0, store, CODEC, 1000)
    state.flush({READER: 1}).write(1)
    applier = Applier(state)
    for offset in range(1, 21):
        applier.apply(run_of([(offset, key(offset), b"1")]))
        assert len(applier._keys) <= 6
    resumed = applier_of(store)
    assert resumed.read_to > 10
    for offset in range(resumed.read_to, 21):
        resumed.apply(run_of([(offset, key(offset), b"1")]))
    position = records_of(state.flush({READER: 9}))
    resumed.apply(run_of([(21, position[0][-1], position[1][-1])]))
    resumed.finish(22, common_positions([resumed]))
    assert sorted(key for key, _ in resumed.state.scan()) == list(range(1, 21))
    assert resumed.state.positions == {READER: 9}
    assert not resumed.state.needs_repair


def test_a_new_table_does_not_undo_what_others_have():
    old = applier_of()
    for offset, position in [(1, 5), (3, 9)]:
        old.state.set("k", position)
        keys, values = records_of(old.state.flush({READER: position}))
        rows = zip(range(offset - 1, offset + 1), keys, values, strict=True)
        old.apply(run_of(list(rows)))
    new = applier_of()
    common = common_positions([old, new])
    old.finish(4, common)
    new.finish(0, common)
    assert old.state.get("k") == 9
    assert old.state.store.meta.positions == {READER: 9}
    assert new.state.needs_repair


def test_a_topic_of_somebody_else_is_applied_at_once():
    applier = applier_of(whole=False)
    records = [(0, key("a"), b"1"), (1, None, b"x"), (2, b"\x00position", b"{}")]
    applier.apply(run_of(records))
    assert dict(applier.state.scan()) == {"a": 1}
    applier.apply(run_of([(3, key("a"), None)]))
    assert dict(applier.state.scan()) == {}
    assert applier.state.changelog_offset == 4


def test_an_old_store_is_rebuilt_only_if_there_is_news(monkeypatch):
    state = applier_of().state
    state.set("k", 1)
    state.flush({}).write(2)
    assert not KeyedState(0, state.store, CODEC, 1000).is_stale
    state.store.meta.written_at -= 48 * 3600
    assert KeyedState(0, state.store, CODEC, 1000).is_stale
