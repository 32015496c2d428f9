"""Keyed state against a dict: whatever is in the cache, on its way, or in the store only."""

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamproc
from streamproc.errors import (
    ConfigurationError,
    DecodeError,
    DriverError,
    EncodeError,
    StoreError,
    TableError,
)
from streamproc.tables.keyed import MISSING, EntryCodec, KeyedState, ReplicatedState
from streamproc.tables.state import Position
from streamproc.tables.stores import MemoryStore, Meta, RocksStore
from streamproc.testing import TestDriver


def encode(value):
    try:
        return None if value is None else json.dumps(value).encode()
    except TypeError as exc:
        raise EncodeError(str(exc)) from exc


def decode(raw):
    try:
        return json.loads(raw)
    except ValueError as exc:
        raise DecodeError(str(exc)) from exc


CODEC = EntryCodec("counts", encode, decode, encode, decode)


def state_of(store=None, cache_bytes=1_000_000, kind=KeyedState):
    return kind(0, store or MemoryStore(), CODEC, cache_bytes)


def flush(state, positions=None, offset=1):
    taken = state.flush(positions or {"in@": offset})
    if taken is not None:
        taken.write(offset)
    return taken


KEYS = [None, "", "a", "ab", "b", 'q"', "ä", 3]
some_key = st.sampled_from(KEYS)
some_value = st.one_of(st.none(), st.integers(0, 9))
step = st.one_of(
    st.tuples(st.just("set"), some_key, some_value),
    st.tuples(st.just("set_many"), st.dictionaries(some_key, some_value, max_size=4)),
    st.tuples(st.just("delete"), some_key),
    st.tuples(st.just("get"), some_key),
    st.tuples(st.just("get_many"), st.lists(some_key, max_size=5)),
    st.tuples(st.just("scan"), some_key, some_key),
    st.tuples(st.just("count")),
    st.tuples(st.just("take")),
    st.tuples(st.just("written")),
    st.tuples(st.just("roll_back")),
    st.tuples(st.just("reopen")),
)


class Machine:
    """A state, and the dict that it should be."""

    def __init__(self, folder, kind, cache_bytes):
        self.path = Path(folder) / "t"
        self.kind = kind
        self.cache_bytes = cache_bytes
        self.store = MemoryStore() if kind == "memory" else RocksStore(self.path)
        self.state = state_of(self.store, cache_bytes)
        self.model, self.stored = {}, {}
        self.taken = None
        self.at_take = {}
        self.number = 0

    def do(self, what, *args):
        state, model = self.state, self.model
        if what == "set":
            state.set(*args)
            model[args[0]] = args[1]
        elif what == "set_many":
            state.set_many(list(args[0]), list(args[0].values()))
            model.update(args[0])
        elif what == "delete":
            state.delete(args[0])
            model.pop(args[0], None)
        elif what == "get":
            assert state.get(args[0]) == model.get(args[0], MISSING)
        elif what == "get_many":
            assert state.get_many(args[0], MISSING) == [model.get(k, MISSING) for k in args[0]]
        elif what == "scan":
            self.scan(*map(CODEC.raw_key, args))
        elif what == "count":
            assert state.count() == len(model)
        elif what == "take" and self.taken is None:
            self.number += 1
            self.taken = state.flush({"in@": self.number})
            self.at_take = dict(model)
        elif what == "written" and self.taken is not None:
            self.taken.write(self.number)
            self.taken, self.stored = None, self.at_take
        elif what in ("roll_back", "reopen"):
            self.taken = None
            self.model = dict(self.stored)
            if what == "roll_back":
                state.roll_back()
                return
            if self.kind == "rocksdb":
                self.store.close()
                self.store = RocksStore(self.path)
            self.state = state_of(self.store, self.cache_bytes)

    def scan(self, start, end):
        raw = {CODEC.raw_key(key): (key, value) for key, value in self.model.items()}
        inside = [raw[each] for each in sorted(raw) if start <= each < end]
        assert list(self.state.scan(start, end)) == inside
        assert list(self.state.scan()) == [raw[each] for each in sorted(raw)]


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
@pytest.mark.parametrize("cache_bytes", [1, 900, 1_000_000])
@settings(max_examples=80, deadline=None)
@given(st.lists(step, max_size=40))
def test_a_state_is_a_dict(kind, cache_bytes, steps):
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(folder, kind, cache_bytes)
        for each in steps:
            machine.do(*each)
        machine.scan(b"", b"\xff")
        assert machine.state.count() == len(machine.model)
        for key in KEYS:
            assert machine.state.get(key) == machine.model.get(key, MISSING)
        machine.store.close()


def test_a_flush_has_each_entry_once_and_the_position():
    state = state_of()
    for number in range(3):
        state.set("a", number)
    state.set("b", 1)
    state.delete("b")
    taken = state.flush({"in@": 5})
    assert (taken.keys, taken.values) == ([b'"a"', b'"b"'], [b"2", None])
    assert taken.position == Position({"in@": 5})
    taken.write(3)
    assert state.store.meta.changelog_offset == 3
    assert state.flush({"in@": 5}) is None
    assert state.flush({"in@": 6}).keys == []


def test_the_cache_stays_small_when_entries_are_only_read():
    store = MemoryStore()
    raw = [json.dumps(n).encode() for n in range(1000)]
    store.write(raw, raw, Meta())
    state = state_of(store, cache_bytes=20 * 210)
    for n in range(1000):
        assert state.get(n) == n
        assert len(state.cache) <= 45
    assert state.get_many(range(1000)) == list(range(1000))
    assert len(state.cache) <= 45


def test_an_entry_that_does_not_fit_the_value_type_is_named():
    class Reading(msgspec.Struct):
        at: int
        unit: str

    def read(raw):
        try:
            return msgspec.json.decode(raw, type=Reading)
        except msgspec.ValidationError as exc:
            raise DecodeError(str(exc)) from exc

    store = MemoryStore()
    store.write([b'"k"'], [b'{"at":1}'], Meta())
    state = KeyedState(0, store, EntryCodec("readings", encode, decode, encode, read), 1000)
    message = r"'readings' .* key 'k' .*`unit`.* Give new fields a default"
    with pytest.raises(StoreError, match=message):
        state.check()
    with pytest.raises(StoreError, match=message):
        state.get("k")


def test_an_entry_that_cannot_be_encoded_is_named():
    state = state_of()
    state.set("k", {1, 2})
    with pytest.raises(TableError, match=r"'counts' can't keep an entry \(key 'k'\)"):
        state.flush({})


def test_a_value_that_is_not_of_the_declared_type_is_refused_before_it_is_kept():
    app = streamproc.App("typed", broker="kafka://nowhere")
    numbers = app.topic("numbers", key_type=str, value_type=str)
    counts = app.Table("counts", key_type=str, value_type=int)
    floats = app.Table("floats", key_type=str, value_type=float)

    @app.agent(numbers)
    async def keep(stream):
        async for key, value in stream.items():
            floats[key] = 1
            counts[key] = int(value) if value.isdigit() else value

    def run():
        with TestDriver(app, partitions=1) as driver:
            for value in ("1", "many"):
                driver.topic("numbers").pipe("k", value)
                driver.checkpoint()

    with pytest.raises(DriverError, match=r"'counts' can't keep .*'k'.*'many' is no int"):
        run()


def test_an_agent_that_uses_a_table_wrongly_stops_the_worker_and_loses_no_record():
    app = streamproc.App("wrong", broker="kafka://nowhere")
    numbers = app.topic("numbers", key_type=str, value_type=int)
    counts = app.Table("counts", key_type=str, value_type=int, default=int, partitions=1)

    @app.agent(numbers)
    async def keep(stream):
        async for key, _ in stream.items():
            counts[key] += 1

    driver = TestDriver(app, partitions=2)
    with pytest.raises(DriverError, match="'counts' has 1 partitions"), driver:
        driver.topic("numbers").pipe("k", 1, partition=1)
    assert not driver.dead_letters()


def test_what_others_write_has_the_order_of_the_changelog():
    state = state_of(kind=ReplicatedState)
    state.set("k", 1)
    mine = state.flush({})
    state.set("other", 5)
    assert state.get("k") == 1
    # Another worker's update comes first in the changelog, then ours.
    state.apply([b'"k"'], [b"9"], Position(), 1)
    mine.write(2)
    assert state.get("k") == 1
    second = state.flush({})
    state.apply([b'"k"'], [b"1"], Position(), 2)
    assert state.get("k") == 1
    assert state.get("other") == 5
    state.apply([b'"k"'], [b"7"], Position(), 3)
    assert state.get("k") == 7
    second.write(4)
    state.apply([b'"other"'], [b"5"], Position(), 4)
    state.apply([b'"other"'], [b"6"], Position(), 5)
    assert state.get("other") == 6
    assert state.changelog_offset == 5


def test_an_update_that_is_not_read_back_yet_is_not_lost():
    state = state_of(kind=ReplicatedState)
    state.set("k", 1)
    first = state.flush({})
    first.write(1)
    state.set("k", 2)
    second = state.flush({})
    state.apply([b'"k"'], [b"1"], Position(), 1)
    assert state.get("k") == 2
    second.write(2)
    assert state.get("k") == 2
    state.apply([b'"k"'], [b"2"], Position(), 2)
    assert dict(state.scan()) == {"k": 2}
    assert state.dirty_count == 0


@pytest.mark.parametrize("of_app", ["memory://", "rocksdb://"])
def test_a_table_has_its_own_store_or_that_of_the_app(of_app):
    app = streamproc.App("stores", broker="kafka://localhost:1", store=of_app)
    assert app.Table("memory", store="memory://").in_memory
    assert not app.Table("disk", store="rocksdb://").in_memory
    assert app.Table("either").in_memory == (of_app == "memory://")
    with pytest.raises(ConfigurationError, match="'other' has store rocks://; there are rocksdb"):
        app.Table("other", store="rocks://")
