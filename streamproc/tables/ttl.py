"""Keyed state whose entries expire some time after they were last set.

The time is that of the partition: the highest event time of the records at whose
processing the table was used. Each stored value has the time of its last set in front.
Expired entries are passed over at once, and deleted from the store and the changelog by
a sweep over the store, a piece at each checkpoint, so that nothing is kept in memory of
entries that are not used.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Any

from streamproc.tables.keyed import MISSING, EntryCodec, KeyedState
from streamproc.tables.place import current_place
from streamproc.tables.stores import Store

#: Entries that one checkpoint looks at while a sweep is under way.
SWEPT_ENTRIES = 50_000
#: A sweep begins when this part of the ttl has passed since the last.
SWEEPS_PER_TTL = 4

_TIME = Struct(">q")
_pack, _unpack, _SIZE = _TIME.pack, _TIME.unpack_from, _TIME.size


class ExpiringState(KeyedState):
    """Entries of one partition, each until ``ttl`` milliseconds after its last set.

    Args:
        partition: Its number.
        store: Where it is kept.
        codec: How entries are encoded.
        cache_bytes: About how much memory clean entries may take.
        ttl: Milliseconds.
    """

    format = "with ttl"

    def __init__(
        self, partition: int, store: Store, codec: EntryCodec, cache_bytes: int, ttl: int
    ) -> None:
        super().__init__(partition, store, codec, cache_bytes)
        self.ttl = ttl
        #: Times of the last set of entries in the cache.
        self._times: dict[Any, int] = {}
        self._read_clock()

    def _read_clock(self) -> None:
        extra = self.store.meta.extra
        #: Event time of the partition in milliseconds.
        self.now: int = extra.get("time", 0)
        self._swept_at: int = extra.get("swept", 0)
        self._cursor: bytes | None = None

    def extra(self) -> dict[str, Any]:
        return {"time": self.now, "swept": self._swept_at} if self.now else {}

    def observe(self, times: Iterable[int | None]) -> None:
        """Let the time of the partition go on to the highest of ``times``."""
        self.now = max(self.now, max((each for each in times if each is not None), default=0))

    def _observe_record(self) -> None:
        place = current_place.get()
        if place is not None:
            event_time = place.event_time()
            if event_time is not None and event_time > self.now:
                self.now = event_time

    def _time_of_set(self) -> int:
        place = current_place.get()
        event_time = int(time.time() * 1000) if place is None else place.event_time()
        if event_time is not None and event_time > self.now:
            self.now = event_time
        return self.now

    # -- entries

    def get(self, key: Any, default: Any = MISSING) -> Any:
        self._observe_record()
        value = super().get(key, MISSING)
        return default if value is MISSING or self._is_over(self._times[key]) else value

    def _is_over(self, time_of_set: int) -> bool:
        return time_of_set + self.ttl <= self.now

    def decode(self, key: Any, raw: bytes) -> Any:
        return super().decode(key, raw[_SIZE:])

    def _keep(self, key: Any, raw: bytes) -> Any:
        value = super()._keep(key, raw)
        (self._times[key],) = _unpack(raw)
        return value

    def get_many(self, keys: Iterable[Any], default: Any = None) -> list[Any]:
        return [self.get(key, default) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        self._times[key] = self._time_of_set()
        super().set(key, value)

    def set_many(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self._times.update(dict.fromkeys(keys, self._time_of_set()))
        super().set_many(keys, values)

    def delete(self, key: Any) -> None:
        self._times.pop(key, None)
        super().delete(key)

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[Any, Any]]:
        self._observe_record()
        for key, value, raw in self.entries(start, end):
            time_of_set = self._times[key] if raw is None else _unpack(raw)[0]
            if not self._is_over(time_of_set):
                yield key, value

    def count(self) -> int:
        return sum(1 for _ in self.scan())

    # -- checkpoint and recovery

    @property
    def _sweep_is_due(self) -> bool:
        if self._cursor is not None:
            return True
        return (self.now - self._swept_at) * SWEEPS_PER_TTL >= self.ttl and self.now > 0

    @property
    def is_dirty(self) -> bool:
        return bool(self.dirty) or self._sweep_is_due

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        if self._sweep_is_due:
            self._sweep()
        return super().take_dirty()

    def _sweep(self) -> None:
        """Delete what has expired, as far as one checkpoint goes."""
        oldest = self.now - self.ttl
        for seen, (raw_key, raw) in enumerate(self.store.items(self._cursor or b"")):
            if seen == SWEPT_ENTRIES:
                self._cursor = raw_key
                return
            if _unpack(raw)[0] <= oldest:
                key = self.codec.key(raw_key)
                if key not in self.dirty:
                    self.delete(key)
        self._cursor = None
        self._swept_at = self.now

    def _encode(self, taken: dict[Any, Any]) -> tuple[list[bytes], list[bytes | None]]:
        keys, values = super()._encode(taken)
        times = self._times
        return keys, [
            None if value is None else _pack(times[key]) + value
            for key, value in zip(taken, values, strict=True)
        ]

    def _evict(self, count: int) -> None:
        super()._evict(count)
        times = self._times
        self._times = {key: times[key] for key in self.cache}

    def forget(self) -> None:
        super().forget()
        self._times = {}
        self._read_clock()

    def on_applied(self, keys: Sequence[bytes]) -> None:
        super().on_applied(keys)
        self._read_clock()
