"""From values to rows of a table: pure, with no connection in sight."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from typing_extensions import Self

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.values import METADATA, Run, as_mapping, field_names, pick

#: Rough bytes of a row and of a value.
_ROW_BYTES, _VALUE_BYTES = 100, 16
#: What psycopg has a form for.
_PLAIN = (bytes, datetime, date, time, timedelta, Decimal, UUID)
_AS_THEY_ARE = frozenset({str, int, float, bool, type(None), *_PLAIN})


class Change(NamedTuple):
    """One row to insert, to insert or update, or to delete (then names are the key's)."""

    kind: Literal["insert", "upsert", "delete"]
    names: tuple[str, ...]
    values: tuple[Any, ...]


class Layout(NamedTuple):
    """How values become rows.

    Attributes:
        columns: By column, the field that fills it; None: each field its column.
        key: Columns by which a row is known; none: rows are added.
        add: Columns whose values are added to those that are there.
    """

    columns: Mapping[str, str] | None
    key: tuple[str, ...]
    add: frozenset[str]


def layout(
    columns: Sequence[str] | Mapping[str, str] | None, key: Sequence[str], add: Sequence[str]
) -> Layout:
    """Check and gather the options.

    Raises:
        ConfigurationError: They don't fit each other.
    """
    for name, names in (("columns", columns), ("key", key), ("add", add)):
        if isinstance(names, str):
            raise ConfigurationError(f"{name} is a list of names: {name}=[{names!r}]")
    if columns is not None and not isinstance(columns, Mapping):
        columns = {name: name for name in columns}
    if add and not key:
        raise ConfigurationError("add needs key=[...]: the columns by which a row is known")
    if both := set(add) & set(key):
        raise ConfigurationError(f"{min(both)!r} is in key and in add")
    if columns is not None and (missing := {*key, *add} - set(columns)):
        raise ConfigurationError(f"{min(missing)!r} is in key or add, but not in columns")
    return Layout(columns, tuple(key), frozenset(add))


class Rows:
    """Collects values as rows; those of one key are merged."""

    def __init__(self, how: Layout) -> None:
        self.count = 0
        self.size = 0
        self._how = how
        self._inserts: list[Change] = []
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._deleted: set[tuple[Any, ...]] = set()

    def fresh(self) -> Self:
        """Return a collector of the same kind; this one has nothing in it."""
        return copy.deepcopy(self)

    def add(self, run: Run) -> list[SinkError]:
        """Collect the values of ``run``; return what was wrong with those that don't fit."""
        errors = []
        for index, value in enumerate(run.values):
            try:
                self._collect(value, run, index)
            except SinkError as error:
                error.row = index
                errors.append(error)
        self.count += len(run.values) - len(errors)
        return errors

    def _collect(self, value: Any, run: Run, index: int) -> None:
        if value is None:
            self._delete(run.key(index))
            return
        row = self._row(value, run, index)
        self.size += _ROW_BYTES + sum(map(_size, row.values()))
        if not self._how.key:
            self._inserts.append(Change("insert", tuple(row), tuple(row.values())))
            return
        key = self._key(row)
        before = self._rows.get(key)
        if before:
            for name in self._how.add & before.keys() & row.keys():
                row[name] = _sum(name, before[name], row[name])
            before.update(row)
        else:
            self._rows[key] = row

    def _row(self, value: Any, run: Run, index: int) -> dict[str, Any]:
        columns = self._how.columns
        if columns is None:
            return {name: plain(each) for name, each in as_mapping(value).items()}
        own = set(field_names(value))
        return {
            column: plain(
                run.metadata(field, index)
                if field in METADATA and field not in own
                else pick(value, field)
            )
            for column, field in columns.items()
        }

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        try:
            key = tuple(row[name] for name in self._how.key)
            hash(key)
        except KeyError as error:
            raise SinkError(
                f"the value has no {error.args[0]!r}, which is in the table's key; its fields: "
                f"{', '.join(row) or 'none'}"
            ) from None
        except TypeError:
            raise SinkError(f"this can't be a key: {dict(row)!r:.60}") from None
        if None in key:
            raise SinkError(f"None in the key {dict(zip(self._how.key, key, strict=True))!r:.60}")
        return key

    def _delete(self, key: Any) -> None:
        if len(self._how.key) != 1:
            raise SinkError(
                "a tombstone (None with a key) deletes a row of a table whose key is one column"
            )
        if key is None:
            raise SinkError("None without a key: nothing to write, and nothing to delete")
        self._rows[(key,)] = {}
        self._deleted.add((key,))
        self.size += _ROW_BYTES

    def take_alone(self) -> list[Change]:
        """Return the changes for all that was collected, and start afresh."""
        changes, self._inserts = self._inserts, []
        rows, self._rows = self._rows, {}
        deleted, self._deleted = self._deleted, set()
        changes += [Change("delete", self._how.key, key) for key in deleted]
        changes += [
            Change("upsert", tuple(row), tuple(row.values())) for row in rows.values() if row
        ]
        self.count = self.size = 0
        return changes


def plain(value: Any) -> Any:
    """Return a value as psycopg takes it: enums as their value, Records as dicts."""
    if type(value) in _AS_THEY_ARE:
        return value
    try:
        return msgspec.to_builtins(value, builtin_types=_PLAIN, enc_hook=_foreign)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SinkError(
            f"{type(value).__name__} {value!r:.60} cannot be written: {error}"
        ) from None


def _foreign(value: Any) -> Any:
    for method in ("asdict", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise NotImplementedError(f"no form of {type(value).__name__}")


def _size(value: Any) -> int:
    return len(value) + _VALUE_BYTES if isinstance(value, (str, bytes)) else _VALUE_BYTES


def _sum(name: str, before: Any, value: Any) -> Any:
    try:
        return value if before is None else before if value is None else before + value
    except TypeError:
        raise SinkError(f"column {name!r} can't be added up: {value!r:.60}") from None
