"""Event times of records."""

from datetime import date, datetime, timedelta, timezone
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import DecodeError
from streamproc.records import EventTimes, Record, milliseconds

NOON = 1_700_000_000_123


class ByInt(Record, event_time="at"):
    at: int


class ByFloat(Record, event_time="at"):
    at: float


class ByText(Record, event_time="at"):
    at: str


class ByDatetime(Record, event_time="at"):
    at: Annotated[datetime, msgspec.Meta(tz=None)]


class ByMaybe(Record, event_time="at"):
    at: datetime | None = None


class Inherited(ByInt):
    value: float = 0.0


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (ByInt, b'{"at": 1700000000123}'),
        (ByFloat, b'{"at": 1700000000.123}'),
        (ByText, b'{"at": "2023-11-14T22:13:20.123Z"}'),
        (ByDatetime, b'{"at": "2023-11-14T22:13:20.1239Z"}'),
        (ByDatetime, b'{"at": "2023-11-14T23:13:20.123+01:00"}'),
        (ByDatetime, b'{"at": "2023-11-14T22:13:20.123"}'),
        (ByMaybe, b'{"at": "2023-11-14T22:13:20.123Z"}'),
        (Inherited, b'{"at": 1700000000123}'),
    ],
)
def test_the_type_says_the_unit(model, payload):
    assert EventTimes.of(model)([model.loads(payload)]) == [NOON]


def test_dates_are_midnight_utc():
    assert milliseconds(date(1970, 1, 2)) == 86_400_000
    assert milliseconds("1970-01-02") == 86_400_000
    assert milliseconds("1970-01-01 00:01") == 60_000


def test_without_a_declared_event_time():
    class Plain(Record):
        at: int

    assert EventTimes.of(Plain) is None
    assert EventTimes.of(bytes) is None
    assert EventTimes.of(None) is None


def test_kafka_timestamps_fill_in():
    times = EventTimes.of(ByMaybe)
    values = [ByMaybe(), None, ByMaybe(datetime(1970, 1, 1, tzinfo=timezone.utc))]
    assert times(values, [5, 6, 7]) == [5, 6, 0]
    with pytest.raises(DecodeError, match="None is not a time"):
        times(values)


@pytest.mark.parametrize("payload", [b'{"at": "yesterday"}', b'{"at": ""}'])
def test_text_that_is_no_time_does_not_decode(payload):
    with pytest.raises(DecodeError, match=r"at .* is not a time"):
        ByText.loads(payload)


@pytest.mark.parametrize("wrong", [None, True, float("nan"), float("inf"), [], "x", b"1"])
def test_not_a_time(wrong):
    with pytest.raises(DecodeError, match="is not a time"):
        milliseconds(wrong)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(-62_000_000_000_000, 250_000_000_000_000))
def test_all_forms_agree(ms):
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms)
    assert milliseconds(moment) == milliseconds(moment.replace(tzinfo=None)) == ms
    assert milliseconds(moment.isoformat()) == ms


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 4_000_000_000_000))
def test_float_seconds_are_exact_to_the_millisecond(ms):
    assert milliseconds(ms / 1000) == ms
