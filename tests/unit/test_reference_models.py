"""The reference application's records, and its sample data."""

from __future__ import annotations

import csv
import importlib.util
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

from streamproc.errors import DecodeError

ROOT = Path(__file__).parents[2]
GOOD = {
    "sensor_id": "meter-1",
    "flow": 12.5,
    "pressure": 4.2,
    "at": "2026-03-02T10:00:00+01:00",
    "battery": 3.1,
}


def load(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Load a module of the project folder without leaving its name to other tests."""
    path = ROOT / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reading(monkeypatch):
    return load(monkeypatch, "models/readings").Reading


def test_reading_of_a_meter(reading):
    found = reading.from_data(GOOD)
    assert found.at.astimezone(timezone.utc) == datetime(2026, 3, 2, 9, tzinfo=timezone.utc)
    assert reading.from_data({k: v for k, v in GOOD.items() if k != "battery"}).battery is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flow", None),
        ("flow", -7.5),
        ("flow", "NaN"),
        ("flow", "12.5"),
        ("pressure", "n/a"),
        ("sensor_id", "unknown"),
        ("sensor_id", None),
        ("at", "2026-03-02T10:00:00"),
        ("at", "soon"),
    ],
)
def test_wrong_values_name_the_field(reading, field, value):
    with pytest.raises(DecodeError, match=field):
        reading.from_data({**GOOD, field: value})


def test_missing_field_is_named(reading):
    with pytest.raises(DecodeError, match="pressure"):
        reading.from_data({k: v for k, v in GOOD.items() if k != "pressure"})


def test_sample_data_is_what_the_script_writes(monkeypatch):
    generated = load(monkeypatch, "examples/generate_data").rows()
    with (ROOT / "examples" / "sample_data.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == generated
