"""The built-in aggregations."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import pairwise
from math import isfinite, sqrt
from operator import itemgetter
from typing import Any

from streamproc.aggregates.base import Composed, Of, Window, checked, picked
from streamproc.aggregates.kept import Earliest, Extreme, Gathered, Greatest, Latest
from streamproc.aggregates.parts import Decayed, Rows, Scope, Spread, Total, Use
from streamproc.aggregates.plain import readable
from streamproc.aggregates.program import Program
from streamproc.aggregates.sketches import Bins, Distinct, Ranks
from streamproc.errors import ConfigurationError
from streamproc.records.durations import Duration, duration


class Standard(Composed):
    """A built-in aggregation, inlined by a program; a derived class may override methods.

    For those its state is the accumulator of a program of its own.
    """

    @cached_property
    def _alone(self) -> Program:
        return Program({type(self).__name__: _Picked(self)})

    @property
    def inlined(self) -> bool:
        # A class derived from one of these may override any method.
        return type(self).__module__ == __name__

    def initialize(self) -> Any:
        return self._alone.new()

    def add(self, state: Any, value: Any, timestamp: int) -> Any:
        states = {None: state}
        self._alone.update(states, [None], [value], [timestamp], lambda _: state)
        return state

    def merge(self, left: Any, right: Any) -> Any:
        return self._alone.merge(left, right)

    def result(self, state: Any, window: Window | None = None) -> Any:
        return self._alone.result(state, window)[type(self).__name__]

    def encode(self, state: Any) -> Any:
        return self._alone.encode(state)

    def decode(self, plain: Any) -> Any:
        return self._alone.decode(plain)


class _Picked(Composed):
    """The same aggregation, of values that are picked already."""

    def __init__(self, aggregate: Composed) -> None:
        super().__init__()
        self._aggregate = aggregate

    @property
    def inputs(self) -> tuple[Of, ...]:
        count = len(self._aggregate.inputs)
        return (None,) if count == 1 else tuple(itemgetter(number) for number in range(count))

    @property
    def inlined(self) -> bool:
        return True

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return self._aggregate.uses(*inputs)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return self._aggregate.outcome(scope, *slots)

    def __repr__(self) -> str:
        return repr(self._aggregate)


class Count(Standard):
    """Number of records, or of those whose value is not None.

    >>> Count(), Count("value")
    (Count(), Count('value'))
    """

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Rows(), () if self.of is None else inputs),)


class Sum(Standard):
    """Sum of numbers; 0 of none. Ints are exact, floats as exact as their additions."""

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Total(), inputs),)


class Mean(Standard):
    """Arithmetic mean; None of none."""

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return Use(Total(), inputs), Use(Rows(), inputs)

    def outcome(self, scope: Scope, *slots: str) -> str:
        total, count = slots
        return f"{total} / {count} if {count} else None"


class Min(Standard):
    """Least value, of numbers or of anything else that is ordered; None of none.

    NaN is left out. Beside an aggregation of the same field that takes only numbers, it is
    of numbers, too.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        type: Type of the values, if MessagePack doesn't have it (a date, a Decimal) and the
            type of the records isn't known.
    """

    _sign = "<"

    def __init__(self, of: Of = None, *, type: Any = None) -> None:
        super().__init__(of)
        self.type = _restorable(type)

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Extreme(self._sign, self.type), inputs),)


class Max(Min):
    """Greatest value; otherwise as :class:`Min`."""

    _sign = ">"


class Variance(Standard):
    """Variance of numbers, updated as Welford (1962) and merged as Chan et al. (1979) do.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        sample: Divide by n - 1 (None of fewer than two values); else by n (None of none).
    """

    def __init__(self, of: Of = None, *, sample: bool = True) -> None:
        super().__init__(of)
        self.sample = sample

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        count = Use(Rows(), inputs)
        return Use(Spread(), inputs, (count,)), count

    def outcome(self, scope: Scope, *slots: str) -> str:
        _, squares, count = slots
        less = 1 if self.sample else 0
        return f"{squares} / ({count} - {less}) if {count} > {less} else None"


class StdDev(Variance):
    """Standard deviation; otherwise as :class:`Variance`."""

    def outcome(self, scope: Scope, *slots: str) -> str:
        _, squares, count = slots
        less = 1 if self.sample else 0
        root = scope.bind(sqrt, "sqrt")
        return f"{root}({squares} / ({count} - {less})) if {count} > {less} else None"


class First(Standard):
    """Value of the earliest event time, of equal times the one that came first; None of none.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        type: Type of the values, see :class:`Min`.
    """

    def __init__(self, of: Of = None, *, type: Any = None) -> None:
        super().__init__(of)
        self.type = _restorable(type)

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Earliest(self.type), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return slots[1]


class Last(First):
    """Value of the latest event time, of equal times the one that came last; None of none."""

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Latest(self.type), inputs),)


class Collect(Standard):
    """List of values in the order of their event times, of equal times as they came.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        limit: Keep the earliest so many; a state is as large as the values in it.
        type: Type of the values, see :class:`Min`.
    """

    def __init__(self, of: Of = None, *, limit: int = 1000, type: Any = None) -> None:
        super().__init__(of)
        self.limit = _positive("limit", limit)
        self.type = _restorable(type)

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Gathered(self.limit, self.type), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{slots[1]}[:{self.limit}]"


class TopK(Standard):
    """List of the ``k`` values of highest rank, the highest first.

    Of equal ranks the earlier event time goes first, of equal times the one that came first.

    Args:
        of: What to list, see :class:`Aggregate`.
        k: How many.
        by: The rank, a number: a field, a function, or None: the value itself.
        type: Type of the values, see :class:`Min`.
    """

    def __init__(self, of: Of = None, *, k: int = 10, by: Of = None, type: Any = None) -> None:
        super().__init__(of)
        self.k = _positive("k", k)
        self.by = of if by is None else checked(by)
        self.type = _restorable(type)

    @property
    def inputs(self) -> tuple[Of, ...]:
        return self.of, self.by

    def pick(self, record: Any) -> Any:
        """Return value and rank, or None if one of them is None."""
        value, rank = picked(self.of, record), picked(self.by, record)
        return None if value is None or rank is None else (value, rank)

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Greatest(self.k, self.type), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{slots[1]}[:{self.k}]"


class ApproxDistinct(Standard):
    """About how many different values there were, as an int (HyperLogLog).

    Numbers that are equal are the same value (1, 1.0, True). The standard error is
    1.04 / sqrt(2**precision), 1.6 % by default; few values are counted exactly, or nearly.
    A state takes up to 2**precision bytes.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        precision: 7 to 21.
    """

    def __init__(self, of: Of = None, *, precision: int = 12) -> None:
        super().__init__(of)
        if not 7 <= precision <= 21:
            raise ConfigurationError(f"precision={precision!r} must be from 7 to 21")
        self.precision = precision

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Distinct(self.precision), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"round({slots[0]}.get_estimate())"


class Quantiles(Standard):
    """Values at ranks, such as the median and the 99th percentile (a KLL sketch).

    The result is a list parallel to ``qs``: for each q the least value that at least the
    share q of all values doesn't exceed; None of none. The rank error is about
    2.3 / size**0.97 with 99 % confidence (1.3 % at 200); 0 and 1 are exact, and so are all
    while the values number at most ``size``. Ints come back as floats, NaN is left out. A
    state takes 2 to 4 KB at 200.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        qs: Ranks, 0 (the least value) to 1 (the greatest).
        size: 8 to 65535; more is more exact and larger.
    """

    def __init__(
        self, of: Of = None, qs: tuple[float, ...] | list[float] = (0.5,), *, size: int = 200
    ) -> None:
        super().__init__(of)
        self.qs = tuple(qs)
        for q in self.qs:
            if not 0 <= q <= 1:
                raise ConfigurationError(f"q={q!r} must be from 0 to 1")
        if not 8 <= size <= 65535:
            raise ConfigurationError(f"size={size!r} must be from 8 to 65535")
        self.size = size

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Ranks(self.size), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{scope.bind(partial(_at_ranks, self.qs), 'at_ranks')}({slots[0]})"


class Quantile(Quantiles):
    """Value at one rank; otherwise as :class:`Quantiles`, which shares its sketch.

    >>> Quantile("value", 0.99)
    Quantile('value', qs=[0.99], size=200)
    """

    def __init__(self, of: Of = None, q: float = 0.5, *, size: int = 200) -> None:
        super().__init__(of, (q,), size=size)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{super().outcome(scope, *slots)}[0]"


def _at_ranks(ranks: tuple[float, ...], sketch: Any) -> list[float | None]:
    if sketch.is_empty():
        return [None] * len(ranks)
    found = sketch.get_quantiles(ranks, True)
    # The sketch keeps the extremes apart from what it samples.
    exact: dict[float, float] = {0: sketch.get_min_value(), 1: sketch.get_max_value()}
    return [exact.get(rank, value) for rank, value in zip(ranks, found, strict=True)]


class Histogram(Standard):
    """Counts of values below the first edge, in each [edge, next edge), and from the last on.

    The result is a list of ``len(edges) + 1`` ints; NaN is in none of them.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        edges: Finite numbers in rising order.
    """

    def __init__(self, of: Of = None, edges: tuple[float, ...] | list[float] = ()) -> None:
        super().__init__(of)
        self.edges = tuple(edges)
        rising = all(low < high for low, high in pairwise(self.edges))
        if not self.edges or not rising or not all(map(isfinite, self.edges)):
            raise ConfigurationError(f"edges={edges!r} must be finite numbers in rising order")

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Bins(self.edges), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{slots[0]}[:]"


class Rate(Count):
    """Records (or values that are not None) per second of the window; None if it has no length.

    Raises:
        ConfigurationError: From ``result``, if there is no window.
    """

    def outcome(self, scope: Scope, *slots: str) -> str:
        return f"{scope.bind(_per_second, 'per_second')}({slots[0]}, window)"


def _per_second(count: int, window: Window | None) -> float | None:
    if window is None:
        raise ConfigurationError("Rate is per second of a window; aggregate in windows")
    start, end = window
    return count * 1000 / (end - start) if end > start else None


class EWMA(Standard):
    """Mean of numbers that weighs each by its age: half after each half-life; None of none.

    The age is that before the latest event time. The weights add up to one and don't depend
    on the order in which records come.

    Args:
        of: What to aggregate, see :class:`Aggregate`.
        half_life: A timedelta, seconds, or a text such as "30s"; above 0.
    """

    def __init__(self, of: Of = None, *, half_life: Duration) -> None:
        super().__init__(of)
        self.half_life = duration(half_life)
        if self.half_life <= 0:
            raise ConfigurationError(f"half_life={half_life!r} must be above 0")

    def uses(self, *inputs: int) -> tuple[Use, ...]:
        return (Use(Decayed(self.half_life), inputs),)

    def outcome(self, scope: Scope, *slots: str) -> str:
        _, total, weight = slots
        return f"{total} / {weight} if {weight} else None"


def _restorable(declared: Any) -> Any:
    if declared is not None and not readable(declared):
        raise ConfigurationError(f"type={declared!r} is no type that values can be read as")
    return declared


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be an int of at least 1")
    return value
