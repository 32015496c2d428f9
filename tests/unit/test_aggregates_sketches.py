"""Sketches stay within their error bounds, whatever the batches, merges and restarts."""

import random
from datetime import date
from uuid import UUID

import pytest

from streamproc.aggregates import ApproxDistinct, Quantile, Quantiles, compile_aggregates
from streamproc.errors import AggregateError

RANKS = [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1]


def filled(program, values):
    states = {0: program.new()}
    program.update(states, [0] * len(values), values, range(len(values)), lambda _: program.new())
    return states[0]


def in_pieces(program, values, count):
    """Return the state of values aggregated in pieces, stored, read and merged."""
    size = len(values) // count
    parts = [filled(program, values[start : start + size]) for start in range(0, len(values), size)]
    whole = parts[0]
    for part in parts[1:]:
        whole = program.decode(program.encode(program.merge(whole, part)))
    return whole


@pytest.mark.parametrize("pieces", [1, 10])
@pytest.mark.parametrize("shape", ["rising", "falling", "random", "steps"])
def test_quantiles(shape, pieces):
    values = {
        "rising": list(range(20_000)),
        "falling": list(range(20_000, 0, -1)),
        "random": [random.Random(5).lognormvariate(0, 2) for _ in range(20_000)],
        "steps": [float(number % 7) for number in range(20_000)],
    }[shape]
    program = compile_aggregates({"all": Quantiles(qs=RANKS), "p99": Quantile(q=0.99)})
    found = program.result(in_pieces(program, values, pieces))
    ordered = sorted(values)
    for rank, value in zip(RANKS, found["all"], strict=True):
        below = sum(other < value for other in ordered) / len(ordered)
        upto = sum(other <= value for other in ordered) / len(ordered)
        # Twice the bound that holds with 99 % confidence: KLL draws lots.
        assert below - 0.027 <= rank <= upto + 0.027
    assert found["all"][0] == ordered[0]
    assert found["all"][-1] == ordered[-1]
    assert found["p99"] == found["all"][RANKS.index(0.99)]


def test_few_values_are_exact():
    program = compile_aggregates({"q": Quantiles(qs=[0, 0.5, 0.9, 1]), "d": ApproxDistinct()})
    values = random.Random(1).sample(range(200), 200)
    found = program.result(in_pieces(program, values, 4))
    assert found == {"q": [0.0, 99.0, 179.0, 199.0], "d": pytest.approx(200, abs=1)}
    assert program.result(program.new()) == {"q": [None] * 4, "d": 0}


def test_median_of_none():
    program = compile_aggregates({"median": Quantile()})
    assert program.result(filled(program, [None, float("nan")])) == {"median": None}


@pytest.mark.parametrize("pieces", [1, 10])
@pytest.mark.parametrize("count", [10, 1000, 50_000])
@pytest.mark.parametrize("kind", [str, int, float])
def test_distinct(kind, count, pieces):
    program = compile_aggregates({"d": ApproxDistinct()})
    values = [kind(number) for number in range(count)] * 2
    found = program.result(in_pieces(program, values, pieces))["d"]
    assert found == pytest.approx(count, rel=4 * 1.04 / 64)


def test_more_precision_is_more_exact():
    values = [f"user-{number}" for number in range(50_000)]
    program = compile_aggregates({"d": ApproxDistinct(precision=16)})
    found = program.result(filled(program, values))["d"]
    assert found == pytest.approx(50_000, rel=4 * 1.04 / 256)


def test_what_is_the_same_value():
    program = compile_aggregates({"d": ApproxDistinct()})
    day, uuid = date(2020, 1, 1), UUID(int=5)
    for values, expected in [
        ([1, 1.0, True], 1),
        ([0, 0.0, False, -0.0], 1),
        (["", ""], 1),
        (["", "a", b"a", b"", 2**70, 2**70 + 1, 0.5], 7),
        ([day, day, uuid, uuid, (1, 2), [1, 2], {"a": 1, "b": 2}, {"b": 2, "a": 1}], 5),
        ([None, None], 0),
    ]:
        assert program.result(filled(program, values)) == {"d": expected}
    with pytest.raises(AggregateError, match="d=ApproxDistinct"):
        filled(program, [object()])
