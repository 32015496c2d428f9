"""Stores: the same promises in memory and in RocksDB."""

import random
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import StoreError
from streamproc.tables.stores import MemoryStore, Meta, RocksStore, prefix_end

KINDS = ["memory", "rocksdb"]


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else RocksStore(tmp_path / "t" / "0")
    yield store
    store.close()


def test_entries_and_meta_are_written_together(store):
    assert store.is_empty()
    meta = Meta({"in@reader": 7}, {"watermark": 3}, 12, 1.5, "plain", True)
    store.write([b"b", b"a"], [b"2", b"1"], meta)
    assert store.meta == meta
    assert not store.is_empty()
    assert store.get(b"a") == b"1"
    assert store.get(b"c") is None
    assert store.get_many([b"b", b"c", b"a"]) == [b"2", None, b"1"]
    assert store.get_many([]) == []
    assert list(store.items()) == [(b"a", b"1"), (b"b", b"2")]


def test_none_deletes(store):
    store.write([b"a", b"b"], [b"1", b"2"], Meta())
    store.write([b"a", b"c"], [None, None], Meta())
    assert list(store.items()) == [(b"b", b"2")]


def test_the_last_of_a_key_counts(store):
    store.write([b"a", b"a", b"b", b"b"], [b"1", None, None, b"2"], Meta())
    assert list(store.items()) == [(b"b", b"2")]


def test_scans_have_a_start_and_an_end(store):
    keys = [b"a", b"ab", b"b", b"b\xff", b"c"]
    store.write(keys, keys, Meta())
    assert [key for key, _ in store.items(b"ab", b"c")] == [b"ab", b"b", b"b\xff"]
    assert [key for key, _ in store.items(b"b")] == [b"b", b"b\xff", b"c"]
    assert [key for key, _ in store.items(b"b", prefix_end(b"b"))] == [b"b", b"b\xff"]


def test_clear_leaves_nothing(store):
    store.write([b"a"], [b"1"], Meta({"in@": 1}, changelog_offset=5))
    store.clear()
    assert store.is_empty()
    assert store.meta == Meta()
    store.write([b"a"], [b"2"], Meta())
    assert store.get(b"a") == b"2"


def test_the_end_of_a_prefix():
    assert prefix_end(b"ab") == b"ac"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None
    assert prefix_end(b"") is None


def test_rocksdb_keeps_entries_and_meta_when_it_is_closed(tmp_path):
    store = RocksStore(tmp_path / "t")
    meta = Meta({"in@": 3}, {}, 9, 2.0, "", True)
    store.write([b"k"], [b"v"], meta)
    store.close()
    again = RocksStore(tmp_path / "t")
    assert (again.get(b"k"), again.meta) == (b"v", meta)
    again.close()


@contextmanager
def no_space_left():
    """Let files grow no more, which the operating system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_does_not_keep_a_database_from_being_closed(tmp_path, caplog):
    store = RocksStore(tmp_path / "t")
    store.write([b"k"], [b"v"], Meta({"in@": 3}))
    with no_space_left():
        store.close()
    assert "is closed unwritten" in caplog.text
    again = RocksStore(tmp_path / "t")
    assert (again.get(b"k"), again.meta.positions) == (b"v", {"in@": 3})
    again.close()


def test_a_damaged_database_is_thrown_away(tmp_path, caplog):
    store = RocksStore(tmp_path / "t")
    store.write([b"k"], [b"v"], Meta({"in@": 3}))
    store.close()
    for file in (tmp_path / "t").glob("MANIFEST-*"):
        file.write_bytes(b"no manifest")
    store = RocksStore(tmp_path / "t")
    assert store.is_empty()
    assert store.meta == Meta()
    assert "rebuilt from the changelog" in caplog.text
    store.close()


def test_a_database_that_is_damaged_inside_is_thrown_away_at_the_next_start(tmp_path, caplog):
    store = RocksStore(tmp_path / "t")
    keys = [b"%06d" % number for number in range(50_000)]
    store.write(keys, [random.Random(1).randbytes(100)] * len(keys), Meta({"in@": 3}))
    store.close()
    RocksStore(tmp_path / "t").close()  # brings the log into a file of sorted entries
    (file,) = (path for path in (tmp_path / "t").glob("*.sst") if path.stat().st_size > 100_000)
    data = bytearray(file.read_bytes())
    for place in range(1000, len(data) // 2, 1000):
        data[place] ^= 0xFF
    file.write_bytes(data)
    store = RocksStore(tmp_path / "t")
    with pytest.raises(StoreError, match=r"can't be read"):
        list(store.items())
    with pytest.raises(StoreError, match=r"can't be read"):
        [store.get(key) for key in keys]
    with pytest.raises(StoreError, match=r"can't be read"):
        store.get_many(keys)
    store.close()
    store = RocksStore(tmp_path / "t")
    assert store.is_empty()
    assert "damaged when it was last read" in caplog.text
    store.close()


def test_a_database_in_use_is_refused(tmp_path):
    store = RocksStore(tmp_path / "t")
    with pytest.raises(StoreError, match="can't be opened"):
        RocksStore(tmp_path / "t")
    store.close()


keys = st.binary(min_size=1, max_size=3)
writes = st.lists(st.tuples(keys, st.one_of(st.none(), st.binary(max_size=3))), max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(writes, st.just("reopen"), st.just("clear")), max_size=12), keys, keys)
def test_stores_are_sorted_dicts(kind, steps, first, last):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        store = MemoryStore() if kind == "memory" else RocksStore(path)
        model = {}
        for number, step in enumerate(steps):
            if step == "clear":
                store.clear()
                model = {}
            elif step == "reopen" and kind == "rocksdb":
                store.close()
                store = RocksStore(path)
            elif step != "reopen":
                store.write([key for key, _ in step], [value for _, value in step], Meta())
                store.meta.changelog_offset = number
                for key, value in step:
                    if value is None:
                        model.pop(key, None)
                    else:
                        model[key] = value
            assert list(store.items()) == sorted(model.items())
            wanted = [first, last, *model]
            assert store.get_many(wanted) == [model.get(key) for key in wanted]
            assert store.get(first) == model.get(first)
            assert store.is_empty() == (not model)
            inside = [(key, model[key]) for key in sorted(model) if first <= key < last]
            assert list(store.items(first, last)) == inside
        store.close()


def test_a_store_that_could_not_be_opened_again_is_closed_once_more(tmp_path, monkeypatch):
    store = RocksStore(tmp_path / "0")

    def full():
        raise OSError("No space left on device")

    monkeypatch.setattr(store, "_open", full)
    with pytest.raises(OSError, match="No space"):
        store.clear()
    store.close()
