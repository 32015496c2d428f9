"""Stores: where the state of one partition of one table is kept, as bytes.

A store is written to once a checkpoint, atomically with :class:`Meta`, which says how
far that state goes.
"""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import rocksdict

from streamproc.errors import StoreError

logger = logging.getLogger(__name__)

Pair = tuple[bytes, bytes]


class Meta(msgspec.Struct, omit_defaults=True):
    """How far the state in a store goes.

    Attributes:
        positions: Offset of the next record whose update is missing, by reader.
        extra: What the state needs beside its entries (watermarks).
        changelog_offset: The changelog record to go on from.
        written_at: Seconds since 1970.
        format: What the entries look like, to be compared at the next start.
        marked: The changelog has positions; False while all that was read of it is of
            plain Faust.
        changelog_id: Which topic the changelog is; another one of its name has another id.
    """

    positions: dict[str, int] = {}
    extra: dict[str, Any] = {}
    changelog_offset: int = 0
    written_at: float = 0.0
    format: str = ""
    marked: bool = False
    changelog_id: str = ""


class Store(ABC):
    """State of one partition as sorted bytes."""

    meta: Meta

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """Return a value, or None."""

    @abstractmethod
    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the values of several keys."""

    @abstractmethod
    def write(self, keys: Sequence[bytes], values: Sequence[bytes | None], meta: Meta) -> None:
        """Write entries (None deletes) and ``meta`` in one atomic step."""

    @abstractmethod
    def items(self, start: bytes = b"", end: bytes | None = None) -> Iterator[Pair]:
        """Iterate over the entries from ``start`` to before ``end``, in order of keys."""

    @abstractmethod
    def is_empty(self) -> bool:
        """True when there is no entry."""

    @abstractmethod
    def clear(self) -> None:
        """Delete everything, ``meta`` too."""

    @abstractmethod
    def close(self) -> None:
        """Close; entries of a store on disk stay."""


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first key after all keys that start with ``prefix``, or None if there's none."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return None
    return stripped[:-1] + bytes([stripped[-1] + 1])


class MemoryStore(Store):
    """Entries in a dict; gone when the worker ends, and recovered from the changelog."""

    def __init__(self) -> None:
        self.meta = Meta()
        self._entries: dict[bytes, bytes] = {}
        self._sorted: list[bytes] | None = None
        self.get = self._entries.get  # type: ignore[method-assign,assignment]

    def get(self, key: bytes) -> bytes | None:  # pragma: no cover - replaced in __init__
        return self._entries.get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return list(map(self._entries.get, keys))

    def write(self, keys: Sequence[bytes], values: Sequence[bytes | None], meta: Meta) -> None:
        entries = self._entries
        before = len(entries)
        if None in values:
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    entries.pop(key, None)
                else:
                    entries[key] = value
            self._sorted = None
        else:
            entries.update(zip(keys, values, strict=True))  # type: ignore[arg-type]
            if len(entries) != before:
                self._sorted = None
        self.meta = meta

    def items(self, start: bytes = b"", end: bytes | None = None) -> Iterator[Pair]:
        keys = self._sorted
        if keys is None:
            keys = self._sorted = sorted(self._entries)
        first = bisect_left(keys, start)
        last = len(keys) if end is None else bisect_left(keys, end)
        get = self._entries.get
        for row in range(first, last):
            value = get(keys[row])
            if value is not None:
                yield keys[row], value

    def is_empty(self) -> bool:
        return not self._entries

    def clear(self) -> None:
        self._entries.clear()
        self._sorted = None
        self.meta = Meta()

    def close(self) -> None:
        """Nothing is to be closed."""


#: Memory shared by all RocksDB stores of a worker, in bytes.
BLOCK_CACHE_BYTES = 64 * 1024 * 1024
#: Writes that a RocksDB store keeps before it writes a file, in bytes.
WRITE_BUFFER_BYTES = 8 * 1024 * 1024

_META_KEY = b"meta"
#: A file that marks a database as damaged.
_DAMAGED = "DAMAGED"


@lru_cache(maxsize=1)
def _block_cache() -> Any:
    return rocksdict.Cache(BLOCK_CACHE_BYTES)


def _options() -> Any:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    # Else the log of writes stays until the few bytes of the meta entry fill a buffer too.
    options.set_max_total_wal_size(2 * WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(1)
    options.set_max_open_files(256)
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(_block_cache())
    blocks.set_bloom_filter(10, False)
    # Else the index and filter of each open file stay in memory for good. In small parts:
    # a whole filter doesn't fit into a shard of the cache, and is then read each time.
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    blocks.set_metadata_block_size(4096)
    options.set_block_based_table_factory(blocks)
    return options


def _is_damage(exc: BaseException | None) -> bool:
    return isinstance(exc, msgspec.DecodeError) or "Corruption" in str(exc)


class RocksStore(Store):
    """Entries in a RocksDB database of their own, through rocksdict.

    A database that is found damaged is thrown away: at once when it is opened, and at the
    next start when it is read. It is rebuilt from the changelog then.

    Raises:
        StoreError: The database can't be opened, read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if (path / _DAMAGED).exists():
            self._throw_away("it was damaged when it was last read")
        try:
            self._open()
        except StoreError as exc:
            if not _is_damage(exc.__cause__):
                raise
            self._throw_away(exc.__cause__)
            self._open()

    def _throw_away(self, why: object) -> None:
        logger.warning(
            "The RocksDB database %s is damaged and thrown away; its table is rebuilt from the "
            "changelog: %s",
            self.path,
            why,
        )
        shutil.rmtree(self.path)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without it the meta entry would share the order of keys with the data.
        families = {"default": _options(), "meta": rocksdict.Options(raw_mode=True)}
        try:
            self._db = rocksdict.Rdict(str(self.path), _options(), column_families=families)
            self._meta_family = self._db.get_column_family_handle("meta")
            self._meta_db = self._db.get_column_family("meta")
            raw = self._meta_db.get(_META_KEY)
            self.meta = msgspec.json.decode(raw, type=Meta) if raw else Meta()
        except Exception as exc:
            raise StoreError(f"The RocksDB database {self.path} can't be opened: {exc}") from exc
        self._get = self._db.get

    def _unreadable(self, exc: Exception) -> StoreError:
        if _is_damage(exc):
            with suppress(OSError):
                (self.path / _DAMAGED).touch()
        return StoreError(f"The RocksDB database {self.path} can't be read: {exc}")

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._get(key)
        except Exception as exc:
            raise self._unreadable(exc) from exc
        return value

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        try:
            return self._db.get(keys) if keys else []
        except Exception as exc:
            raise self._unreadable(exc) from exc

    def write(self, keys: Sequence[bytes], values: Sequence[bytes | None], meta: Meta) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in zip(keys, values, strict=True):
            if value is None:
                delete(key)
            else:
                put(key, value)
        put(_META_KEY, msgspec.json.encode(meta), self._meta_family)
        try:
            self._db.write(batch)
        except Exception as exc:
            raise StoreError(f"The RocksDB database {self.path} can't be written: {exc}") from exc
        self.meta = meta

    def items(self, start: bytes = b"", end: bytes | None = None) -> Iterator[Pair]:
        key = start
        for key, value in self._db.items(from_key=start) if start else self._db.items():
            if end is not None and key >= end:
                return
            yield key, value
        self._check_after(key)

    def _check_after(self, key: bytes) -> None:
        """See that entries end after ``key``: rocksdict's iterators end at damage as well."""
        entries = self._db.iter()
        entries.seek(key)
        try:
            if entries.valid():
                entries.next()
            entries.status()
        except Exception as exc:
            raise self._unreadable(exc) from exc

    def is_empty(self) -> bool:
        return next(iter(self._db.keys()), None) is None

    def clear(self) -> None:
        self.close()
        shutil.rmtree(self.path)
        self._open()

    def close(self) -> None:
        self._meta_db = None
        self._meta_family = None
        # It is closed already when it could not be opened again, on a full disk for example.
        db, self._db = self._db, None
        if db is None:
            return
        try:
            db.close()
        except Exception as exc:  # noqa: BLE001 - rocksdict raises nothing narrower
            # It is closed all the same; the next start reads its log, or the changelog.
            logger.warning("The RocksDB database %s is closed unwritten: %s", self.path, exc)
