"""State by key that event time frees: what deduplication, timers and joins keep.

Each entry says when (in event time) something is to be done about it; an index of those
times finds the entries that are due, so that a batch never looks at all keys.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamproc.errors import StoreError, TableError
from streamproc.tables.keyed import MISSING, EntryCodec, KeyedState
from streamproc.tables.pack import Decode, Encode, value_codec
from streamproc.tables.state import PartitionState
from streamproc.tables.stores import Store
from streamproc.tables.table import Table
from streamproc.windows import Watermark
from streamproc.windows.memory import DueIndex

#: The due time of what isn't due at any time.
NEVER = 2**63 - 1

#: Bytes that a changelog takes of one entry: all that waits of a key is one record.
LARGEST_ENTRY = 16 * 1024 * 1024

Watermarks = dict[str, Watermark]


@dataclass(frozen=True)
class Form:
    """What the entries of a timed table are.

    Attributes:
        kind: Compared with what a store has; entries of another kind are refused.
        encode: From an entry to bytes.
        decode: From bytes to an entry.
        view: From an entry to what readers of the table see.
        dues: How many due times an entry has.
    """

    kind: str
    encode: Encode
    decode: Decode
    view: Callable[[Any], Any] = lambda entry: entry
    dues: int = 1


class TimedState(PartitionState):
    """Entries of one partition, their due times, and watermarks.

    Args:
        partition: Its number.
        store: Where it is kept.
        codec: How keys are encoded.
        form: What the entries are.
        cache_bytes: About how much memory unchanged entries may take.
        watermarks: Makes the watermarks, from the plain form of earlier ones by name.
    """

    def __init__(
        self,
        partition: int,
        store: Store,
        codec: EntryCodec,
        form: Form,
        cache_bytes: int,
        watermarks: Callable[[Mapping[str, Any]], Watermarks],
    ) -> None:
        super().__init__(partition, store)
        self.codec = codec
        self.form = form
        self.format = form.kind
        self._make_watermarks = watermarks
        self._watermarks: Watermarks | None = None
        self._indexes: list[DueIndex] | None = None
        self._dues = struct.Struct(f">{form.dues}q")
        entries = EntryCodec(
            codec.table, codec.encode_key, codec.decode_key, self._encode, self._decode
        )
        self.entries = KeyedState(partition, store, entries, cache_bytes)

    def _encode(self, value: tuple[Any, tuple[int, ...]]) -> bytes:
        entry, dues = value
        return self._dues.pack(*dues) + self.form.encode(entry)

    def _decode(self, raw: bytes) -> tuple[Any, tuple[int, ...]]:
        return self.form.decode(raw[self._dues.size :]), self._dues.unpack_from(raw)

    # -- for operators

    @property
    def watermarks(self) -> Watermarks:
        """Watermarks by name, going on where the state is."""
        if self._watermarks is None:
            self._watermarks = self._make_watermarks(self.store.meta.extra)
        return self._watermarks

    @property
    def watermark(self) -> Watermark:
        """The watermark that frees entries."""
        return self.watermarks["watermark"]

    def load(self, key: Any) -> Any:
        """Return an entry, or None. Put it again after changing it."""
        value = self.entries.get(key)
        return None if value is MISSING else value[0]

    def put(self, key: Any, entry: Any, *dues: int) -> None:
        """Set an entry and its due times."""
        self.entries.set(key, (entry, dues))
        for index, due in zip(self._index_list, dues, strict=True):
            if due != NEVER:
                index.set(key, due)
            elif key in index.dues:
                index.remove(key)

    def remove(self, key: Any) -> None:
        """Delete an entry, if it is there."""
        self.entries.delete(key)
        for index in self._index_list:
            if key in index.dues:
                index.remove(key)

    def due(self, time: int | None, index: int = 0) -> list[Any]:
        """Return the keys due at or before a time, in order; they stay until put or removed."""
        return [] if time is None else self._index_list[index].due(time)

    @property
    def next_due(self) -> float:
        """A time before which no entry is due."""
        return self._index_list[0].next_due

    @property
    def _index_list(self) -> list[DueIndex]:
        if self._indexes is None:
            dues: list[list[tuple[Any, int]]] = [[] for _ in range(self.form.dues)]
            for raw_key, raw in self.store.items():
                key = self.codec.key(raw_key)
                for pairs, due in zip(dues, self._dues.unpack_from(raw), strict=True):
                    if due != NEVER:
                        pairs.append((key, due))
            self._indexes = [DueIndex(pairs) for pairs in dues]
        return self._indexes

    # -- checkpoint and recovery

    def extra(self) -> dict[str, Any]:
        if self._watermarks is None:
            return self.store.meta.extra
        return {name: each.to_plain() for name, each in self._watermarks.items()}

    def check(self) -> None:
        stored = self.store.meta.format
        if stored and stored != self.format:
            raise StoreError(
                f"Table {self.codec.table!r}, partition {self.partition}, holds the state of "
                f"another operator ({stored}; it is {self.format} now). Give the operator another "
                "name (name=...), or delete its changelog topic and local data to begin anew."
            )

    @property
    def is_dirty(self) -> bool:
        return self.entries.is_dirty

    @property
    def dirty_count(self) -> int:
        return self.entries.dirty_count

    def take_dirty(self) -> tuple[list[bytes], list[bytes | None]]:
        return self.entries.take_dirty()

    def on_written(self) -> None:
        self.entries.on_written()

    def forget(self) -> None:
        self.entries.forget()
        self._watermarks = None
        self._indexes = None

    def on_applied(self, keys: Sequence[bytes]) -> None:
        # Only a state that nobody writes to is applied to.
        self.entries.on_applied(keys)
        self._watermarks = None
        self._indexes = None

    # -- for readers

    def get(self, key: Any, default: Any = MISSING) -> Any:
        """Return what readers see of a key, or ``default``."""
        value = self.entries.get(key)
        return default if value is MISSING else self.form.view(value[0])

    def get_many(self, keys: Sequence[Any], default: Any = None) -> list[Any]:
        """Return what readers see of several keys."""
        return [self.get(key, default) for key in keys]

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[Any, Any]]:
        """Iterate over keys and what readers see of them."""
        return ((key, self.form.view(value[0])) for key, value in self.entries.scan(start, end))

    def count(self) -> int:
        """Count the entries."""
        return self.entries.count()


class TimedTable(Table):
    """A table that an operator with timed state writes to, and others may read.

    Args:
        app: The App.
        form: What the entries are.
        watermarks: Makes the watermarks of a partition, from the plain form of earlier ones.
        **options: Settings of :class:`Table`.
    """

    def __init__(
        self,
        app: Any,
        *,
        form: Form,
        watermarks: Callable[[Mapping[str, Any]], Watermarks],
        **options: Any,
    ) -> None:
        options.setdefault("extra_topic_configs", {"max.message.bytes": str(LARGEST_ENTRY)})
        super().__init__(app, **options)
        self.form = form
        self._watermarks = watermarks

    def new_state(self, partition: int, store: Store) -> TimedState:
        known = self.key_type not in (None, Any)
        return TimedState(
            partition,
            store,
            self.codec if known else keys_as_they_are(self.name),
            self.form,
            self.app.table_cache_bytes,
            self._watermarks,
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TableError(f"Table {self.name!r} is written by its stream alone")

    __delitem__ = __setitem__  # type: ignore[assignment]


def keys_as_they_are(table: str) -> EntryCodec:
    """Return a codec of keys of any type; entries are encoded by their table."""
    encode, decode = value_codec(None)
    return EntryCodec(table, encode, decode, encode, decode)
