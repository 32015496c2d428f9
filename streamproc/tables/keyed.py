"""Keyed state: entries of a table by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from streamproc.errors import DecodeError, StoreError
from streamproc.tables.state import PartitionState
from streamproc.tables.stores import Store

#: Bytes that Python's objects take for an entry beside its encoded key and value.
ENTRY_OVERHEAD = 200

#: Entries that are read at the start, to see that the value type fits them.
CHECKED_ENTRIES = 100

#: Stands for "no entry", since None may be a value.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


@dataclass(frozen=True, slots=True)
class EntryCodec:
    """How keys and values of a table become bytes, and back."""

    table: str
    encode_key: Callable[[Any], bytes]
    decode_key: Callable[[bytes], Any]
    encode_value: Callable[[Any], bytes]
    decode_value: Callable[[bytes], Any]


class KeyedState(PartitionState):
    """Entries of one partition, decoded in a dict as far as they are used.

    Args:
        partition: Its number.
        store: Where it is kept.
        codec: How entries are encoded.
        cache_bytes: About how much memory clean entries may take.
    """

    def __init__(self, partition: int, store: Store, codec: EntryCodec, cache_bytes: int) -> None:
        super().__init__(partition, store)
        self.codec = codec
        self.cache_bytes = cache_bytes
        self.cache: dict[Any, Any] = {}
        #: Keys changed since the last flush; one that isn't in the cache is deleted.
        self.dirty: dict[Any, None] = {}
        self._flushing: dict[Any, None] = {}
        self._mean_size = float(ENTRY_OVERHEAD)
        #: True while a key that isn't in the cache is known to be nowhere.
        self._complete = store.is_empty()

    # -- entries

    def get(self, key: Any, default: Any = MISSING) -> Any:
        """Return the value of ``key``, or ``default``."""
        try:
            return self.cache[key]
        except KeyError:
            return self._load(key, default)

    def _load(self, key: Any, default: Any) -> Any:
        if self._complete or key in self.dirty or key in self._flushing:
            return default
        raw = self.store.get(self.codec.encode_key(key))
        if raw is None:
            return default
        value = self.cache[key] = self.decode(key, raw)
        return value

    def decode(self, key: Any, raw: bytes) -> Any:
        """Return the value of an entry.

        Raises:
            StoreError: It isn't what the table's value type says.
        """
        try:
            return self.codec.decode_value(raw)
        except DecodeError as exc:
            raise StoreError(
                f"Table {self.codec.table!r} has an entry of key {key!r} that its value type "
                f"can't be read from: {exc}. Give new fields a default, keep the types of the "
                "old ones, or give the table another name."
            ) from exc

    def get_many(self, keys: Iterable[Any], default: Any = None) -> list[Any]:
        """Return the values of several keys."""
        keys = list(keys)
        cache = self.cache
        missing = [key for key in keys if key not in cache]
        if missing and not self._complete:
            wanted = [
                key
                for key in dict.fromkeys(missing)
                if key not in self.dirty and key not in self._flushing
            ]
            raws = self.store.get_many(list(map(self.codec.encode_key, wanted)))
            for key, raw in zip(wanted, raws, strict=True):
                if raw is not None:
                    cache[key] = self.decode(key, raw)
        return [cache.get(key, default) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Set the value of ``key``."""
        self.cache[key] = value
        self.dirty[key] = None

    def set_many(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Set the values of several keys."""
        self.cache.update(zip(keys, values, strict=True))
        self.dirty.update(dict.fromkeys(keys))

    def delete(self, key: Any) -> None:
        """Delete ``key``, if it is there."""
        self.cache.pop(key, None)
        self.dirty[key] = None

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries in the order of encoded keys, from ``start`` to before ``end``."""
        codec, cache = self.codec, self.cache
        changed = {codec.encode_key(key): key for key in (*self._flushing, *self.dirty)}
        waiting = sorted(
            (raw for raw in changed if raw >= start and (end is None or raw < end)), reverse=True
        )
        for raw_key, raw in self.store.items(start, end):
            while waiting and waiting[-1] < raw_key:
                key = changed[waiting.pop()]
                if key in cache:
                    yield key, cache[key]
            if raw_key in changed:
                continue
            key = codec.decode_key(raw_key)
            value = cache.get(key, MISSING)
            yield key, self.decode(key, raw) if value is MISSING else value
        while waiting:
            key = changed[waiting.pop()]
            if key in cache:
                yield key, cache[key]

    def count(self) -> int:
        """Count the entries: at once if all are in memory, else by reading the store."""
        if self._complete:
            return len(self.cache)
        return sum(1 for _ in self.scan())

    # -- checkpoint and recovery

    def check(self) -> None:
        for raw_key, raw in islice(self.store.items(), CHECKED_ENTRIES):
            self.decode(self.codec.decode_key(raw_key), raw)

    @property
    def is_dirty(self) -> bool:
        return bool(self.dirty)

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        taken, self.dirty = self.dirty, {}
        self._flushing = taken
        codec, cache = self.codec, self.cache
        encode = codec.encode_value
        keys = list(map(codec.encode_key, taken))
        values = [encode(cache[key]) if key in cache else None for key in taken]
        if keys:
            size = sum(map(len, keys)) + sum(map(len, filter(None, values)))
            self._mean_size = size / len(keys) + ENTRY_OVERHEAD
        return keys, values

    def on_written(self) -> None:
        self._flushing = {}
        limit = max(1, int(self.cache_bytes / self._mean_size))
        if len(self.cache) > limit:
            self._evict(len(self.cache) - limit // 2)

    def _evict(self, count: int) -> None:
        self._complete = False
        cache, dirty = self.cache, self.dirty
        for key in [key for key in islice(cache, count) if key not in dirty]:
            del cache[key]

    def forget(self) -> None:
        self.cache.clear()
        self.dirty.clear()
        self._flushing = {}
        self._complete = self.store.is_empty()

    def on_applied(self, keys: Sequence[bytes]) -> None:
        self._complete = False
        if not self.cache:
            return
        for key in map(self.codec.decode_key, keys):
            if key not in self.dirty and key not in self._flushing:
                self.cache.pop(key, None)
