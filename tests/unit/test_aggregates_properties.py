"""Any split into batches, any merges and any restarts give what a brute-force pass gives."""

import math
import statistics
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise
from operator import mul

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.aggregates import (
    EWMA,
    Aggregate,
    Collect,
    Count,
    First,
    Histogram,
    Last,
    Max,
    Mean,
    Min,
    Rate,
    StdDev,
    Sum,
    TopK,
    Variance,
    compile_aggregates,
)

EDGES = (-100, 0, 0.5, 100)
WINDOW = (0, 2000)
HALF_LIFE = 300  # ms


class Reading(msgspec.Struct):
    key: str
    value: int | float | None
    name: str | None
    amount: Decimal
    at: int


class Longest(Aggregate):
    """A user's own, whose state is no plain data."""

    def initialize(self):
        return set()

    def add(self, state, value, timestamp):
        state.add(value)
        return state

    def merge(self, left, right):
        return left | right

    def result(self, state, window=None):
        return sorted(state)

    def encode(self, state):
        return sorted(state)

    def decode(self, plain):
        return set(plain)


AGGREGATES = {
    "rows": Count(),
    "n": Count("value"),
    "total": Sum("value"),
    "mean": Mean("value"),
    "low": Min("value"),
    "high": Max("value"),
    "low_name": Min("name"),
    "low_amount": Min("amount"),
    "variance": Variance("value"),
    "population": Variance("value", sample=False),
    "deviation": StdDev("value"),
    "first": First("name"),
    "last": Last("name"),
    "last_record": Last(),
    "three": Collect("name", limit=3),
    "all": Collect(lambda record: record.at),
    "top": TopK("name", k=2, by="value"),
    "top_values": TopK("value", k=3),
    "bins": Histogram("value", EDGES),
    "rate": Rate(),
    "recent": EWMA("value", half_life=HALF_LIFE / 1000),
    "names": Longest("name"),
}


def brute_force(rows):
    """Return the results over records in the order in which they came."""
    values = [row.value for row in rows if row.value is not None]
    named = [row for row in rows if row.name is not None]
    in_time = sorted(named, key=lambda row: row.at)  # stable: ties as they came
    ranked = sorted((r for r in named if r.value is not None), key=lambda r: (-r.value, r.at))
    with_value = sorted(
        (row for row in rows if row.value is not None), key=lambda row: (-row.value, row.at)
    )
    times = [row.at for row in rows if row.value is not None]
    weights = [0.5 ** ((max(times) - time) / HALF_LIFE) for time in times]
    bounds = [-math.inf, *EDGES, math.inf]
    return {
        "rows": len(rows),
        "n": len(values),
        "total": math.fsum(values),
        "mean": statistics.fmean(values) if values else None,
        "low": min(values, default=None),
        "high": max(values, default=None),
        "low_name": min((row.name for row in named), default=None),
        "low_amount": min((row.amount for row in rows), default=None),
        "variance": statistics.variance(values) if len(values) > 1 else None,
        "population": statistics.pvariance(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "first": in_time[0].name if in_time else None,
        "last": in_time[-1].name if in_time else None,
        "last_record": sorted(rows, key=lambda row: row.at)[-1] if rows else None,
        "three": [row.name for row in in_time[:3]],
        "all": sorted(row.at for row in rows),
        "top": [row.name for row in ranked[:2]],
        "top_values": [row.value for row in with_value[:3]],
        "bins": [sum(low <= value < high for value in values) for low, high in pairwise(bounds)],
        "rate": len(rows) / 2,
        "recent": math.fsum(map(mul, values, weights)) / sum(weights) if values else None,
        "names": sorted({row.name for row in named}),
    }


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-5), name
        else:
            assert found[name] == value, name


READINGS = st.builds(
    Reading,
    key=st.sampled_from("ab"),
    value=st.none() | st.integers(-1000, 1000) | st.floats(-1000, 1000, width=32),
    name=st.none() | st.text(max_size=2),
    amount=st.decimals(-10, 10, places=2),
    at=st.integers(0, 1999) | st.integers(0, 3),
)
ROWS = st.lists(READINGS, max_size=40)
PROGRAM = compile_aggregates(AGGREGATES, Reading)


def pieces(rows, cuts):
    """Split rows where ``cuts``, cycled, say."""
    start = 0
    while start < len(rows):
        for cut in cuts:
            yield rows[start : start + cut]
            start += cut


def feed(states, rows, program=PROGRAM, missing=None):
    program.update(
        states,
        [row.key for row in rows],
        rows,
        [row.at for row in rows],
        missing or (lambda key: program.new()),
    )


CUTS = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@given(ROWS, CUTS, st.booleans())
def test_batches_and_restarts(rows, cuts, restart):
    stored, states = {}, {}

    def missing(key):
        return PROGRAM.decode(stored[key]) if key in stored else PROGRAM.new()

    for piece in pieces(rows, cuts):
        feed(states, piece, missing=missing)
        if restart:
            stored.update((key, PROGRAM.encode(state)) for key, state in states.items())
            states.clear()
    by_key = defaultdict(list)
    for row in rows:
        by_key[row.key].append(row)
    assert (stored if restart else states).keys() == by_key.keys()
    for key, mine in by_key.items():
        check(PROGRAM.result(missing(key) if restart else states[key], WINDOW), brute_force(mine))


@given(ROWS, CUTS, st.data())
def test_merges(rows, cuts, data):
    parts = []
    for piece in pieces(rows, cuts):
        states = {}
        feed(states, [msgspec.structs.replace(row, key="a") for row in piece])
        parts.append(states.get("a", PROGRAM.new()))
    rows = [msgspec.structs.replace(row, key="a") for row in rows]
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        before = [PROGRAM.encode(part) for part in parts[at : at + 2]]
        merged = PROGRAM.merge(*parts[at : at + 2])
        assert [PROGRAM.encode(part) for part in parts[at : at + 2]] == before
        parts[at : at + 2] = [PROGRAM.decode(PROGRAM.encode(merged))]
    check(PROGRAM.result(parts[0] if parts else PROGRAM.new(), WINDOW), brute_force(rows))


@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(rows, random):
    """But for ties, so the times differ here."""
    rows = [
        msgspec.structs.replace(row, key="a", at=time, value=None if row.value is None else time)
        for time, row in enumerate(rows)
    ]
    shuffled = random.sample(rows, len(rows))
    found = []
    for order in (rows, shuffled):
        states = {"a": PROGRAM.new()}
        feed(states, order)
        found.append(PROGRAM.result(states["a"], WINDOW))
    check(found[0], found[1])


@given(ROWS)
@settings(max_examples=30)
def test_merging_what_was_merged_leaves_it_alone(rows):
    """Panes are merged into several windows, and go on being added to."""
    left, right = {"a": PROGRAM.new()}, {"a": PROGRAM.new()}
    rows = [msgspec.structs.replace(row, key="a") for row in rows]
    half = len(rows) // 2
    feed(left, rows[:half])
    feed(right, rows[half:])
    merged = PROGRAM.merge(left["a"], right["a"])
    before = PROGRAM.encode(merged)
    feed(left, rows)
    feed(right, rows)
    assert PROGRAM.encode(merged) == before


@given(ROWS)
@settings(max_examples=30)
def test_dicts_are_records_too(rows):
    program = compile_aggregates({"n": Count("value"), "sum": Sum("value"), "low": Min("value")})
    results = []
    for values in (rows, [msgspec.to_builtins(row) for row in rows]):
        states = {"a": program.new()}
        program.update(states, ["a"] * len(rows), values, [row.at for row in rows], program.new)
        results.append(program.result(states["a"]))
    assert results[0] == results[1]


@given(ROWS)
@settings(max_examples=30)
def test_methods_of_one_aggregate_equal_the_program(rows):
    program = compile_aggregates(AGGREGATES)
    states = {"a": program.new()}
    feed(states, [msgspec.structs.replace(row, key="a") for row in rows], program)
    expected = program.result(states["a"], WINDOW)
    for name, aggregate in AGGREGATES.items():
        half = len(rows) // 2
        left, right = aggregate.initialize(), aggregate.initialize()
        for number, row in enumerate(rows):
            value = aggregate.pick(msgspec.structs.replace(row, key="a"))
            if value is None:
                continue
            if number < half:
                left = aggregate.add(left, value, row.at)
            else:
                right = aggregate.add(right, value, row.at)
        result = aggregate.result(aggregate.merge(left, right), WINDOW)
        check({name: result}, {name: expected[name]})


def test_variance_far_from_zero():
    program = compile_aggregates({"v": Variance(), "d": StdDev()})
    state = program.new()
    program.update({0: state}, [0] * 4, [1e9 + x for x in (4, 7, 13, 16)], [0] * 4, lambda _: state)
    assert program.result(state) == {"v": 30.0, "d": math.sqrt(30)}


def test_sums_beyond_64_bits_are_exact():
    program = compile_aggregates({"total": Sum(), "mean": Mean(), "high": Max()})
    state = program.new()
    values = [2**63 - 1] * 5 + [10**40]
    program.update({0: state}, [0] * 6, values, [0] * 6, lambda _: state)
    assert program.decode(program.encode(state)) == state
    assert program.result(state)["total"] == sum(values)


def test_nan_is_no_least_and_no_greatest():
    program = compile_aggregates(
        {"low": Min(), "high": Max(), "bins": Histogram(None, [0]), "top": TopK(k=2)}
    )
    plain = compile_aggregates({"low": Min(), "high": Max()})
    for values in ([math.nan, 1.0, 2.0], [2.0, math.nan, 1.0]):
        for each in (program, plain):
            state = each.new()
            each.update({0: state}, [0] * 3, values, [0] * 3, lambda _, state=state: state)
            found = each.result(state)
            assert (found["low"], found["high"]) == (1.0, 2.0)
        assert found.keys() == plain.result(plain.new()).keys()
    assert program.result(program.new()) == {"low": None, "high": None, "bins": [0, 0], "top": []}


def test_results_of_nothing():
    expected = brute_force_of_nothing()
    assert PROGRAM.result(PROGRAM.new(), WINDOW) == expected
    assert PROGRAM.result(PROGRAM.merge(PROGRAM.new(), PROGRAM.new()), WINDOW) == expected


def brute_force_of_nothing():
    return brute_force([]) | {"total": 0, "rate": 0.0}
