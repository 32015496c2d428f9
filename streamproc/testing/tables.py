"""Tables of an app under test, read from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamproc.errors import DriverError


class TableView(Mapping[Any, Any]):
    """What a table holds, over all partitions; see :meth:`TestDriver.table`.

    A key that isn't there raises KeyError: the table's default doesn't count.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getitem__(self, key: Any) -> Any:
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
        return dict(state.scan())

    def windows(self, key: Any) -> dict[tuple[int, int], Any]:
        """Return the open windows of a key: results by ``(start, end)`` in milliseconds.

        Raises:
            DriverError: The table has no windows.
        """
        if not hasattr(self._table, "windows_of"):
            raise DriverError(f"Table {self._table.name!r} has no windows")
        return {(start, end): result for start, end, result in self._table.windows_of(key)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._table.name}: {dict(self.items())!r}>"
