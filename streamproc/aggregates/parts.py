"""The parts that built-in aggregations are made of, as source for one loop over all of them.

A part is a few slots of a key's accumulator (a flat list) and the lines that make, update
and merge them. Aggregations over the same field share equal parts: a mean, a sum and a
count keep one sum and one count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

#: Slots as expressions ("acc[3]"), first those of the part, then those of what it needs.
Slots = Sequence[str]
#: How a slot is stored and read again, as expressions.
Plain = tuple[str, str]


class Number:
    """The type of an input that was checked to be an int or a float."""


class Scope:
    """The objects that generated source speaks of, under names of their own."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}

    def bind(self, value: Any, name: str) -> str:
        """Return the name under which source finds ``value``."""
        for bound, other in self.names.items():
            if other is value:
                return bound
        unique = f"{name}_{len(self.names)}"
        self.names[unique] = value
        return unique


@dataclass(frozen=True)
class Part:
    """Some slots; derived classes say how they begin, change and merge.

    The lines of :meth:`prepare` may raise and may only write locals (``{me}`` and what
    begins with it); the lines of :meth:`apply` run after those of all parts and must not
    raise: so a record is counted in all parts or in none.
    """

    #: Whether the value must be a number, for each input.
    numeric: ClassVar[tuple[bool, ...]] = (False,)
    #: Whether it would rather have numbers where another part has them checked.
    takes_numbers: ClassVar[bool] = False

    @property
    def signature(self) -> str:
        """What must be the same for stored slots to be readable."""
        return repr(self)

    def initial(self, scope: Scope) -> list[str]:
        """Return an expression for each slot of no records."""
        raise NotImplementedError

    def prepare(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        """Return lines that compute, and may raise."""
        return []

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        """Return lines that change the slots."""
        raise NotImplementedError

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        """Return lines that set the ``out`` slots, and change neither left nor right."""
        raise NotImplementedError

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        """Return how each slot is stored and read, given the types of the inputs if known."""
        return [(slot, slot) for slot in slots]


@dataclass(frozen=True)
class Input:
    """A value read of each record, in generated source."""

    #: The local that holds it.
    local: str
    #: Whether it was checked to be a number.
    numeric: bool


@dataclass(frozen=True)
class Use:
    """A part over inputs (by number), and what it needs of others."""

    part: Part
    inputs: tuple[int, ...]
    needs: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Rows(Part):
    """How many records there were (of no input), or how many had a value."""

    def initial(self, scope: Scope) -> list[str]:
        return ["0"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        return [f"{slots[0]} += 1"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [f"{out[0]} = {left[0]} + {right[0]}"]


@dataclass(frozen=True)
class Total(Rows):
    """The sum."""

    numeric: ClassVar[tuple[bool, ...]] = (True,)

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        return [f"{slots[0]} += {inputs[0].local}"]


@dataclass(frozen=True)
class Spread(Part):
    """Running mean and sum of squared differences from it, without cancellation.

    Updates by B. P. Welford, "Note on a Method for Calculating Corrected Sums of Squares
    and Products", Technometrics 4 (3), 1962; merges by T. F. Chan, G. H. Golub and R. J.
    LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    Stanford STAN-CS-79-773, 1979. Needs the number of values, counted before it.
    """

    numeric: ClassVar[tuple[bool, ...]] = (True,)

    def initial(self, scope: Scope) -> list[str]:
        return ["0.0", "0.0"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x = inputs[0].local
        mean, squares, count = slots
        return [
            f"{me} = {x} - {mean}",
            f"{me}_mean = {mean} + {me} / {count}",
            f"{squares} += {me} * ({x} - {me}_mean)",
            f"{mean} = {me}_mean",
        ]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        chan = scope.bind(merged_spread, "merged_spread")
        return [f"{out[0]}, {out[1]} = {chan}({', '.join([*left, *right])})"]


def merged_spread(
    left_mean: float,
    left_squares: float,
    left: int,
    right_mean: float,
    right_squares: float,
    right: int,
) -> tuple[float, float]:
    """Return mean and sum of squares of two sets of values (Chan et al. 1979)."""
    if not left:
        return right_mean, right_squares
    if not right:
        return left_mean, left_squares
    count = left + right
    apart = right_mean - left_mean
    return (
        left_mean + apart * (right / count),
        left_squares + right_squares + apart * apart * (left * (right / count)),
    )


@dataclass(frozen=True)
class Decayed(Part):
    """Sum of values and of weights, each halved per half-life before the latest time.

    The weights depend on event times alone, so order doesn't matter; compare G. Cormode et
    al., "Forward Decay: A Practical Time Decay Model for Streaming Systems", ICDE 2009.
    """

    half_life: int  # ms

    numeric: ClassVar[tuple[bool, ...]] = (True,)

    def initial(self, scope: Scope) -> list[str]:
        return ["None", "0.0", "0.0"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x = inputs[0].local
        latest, total, weight = slots
        return [
            f"{me} = {latest}",
            f"if {me} is None:",
            f"    {latest} = t; {total} = {x}; {weight} = 1.0",
            f"elif t >= {me}:",
            f"    {me} = 0.5 ** ((t - {me}) / {self.half_life})",
            f"    {latest} = t; {total} = {total} * {me} + {x}; {weight} = {weight} * {me} + 1.0",
            "else:",
            f"    {me} = 0.5 ** (({me} - t) / {self.half_life})",
            f"    {total} += {x} * {me}; {weight} += {me}",
        ]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        merged = scope.bind(merged_decayed, "merged_decayed")
        both = ", ".join([*left, *right])
        return [f"{', '.join(out)} = {merged}({self.half_life}, {both})"]


def merged_decayed(
    half_life: int,
    left_time: int | None,
    left_total: float,
    left_weight: float,
    right_time: int | None,
    right_total: float,
    right_weight: float,
) -> tuple[int | None, float, float]:
    """Return the later time, and the sums of both as of then."""
    if left_time is None:
        return right_time, right_total, right_weight
    if right_time is None:
        return left_time, left_total, left_weight
    if right_time < left_time:
        factor = 0.5 ** ((left_time - right_time) / half_life)
        return left_time, left_total + right_total * factor, left_weight + right_weight * factor
    factor = 0.5 ** ((right_time - left_time) / half_life)
    return right_time, left_total * factor + right_total, left_weight * factor + right_weight
