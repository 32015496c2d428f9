"""Tables of an app under test, read from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamproc.errors import DriverError

#: Values by the bounds of their windows, ``(start, end)`` in milliseconds since 1970.
Windows = dict[tuple[int, int], Any]


class TableView(Mapping[Any, Any]):
    """What a table holds, over all partitions; see :meth:`TestDriver.table`.

    In a table of windows each key has a dict: values by ``(start, end)`` in milliseconds.
    A key that isn't there raises KeyError: the table's default doesn't count.
    """

    def __init__(self, table: Any) -> None:
        self._table = table
        self._has_windows = hasattr(table, "windows_of") or getattr(table, "windows", None)

    def __getitem__(self, key: Any) -> Any:
        if self._has_windows:
            found = self.windows(key)
            if not found:
                raise KeyError(key)
            return found
        if key not in self._table:
            raise KeyError(key)
        return self._table[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._content())

    def __len__(self) -> int:
        return len(self._content())

    def items(self) -> Any:
        """Return keys and values, partition by partition."""
        return self._content().items()

    def partition(self, number: int) -> dict[Any, Any]:
        """Return the entries of one partition.

        Raises:
            DriverError: The table has no such partition, or its partition is taken away.
        """
        state = self._table.states.get(number)
        if state is None:
            raise DriverError(
                f"Table {self._table.name!r} has no partition {number} here; it has "
                f"{sorted(self._table.states)}"
            )
        return self._entries(state)

    def windows(self, key: Any) -> Windows:
        """Return the windows of a key that the table has; none if there is no such key.

        Raises:
            DriverError: The table has no windows.
        """
        if not self._has_windows:
            raise DriverError(f"Table {self._table.name!r} has no windows")
        return {
            (start, end): value
            for state in self._table.readable()
            for start, end, value in state.windows_of(key)
        }

    def _content(self) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        for state in self._table.readable():
            for key, value in self._entries(state).items():
                if self._has_windows:
                    content.setdefault(key, {}).update(value)
                else:
                    content[key] = value
        return content

    def _entries(self, state: Any) -> dict[Any, Any]:
        if not self._has_windows:
            program = getattr(self._table, "program", None)
            result = (lambda value: value) if program is None else program.result
            return {key: result(value) for key, value in state.scan()}
        entries: dict[Any, Windows] = {}
        for key, start, end, value in state.scan_windows():
            entries.setdefault(key, {})[start, end] = value
        return entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._content() == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._table.name}: {self._content()!r}>"
