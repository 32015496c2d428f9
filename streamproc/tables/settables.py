"""Tables of sets, and of counters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamproc.tables.keyed import EntryCodec
from streamproc.tables.table import GlobalTable, Table


class TableSet(set[Any]):
    """A set in a table; changing it marks its entry for the changelog."""

    def __init__(self, table: SetTable, key: Any, members: Iterable[Any] = ()) -> None:
        super().__init__(members)
        self._table = table
        self._key = key

    def _changed(self) -> None:
        self._table[self._key] = self

    def add(self, element: Any) -> None:
        if element not in self:
            super().add(element)
            self._changed()

    def discard(self, element: Any) -> None:
        if element in self:
            super().discard(element)
            self._changed()

    def remove(self, element: Any) -> None:
        super().remove(element)
        self._changed()

    def pop(self) -> Any:
        element = super().pop()
        self._changed()
        return element

    def clear(self) -> None:
        super().clear()
        self._changed()

    def update(self, *others: Iterable[Any]) -> None:
        super().update(*others)
        self._changed()

    def difference_update(self, *others: Iterable[Any]) -> None:
        super().difference_update(*others)
        self._changed()

    def intersection_update(self, *others: Iterable[Any]) -> None:
        super().intersection_update(*others)
        self._changed()

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        super().symmetric_difference_update(other)
        self._changed()

    def __ior__(self, other: Any) -> TableSet:  # type: ignore[misc,override]
        self.update(other)
        return self

    def __isub__(self, other: Any) -> TableSet:  # type: ignore[misc,override]
        self.difference_update(other)
        return self

    def __iand__(self, other: Any) -> TableSet:  # type: ignore[misc,override]
        self.intersection_update(other)
        return self

    def __ixor__(self, other: Any) -> TableSet:  # type: ignore[misc,override]
        self.symmetric_difference_update(other)
        return self


class SetTable(Table):
    """A table whose values are sets; a key that isn't there has an empty one.

    ``value_type`` is the type of the sets' members.
    """

    def __init__(self, app: Any, *, start_manager: bool = False, **options: Any) -> None:
        # Faust's manager applies changes sent through a topic of its own.
        del start_manager
        super().__init__(app, **options)

    def __missing__(self, key: Any) -> Any:
        return TableSet(self, key)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return found if isinstance(found, TableSet) else TableSet(self, key, found)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(value, TableSet) or value._key != key:
            value = TableSet(self, key, value)
        super().__setitem__(key, value)

    @property
    def codec(self) -> EntryCodec:
        if self._codec is None:
            inner = super().codec
            members = list[self.value_type or Any]  # type: ignore[misc,valid-type]
            decode = self._part_codec("value").decoder(members)
            self._codec = EntryCodec(
                inner.table,
                inner.encode_key,
                inner.decode_key,
                lambda value: inner.encode_value(sorted(value, key=repr)),
                lambda raw: set(map(_hashable, decode(raw))),
                inner.null,
            )
        return self._codec


def _hashable(member: Any) -> Any:
    return tuple(map(_hashable, member)) if isinstance(member, list) else member


class SetGlobalTable(SetTable, GlobalTable):
    """A table of sets of which each worker has all partitions."""


class CounterTable(Table):
    """A table of numbers; a key that isn't there counts 0."""

    def __init__(self, app: Any, **options: Any) -> None:
        options.setdefault("default", int)
        super().__init__(app, **options)

    def increment(self, key: Any, by: float = 1) -> Any:
        """Add ``by`` to a counter and return its new value."""
        value = self[key] = self[key] + by
        return value

    def count(self, batch: Any, key: Any = None) -> None:
        """Count the records of a batch by key, or by ``key(record)``."""
        self.update(batch, lambda value, _: value + 1, key)


__all__ = ["CounterTable", "SetGlobalTable", "SetTable", "TableSet"]
