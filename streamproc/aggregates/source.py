"""Source of one loop over several aggregations, and whom to blame when a line of it raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from keyword import iskeyword
from numbers import Integral, Real
from typing import Any

from streamproc.aggregates.base import Of
from streamproc.aggregates.parts import Input, Number, Part, Scope

#: Part.prepare or Part.apply.
Lines = Callable[[Scope, Sequence[str], str, Sequence[Input]], list[str]]

#: Larger ints are refused: sums and means of them would not fit a float.
WIDEST = 2**1000


@dataclass(frozen=True)
class Placed:
    """A part, the numbers of its inputs, and its slots followed by those that it needs."""

    part: Part
    inputs: tuple[int, ...]
    slots: tuple[int, ...]
    own: int  # how many of the slots are the part's own

    @property
    def reads(self) -> list[tuple[int, bool]]:
        """The inputs, and whether each must be a number."""
        return list(zip(self.inputs, self.part.numeric, strict=False))  # some count no input

    def slots_of(self, accumulator: str) -> list[str]:
        """Return the slots as expressions."""
        return [f"{accumulator}[{slot}]" for slot in self.slots]


@dataclass(frozen=True)
class Origin:
    """What a line of the loop does: reads or checks inputs, or adds to a part."""

    action: str  # "read", "check" or "add"
    inputs: tuple[int, ...]
    placed: Placed | None = None


@dataclass
class Source:
    """Lines of source, and the origin of those that may raise because of a record."""

    lines: list[str] = field(default_factory=list)
    origins: dict[int, Origin] = field(default_factory=dict)

    def add(self, indent: int, *lines: str, origin: Origin | None = None) -> None:
        """Append lines."""
        for line in lines:
            self.lines.append("    " * indent + line)
            if origin is not None:
                self.origins[len(self.lines)] = origin

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines) + "\n"


def numbers_in(placed: Iterable[Placed]) -> set[int]:
    """Return the inputs that must be numbers."""
    return {number for each in placed for number, numeric in each.reads if numeric}


def loop(scope: Scope, inputs: Sequence[Of], placed: Sequence[Placed], blame: str) -> Source:
    """Return the source of ``update``.

    All that can fail for a record comes before all that changes its accumulator.
    """
    source = Source()
    checked = numbers_in(placed)
    source.add(0, "def update(states, keys, values, timestamps, missing):")
    source.add(1, "get = states.get", "rows = iter(values)", "try:")
    source.add(2, "for key, v, t in zip(keys, rows, timestamps):")
    used = {number for each in placed for number in each.inputs}
    _reads(source, scope, {number: inputs[number] for number in sorted(used)})
    for number in sorted(checked):
        _check(source, scope, number)
    source.add(3, "acc = get(key)", "if acc is None:")
    source.add(4, "acc = states[key] = missing(key)")
    ready = [(each, each.part.prepare) for each in placed]
    _additions(source, scope, ready, checked)
    # The inputs that are alike together; those of a part and of what it needs are.
    applied = sorted(placed, key=lambda each: each.inputs)
    _additions(source, scope, [(each, each.part.apply) for each in applied], checked)
    source.add(1, "except Exception as error:")
    source.add(2, f"problem = {blame}(error, locals())", "if problem is None:", "    raise")
    source.add(2, "raise problem from error")
    return source


def _reads(source: Source, scope: Scope, inputs: Mapping[int, Of]) -> None:
    """Read each input of a record once, into x0, x1..."""
    fields = [(number, of) for number, of in inputs.items() if isinstance(of, str)]
    if fields:
        source.add(3, "if v.__class__ is dict:")
        for number, name in fields:
            source.add(4, f"x{number} = v[{name!r}]", origin=Origin("read", (number,)))
        source.add(3, "else:")
        for number, name in fields:
            read = f"v.{name}" if _can_be_written(name) else f"getattr(v, {name!r})"
            source.add(4, f"x{number} = {read}", origin=Origin("read", (number,)))
    for number, of in inputs.items():
        if of is None:
            source.add(3, f"x{number} = v")
        elif not isinstance(of, str):
            call = f"x{number} = {scope.bind(of, 'pick')}(v)"
            source.add(3, call, origin=Origin("read", (number,)))


def _can_be_written(name: str) -> bool:
    return name.isascii() and name.isidentifier() and not iskeyword(name)


def _check(source: Source, scope: Scope, number: int) -> None:
    """Make n0 of x0: a float, an int or None; floats cost least."""
    origin = Origin("check", (number,))
    convert = scope.bind(as_number, "as_number")
    most, least = scope.bind(WIDEST, "most"), scope.bind(-WIDEST, "least")
    source.add(
        3,
        f"n{number} = x{number}",
        f"if n{number}.__class__ is not float and n{number} is not None:",
        f"    if n{number}.__class__ is not int or not {least} < n{number} < {most}:",
        f"        n{number} = {convert}(n{number})",
        origin=origin,
    )


def as_number(value: Any) -> float:
    """Return a number as an int or float: one of numpy's, a bool, a Decimal or a Fraction.

    Raises:
        TypeError: It is no number.
        OverflowError: It is an int too large for a float.
    """
    if isinstance(value, Integral):
        number = int(value)
        float(number)  # raises if it is too large
        if not -WIDEST < number < WIDEST:
            raise OverflowError("int too large to convert to float")
        return number
    if isinstance(value, Real | Decimal):
        return float(value)
    raise TypeError("not a number")


def _additions(
    source: Source, scope: Scope, work: Iterable[tuple[Placed, Lines]], checked: set[int]
) -> None:
    """Add the lines of parts, neighbours with the same inputs under one test for None."""
    tested: tuple[int, ...] = ()
    for each, lines_of in work:
        reads = [_input(*read, each.part.takes_numbers, checked) for read in each.reads]
        lines = lines_of(scope, each.slots_of("acc"), f"p{each.slots[0]}", reads)
        if lines and each.inputs != tested:
            tested = each.inputs
            tests = dict.fromkeys(f"x{which} is not None" for which in tested)
            source.add(3, *[f"if {' and '.join(tests)}:"] if tested else [])
        source.add(4 if each.inputs else 3, *lines, origin=Origin("add", each.inputs, each))


def _input(number: int, numeric: bool, takes_numbers: bool, checked: set[int]) -> Input:
    if numeric or (takes_numbers and number in checked):
        return Input(f"n{number}", True)
    return Input(f"x{number}", False)


def others(
    scope: Scope,
    placed: Sequence[Placed],
    width: int,
    results: dict[str, str],
    types: Sequence[Any],
) -> str:
    """Return the source of ``new``, ``merge``, ``result``, ``plain`` and ``restore``.

    Args:
        scope: Where their objects go.
        placed: The parts.
        width: Number of slots.
        results: The expression of each result.
        types: The type of each input, if known.
    """
    source, checked = Source(), numbers_in(placed)
    initial, stored, read = [""] * width, [""] * width, [""] * width
    source.add(0, "def merge(left, right):", f"    out = [None] * {width}")
    for each in placed:
        left, right, out = (each.slots_of(name) for name in ("left", "right", "out"))
        source.add(1, *each.part.merge(scope, out[: each.own], left, right))
        own = each.slots[: each.own]
        known = [
            Number if each.part.takes_numbers and number in checked else types[number]
            for number in each.inputs
        ]
        plain = each.part.plain(scope, each.slots_of("acc")[: each.own], known)
        for slot, expression, (write, restore) in zip(
            own, each.part.initial(scope), plain, strict=True
        ):
            initial[slot], stored[slot], read[slot] = expression, write, restore
    source.add(1, "return out")
    source.add(0, "def new():", f"    return [{', '.join(initial)}]")
    source.add(0, "def plain(acc):", f"    return [{', '.join(stored)}]")
    source.add(0, "def restore(acc):", f"    return [{', '.join(read)}]")
    shown = ", ".join(f"{name!r}: {expression}" for name, expression in results.items())
    source.add(0, "def result(acc, window=None):", f"    return {{{shown}}}")
    return source.text
