"""Runs of records as pandas DataFrames. pandas is optional and imported when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamproc.errors import ConfigurationError
from streamproc.sources.runs import Run


def pandas() -> Any:
    """Return the module pandas.

    Raises:
        ConfigurationError: It isn't installed.
    """
    try:
        import pandas as module
    except ImportError as exc:
        raise ConfigurationError(
            "get_frames() needs pandas: pip install 'streamproc[pandas]'"
        ) from exc
    return module


def frame_of(run: Run, begin: int, end: int) -> Any:
    """Return a DataFrame of a range of records: a row each, a column for each field."""
    pd = pandas()
    frame = pd.DataFrame(
        [_row(value) for value in run.values[begin:end]],
        index=pd.Index(run.offsets(begin, end), name="offset"),
    )
    topic, partition = run.place
    frame.attrs = {"topic": topic, "partition": partition}
    return frame


def _row(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if value is None:
        return {}
    as_dict = getattr(value, "asdict", None)
    return as_dict() if as_dict is not None else {"value": value}
