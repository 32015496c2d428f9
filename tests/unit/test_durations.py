"""Durations as people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError
from streamproc.records.durations import duration


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10s", 10_000),
        ("500ms", 500),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("2d", 172_800_000),
        ("1h30m", 5_400_000),
        (" 1h 30m ", 5_400_000),
        ("1.5s", 1500),
        ("0s", 0),
        (10, 10_000),
        (0, 0),
        (0.1, 100),
        (0.5, 500),
        (1 / 3, 333),
        (timedelta(minutes=1, milliseconds=5), 60_005),
        (timedelta(days=100_000), 8_640_000_000_000),
    ],
)
def test_valid(value, expected):
    assert duration(value) == expected


@pytest.mark.parametrize(
    "value",
    ["", "10", "s", "10 seconds", "-10s", "1h-30m", "1s junk", None, True, [], "1e3s", ".5s"],
)
def test_invalid_names_the_value_and_valid_ones(value):
    with pytest.raises(ConfigurationError) as caught:
        duration(value)
    assert repr(value) in str(caught.value)
    assert '"1h30m"' in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5, timedelta(seconds=-1)])
def test_numbers_that_are_no_durations(value):
    with pytest.raises(ConfigurationError, match="duration"):
        duration(value)


@pytest.mark.parametrize("value", [timedelta(microseconds=1), 0.0001, "0.2ms"])
def test_finer_than_a_millisecond(value):
    with pytest.raises(ConfigurationError, match="finer than a millisecond"):
        duration(value)


def test_signed():
    assert duration("-1h30m", signed=True) == -5_400_000
    assert duration(-1, signed=True) == -1000
    assert duration(timedelta(hours=-2), signed=True) == -7_200_000


@given(st.integers(0, 10**12))
def test_all_spellings_agree(milliseconds):
    seconds, rest = divmod(milliseconds, 1000)
    assert duration(f"{milliseconds}ms") == milliseconds
    assert duration(f"{seconds}s{rest}ms") == milliseconds
    assert duration(timedelta(milliseconds=milliseconds)) == milliseconds
    assert duration(milliseconds / 1000) == milliseconds
