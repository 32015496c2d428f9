"""Parts that keep values: the least, the greatest, the first, the last, a few of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from streamproc.aggregates.parts import Input, Number, Part, Plain, Scope, Slots
from streamproc.aggregates.plain import stored, stored_list

#: Before and after all times, and an int that MessagePack can hold.
NEVER_YET, NEVER = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Extreme(Part):
    """The least (``sign`` "<") or greatest (">") value; NaN is none.

    The first of equal ones stays.
    """

    sign: str
    declared: Any = field(default=None, repr=False)

    takes_numbers: ClassVar[bool] = True

    def initial(self, scope: Scope) -> list[str]:
        return ["None"]

    def prepare(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x, numeric = inputs[0].local, inputs[0].numeric
        if numeric:
            return []
        return [
            f"{me} = {slots[0]}",
            f"{me} = {x} == {x} if {me} is None else {x} {self.sign} {me}",
        ]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x, numeric = inputs[0].local, inputs[0].numeric
        if not numeric:
            return [f"if {me}:", f"    {slots[0]} = {x}"]
        # Numbers compare without raising, so this needs no line that prepares it.
        return [
            f"{me} = {slots[0]}",
            f"if {me} is None:",
            f"    if {x} == {x}:",
            f"        {slots[0]} = {x}",
            f"elif {x} {self.sign} {me}:",
            f"    {slots[0]} = {x}",
        ]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [
            f"{out[0]} = {left[0]}",
            f"if {left[0]} is None or "
            f"({right[0]} is not None and {right[0]} {self.sign} {left[0]}):",
            f"    {out[0]} = {right[0]}",
        ]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        declared = types[0] if types[0] is Number else self.declared or types[0]
        return [stored(scope, slots[0], declared)]


@dataclass(frozen=True)
class Earliest(Part):
    """The value of the least event time; of equal times the one that came first."""

    declared: Any = field(default=None, repr=False)

    def initial(self, scope: Scope) -> list[str]:
        return [str(NEVER), "None"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        time, value = slots
        return [f"if t < {time}:", f"    {time} = t; {value} = {inputs[0].local}"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [
            f"{out[0]}, {out[1]} = ({right[0]}, {right[1]}) if {right[0]} < {left[0]} "
            f"else ({left[0]}, {left[1]})"
        ]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        return [(slots[0], slots[0]), stored(scope, slots[1], self.declared or types[0])]


@dataclass(frozen=True)
class Latest(Earliest):
    """The value of the greatest event time; of equal times the one that came last."""

    def initial(self, scope: Scope) -> list[str]:
        return [str(NEVER_YET), "None"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        time, value = slots
        return [f"if t >= {time}:", f"    {time} = t; {value} = {inputs[0].local}"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [
            f"{out[0]}, {out[1]} = ({right[0]}, {right[1]}) if {right[0]} >= {left[0]} "
            f"else ({left[0]}, {left[1]})"
        ]


@dataclass(frozen=True)
class Gathered(Part):
    """The first ``limit`` values by event time: their times and they, as two lists."""

    limit: int
    declared: Any = field(default=None, repr=False)

    @property
    def signature(self) -> str:
        return "Gathered()"  # with another limit the state is still readable

    def initial(self, scope: Scope) -> list[str]:
        return ["[]", "[]"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        insert = scope.bind(insert_bounded, "insert_bounded")
        return [f"{insert}({slots[0]}, {slots[1]}, t, {inputs[0].local}, {self.limit})"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        merged = scope.bind(merged_bounded, "merged_bounded")
        return [f"{out[0]}, {out[1]} = {merged}({', '.join([*left, *right])}, {self.limit})"]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        return [(slots[0], slots[0]), stored_list(scope, slots[1], self.declared or types[0])]


@dataclass(frozen=True)
class Greatest(Gathered):
    """The ``limit`` values of greatest rank: their (-rank, time) and they, as two lists.

    Of equal ranks the earlier time is greater, of equal times the one that came first.
    """

    numeric: ClassVar[tuple[bool, ...]] = (False, True)

    @property
    def signature(self) -> str:
        return "Greatest()"

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        insert = scope.bind(insert_bounded, "insert_bounded")
        order, values = slots
        x, rank = (read.local for read in inputs)
        return [
            f"{me} = {order}",
            # Most records are below the least of those kept. NaN has no rank.
            f"if {rank} == {rank} and (len({me}) < {self.limit} or -{rank} <= {me}[-1][0]):",
            f"    {insert}({me}, {values}, [-{rank}, t], {x}, {self.limit})",
        ]


def insert_bounded(order: list[Any], values: list[Any], at: Any, value: Any, limit: int) -> None:
    """Put a value in its place, after those that are equal, and keep ``limit`` of them."""
    if not order or not at < order[-1]:
        if len(order) < limit:
            order.append(at)
            values.append(value)
        return
    place = bisect_right(order, at)
    order.insert(place, at)
    values.insert(place, value)
    if len(order) > limit:
        del order[limit:], values[limit:]


def merged_bounded(
    left_order: list[Any],
    left_values: list[Any],
    right_order: list[Any],
    right_values: list[Any],
    limit: int,
) -> tuple[list[Any], list[Any]]:
    """Return both in order, those of the left first where equal, and ``limit`` of them."""
    order, values = left_order + right_order, left_values + right_values
    # A sort that is stable, and cheap on two runs that are in order.
    places = sorted(range(len(order)), key=order.__getitem__)[:limit]
    return [order[place] for place in places], [values[place] for place in places]
