"""What can't be aggregated is said, and leaves every state as it was."""

from collections import OrderedDict
from datetime import date, datetime, timezone
from decimal import Decimal
from fractions import Fraction

import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.aggregates import (
    EWMA,
    Aggregate,
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
    compile_aggregates,
)
from streamproc.errors import AggregateError, ConfigurationError, DecodeError, EncodeError


class Reading(msgspec.Struct):
    value: object = 1.0
    other: object = 1.0
    name: object = "a"


EVERYTHING = {
    "rows": Count(),
    "n": Count("value"),
    "mean": Mean("value"),
    "low": Min("value"),
    "variance": Variance("value"),
    "recent": EWMA("value", half_life=1),
    "p50": Quantile("value"),
    "bins": Histogram("value", [0]),
    "other": Sum("other"),
    "first": First("name"),
    "names": Collect("name"),
    "low_name": Min("name"),
    "distinct": ApproxDistinct("name"),
    "top": TopK("name", by="other"),
    "inverse": Sum(lambda record: 1 / record.other),
}


def run(program, values, states=None):
    states = {} if states is None else states
    program.update(states, [0] * len(values), values, [0] * len(values), lambda _: program.new())
    return states


BAD = [
    Reading(value="12"),
    Reading(value=[1]),
    Reading(value=10**400),
    Reading(other=numpy.bool_(True)),
    Reading(other=Decimal("sNaN")),
    Reading(other=0),
    Reading(name=...),
    None,
    {"value": 1.0, "other": 1.0},
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("row", [0, 1, 5])
def test_rows_before_a_bad_one_are_added_and_it_is_not(bad, row):
    program = compile_aggregates(EVERYTHING)
    good = [Reading(value=float(number)) for number in range(6)]
    states = {}
    with pytest.raises(AggregateError) as caught:
        run(program, [*good[:row], bad, *good[row:]], states)
    assert caught.value.row == row
    expected = run(program, good[:row])
    before = expected.get(0, program.new())
    assert program.encode(states.get(0, program.new())) == program.encode(before)


def test_a_value_that_does_not_compare_is_not_added():
    program = compile_aggregates(EVERYTHING)
    states = run(program, [Reading()])
    with pytest.raises(AggregateError) as caught:
        run(program, [Reading(), Reading(name=1)], states)
    assert caught.value.row == 1
    expected = run(program, [Reading(), Reading()])
    assert program.encode(states[0]) == program.encode(expected[0])


@given(st.lists(st.none() | st.integers(-9, 9) | st.text(max_size=1), max_size=12))
@settings(max_examples=50)
def test_going_on_after_errors_equals_leaving_bad_rows_out(values):
    """As callers do: blame the row, go on behind it."""
    program = compile_aggregates(EVERYTHING)
    records = [Reading(value=value) for value in values]
    states, start, blamed = {}, 0, []
    while start < len(records):
        try:
            run(program, records[start:], states)
            break
        except AggregateError as error:
            blamed.append(start + error.row)
            start += error.row + 1
    assert blamed == [row for row, value in enumerate(values) if isinstance(value, str)]
    good = [record for record in records if not isinstance(record.value, str)]
    expected = run(program, good)
    for key, state in expected.items():
        assert program.encode(states[key]) == program.encode(state)


def test_messages():
    program = compile_aggregates({"n": Count(), "mean": Mean("value")})
    with pytest.raises(AggregateError) as caught:
        run(program, [Reading(), Reading("high")])
    error = caught.value
    assert (error.aggregate, error.field, error.value, error.row) == ("mean", "value", "high", 1)
    assert str(error) == (
        "mean=Mean('value'): 'value' is 'high' (str), not a number (row 1 of the batch)"
    )
    with pytest.raises(AggregateError, match=r"mean=.*'value' can't be read \(KeyError: 'value'\)"):
        run(program, [{"valeu": 1}])
    with pytest.raises(AggregateError, match=r"can't be read .*NoneType.* of None") as caught:
        run(program, [None])
    assert isinstance(caught.value.__cause__, AttributeError)
    low = compile_aggregates({"low": Min("name")})
    with pytest.raises(AggregateError, match=r"low=Min\('name'\): TypeError: .*; 'name' is 3"):
        run(low, [Reading(name="a"), Reading(name=3)])


def test_functions_are_named():
    def inverse(record):
        return 1 / record.value

    program = compile_aggregates({"x": Sum(inverse)})
    with pytest.raises(AggregateError, match=r"inverse.*ZeroDivisionError") as caught:
        run(program, [Reading(1), Reading(0)])
    assert caught.value.row == 1
    assert caught.value.field.endswith("inverse")


def test_errors_of_the_caller_stay_what_they_are():
    program = compile_aggregates({"n": Count("value")})

    def missing(key):
        raise KeyError("the store is away")

    with pytest.raises(KeyError, match="the store is away"):
        program.update({}, ["a"], [Reading()], [0], missing)
    with pytest.raises(ValueError, match="1 keys, 2 values and 1 timestamps"):
        program.update({}, ["a"], [Reading(), Reading()], [0], missing)


def test_missing_is_not_asked_for_a_record_that_can_not_be_read():
    program = compile_aggregates({"mean": Mean("value")})
    states = {}
    with pytest.raises(AggregateError):
        run(program, [Reading("x")], states)
    assert states == {}


def test_values_may_be_any_sequence():
    program = compile_aggregates({"mean": Mean("value")})
    states = {}
    program.update(states, (0, 0), (Reading(1), Reading(2)), (0, 0), lambda _: program.new())
    assert program.result(states[0]) == {"mean": 1.5}
    with pytest.raises(AggregateError) as caught:
        program.update(states, (0, 0), (Reading(1), Reading("")), (0, 0), lambda _: program.new())
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1),
        (Decimal("1.5"), 1.5),
        (Fraction(1, 4), 0.25),
        (numpy.float64(0.5), 0.5),
        (numpy.int64(7), 7),
    ],
)
def test_other_numbers(value, expected):
    program = compile_aggregates({"total": Sum("value"), "high": Max("value")})
    state = run(program, [Reading(value)])[0]
    assert program.result(program.decode(program.encode(state))) == {
        "total": expected,
        "high": expected,
    }
    assert type(program.result(state)["total"]) is type(expected)


def test_names_that_can_not_be_written():
    program = compile_aggregates({"a": Sum("max-temp"), "b": Sum("class"), "c": Sum("a'b")})
    state = run(program, [{"max-temp": 1, "class": 2, "a'b": 3}])[0]
    assert program.result(state) == {"a": 1, "b": 2, "c": 3}

    class Odd:
        pass

    odd = Odd()
    for name in ("max-temp", "class", "a'b"):
        setattr(odd, name, 5)
    assert program.result(run(program, [odd])[0]) == {"a": 5, "b": 5, "c": 5}


class Typed(msgspec.Struct):
    when: date
    price: Decimal
    tags: tuple[str, ...] = ()
    value: float = 0.0

    @property
    def double(self):
        return self.value * 2


KEPT = {
    "first": First("when"),
    "low": Min("price"),
    "tags": Collect("tags"),
    "top": TopK("when", by="value"),
    "whole": Last(),
    "double": Sum("double"),
}


def test_values_come_back_as_what_they_were():
    program = compile_aggregates(KEPT, Typed)
    records = [Typed(date(2020, 1, 2), Decimal("1.10"), ("a", "b"), 2.0)]
    state = run(program, records)[0]
    again = program.decode(program.encode(state))
    assert again == state
    records.append(Typed(date(2020, 1, 1), Decimal("0.9"), (), 1.0))
    assert program.result(run(program, records[1:], {0: again})[0]) == program.result(
        run(program, records)[0]
    )
    assert program.decode(program.encode(program.new())) == program.new()


def test_types_by_hand():
    program = compile_aggregates(
        {
            "first": First(lambda record: record.when, type=date),
            "low": Min("price", type=Decimal),
            "pairs": Collect(lambda record: (record.value, "x"), type=tuple[float, str]),
        }
    )
    state = run(program, [Typed(date(2020, 1, 2), Decimal("1.10"))])[0]
    assert program.decode(program.encode(state)) == state
    dates, ints = (compile_aggregates({"x": First("when", type=each)}) for each in (date, int))
    state = run(dates, [Typed(date(2020, 1, 2), Decimal(1))])[0]
    with pytest.raises(DecodeError, match="no longer fits"):
        ints.decode(dates.encode(state))


@pytest.mark.parametrize("kept", [Last("price"), Min("price"), Collect("price"), TopK("tags")])
def test_values_that_would_change_are_refused(kept):
    if isinstance(kept, TopK):
        kept = TopK("tags", by="value")
    program = compile_aggregates({"kept": kept})
    state = run(program, [Typed(date(2020, 1, 2), Decimal("1.10"))])[0]
    with pytest.raises(EncodeError, match="say what it is: type="):
        program.encode(state)


def test_types_that_say_nothing_are_as_none():
    program = compile_aggregates({"last": Last("value"), "n": Count()}, Reading)
    state = run(program, [Reading(1.5)])[0]
    assert program.decode(program.encode(state)) == state
    with pytest.raises(EncodeError, match="say what it is: type="):
        program.encode(run(program, [Reading(Decimal(1))])[0])


def test_times_with_a_zone_need_no_type():
    program = compile_aggregates({"last": Last()})
    state = run(program, [datetime(2020, 1, 1, tzinfo=timezone.utc)])[0]
    assert program.decode(program.encode(state)) == state


def test_fields_are_checked_at_once():
    with pytest.raises(ConfigurationError, match=r"m=Mean\('pirce'\).*did you mean 'price'"):
        compile_aggregates({"m": Mean("pirce")}, Typed)
    with pytest.raises(ConfigurationError, match="it has when, price"):
        compile_aggregates({"top": TopK("price", by="zzz")}, Typed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compile_aggregates({}), "no aggregations"),
        (lambda: compile_aggregates({"n": Count}), r"write n=Count\(\)"),
        (lambda: compile_aggregates({"n": 3}), "n=3 is not an aggregation"),
        (lambda: Mean(3), "3 picks no value"),
        (lambda: Mean(""), "picks no value"),
        (lambda: TopK("a", by=4), "4 picks no value"),
        (lambda: Collect(limit=0), "limit=0"),
        (lambda: TopK(k="3"), "k='3'"),
        (lambda: Quantile("a", 1.5), "q=1.5"),
        (lambda: Quantiles("a", [0.5, -1]), "q=-1"),
        (lambda: Quantile("a", size=1), "size=1"),
        (lambda: ApproxDistinct("a", precision=3), "precision=3"),
        (lambda: First("a", type=object), "type=<class 'object'>"),
        (lambda: Histogram("a", [2, 1]), "rising order"),
        (lambda: Histogram("a"), "rising order"),
        (lambda: EWMA("a", half_life=0), "half_life=0"),
        (lambda: EWMA("a", half_life="soon"), "not a duration"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_rate_needs_a_window():
    program = compile_aggregates({"rate": Rate()})
    state = run(program, [Reading()] * 5)[0]
    assert program.result(state, (1000, 3000)) == {"rate": 2.5}
    assert program.result(state, (1000, 1000)) == {"rate": None}
    with pytest.raises(ConfigurationError, match="Rate is per second of a window"):
        program.result(state)


def test_bytes_of_others_are_refused():
    program = compile_aggregates({"mean": Mean("value")})
    two = compile_aggregates({"n": Count(), "mean": Mean("value")})
    with pytest.raises(DecodeError, match="3 slots, mean need 2"):
        program.decode(two.encode(two.new()))
    for data in (b"", b"\xff", b"\x01"):
        with pytest.raises(DecodeError, match="can't be read"):
            program.decode(data)
    sketch = compile_aggregates({"p": Quantile("value"), "d": ApproxDistinct("value")})
    with pytest.raises(DecodeError, match="sketch can't be read"):
        sketch.decode(program.encode(program.new()))


def test_fingerprint_says_whether_old_state_can_be_read():
    def of(**aggregates):
        return compile_aggregates(aggregates).fingerprint

    base = of(n=Count(), m=Mean("value"), c=Collect("a", limit=3), q=Quantile("a", 0.5))
    same = of(k=Quantile("a", 0.9), c=Collect("a", limit=9), x=Mean("value"), y=Count())
    assert base == same
    different = [
        of(n=Count()),
        of(n=Count("value")),
        of(n=Count("other")),
        of(n=Sum("value")),
        of(n=Min("value")),
        of(n=Max("value")),
        of(n=EWMA("value", half_life=1)),
        of(n=EWMA("value", half_life=2)),
        of(n=Histogram("value", [1])),
        of(n=Histogram("value", [2])),
        of(n=Quantile("value", size=100)),
        of(n=Quantile("value", size=200)),
        of(n=ApproxDistinct("value", precision=10)),
        of(n=ApproxDistinct("value", precision=11)),
        of(n=Weighted("value", 1)),
        of(n=Weighted("value", 2)),
        of(n=Rounded("value")),
        of(n=First("value")),
        of(n=Last("value")),
        of(n=StdDev("value")),
    ]
    assert len(set(different)) == len(different)


def test_a_smaller_limit_reads_old_state():
    many = compile_aggregates({"c": Collect(limit=5), "t": TopK(k=5)})
    few = compile_aggregates({"c": Collect(limit=2), "t": TopK(k=2)})
    state = run(many, [1, 2, 3, 4, 5])[0]
    old = few.decode(many.encode(state))
    assert few.result(old) == {"c": [1, 2], "t": [5, 4]}
    few.update({0: old}, [0], [6], [-1], lambda _: few.new())
    assert few.result(old) == {"c": [6, 1], "t": [6, 5]}


class Weighted(Aggregate):
    """The sum of value times weight."""

    def __init__(self, of, weight):
        super().__init__(of)
        self.weight = weight

    def initialize(self):
        return 0

    def add(self, state, value, timestamp):
        if value == "bad":
            raise ValueError("no weight")
        return state + value * self.weight

    def merge(self, left, right):
        return left + right


class Rounded(Mean):
    """A built-in one with another result."""

    def result(self, state, window=None):
        return round(super().result(state, window))


class Leaders(TopK):
    """A built-in one that reads two fields."""

    def result(self, state, window=None):
        return "/".join(super().result(state, window))


class Absolute(Sum):
    """A built-in one that picks otherwise."""

    def pick(self, record):
        value = super().pick(record)
        return None if value is None else abs(value)


def test_built_in_ones_can_be_derived_from():
    program = compile_aggregates({"l": Leaders("name", by="value", k=2), "a": Absolute("value")})
    values = [-3, 1, None, 2]
    state = run(program, [Reading(x, name=f"n{x}") for x in values])[0]
    state = program.merge(program.decode(program.encode(state)), program.new())
    assert program.result(state) == {"l": "n2/n1", "a": 6}
    with pytest.raises(AggregateError, match=r"a=Absolute\('value'\)") as caught:
        run(program, [Reading(1), Reading("x", name=None)])
    assert caught.value.row == 1


def test_own_aggregates():
    program = compile_aggregates(
        {"w": Weighted("value", 3), "r": Rounded("value"), "n": Count("value")}
    )
    states = run(program, [Reading(1), Reading(None), Reading(4)])
    assert program.result(states[0]) == {"w": 15, "r": 2, "n": 2}
    again = program.decode(program.encode(states[0]))
    assert program.result(program.merge(again, states[0])) == {"w": 30, "r": 2, "n": 4}


def test_errors_of_own_aggregates():
    program = compile_aggregates({"n": Count(), "w": Weighted("value", 3), "c": Collect("value")})
    states = {}
    with pytest.raises(AggregateError, match=r"w=Weighted.*ValueError: no weight") as caught:
        run(program, [Reading(1), Reading("bad")], states)
    assert caught.value.row == 1
    assert program.result(states[0]) == {"n": 1, "w": 3, "c": [1]}


def test_own_aggregates_must_be_whole():
    class Nothing(Aggregate):
        pass

    with pytest.raises(NotImplementedError, match="Nothing needs initialize"):
        compile_aggregates({"x": Nothing()}).new()
    with pytest.raises(NotImplementedError, match="merge"):
        Nothing().merge(1, 2)


def test_own_state_that_is_no_plain_data():
    class Odd(Aggregate):
        def initialize(self):
            return object()

    program = compile_aggregates({"x": Odd()})
    with pytest.raises(EncodeError, match="can't be stored"):
        program.encode(program.new())


def test_one_field_is_read_once():
    reads = []

    class Counted:
        @property
        def value(self):
            reads.append(1)
            return 1.0

    program = compile_aggregates(
        {"n": Count("value"), "mean": Mean("value"), "sum": Sum("value"), "sd": StdDev("value")}
    )
    state = run(program, [Counted()])[0]
    assert len(reads) == 1
    assert len(state) == 4  # number, sum, mean and squares
    assert OrderedDict.fromkeys(program.names) == OrderedDict.fromkeys(("n", "mean", "sum", "sd"))


def test_repr():
    assert repr(TopK("user", k=3, by="score")) == "TopK('user', k=3, by='score')"
    assert repr(Weighted("value", 2)) == "Weighted('value', weight=2)"
