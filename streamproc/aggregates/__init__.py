"""Aggregations: what a window or a table keeps of the records of a key.

>>> program = compile_aggregates({"n": Count(), "mean": Mean("value")})
>>> states = {}
>>> program.update(
...     states, ["a", "a"], [{"value": 1}, {"value": 2}], [0, 1], lambda key: program.new()
... )
>>> program.result(states["a"])
{'n': 2, 'mean': 1.5}
"""

from streamproc.aggregates.base import Aggregate
from streamproc.aggregates.program import Program, compile_aggregates
from streamproc.aggregates.standard import (
    EWMA,
    ApproxDistinct,
    Collect,
    Count,
    First,
    Histogram,
    Last,
    Max,
    Mean,
    Min,
    Quantile,
    Quantiles,
    Rate,
    StdDev,
    Sum,
    TopK,
    Variance,
)

__all__ = [
    "EWMA",
    "Aggregate",
    "ApproxDistinct",
    "Collect",
    "Count",
    "First",
    "Histogram",
    "Last",
    "Max",
    "Mean",
    "Min",
    "Program",
    "Quantile",
    "Quantiles",
    "Rate",
    "StdDev",
    "Sum",
    "TopK",
    "Variance",
    "compile_aggregates",
]
