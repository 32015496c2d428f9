"""A batch: the records of one partition that an agent gets in one go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from streamproc.kafka.fetch import Headers
from streamproc.kafka.progress import Delivery

V = TypeVar("V")


class Batch(Generic[V]):
    """A run of records of one topic-partition in offset order.

    ``keys``, ``values``, ``offsets`` and ``timestamps`` are parallel lists; a loop over
    the batch goes over its values. The lists are the agent's to read, not to change.

    Attributes:
        topic: Topic name.
        partition: Partition number.
        keys: Decoded keys (None where the record has none).
        values: Decoded values (None for a tombstone).
        offsets: Offset of each record.
        timestamps: Kafka timestamp of each record, in milliseconds.
    """

    __slots__ = ("_headers", "keys", "offsets", "partition", "timestamps", "topic", "values")

    def __init__(
        self,
        topic: str,
        partition: int,
        keys: list[Any],
        values: list[V],
        offsets: list[int],
        timestamps: list[int],
        headers: list[Headers] | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.keys = keys
        self.values = values
        self.offsets = offsets
        self.timestamps = timestamps
        self._headers = headers

    @classmethod
    def of(cls, delivery: Delivery, start: int, end: int) -> Batch[Any]:
        """Make the batch of the records ``start`` to ``end`` of a delivery."""
        tp = delivery.progress.tp
        headers = delivery.headers
        if start == 0 and end == len(delivery):
            return cls(
                tp.topic,
                tp.partition,
                delivery.keys,
                delivery.values,
                delivery.offsets,
                delivery.timestamps,
                headers,
            )
        return cls(
            tp.topic,
            tp.partition,
            delivery.keys[start:end],
            delivery.values[start:end],
            delivery.offsets[start:end],
            delivery.timestamps[start:end],
            headers[start:end] if headers is not None else None,
        )

    @property
    def headers(self) -> list[Headers]:
        """Headers of each record: a tuple of (name, bytes) pairs, often empty."""
        if self._headers is None:
            self._headers = [()] * len(self.offsets)
        return self._headers

    @property
    def first_offset(self) -> int:
        return self.offsets[0]

    @property
    def last_offset(self) -> int:
        return self.offsets[-1]

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[V]:
        return iter(self.values)

    def items(self) -> Iterator[tuple[Any, V]]:
        """Iterate over ``(key, value)`` pairs."""
        return zip(self.keys, self.values, strict=True)

    def __repr__(self) -> str:
        span = f" offsets {self.first_offset}..{self.last_offset}" if self.offsets else ""
        return f"<Batch {self.topic}/{self.partition}{span} ({len(self)} records)>"
