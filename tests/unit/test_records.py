"""Records: types, defaults, constraints, validators, and what they refuse."""

import copy
import gc
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, ClassVar, Optional
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError, DecodeError
from streamproc.records import Record, validator


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(Record):
    x: int
    y: int = 0


class Everything(Record):
    text: str
    number: int
    ratio: float
    flag: bool
    blob: bytes
    at: datetime
    day: date
    price: Decimal
    id: UUID
    colour: Colour
    point: Point
    points: list[Point]
    counts: dict[str, int]
    maybe: Optional[int]  # noqa: UP045 - as existing apps write it
    either: float | None = None
    tags: list[str] = []  # noqa: RUF012


class Reading(Record):
    sensor_id: Annotated[str, msgspec.Meta(min_length=1)]
    value: Annotated[float, msgspec.Meta(ge=0)]


class Named(Record):
    ref: "Later"
    kinds: ClassVar[int] = 3
    note: "Optional[str]"  # noqa: UP045


class Later(Record):
    n: int


everything = st.builds(
    Everything,
    text=st.text(st.characters(exclude_categories=["Cs"])),
    number=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    blob=st.binary(),
    at=st.datetimes(timezones=st.just(timezone.utc)),
    day=st.dates(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    point=st.builds(Point, x=st.integers(), y=st.integers()),
    points=st.lists(st.builds(Point, x=st.integers()), max_size=3),
    counts=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.integers(), max_size=3
    ),
    maybe=st.none() | st.integers(),
    either=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    tags=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)


@settings(deadline=None)  # the machine may be busy
@given(everything)
def test_round_trip(record):
    again = Everything.loads(record.dumps())
    assert again == record
    assert type(again.price) is Decimal
    assert Everything.from_data(record.to_representation()) == record
    assert hash(Point(1, 2)) == hash(Point(1, 2))
    assert record.is_valid()


def test_unknown_fields_are_ignored_and_missing_ones_named():
    assert Point.loads(b'{"x": 1, "z": [1, {"a": 2}]}') == Point(1)
    with pytest.raises(DecodeError, match="missing required field `x`"):
        Point.loads(b'{"y": 1}')


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"sensor_id": "a", "value": "x"}', r"Expected `float`, got `str` - at `\$.value`"),
        (b'{"sensor_id": "a", "value": -1}', r"Expected `float` >= 0.0 - at `\$.value`"),
        (b'{"sensor_id": "", "value": 1}', r"length >= 1 - at `\$.sensor_id`"),
        (b'{"sensor_id": "a", "value": NaN}', "malformed"),
        (b'{"sensor_id": "a", "value": 1e999}', "out of range"),
        (b'{"sensor_id": "\xff", "value": 1}', "(?i)invalid UTF-8"),
        (b"", "empty"),
        (b"null", "got `null`"),
        (b"[]", "got `array`"),
        (b'{"sensor_id": "a", "value": 1} {}', "trailing"),
        (b'{"sensor_id": "a", "value": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"z": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_payloads_say_why(payload, reason):
    with pytest.raises(DecodeError, match=reason):
        Reading.loads(payload)


def test_nested_errors_name_the_path():
    class Outer(Record):
        points: list[Point]

    with pytest.raises(DecodeError, match=r"got `str` - at `\$.points\[1\].x`"):
        Outer.loads(b'{"points": [{"x": 1}, {"x": "a"}]}')


def test_null_for_a_field_with_a_default_is_the_default():
    assert Point.loads(b'{"x": 1, "y": null}') == Point(1, 0)
    with pytest.raises(DecodeError, match="null"):
        Point.loads(b'{"x": null}')


def test_optional_without_a_default_is_none_wherever_it_stands():
    class Mixed(Record):
        first: Optional[int]  # noqa: UP045
        second: str

    assert Mixed("a").first is None
    assert Mixed.loads(b'{"second": "a"}') == Mixed("a", None)


def test_required_fields_may_follow_inherited_defaults():
    class Base(Record):
        a: int = 1

    class Child(Base):
        b: int

    assert Child.loads(b'{"b": 2}') == Child(b=2)
    assert Child(b=2).a == 1


def test_string_annotations_and_class_variables():
    assert Named.loads(b'{"ref": {"n": 1}}') == Named(Later(1))
    assert Named.kinds == 3
    assert list(Named._options.fields) == ["ref", "note"]


def test_mutable_defaults_are_not_shared():
    class Bag(Record):
        items: list[int] = [1]  # noqa: RUF012
        point: Point = Point(1)
        extra: dict[str, Any] = {"a": []}  # noqa: RUF012

    one, other = Bag(), Bag.loads(b"{}")
    one.items.append(2)
    one.point.x = 9
    one.extra["a"].append(1)
    assert other == Bag() == Bag([1], Point(1), {"a": []})


def test_records_are_mutable_comparable_and_copied():
    point = Point(1, 2)
    point.x = 5
    assert point == Point(5, 2)
    assert point != Later(5)
    assert Point(1, 2) < Point(1, 3)
    assert copy.deepcopy(point) == copy.copy(point) == point
    assert repr(point) == "<Point: x=5, y=2>"


def test_attributes_outside_the_fields_survive_the_collector():
    # Instances have a dict because ModelT has; its place must be the interpreter's own.
    points = [Point.loads(b'{"x": 1}') for _ in range(1000)]
    for number, point in enumerate(points):
        point.extra = [number]
    gc.collect()
    assert [point.extra for point in points] == [[number] for number in range(1000)]
    assert Point(1) == points[0]


def test_validators_run_on_decoding():
    class Checked(Record):
        low: int
        high: int

        @validator("low", "high")
        def _small(self, value):
            if value > 100:
                raise ValueError("is above 100")

        def __post_init__(self):
            if self.low > self.high:
                raise ValueError("low is above high")

    class Child(Checked):
        def __post_init__(self):
            self.seen = True

    assert Checked.loads(b'{"low": 1, "high": 2}') == Checked(1, 2)
    with pytest.raises(DecodeError, match=r"^high is above 100"):
        Checked.loads(b'{"low": 1, "high": 200}')
    with pytest.raises(DecodeError, match="low is above high"):
        Checked.loads(b'{"low": 2, "high": 1}')
    with pytest.raises(ValueError, match="low is above 100"):
        Checked(300, 300)
    assert Child.loads(b'{"low": 2, "high": 1}').seen
    with pytest.raises(DecodeError, match="high is above 100"):
        Child.loads(b'{"low": 1, "high": 200}')
    record = Checked(1, 2)
    record.high = 500
    assert "above 100" in str(record.validation_errors[0])


def test_a_class_without_validators_has_no_hook():
    assert not hasattr(Reading, "__post_init__")


def test_init_is_refused():
    with pytest.raises(ConfigurationError, match="use __post_init__"):

        class Bad(Record):
            x: int

            def __init__(self, x):
                self.x = x


def test_event_time_must_be_a_field():
    with pytest.raises(ConfigurationError, match="'att', which isn't one of its fields"):

        class Bad(Record, event_time="att"):
            at: int


def test_rename_and_msgspec_options():
    class Camel(Record, rename="camel"):
        sensor_id: str

    assert Camel.loads(b'{"sensorId": "a"}').dumps() == b'{"sensorId":"a"}'
    assert Camel.sensor_id.input_name == "sensorId"


def test_nan_is_written_as_null():
    assert Reading("a", float("nan")).dumps() == b'{"sensor_id":"a","value":null}'


def test_durations():
    class Run(Record):
        took: timedelta

    assert Run.loads(Run(timedelta(seconds=5)).dumps()) == Run(timedelta(seconds=5))
