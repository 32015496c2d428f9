"""Tables of an app under test, read from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamproc.errors import DriverError

#: Values by the bounds of their windows, ``(start, end)`` in milliseconds since 1970.
Windows = dict[tuple[int, int], Any]


class TableView(Mapping[Any, Any]):
    """What a table holds, over all partitions; see :meth:`TestDriver.table`.

    A key that isn't there raises KeyError: the table's default doesn't count. A table of
    windows has the keys that its ``items()`` gives, ``(key, (start, end))``; see
    :meth:`windows`.
    """

    def __init__(self, table: Any) -> None:
        self._table = table
        self._has_windows = hasattr(table, "windows_of") or getattr(table, "windows", None)

    def __getitem__(self, key: Any) -> Any:
        if self._has_windows:
            return dict(self._table.items())[key]
        if key not in self._table:
            raise KeyError(key)
        return self._table[key]

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._table.items())

    def __len__(self) -> int:
        return sum(1 for _ in self._table.items())

    def items(self) -> Any:
        """Iterate over keys and values, partition by partition."""
        return self._table.items()

    def partition(self, number: int) -> dict[Any, Any]:
        """Return the entries of one partition; those of a table of windows as windows by key.

        Raises:
            DriverError: The table has no such partition, or its partition is taken away.
        """
        state = self._table.states.get(number)
        if state is None:
            raise DriverError(
                f"Table {self._table.name!r} has no partition {number} here; it has "
                f"{sorted(self._table.states)}"
            )
        if not self._has_windows:
            program = getattr(self._table, "program", None)
            return {
                key: value if program is None else program.result(value)
                for key, value in state.scan()
            }
        entries: dict[Any, Windows] = {}
        for key, start, end, value in state.scan_windows():
            entries.setdefault(key, {})[start, end] = value
        return entries

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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._table.name}: {dict(self.items())!r}>"
