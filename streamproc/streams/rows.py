"""Rows: what goes from operator to operator, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any


class Rows:
    """Records of one partition on their way through operators, as parallel sequences.

    Operators make new rows and leave those they were given as they are.

    Attributes:
        keys: Keys.
        values: Values.
        times: Event times in ms.
        origins: For each row the row of the source's batch that it comes from; None where
            it comes from state (closed windows, timers), or all do.
        input: Which input of the next operator they come from.
    """

    __slots__ = ("input", "keys", "origins", "times", "values")

    def __init__(
        self,
        keys: Sequence[Any],
        values: Sequence[Any],
        times: Sequence[int],
        origins: Sequence[int | None] | None = None,
        input: int = 0,
    ) -> None:
        self.keys = keys
        self.values = values
        self.times = times
        self.origins = origins
        self.input = input

    def __len__(self) -> int:
        return len(self.values)

    def keep(self, mask: Sequence[Any]) -> Rows:
        """Return the rows whose place in ``mask`` is true."""
        return Rows(
            list(compress(self.keys, mask)),
            list(compress(self.values, mask)),
            list(compress(self.times, mask)),
            None if self.origins is None else list(compress(self.origins, mask)),
            self.input,
        )

    def pick(self, rows: Sequence[int]) -> Rows:
        """Return some rows, by number."""
        return Rows(
            [self.keys[row] for row in rows],
            [self.values[row] for row in rows],
            [self.times[row] for row in rows],
            None if self.origins is None else [self.origins[row] for row in rows],
            self.input,
        )

    def with_values(self, values: Sequence[Any]) -> Rows:
        """Return the same rows with other values."""
        return Rows(self.keys, values, self.times, self.origins, self.input)

    def with_keys(self, keys: Sequence[Any]) -> Rows:
        """Return the same rows with other keys."""
        return Rows(keys, self.values, self.times, self.origins, self.input)

    def origin(self, row: int) -> int | None:
        """Return the row of the source's batch that a row comes from."""
        return None if self.origins is None else self.origins[row]
