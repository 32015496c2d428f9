"""Entries with a time to live, against a dict of values and times."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables_keyed import CODEC

from streamproc.errors import StoreError
from streamproc.tables import ttl
from streamproc.tables.keyed import MISSING, KeyedState
from streamproc.tables.place import Place, current_place
from streamproc.tables.stores import MemoryStore, RocksStore
from streamproc.tables.ttl import ExpiringState

TTL = 10


class At(Place):
    def __init__(self, now):
        super().__init__()
        self.now = now

    def event_time(self):
        return self.now


@pytest.fixture(autouse=True)
def _no_place():
    token = current_place.set(None)
    yield
    current_place.reset(token)


def state_of(store=None, cache_bytes=100_000):
    return ExpiringState(0, store or MemoryStore(), CODEC, cache_bytes, TTL)


def checkpoint(state, offset):
    flush = state.flush({"in@": offset})
    if flush is not None:
        flush.write(offset)


def at(time):
    current_place.set(At(time))


def test_an_entry_expires_ttl_after_its_last_set():
    state = state_of()
    at(100)
    state.set("a", 1)
    state.set("b", 1)
    at(105)
    state.set("b", 2)
    at(109)
    assert state.get("a") == 1
    at(110)
    assert state.get("a") is MISSING
    assert state.get_many(["a", "b"]) == [None, 2]
    assert list(state.scan()) == [("b", 2)]
    assert state.count() == 1


def test_a_late_record_neither_expires_nor_turns_time_back():
    state = state_of()
    at(100)
    state.set("a", 1)
    at(50)
    state.set("b", 1)
    assert state.get("b") == 1
    at(109)
    assert state.get("b") == 1
    at(110)
    assert state.get("b") is MISSING


def test_a_sweep_deletes_in_pieces(monkeypatch):
    monkeypatch.setattr(ttl, "SWEPT_ENTRIES", 10)
    store = MemoryStore()
    state = state_of(store, cache_bytes=1)
    at(100)
    state.set_many(list(range(25)), list(range(25)))
    checkpoint(state, 1)
    at(111)
    state.set("new", 1)
    deletions = []
    for offset in range(2, 6):
        flush = state.flush({"in@": offset})
        deletions.append(flush.values.count(None))
        flush.write(offset)
    # Keys are in the order of their bytes, where the new one is among the first ten.
    assert sum(deletions) == 25
    assert max(deletions) <= 10
    assert dict(state.scan()) == {"new": 1}
    assert len(list(store.items())) == 1
    assert len(state.cache) <= 1


def test_time_survives_a_restart_and_a_rebuild():
    store = MemoryStore()
    state = state_of(store)
    at(100)
    state.set("a", 1)
    at(109)
    state.set("b", 1)
    checkpoint(state, 1)
    current_place.set(None)
    again = state_of(store)
    assert dict(again.scan()) == {"a": 1, "b": 1}
    assert again.now == 109
    at(110)
    assert dict(again.scan()) == {"b": 1}


def test_outside_of_an_agent_a_set_is_of_now():
    state = state_of()
    state.set("a", 1)
    assert state.now > 1_600_000_000_000


@pytest.mark.parametrize("first", ["plain", "ttl"])
def test_a_table_that_gets_or_loses_its_ttl_is_refused(first):
    store = MemoryStore()
    plain, expiring = KeyedState(0, store, CODEC, 1000), state_of(store)
    state, other = (plain, expiring) if first == "plain" else (expiring, plain)
    state.set("a", 1)
    checkpoint(state, 1)
    state.check()
    with pytest.raises(StoreError, match=r"'counts' was kept .*Give the table another name"):
        other.check()


keys = st.sampled_from(["a", "b", "c", "d"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, st.integers(0, 9)),
        st.tuples(st.just("delete"), keys),
        st.tuples(st.just("time"), st.integers(-5, 8)),
        st.tuples(st.just("read")),
        st.tuples(st.just("checkpoint")),
        st.tuples(st.just("roll_back")),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


@pytest.mark.parametrize("cache_bytes", [1, 100_000])
@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
@settings(max_examples=80, deadline=None)
@given(steps)
def test_entries_live_as_long_as_in_a_dict(kind, cache_bytes, steps):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        store = MemoryStore() if kind == "memory" else RocksStore(path)
        state = state_of(store, cache_bytes)
        # The model's ``seen`` is the highest time at which the table was used.
        event, seen, model = 100, 0, {}
        saved = (seen, model)
        at(event)
        for number, (what, *args) in enumerate(steps, 1):
            if what == "time":
                event += args[0]
                at(event)
            elif what == "set":
                seen = max(seen, event)
                state.set(*args)
                model = {**model, args[0]: (args[1], seen)}
            elif what == "delete":
                state.delete(args[0])
                model = {key: each for key, each in model.items() if key != args[0]}
            elif what == "read":
                seen = max(seen, event)
                alive = {
                    key: value for key, (value, set_at) in model.items() if set_at + TTL > seen
                }
                assert dict(state.scan()) == alive
                for key in "abcd":
                    assert state.get(key, None) == alive.get(key)
            elif what == "checkpoint":
                checkpoint(state, number)
                saved = (seen, model)
            else:
                seen, model = saved
                if what == "roll_back":
                    state.roll_back()
                    continue
                if kind == "rocksdb":
                    store.close()
                    store = RocksStore(path)
                state = state_of(store, cache_bytes)
        # Once everything has expired and been swept, nothing is left anywhere.
        for number in range(1, 4):
            at(max(event, seen) + number * TTL)
            state.get("a")
            checkpoint(state, 1000 + number)
        assert list(store.items()) == []
        assert state.cache == {}
        assert state._times == {}
        store.close()
