"""Tables: dict-like state of a stream, by partition, with a changelog.

Checked against faust-streaming 0.15.3, whose Table this is to the rest of Faust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import faust.tables.table
from yarl import URL

from streamproc.errors import ConfigurationError, TableError
from streamproc.kafka.producer import partition_of
from streamproc.records.codecs import find_codec
from streamproc.records.durations import duration
from streamproc.tables.clocks import RECORD_CLOCK
from streamproc.tables.keyed import (
    MISSING,
    UNCHANGEABLE,
    EntryCodec,
    KeyedState,
    ReplicatedState,
)
from streamproc.tables.place import current_place, note_write
from streamproc.tables.stores import Store, prefix_end
from streamproc.tables.ttl import ExpiringState
from streamproc.tables.windowed import TableWindows
from streamproc.tables.windowset import WindowWrapper
from streamproc.windows import HoppingWindow, TumblingWindow

#: What stands for a key or value of None, which other serializers can't tell from text.
NULL = {"json": b"null"}

#: Reading of a key, as a cheap default.
_NOTHING: Any = object()


class Table(faust.tables.table.Table):  # type: ignore[misc]
    """A table: a dict whose entries belong to the partition of the record in hand.

    Inside of an agent, reads and writes are of the partition that the agent's records
    come from. Elsewhere (a timer, a page) the partition is that of the key, as the
    producer would choose it, and only partitions of this worker can be reached.

    An entry is written to the changelog once a checkpoint, however often it changed. A
    value that is changed in place must be set again: ``table[key] = value``.

    Args:
        app: The App.
        name: Names the table and its changelog, ``<app id>-<name>-changelog``.
        default: Makes the value of a key that isn't there.
        key_type: Type of keys; what JSON gives if None.
        value_type: Type of values. Fields that are added to it need a default.
        store: ``rocksdb://`` (the default with rocksdict installed) or ``memory://``.
        ttl: Entries are dropped this long (timedelta, seconds, "10m") after they were
            last set, in event time.
        **options: Settings of Faust's Table.
    """

    #: True where each worker has all partitions.
    is_replicated = False

    def __init__(self, app: Any, *, ttl: Any = None, source: Any = None, **options: Any) -> None:
        super().__init__(app, **options)
        if self._store is not None:
            self._check_store(self._store)
        #: The source of the flow that writes to it: it has as many partitions.
        self.source = source
        #: Milliseconds, or None.
        self.ttl = None if ttl is None else duration(ttl)
        if self.ttl is not None and (self.ttl <= 0 or self.is_replicated):
            raise ConfigurationError(
                f"Table {self.name!r}: a ttl is longer than 0, and is not for global tables, "
                "whose partitions have no time"
            )
        #: State by partition, of those that this worker may write.
        self.states: dict[int, Any] = {}
        #: State by partition, of those that it follows only.
        self.standbys: dict[int, Any] = {}
        self._codec: EntryCodec | None = None
        #: Its windows, if it has some.
        self.windows: TableWindows | None = None

    # -- windows

    def using_window(self, window: Any, *, key_index: bool = False) -> Any:
        """Give each key a value for each window.

        Args:
            window: ``TumblingWindow``, ``HoppingWindow`` or ``SlidingWindow``; or what
                :func:`streamproc.windows.tumbling` and ``hopping`` return.
            key_index: See :class:`~streamproc.tables.windowset.WindowWrapper`.

        Raises:
            ConfigurationError: The window is none that tables have.
        """
        if self.is_replicated:
            raise ConfigurationError(
                f"Global table {self.name!r} can't have windows: those of a partition are "
                "closed by the worker that reads it. Use app.Table."
            )
        self.windows = TableWindows(self, window)
        self.window = window
        self._changelog_topic = None
        return WindowWrapper(self.windows, RECORD_CLOCK, key_index=key_index)

    def tumbling(self, size: Any, expires: Any = None, key_index: bool = False) -> Any:
        """Use windows of ``size``, kept ``expires`` after their end (timedelta, seconds, "10s")."""
        return self.using_window(TumblingWindow(size, expires), key_index=key_index)

    def hopping(self, size: Any, step: Any, expires: Any = None, key_index: bool = False) -> Any:
        """Use windows of ``size`` that begin every ``step``; see :meth:`tumbling`."""
        return self.using_window(HoppingWindow(size, step, expires), key_index=key_index)

    def _should_expire_keys(self) -> bool:
        return False  # by Faust's clean-up

    def _new_changelog_topic(self, **options: Any) -> Any:
        if self.windows is not None:
            options = {**self.windows.changelog_options, **options}
        return super()._new_changelog_topic(**options)

    # -- wiring

    async def on_start(self) -> None:
        await self.declare_changelog()
        if self.windows is not None:
            self.add_future(self.windows.run())

    async def declare_changelog(self) -> None:
        """Create the changelog topic if it isn't there."""
        await self.changelog_topic.maybe_declare()

    def new_state(self, partition: int, store: Store) -> Any:
        """Make the state of one partition."""
        if self.windows is not None:
            return self.windows.new_state(partition, store)
        if self.ttl is not None:
            cache_bytes = self.app.table_cache_bytes
            return ExpiringState(partition, store, self.codec, cache_bytes, self.ttl)
        return KeyedState(partition, store, self.codec, self.app.table_cache_bytes)

    @property
    def in_memory(self) -> bool:
        """True when entries are kept in memory only."""
        # Not "or": a URL without a host, as these are, is false.
        return self._check_store(self.app.conf.store if self._store is None else self._store)

    def _check_store(self, store: Any) -> bool:
        scheme = URL(str(store)).scheme
        if scheme not in ("memory", "rocksdb"):
            raise ConfigurationError(
                f"Table {self.name!r} has store {scheme}://; there are rocksdb:// and memory://"
            )
        return bool(scheme == "memory")

    @property
    def codec(self) -> EntryCodec:
        """How entries are encoded."""
        if self._codec is None:
            keys, values = self._part_codec("key"), self._part_codec("value")
            decode_key = keys.decoder(self.key_type)
            if self.key_type in (None, Any):
                decode_key = _hashable(decode_key)
            self._codec = EntryCodec(
                self.name,
                keys.encoder(self.key_type),
                decode_key,
                values.encoder(self.value_type),
                values.decoder(self.value_type),
                NULL.get(str(self.value_serializer), b"\x00null"),
                self.value_type if isinstance(self.value_type, type) else None,
            )
        return self._codec

    def _part_codec(self, part: str) -> Any:
        serializer = getattr(self, f"{part}_serializer")
        codec = find_codec(serializer) if isinstance(serializer, str) else None
        if codec is None:
            raise ConfigurationError(f"Table {self.name!r} has no codec {serializer!r}")
        return codec

    # -- the partition

    @property
    def state(self) -> Any:
        """State of the partition whose records are in hand, or None outside of an agent."""
        place = current_place.get()
        return None if place is None else self.states.get(place.partition)

    def _state_of(self, key: Any) -> Any:
        """Return the state that a write of ``key`` goes to."""
        place = current_place.get()
        if place is not None:
            place.wrote = True
        state = self.state
        if state is not None:
            return state
        if place is not None and place.partition >= self.partition_count:
            raise TableError(
                f"Table {self.name!r} has {self.partition_count} partitions and the record in hand "
                f"is of partition {place.partition}: the table needs as many as the topic whose "
                "records write to it. Give it partitions=..., and another name if its changelog "
                f"{self.changelog_topic_name!r} exists."
            )
        # Windows of a key are where the key is.
        partition = self.partition_of(key if self.windows is None else key[0])
        try:
            return self.states[partition]
        except KeyError:
            raise TableError(
                f"Table {self.name!r}: key {key!r} belongs to partition {partition}, which this "
                f"worker doesn't have (it has {sorted(self.states) or 'none'}). Write to tables "
                "from an agent whose topic has as many partitions as the table."
            ) from None

    def partition_of(self, key: Any) -> int:
        """Return the partition of a key by Kafka's default partitioner."""
        return partition_of(self.source_key(key), self.partition_count)

    def source_key(self, key: Any) -> bytes:
        """Return a key as the source topic's records have it."""
        if isinstance(key, str):
            return key.encode()
        return self.codec.raw_key(key)

    @property
    def partition_count(self) -> int:
        """Number of partitions of the changelog."""
        count = self.app.consumer.topic_partitions(self.changelog_topic_name)
        return count or self.partitions or int(self.app.conf.topic_partitions)

    def readable(self) -> Iterable[Any]:
        """Return the states that can be read here."""
        return [self.states[partition] for partition in sorted(self.states)]

    # -- entries

    def __getitem__(self, key: Any) -> Any:
        state = self.state
        value = self._find(key) if state is None else state.get(key)
        if value is MISSING:
            return self.__missing__(key)
        if type(value) not in UNCHANGEABLE:
            note_write()
        return value

    def _find(self, key: Any) -> Any:
        for state in self.readable():
            value = state.get(key)
            if value is not MISSING:
                return value
        return MISSING

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``, which wins over the table's."""
        state = self.state
        value = self._find(key) if state is None else state.get(key)
        if type(value) not in UNCHANGEABLE:
            note_write()
        return default if value is MISSING else value

    def __setitem__(self, key: Any, value: Any) -> None:
        place = current_place.get()
        state = None
        if place is not None:
            place.wrote = True
            state = self.states.get(place.partition)
        (self._state_of(key) if state is None else state).set(key, value)

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._state_of(key).delete(key)

    def __contains__(self, key: Any) -> bool:
        state = self.state
        return (self._find(key) if state is None else state.get(key)) is not MISSING

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove ``key`` and return its value."""
        value = self.get(key, _NOTHING)
        if value is _NOTHING:
            if default:
                return default[0]
            raise KeyError(key)
        self._state_of(key).delete(key)
        return value

    def popitem(self) -> tuple[Any, Any]:
        """Remove some entry and return it."""
        for key, value in self.items():
            self._state_of(key).delete(key)
            return key, value
        raise KeyError(f"table {self.name} is empty")

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, which becomes ``default`` if it isn't there."""
        value = self.get(key, _NOTHING)
        if value is _NOTHING:
            self[key] = value = default
        return value

    def clear(self) -> None:
        """Delete all entries that can be reached."""
        note_write()
        for state in self._reach():
            for key, _ in list(state.scan()):
                state.delete(key)

    # -- many at once

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Update by a batch, or as ``dict.update``.

        ``table.update(batch, fold, key=None)`` calls ``fold(value, record)`` for each
        record of the batch with the value that its key has, and keeps what it returns.
        ``key`` is a function from a record to its key; the record's own key if None.
        """
        if len(args) > 1:
            self._fold(*args, **kwargs)
            return
        changes = dict(*args, **kwargs)
        self.set_many(list(changes), list(changes.values()))

    def _fold(
        self,
        batch: Any,
        fold: Callable[[Any, Any], Any],
        key: Callable[[Any], Any] | None = None,
    ) -> None:
        note_write()
        state = self.states[batch.partition]
        if self.ttl is not None:
            place = current_place.get()
            state.observe(batch.timestamps if place is None else place.event_times(batch))
        keys = batch.keys if key is None else list(map(key, batch.values))
        found = dict(zip(keys, state.get_many(keys, MISSING), strict=True))
        for name, record in zip(keys, batch.values, strict=True):
            value = found[name]
            found[name] = fold(self.__missing__(name) if value is MISSING else value, record)
        state.set_many(list(found), list(found.values()))

    def get_many(self, keys: Iterable[Any], default: Any = None) -> list[Any]:
        """Return the values of several keys, ``default`` for those that aren't there."""
        state = self.state
        if state is None:
            return [self.get(key, default) for key in keys]
        values: list[Any] = state.get_many(keys, default)
        if not UNCHANGEABLE.issuperset(map(type, values)):
            note_write()
        return values

    def set_many(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Set the values of several keys."""
        note_write()
        state = self.state
        if state is not None:
            state.set_many(keys, values)
            return
        for key, value in zip(keys, values, strict=True):
            self._state_of(key).set(key, value)

    # -- iteration

    def _reach(self) -> Iterable[Any]:
        state = self.state
        return self.readable() if state is None else [state]

    def scan(
        self, *, prefix: Any = None, start: Any = None, end: Any = None
    ) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries in the order of their keys, each partition by itself.

        The order is that of keys as they are encoded: text by its characters; numbers
        by their digits, not their size.

        Args:
            prefix: Text or bytes that keys start with.
            start: First key.
            end: Key before which to end.
        """
        encode = self.codec.encode_key
        first = b"" if start is None else encode(start)
        last = None if end is None else encode(end)
        if prefix is not None:
            first = _encoded_prefix(encode(prefix), prefix)
            last = prefix_end(first)
        note_write()
        for state in self._reach():
            yield from state.scan(first, last)

    def items(self) -> Iterator[tuple[Any, Any]]:  # type: ignore[override]
        """Iterate over ``(key, value)`` pairs, in the order of keys a partition."""
        return self.scan()

    def keys(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterate over keys."""
        return (key for key, _ in self.scan())

    def values(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterate over values."""
        return (value for _, value in self.scan())

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def __len__(self) -> int:
        """Count entries; the store is read unless all of them are in memory."""
        return sum(state.count() for state in self._reach())

    def __bool__(self) -> bool:
        return True

    def copy(self) -> dict[Any, Any]:
        """Return the entries as a dict."""
        return dict(self.items())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: partitions {sorted(self.states)}>"

    def _join(self, join_strategy: Any) -> Any:
        """Say what to use: Faust names joins of tables, and has none."""
        raise ConfigurationError(
            f"Table {self.name!r} is joined with a flow by app.stream(topic).join(table), and with "
            "another table by streamproc.join_tables(left, right)"
        )

    # -- what Faust asks of a table

    def persisted_offset(self, tp: Any) -> int | None:
        state = self.states.get(tp.partition) or self.standbys.get(tp.partition)
        return state.changelog_offset if state is not None else None

    def reset_state(self) -> None:
        """Delete the state of this worker; it is rebuilt from the changelog."""
        for state in (*self.states.values(), *self.standbys.values()):
            state.reset()

    async def on_rebalance(self, *args: Any, **kwargs: Any) -> None:
        """Partitions are opened and closed by the recovery."""

    def info(self) -> Mapping[str, Any]:
        return {**super().info(), "ttl": self.ttl}


def _encoded_prefix(encoded: bytes, prefix: Any) -> bytes:
    # JSON text ends in a quote that longer keys don't have there.
    return encoded[:-1] if isinstance(prefix, str) and encoded.endswith(b'"') else encoded


def _hashable(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_key(raw: bytes) -> Any:
        key = decode(raw)
        return _as_tuple(key) if type(key) is list else key

    return decode_key


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


class GlobalTable(Table):
    """A table of which each worker has all partitions, kept up to date.

    Reads see what other workers wrote a moment later. With ``changelog_topic=`` it is
    the copy of a compacted topic that somebody else writes.
    """

    is_replicated = True

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        # Faust's assignor would have every worker own and follow all partitions.
        self.is_global = False
        topic = self._changelog_topic
        if topic is not None:
            # Keys and values are what that topic's records have.
            conf = app.conf
            self.key_serializer = topic.schema.key_serializer or conf.key_serializer or "raw"
            self.value_serializer = topic.schema.value_serializer or conf.value_serializer
            self.key_type = self.key_type or topic.key_type
            self.value_type = self.value_type or topic.value_type

    def new_state(self, partition: int, store: Store) -> Any:
        return ReplicatedState(partition, store, self.codec, self.app.table_cache_bytes)

    @property
    def state(self) -> Any:
        return None

    def _state_of(self, key: Any) -> Any:
        place = current_place.get()
        if place is not None and place.partition in self.states:
            return self.states[place.partition]
        return self.states[self.partition_of(key)]
