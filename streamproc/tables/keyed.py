"""Keyed state: entries of a table by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any

from streamproc.errors import DecodeError, EncodeError, StoreError, TableError
from streamproc.tables.state import Flush, PartitionState
from streamproc.tables.stores import Store

#: Bytes that Python's objects take for an entry beside its encoded key and value.
ENTRY_OVERHEAD = 200

#: Entries that are read at the start, to see that the value type fits them.
CHECKED_ENTRIES = 100

#: Entries of a flush whose size is looked at.
SAMPLED_ENTRIES = 1000

#: Stands for "no entry", since None may be a value.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
#: Types of values that can't be changed in place: an agent that has read one, and failed then,
#: has changed nothing.
UNCHANGEABLE = frozenset(
    {int, float, str, bytes, bool, type(None), datetime, Decimal, type(MISSING)}
)


@dataclass(frozen=True, slots=True)
class EntryCodec:
    """How keys and values of a table become bytes, and back.

    ``null`` stands for None, which the changelog has for deletions.
    """

    table: str
    encode_key: Callable[[Any], Any]
    decode_key: Callable[[bytes], Any]
    encode_value: Callable[[Any], Any]
    decode_value: Callable[[bytes], Any]
    null: bytes = b"null"
    #: What values should be, where it is a plain class.
    value_type: type | None = None

    def check(self, value: Any, raw: bytes) -> None:
        """See that a value can be read again; one of the declared class itself can.

        Raises:
            EncodeError: It can't.
        """
        if self.value_type is None or value is None or type(value) is self.value_type:
            return
        try:
            self.decode_value(raw)
        except DecodeError as exc:
            raise EncodeError(f"{value!r:.100} is no {self.value_type.__name__}: {exc}") from exc

    def raw_key(self, key: Any) -> bytes:
        """Encode a key."""
        raw = self.encode_key(key)
        return self.null if raw is None else raw

    def raw_value(self, value: Any) -> bytes:
        """Encode a value."""
        raw = self.encode_value(value)
        return self.null if raw is None else raw

    def key(self, raw: bytes) -> Any:
        """Decode a key."""
        return None if raw == self.null else self.decode_key(raw)


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
        self.dirty: dict[Any, Any] = {}
        self._flushing: dict[Any, Any] = {}
        self._limit = max(1, cache_bytes // ENTRY_OVERHEAD)
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
        raw = self.store.get(self.codec.raw_key(key))
        if raw is None:
            return default
        value = self._keep(key, raw)
        if len(self.cache) > 2 * self._limit:
            self._make_room()
        return value

    def _keep(self, key: Any, raw: bytes) -> Any:
        """Put an entry of the store into the cache and return its value."""
        value = self.cache[key] = self.decode(key, raw)
        return value

    def _make_room(self) -> None:
        """Forget old entries that were only read."""
        if len(self.cache) > 2 * self._limit + self.dirty_count:
            self._evict(len(self.cache) - self._limit)

    def decode(self, key: Any, raw: bytes) -> Any:
        """Return the value of an entry.

        Raises:
            StoreError: It isn't what the table's value type says.
        """
        try:
            return None if raw == self.codec.null else self.codec.decode_value(raw)
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
        if not missing or self._complete:
            return [cache.get(key, default) for key in keys]
        read = self._read_many(missing)
        found = [read[key] if key in read else cache.get(key, default) for key in keys]
        self._make_room()
        return found

    def _read_many(self, keys: list[Any]) -> dict[Any, Any]:
        wanted = [
            key
            for key in dict.fromkeys(keys)
            if key not in self.dirty and key not in self._flushing
        ]
        raws = self.store.get_many(list(map(self.codec.raw_key, wanted)))
        return {
            key: self._keep(key, raw)
            for key, raw in zip(wanted, raws, strict=True)
            if raw is not None
        }

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
        return ((key, value) for key, value, _ in self.entries(start, end))

    def entries(
        self, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[Any, Any, bytes | None]]:
        """Iterate as :meth:`scan`, with the stored bytes of entries that aren't in the cache."""
        codec, cache = self.codec, self.cache
        changed = {codec.raw_key(key): key for key in (*self._flushing, *self.dirty)}
        waiting = sorted(
            (raw for raw in changed if raw >= start and (end is None or raw < end)), reverse=True
        )
        for raw_key, raw in self.store.items(start, end):
            while waiting and waiting[-1] < raw_key:
                key = changed[waiting.pop()]
                if key in cache:
                    yield key, cache[key], None
            if raw_key in changed:
                continue
            key = codec.key(raw_key)
            value = cache.get(key, MISSING)
            if value is MISSING:
                yield key, self.decode(key, raw), raw
            else:
                yield key, value, None
        while waiting:
            key = changed[waiting.pop()]
            if key in cache:
                yield key, cache[key], None

    def count(self) -> int:
        """Count the entries: at once if all are in memory, else by reading the store."""
        if self._complete:
            return len(self.cache)
        return sum(1 for _ in self.scan())

    # -- checkpoint and recovery

    def check(self) -> None:
        stored = self.store.meta
        entries = list(islice(self.store.items(), CHECKED_ENTRIES))
        if entries and stored.format != self.format:
            raise StoreError(
                f"Table {self.codec.table!r} was kept {stored.format or 'without ttl'} and is now "
                f"{self.format or 'without ttl'}. Give the table another name, or delete its "
                "changelog topic and local data to begin anew."
            )
        for raw_key, raw in entries:
            self._check_entry(raw_key, raw)
        if entries:
            self._fit_limit(sum(len(key) + len(raw) for key, raw in entries) / len(entries))

    def _fit_limit(self, mean_size: float) -> None:
        self._limit = max(1, int(self.cache_bytes / (mean_size + ENTRY_OVERHEAD)))

    def _check_entry(self, raw_key: bytes, raw: bytes) -> None:
        try:
            key = self.codec.key(raw_key)
        except DecodeError as exc:
            raise StoreError(
                f"Table {self.codec.table!r} has a key {raw_key!r:.100} that its key type can't be "
                f"read from: {exc}. Keep the key type, or give the table another name."
            ) from exc
        self.decode(key, raw)

    def observe(self, times: Iterable[int | None]) -> None:
        """Learn the event times of a batch that is being processed."""

    @property
    def is_dirty(self) -> bool:
        return bool(self.dirty)

    @property
    def dirty_count(self) -> int:
        return len(self.dirty) + len(self._flushing)

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        taken, self.dirty = self.dirty, {}
        self._flushing = taken
        keys, values = self._encode(taken)
        if keys:
            some = [*keys[:SAMPLED_ENTRIES], *filter(None, values[:SAMPLED_ENTRIES])]
            self._fit_limit(sum(map(len, some)) / min(len(keys), SAMPLED_ENTRIES))
        return keys, values

    def _encode(self, taken: dict[Any, Any]) -> tuple[list[bytes], list[bytes | None]]:
        """Encode entries; the value of one that isn't in the cache is None."""
        codec = self.codec
        try:
            keys = list(map(codec.encode_key, taken))
            values = list(map(codec.encode_value, map(self.cache.__getitem__, taken)))
        except (KeyError, EncodeError):
            return self._encode_each(taken)
        if None in keys or None in values:
            return self._encode_each(taken)
        declared = codec.value_type
        if declared and set(map(type, map(self.cache.__getitem__, taken))) - {declared}:
            return self._encode_each(taken)
        return keys, values

    def _encode_each(self, taken: dict[Any, Any]) -> tuple[list[bytes], list[bytes | None]]:
        codec, cache = self.codec, self.cache
        keys: list[bytes] = []
        values: list[bytes | None] = []
        for key in taken:
            try:
                keys.append(codec.raw_key(key))
                if key not in cache:
                    values.append(None)
                    continue
                raw = codec.raw_value(cache[key])
                codec.check(cache[key], raw)
                values.append(raw)
            except EncodeError as exc:
                raise TableError(
                    f"Table {codec.table!r} can't keep an entry (key {key!r:.100}): {exc}. Give "
                    "the table a key_type and value_type that its entries have."
                ) from exc
        return keys, values

    def on_written(self) -> None:
        self._flushing = {}
        if len(self.cache) > self._limit:
            self._evict(len(self.cache) - self._limit // 2)

    def _evict(self, count: int) -> None:
        self._complete = False
        cache, dirty, flushing = self.cache, self.dirty, self._flushing
        oldest = list(islice(cache, count))
        for key in oldest:
            if key not in dirty and key not in flushing:
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
        for key in map(self.codec.key, keys):
            if key not in self.dirty and key not in self._flushing:
                self.cache.pop(key, None)


class ReplicatedState(KeyedState):
    """Entries of a partition that other workers write to as well.

    The changelog has the last word: an update of this worker is seen here at once, and
    goes to the store in the order that the changelog has, when it is read from there.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._flush_number = 0
        #: Number of flush, and the changelog record after it, of those acknowledged.
        self._acknowledged: list[tuple[int, int]] = []

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        before, taken = self._flushing, self.dirty
        keys, values = super().take_dirty()
        self._flush_number += 1
        self._flushing = {**before, **dict.fromkeys(taken, self._flush_number)}
        return keys, values

    def write(self, flush: Flush, changelog_offset: int) -> None:
        self._acknowledged.append((self._flush_number, changelog_offset))
        self._settle()

    def on_applied(self, keys: Sequence[bytes]) -> None:
        super().on_applied(keys)
        self._settle()

    def _settle(self) -> None:
        """Read from the store again what this worker wrote, once the store has it."""
        waiting = self._acknowledged
        done = [number for number, offset in waiting if offset <= self.changelog_offset]
        if not done:
            return
        self._acknowledged = waiting[len(done) :]
        for key, number in list(self._flushing.items()):
            if number <= done[-1]:
                del self._flushing[key]
                if key not in self.dirty:
                    self.cache.pop(key, None)
        self._complete = False
