"""What joins keep of a key: the records of each side, in the order of their times."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec

from streamproc.tables.pack import value_codec
from streamproc.tables.timedstate import Form


class Waiting:
    """Records of one side of a key, in order of time; as they came where times are equal.

    Attributes:
        times: Event times in ms.
        values: Parallel to them.
        matched: Parallel to them; whether it has been in a result.
    """

    __slots__ = ("matched", "times", "values")

    def __init__(
        self,
        times: list[int] | None = None,
        values: list[Any] | None = None,
        matched: list[bool] | None = None,
    ) -> None:
        self.times = times or []
        self.values = values or []
        self.matched = matched or []

    def __len__(self) -> int:
        return len(self.times)

    def add(self, time: int, value: Any, matched: bool = False) -> None:
        """Add a record."""
        times = self.times
        if not times or time >= times[-1]:
            times.append(time)
            self.values.append(value)
            self.matched.append(matched)
            return
        at = bisect_right(times, time)
        times.insert(at, time)
        self.values.insert(at, value)
        self.matched.insert(at, matched)

    def between(self, first: int, last: int) -> range:
        """Return the places of the records from ``first`` to ``last``, both included."""
        times = self.times
        return range(bisect_left(times, first), bisect_right(times, last))

    def latest(self, time: int) -> int:
        """Return the place of the last record at or before a time; -1 if there is none."""
        return bisect_right(self.times, time) - 1

    def drop(self, count: int) -> list[tuple[int, Any, bool]]:
        """Remove the first records and return them: time, value, matched."""
        gone = list(zip(self.times[:count], self.values[:count], self.matched[:count], strict=True))
        del self.times[:count], self.values[:count], self.matched[:count]
        return gone

    def drop_before(self, time: int) -> list[tuple[int, Any, bool]]:
        """Remove the records before a time and return them."""
        return self.drop(bisect_left(self.times, time))


class Sides:
    """What waits of both sides of a key."""

    __slots__ = ("left", "right")

    def __init__(self, left: Waiting | None = None, right: Waiting | None = None) -> None:
        self.left = left or Waiting()
        self.right = right or Waiting()

    def __bool__(self) -> bool:
        return bool(self.left.times or self.right.times)

    def view(self) -> dict[str, list[Any]]:
        """Return the records of both sides, for readers."""
        return {"left": list(self.left.values), "right": list(self.right.values)}


def sides_form(kind: str, left: Any, right: Any, dues: int = 1) -> Form:
    """Return how the records of both sides are kept.

    Args:
        kind: Name of the operator.
        left: Type of the left side's values; None where it isn't known.
        right: As ``left``.
        dues: How many due times an entry has.
    """
    codecs = value_codec(left), value_codec(right)

    def encode(sides: Sides) -> bytes:
        parts: list[Any] = []
        for waiting, (encode_value, _) in zip((sides.left, sides.right), codecs, strict=True):
            parts += (waiting.times, list(map(encode_value, waiting.values)), waiting.matched)
        return msgspec.msgpack.encode(parts)

    def decode(raw: bytes) -> Sides:
        parts: Sequence[Any] = msgspec.msgpack.decode(raw)
        left_parts, right_parts = parts[:3], parts[3:]
        (_, decode_left), (_, decode_right) = codecs
        return Sides(
            Waiting(left_parts[0], list(map(decode_left, left_parts[1])), left_parts[2]),
            Waiting(right_parts[0], list(map(decode_right, right_parts[1])), right_parts[2]),
        )

    return Form(kind, encode, decode, Sides.view, dues)
