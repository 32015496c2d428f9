"""Parts that summarise many values in little space: sketches of Apache DataSketches, and bins.

Their ``update`` takes 0.06 µs a value, so it is called in the loop as any other line: an
array of a key's values in a batch costs more to make until it holds some twenty.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import msgspec

from streamproc.aggregates.parts import Input, Part, Plain, Scope, Slots
from streamproc.errors import DecodeError

#: The empty text, which the library doesn't count, under another name.
EMPTY_TEXT = "\x00empty"


def library() -> Any:
    """Return datasketches, imported when first needed: numpy under it takes 0.1 s."""
    import datasketches  # type: ignore[import-untyped]

    return datasketches


@dataclass(frozen=True)
class Distinct(Part):
    """A HyperLogLog sketch of 2**precision registers.

    P. Flajolet et al., "HyperLogLog: the analysis of a near-optimal cardinality estimation
    algorithm", AofA 2007; S. Heule et al., "HyperLogLog in Practice", EDBT 2013.
    """

    precision: int

    def initial(self, scope: Scope) -> list[str]:
        return [f"{scope.bind(library().hll_sketch, 'hll_sketch')}({self.precision})"]

    def prepare(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x = inputs[0].local
        hashable = scope.bind(hashable_form, "hashable_form")
        # The form is found before anything changes: a value may have none.
        return [
            f"{me} = {x}",
            f"if {x}.__class__ is int:",
            f"    if not {-(2**63)} <= {x} < {2**63}:",
            f"        {me} = {hashable}({x})",
            f"elif not {x} or {x}.__class__ is not str:",
            f"    {me} = {hashable}({x})",
        ]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        return [f"{slots[0]}.update({me})"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        merged = scope.bind(merged_distinct, "merged_distinct")
        return [f"{out[0]} = {merged}({self.precision}, {left[0]}, {right[0]})"]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        read = scope.bind(partial(deserialized, library().hll_sketch), "read_hll")
        return [(f"{slots[0]}.serialize_compact()", f"{read}({slots[0]})")]


def hashable_form(value: Any) -> Any:
    """Return the text or number that stands for a value in a sketch of distinct ones.

    Numbers that are equal count once (1, 1.0 and True); other types don't meet.

    Raises:
        TypeError: The value is of no type that MessagePack knows.
    """
    if isinstance(value, str):
        return str(value) or EMPTY_TEXT
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
        return value if -(2**63) <= value < 2**63 else f"\x00int {value}"
    if isinstance(value, float):
        return float(value)
    encoded = msgspec.msgpack.encode(value, order="deterministic")
    return f"\x00{type(value).__qualname__} {encoded.hex()}"


def merged_distinct(precision: int, left: Any, right: Any) -> Any:
    """Return the sketch of both."""
    union = library().hll_union(precision)
    union.update(left)
    union.update(right)
    # The type that costs least to update and to merge.
    return union.get_result(library().tgt_hll_type.HLL_8)


@dataclass(frozen=True)
class Ranks(Part):
    """A KLL sketch; NaN is left out.

    Z. Karnin, K. Lang, E. Liberty, "Optimal Quantile Approximation in Streams", FOCS 2016.
    """

    size: int

    numeric: ClassVar[tuple[bool, ...]] = (True,)

    def initial(self, scope: Scope) -> list[str]:
        return [f"{scope.bind(library().kll_doubles_sketch, 'kll_sketch')}({self.size})"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        return [f"{slots[0]}.update({inputs[0].local})"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [
            f"{out[0]} = {self.initial(scope)[0]}",
            f"{out[0]}.merge({left[0]})",
            f"{out[0]}.merge({right[0]})",
        ]

    def plain(self, scope: Scope, slots: Slots, types: Sequence[Any]) -> list[Plain]:
        read = scope.bind(partial(deserialized, library().kll_doubles_sketch), "read_kll")
        return [(f"{slots[0]}.serialize()", f"{read}({slots[0]})")]


def deserialized(sketch: Any, data: bytes) -> Any:
    """Return a sketch from its bytes.

    Raises:
        DecodeError: They aren't those of one.
    """
    try:
        return sketch.deserialize(data)
    except (IndexError, TypeError, ValueError, RuntimeError) as exc:
        raise DecodeError(f"a stored {sketch.__name__} can't be read: {exc}") from exc


@dataclass(frozen=True)
class Bins(Part):
    """How many values lie below, between and above edges; NaN in none."""

    edges: tuple[float, ...]

    numeric: ClassVar[tuple[bool, ...]] = (True,)

    def initial(self, scope: Scope) -> list[str]:
        return [f"[0] * {len(self.edges) + 1}"]

    def apply(self, scope: Scope, slots: Slots, me: str, inputs: Sequence[Input]) -> list[str]:
        x = inputs[0].local
        bisect, edges = scope.bind(bisect_right, "bisect"), scope.bind(self.edges, "edges")
        return [f"if {x} == {x}:", f"    {slots[0]}[{bisect}({edges}, {x})] += 1"]

    def merge(self, scope: Scope, out: Slots, left: Slots, right: Slots) -> list[str]:
        return [f"{out[0]} = [a + b for a, b in zip({left[0]}, {right[0]})]"]
