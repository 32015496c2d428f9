"""Records going into and coming out of an app under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from streamproc.errors import DecodeError, DriverError, EncodeError
from streamproc.kafka.fetch import Headers
from streamproc.records.codecs import find_codec
from streamproc.records.times import milliseconds
from streamproc.testing.broker import MemoryBroker

#: A time: milliseconds since 1970, seconds as a float, ISO 8601 text, or a datetime (UTC).
Time = int | float | str | datetime


def time_of(time: Time) -> int:
    """Return a time in milliseconds since 1970.

    Raises:
        DriverError: It isn't a time.
    """
    try:
        return milliseconds(time)
    except DecodeError as exc:
        raise DriverError(
            f"{exc}; valid are milliseconds since 1970, a datetime and ISO 8601 text"
        ) from None


@dataclass(frozen=True)
class TestRecord:
    """A record that the app sent.

    Attributes:
        key: Decoded by the topic's key type.
        value: Decoded by the topic's value type; None is a tombstone.
        timestamp: Milliseconds since 1970.
        headers: By name.
        topic: Its topic.
        partition: Its partition.
        offset: Its offset.
        raw_key: The key's bytes.
        raw_value: The value's bytes.
    """

    __test__ = False

    key: Any
    value: Any
    timestamp: int
    headers: dict[str, bytes]
    topic: str
    partition: int
    offset: int
    raw_key: bytes | None = field(repr=False, default=None)
    raw_value: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True)
class DeadLetter:
    """A record that the app rejected, as it came, and why.

    Attributes:
        topic: Where the record was.
        partition: Its partition there.
        offset: Its offset there.
        stage: ``"key"`` or ``"value"`` if that didn't decode, else the agent's name.
        error: Name of the exception's type.
        reason: Its message.
        key: The key's bytes.
        value: The value's bytes.
        timestamp: The record's, in milliseconds since 1970.
        headers: All headers, by name.
    """

    topic: str
    partition: int
    offset: int
    stage: str
    error: str
    reason: str
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: dict[str, bytes] = field(repr=False)

    @classmethod
    def of(cls, headers: Headers, key: bytes | None, value: bytes | None) -> DeadLetter:
        """Read the letter that ``headers`` tell of."""
        by_name = dict(headers)

        def told(name: str) -> str:
            return by_name.get(f"dead-letter-{name}", b"").decode()

        return cls(
            told("topic"),
            int(told("partition")),
            int(told("offset")),
            told("stage"),
            told("error"),
            told("reason"),
            key,
            value,
            int(told("timestamp")),
            by_name,
        )


class Coder:
    """Encodes and decodes the keys and values of a topic by its declared types."""

    def __init__(self, app: Any, name: str, topic: Any) -> None:
        self.name = name
        schema = topic.schema if topic is not None else None
        self._key_type = schema.key_type if schema else None
        self._value_type = schema.value_type if schema else None
        conf = app.conf
        key_serializer = (schema and schema.key_serializer) or conf.key_serializer or "raw"
        value_serializer = (schema and schema.value_serializer) or conf.value_serializer or "raw"
        self._keys = self._codec("key", key_serializer)
        self._values = self._codec("value", value_serializer)

    def _codec(self, part: str, serializer: Any) -> Any:
        codec = find_codec(serializer) if isinstance(serializer, str) else None
        if codec is None:
            raise DriverError(
                f"Topic {self.name!r} has {part} serializer {serializer!r}, which the test driver "
                "can't encode with; pipe bytes, and read raw_value"
            )
        return codec

    def encode(self, part: str, content: Any) -> bytes | None:
        """Return a key or value as bytes; bytes as they are.

        Raises:
            DriverError: It isn't what the topic declares.
        """
        if content is None or isinstance(content, bytes):
            return content
        codec, declared = self._part(part)
        try:
            encoded: bytes = codec.encoder(declared)(content)
            codec.decoder(declared)(encoded)
        except (EncodeError, DecodeError) as exc:
            wanted = f" of type {getattr(declared, '__name__', declared)}" if declared else ""
            raise DriverError(
                f"Topic {self.name!r} takes {part}s{wanted}, and {content!r} is none: {exc}. "
                "To see what the app does with bytes that don't decode, pipe bytes."
            ) from exc
        return encoded

    def decode(self, part: str, raw: bytes | None) -> Any:
        """Return what bytes mean.

        Raises:
            DriverError: They are not of the declared type.
        """
        if raw is None:
            return None
        codec, declared = self._part(part)
        try:
            return codec.decoder(declared)(raw)
        except DecodeError as exc:
            raise DriverError(
                f"The app sent a {part} to topic {self.name!r} that doesn't decode as "
                f"{declared or codec}: {exc}; it is {raw!r}"
            ) from exc

    def _part(self, part: str) -> tuple[Any, Any]:
        if part == "key":
            return self._keys, self._key_type
        return self._values, self._value_type


class InputTopic:
    """A topic to pipe records into; see :meth:`TestDriver.topic`."""

    def __init__(
        self, name: str, coder: Coder, broker: MemoryBroker, process: Callable[[], None]
    ) -> None:
        self.name = name
        self._coder = coder
        self._broker = broker
        self._process = process

    def pipe(
        self,
        key: Any,
        value: Any,
        *,
        timestamp: Time | None = None,
        headers: Mapping[str, bytes | str] | None = None,
        partition: int | None = None,
    ) -> None:
        """Put in one record, and process it to the end.

        Args:
            key: Encoded by the topic's key type; bytes go as they are; None for no key.
            value: Encoded by the topic's value type; bytes go as they are; None is a
                tombstone.
            timestamp: The driver's time if None.
            headers: By name; text is encoded as UTF-8.
            partition: As Kafka would choose it by the key if None.

        Raises:
            DriverError: Key or value are not of the topic's types, or the app failed.
        """
        self._append(key, value, timestamp, headers, partition)
        self._process()

    def pipe_many(
        self,
        records: Iterable[tuple[Any, Any] | tuple[Any, Any, Time]],
        *,
        partition: int | None = None,
    ) -> None:
        """Put in many records, then process them, in batches as large as they come.

        Args:
            records: ``(key, value)`` or ``(key, value, timestamp)``; see :meth:`pipe`.
            partition: For all of them; by key if None.
        """
        for key, value, *rest in records:
            self._append(key, value, rest[0] if rest else None, None, partition)
        self._process()

    def _append(
        self,
        key: Any,
        value: Any,
        timestamp: Time | None,
        headers: Mapping[str, bytes | str] | None,
        partition: int | None,
    ) -> None:
        self._broker.append(
            self.name,
            self._coder.encode("key", key),
            self._coder.encode("value", value),
            partition=partition,
            timestamp=None if timestamp is None else time_of(timestamp),
            headers=tuple(
                (name, content.encode() if isinstance(content, str) else content)
                for name, content in (headers or {}).items()
            ),
        )


class OutputTopic:
    """A topic to read what the app sent; see :meth:`TestDriver.output`."""

    def __init__(self, name: str, coder: Coder, broker: MemoryBroker) -> None:
        self.name = name
        self._coder = coder
        self._broker = broker
        self._read = 0

    def read_all(self) -> list[TestRecord]:
        """Return the records since the last read, in the order they were sent."""
        places = self._broker.in_order(self.name, self._read)
        self._read += len(places)
        return [self._record(partition, offset) for partition, offset in places]

    def values(self) -> list[Any]:
        """Return the values since the last read."""
        return [record.value for record in self.read_all()]

    def pairs(self) -> list[tuple[Any, Any]]:
        """Return keys and values since the last read."""
        return [(record.key, record.value) for record in self.read_all()]

    def read(self) -> TestRecord:
        """Return the next record.

        Raises:
            DriverError: There's none.
        """
        places = self._broker.in_order(self.name, self._read)
        if not places:
            raise DriverError(
                f"The app sent nothing to topic {self.name!r}"
                + (f" after the {self._read} records read so far" if self._read else "")
            )
        self._read += 1
        return self._record(*places[0])

    @property
    def is_empty(self) -> bool:
        """True when there is nothing that wasn't read."""
        return not self._broker.in_order(self.name, self._read)

    def _record(self, partition: int, offset: int) -> TestRecord:
        log = self._broker.topics[self.name][partition]
        key, value = log.keys[offset], log.values[offset]
        return TestRecord(
            self._coder.decode("key", key),
            self._coder.decode("value", value),
            log.timestamps[offset],
            dict(log.headers[offset]),
            self.name,
            partition,
            offset,
            key,
            value,
        )
