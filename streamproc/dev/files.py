"""Records from files: CSV with a header and JSON lines, plain or gzip, one row at a time."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import orjson

from streamproc.errors import ReplayError

if TYPE_CHECKING:
    from typing_extensions import Self

FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson"}

# What JSON calls a number. "007" isn't one: leading zeros belong to codes and stay text.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"": None, "true": True, "false": False, "True": True, "False": False}
# Numbers above this are milliseconds since 1970, below it seconds (in seconds: the year 5138).
_SECONDS_LIMIT = 100_000_000_000


class Row(NamedTuple):
    """A record to send: encoded key and value, timestamp in milliseconds (None: now)."""

    key: bytes | None
    value: bytes
    timestamp: int | None


class RecordFile:
    """An open file of records.

        with RecordFile("readings.csv", key="sensor_id", timestamp="ts") as file:
            for row in file:
                ...

    CSV cells that look like numbers become numbers, ``true`` and ``false`` booleans, empty
    ones null. Lines of JSON are sent as they stand. A timestamp is ISO 8601 (UTC when it
    says no zone), seconds or milliseconds since 1970.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: str | None = None,
        timestamp: str | None = None,
        format: str | None = None,
    ) -> None:
        """Open ``path``; ``key`` and ``timestamp`` name fields.

        Raises:
            ReplayError: It isn't there, or its format isn't known.
        """
        self.path = Path(path)
        self._key = key
        self._timestamp = timestamp
        self._rows = self._row_reader(format)
        try:
            self._raw: IO[bytes] = self.path.open("rb")
        except OSError as exc:
            raise ReplayError(f"Cannot open {path}: {exc.strerror}.") from exc
        self.size = self.path.stat().st_size

    @property
    def position(self) -> int:
        """How many bytes of the file have been read (of ``size``)."""
        return self._raw.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._raw.close()

    def __iter__(self) -> Iterator[Row]:
        """Read the rows from the start of the file.

        Raises:
            ReplayError: A line makes no record; the message has the file and the line.
        """
        self._raw.seek(0)
        packed = self.path.suffix == ".gz"
        lines = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        try:
            yield from self._rows(lines)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError) as exc:
            raise ReplayError(f"{self.path} is no complete gzip file: {exc}") from exc

    def _row_reader(self, format: str | None) -> Callable[[IO[bytes]], Iterator[Row]]:
        suffixes = [suffix for suffix in self.path.suffixes if suffix != ".gz"]
        name = format or FORMATS.get(suffixes[-1] if suffixes else "")
        readers = {"csv": self._csv_rows, "ndjson": self._json_rows}
        if name not in readers:
            raise ReplayError(
                f"Cannot tell the format of {self.path}: its name should end in "
                f"{', '.join(FORMATS)} (and .gz), or say csv or ndjson."
            )
        return readers[name]

    def _csv_rows(self, lines: IO[bytes]) -> Iterator[Row]:
        reader = csv.reader(self._text(lines))
        header = next(reader, [])
        for field in (self._key, self._timestamp):
            if field is not None and field not in header:
                raise self._error(1, f"no column {field!r}; there are {', '.join(header)}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise self._error(
                    reader.line_num, f"{len(cells)} cells, but the header has {len(header)}"
                )
            fields = {name: _typed(cell) for name, cell in zip(header, cells, strict=True)}
            # The key is the cell as written: 1.50 stays 1.50.
            key = cells[header.index(self._key)].encode() if self._key is not None else None
            yield Row(key, orjson.dumps(fields), self._milliseconds(fields, reader.line_num))

    def _text(self, lines: IO[bytes]) -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as exc:
                raise self._error(number, f"not UTF-8: {exc}") from exc

    def _json_rows(self, lines: IO[bytes]) -> Iterator[Row]:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text:
                continue
            try:
                fields = orjson.loads(text)
            except orjson.JSONDecodeError as exc:
                raise self._error(number, f"not JSON: {exc}") from exc
            key = self._field(fields, self._key, number)
            if key is not None:
                key = key.encode() if isinstance(key, str) else orjson.dumps(key)
            yield Row(key, text, self._milliseconds(fields, number))

    def _milliseconds(self, fields: Any, line: int) -> int | None:
        if self._timestamp is None:
            return None
        value = self._field(fields, self._timestamp, line)
        try:
            return to_milliseconds(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise self._error(line, f"{self._timestamp} is no time: {value!r}") from exc

    def _field(self, fields: Any, name: str | None, line: int) -> Any:
        if name is None:
            return None
        if not isinstance(fields, dict) or name not in fields:
            raise self._error(line, f"no field {name!r}")
        return fields[name]

    def _error(self, line: int, reason: str) -> ReplayError:
        return ReplayError(f"{self.path}, line {line}: {reason}.")


def to_milliseconds(value: Any) -> int:
    """Turn ISO 8601 text, or seconds or milliseconds since 1970, into milliseconds.

    Raises:
        ValueError, TypeError: It is none of these.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value if abs(value) >= _SECONDS_LIMIT else value * 1000)
    if not isinstance(value, str):
        raise TypeError("neither text nor number")
    # fromisoformat understands a trailing Z from Python 3.11 on.
    time = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return round(time.timestamp() * 1000)


def _typed(cell: str) -> Any:
    if _NUMBER.fullmatch(cell):
        return float(cell) if "." in cell or "e" in cell or "E" in cell else int(cell)
    return _WORDS.get(cell, cell)
