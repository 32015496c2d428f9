"""Decoded records of one partition, and how far the loop over them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from streamproc.errors import DecodeError
from streamproc.kafka.fetch import RawBatch
from streamproc.records import batch_decoder, get_codec


class Message(NamedTuple):
    """A record with its place in Kafka; ``timestamp`` is in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: tuple[tuple[str, bytes], ...]


class Rejected(NamedTuple):
    """A record that could not be decoded: its row, "key" or "value", and why."""

    row: int
    part: str
    error: DecodeError


class Run:
    """The records of a raw batch that could be decoded.

    ``at`` is the row of the first record that isn't done. It only grows, and only the
    loop moves it. ``end`` is the row at which the loop must stop; another thread sets it
    to 0 when the partition is taken away.
    """

    __slots__ = ("_keys", "_raw", "_rows", "at", "dropped", "end", "values")

    def __init__(
        self, raw: RawBatch, keys: list[Any], values: list[Any], rows: list[int] | None
    ) -> None:
        self._raw = raw
        self._keys = keys
        self._rows = rows
        self.values = values if rows is None else [values[row] for row in rows]
        self.at = 0
        self.end = len(self.values)
        self.dropped = False

    @property
    def place(self) -> tuple[str, int]:
        return self._raw.topic, self._raw.partition

    @property
    def exhausted(self) -> bool:
        return self.at >= len(self.values)

    @property
    def done_offset(self) -> int:
        """The offset up to which the records are done."""
        at = self.at
        return self._raw.next_offset if at >= len(self.values) else self.offsets(at, at + 1)[0]

    def offsets(self, begin: int, end: int) -> list[int]:
        """Return the offsets of a range of records."""
        offsets = self._raw.offsets
        if self._rows is None:
            return offsets[begin:end]
        return [offsets[row] for row in self._rows[begin:end]]

    def drop(self) -> None:
        """End the loop at its next record: the partition belongs to another now."""
        self.dropped = True
        self.end = 0

    def message(self, index: int) -> Message:
        """Return one record with its place in Kafka."""
        raw = self._raw
        row = index if self._rows is None else self._rows[index]
        return Message(
            raw.topic,
            raw.partition,
            raw.offsets[row],
            raw.timestamps[row],
            text_if_text(self._keys[row]),
            self.values[index],
            raw.headers[row] if raw.headers is not None else (),
        )


def text_if_text(key: Any) -> Any:
    """Return bytes that are UTF-8 as text, anything else as it is."""
    if type(key) is not bytes:
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def run_decoder(
    key_type: Any, value_type: Any, serialization: str
) -> Callable[[RawBatch], tuple[Run, list[Rejected]]]:
    """Return a function that decodes a raw batch.

    Raises:
        ConfigurationError: There is no such codec, or it can't make such a type.
    """
    # Undeclared keys are only looked at when asked for, and no reason to reject a record.
    decode_keys = batch_decoder(get_codec("raw"), bytes if key_type is None else key_type)
    decode_values = batch_decoder(get_codec(serialization), value_type)

    def decode(raw: RawBatch) -> tuple[Run, list[Rejected]]:
        keys, key_errors = decode_keys(raw.keys)
        values, value_errors = decode_values(raw.values)
        if not key_errors and not value_errors:
            return Run(raw, keys, values, None), []
        bad = {row: Rejected(row, "value", error) for row, error in value_errors}
        bad.update({row: Rejected(row, "key", error) for row, error in key_errors})
        rows = [row for row in range(len(raw)) if row not in bad]
        return Run(raw, keys, values, rows), [bad[row] for row in sorted(bad)]

    return decode
