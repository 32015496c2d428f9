"""KafkaReader: a topic as a plain Python iterator, for code that knows no asyncio."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

from streamproc.checkpoint import open_writers
from streamproc.errors import ConfigurationError, DecodeError, SinkError
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.reader import Place, ReaderThread
from streamproc.records import batch_decoder, get_codec
from streamproc.streams.deadletters import letter_headers

logger = logging.getLogger(__name__)

#: Seconds between two commits while records flow.
COMMIT_INTERVAL = 1.0
#: Longest wait of one fetch, in seconds.
POLL = 0.25


class Message(NamedTuple):
    """A record with its place in Kafka."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: tuple[tuple[str, bytes], ...]


class KafkaReader:
    """Reads topics record by record; batches are underneath.

    A record is done when the loop asks for the next one. What is done is committed about
    once a second, before a wait, and at the end; a record at which the loop was left (by
    an exception or by ``break``) is not, and is read again. Open
    :class:`~streamproc.RedisWriter` objects are flushed before each commit, so that
    nothing is committed that isn't in Redis.

    A record that can't be decoded is logged, sent to the topic ``<group>-dead-letters``,
    and left out.

    Args:
        broker_list: "host:port,host:port", a list of these, or ``kafka://`` URLs.
        topic: A topic's name, or several.
        group: Consumer group; readers of one group share the partitions.
        value_type: A :class:`~streamproc.Record` class or another type; without it JSON
            comes as plain dicts and lists.
        key_type: Likewise for keys; without it they come as text.
        limit: Stop after this many records.
        timeout: Stop when no record came for this many seconds; None waits for ever.
        connect_timeout: Seconds to wait for the broker and the topics at the start.
        serialization: Name of the codec of values.

    Raises:
        BrokerUnavailable: No broker answered in time.
        ConfigurationError: A topic doesn't exist, or the broker refused the credentials.
    """

    def __init__(
        self,
        broker_list: str | Sequence[str],
        topic: str | Sequence[str],
        *,
        group: str = "streamproc-reader",
        value_type: Any = None,
        key_type: Any = str,
        limit: int | None = None,
        timeout: float | None = None,
        connect_timeout: float = 30.0,
        serialization: str = "json",
        **options: Any,
    ) -> None:
        self.group = group
        self.limit = limit
        self.timeout = timeout
        self.count = 0
        #: Records that could not be decoded.
        self.rejected = 0
        #: The record that the loop has now, with its place in Kafka.
        self.current: Message | None = None
        self._done: dict[Place, int] = {}
        self._committed_at = monotonic()
        self._decode_values = batch_decoder(get_codec(serialization), value_type)
        self._decode_keys = batch_decoder(get_codec("raw"), key_type)
        self._letters_declared = False
        self._thread = ReaderThread(
            bootstrap_servers(broker_list),
            [topic] if isinstance(topic, str) else list(topic),
            group,
            connect_timeout=connect_timeout,
            on_revoke=self._on_revoke,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
            **options,
        )

    def get_stream(self) -> Iterator[Any]:
        """Iterate over the values of records."""
        return (message.value for message in self.messages())

    def messages(self) -> Iterator[Message]:
        """Iterate over records with key, offset and the rest."""
        for raw in self._raw_batches():
            generation = self._thread.generation
            place = (raw.topic, raw.partition)
            for message in self._decoded(raw):
                if self.limit is not None and self.count >= self.limit:
                    self.commit()
                    return
                if generation != self._thread.generation:
                    break
                self.count += 1
                self.current = message
                yield message
                self._done[place] = message.offset + 1
                if monotonic() - self._committed_at > COMMIT_INTERVAL:
                    self.commit()
            else:
                self._done[place] = raw.next_offset
            self.current = None

    def get_frames(self) -> Iterator[Any]:
        """Iterate over pandas DataFrames, one for each run of records of a partition.

        The index is the offset. Needs pandas (``pip install streamproc[pandas]``).
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise ConfigurationError(
                "get_frames() needs pandas: pip install 'streamproc[pandas]'"
            ) from exc
        for raw in self._raw_batches():
            left = None if self.limit is None else self.limit - self.count
            messages = self._decoded(raw)[:left]
            if messages:
                self.count += len(messages)
                yield pd.DataFrame(
                    [_row(message.value) for message in messages],
                    index=pd.Index([message.offset for message in messages], name="offset"),
                )
                self._done[(raw.topic, raw.partition)] = messages[-1].offset + 1
            if left is not None and len(messages) == left:
                self.commit()
                return
            self._done[(raw.topic, raw.partition)] = raw.next_offset

    def _raw_batches(self) -> Iterator[RawBatch]:
        last = monotonic()
        while self.limit is None or self.count < self.limit:
            batches = self._thread.fetch(0)
            if not batches:
                # Before waiting, what is done is made safe and visible.
                self.commit()
                batches = self._thread.fetch(POLL)
            generation = self._thread.generation
            for raw in batches:
                if generation != self._thread.generation:
                    break
                yield raw
                last = monotonic()
            if not self._thread.assigned:
                last = monotonic()  # joining the group takes seconds
            elif not batches and self.timeout is not None and monotonic() - last > self.timeout:
                return

    def _decoded(self, raw: RawBatch) -> list[Message]:
        keys, key_errors = self._decode_keys(raw.keys)
        values, value_errors = self._decode_values(raw.values)
        bad = dict(key_errors) | dict(value_errors)
        for row, error in bad.items():
            self._reject(raw, row, error)
        no_headers: tuple[tuple[str, bytes], ...] = ()
        return [
            Message(
                raw.topic,
                raw.partition,
                raw.offsets[row],
                raw.timestamps[row],
                keys[row],
                values[row],
                raw.headers[row] if raw.headers is not None else no_headers,
            )
            for row in range(len(raw))
            if row not in bad
        ]

    def _reject(self, raw: RawBatch, row: int, error: DecodeError) -> None:
        self.rejected += 1
        letters = f"{self.group}-dead-letters"
        logger.error(
            "Record %s/%d@%d can't be decoded: %s. It goes to topic %r",
            raw.topic,
            raw.partition,
            raw.offsets[row],
            error,
            letters,
        )
        if not self._letters_declared:
            self._thread.ensure_topic(letters)
            self._letters_declared = True
        place = _Place(raw.topic, raw.partition)
        headers = letter_headers(place, raw.offsets[row], raw.timestamps[row], "value", error)
        original = raw.headers[row] if raw.headers is not None else ()
        self._thread.send(letters, raw.keys[row], raw.values[row], (*original, *headers))

    def commit(self) -> None:
        """Flush open writers and commit what is done."""
        self._committed_at = monotonic()
        done = self._take_done()
        if done:
            self._thread.commit(done)

    def _on_revoke(self) -> dict[Place, int]:
        try:
            return self._take_done()
        except SinkError as exc:
            logger.error("Results are not in Redis, so their records are read again: %s", exc)
            return {}
        finally:
            self._done = {}

    def _take_done(self) -> dict[Place, int]:
        for writer in list(open_writers):
            writer.flush()
        done, self._done = self._done, {}
        return done

    def close(self) -> None:
        """Commit what is done and leave the group."""
        self.commit()
        self._thread.close()

    def __enter__(self) -> KafkaReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Place(NamedTuple):
    topic: str
    partition: int


def _row(value: Any) -> Any:
    asdict = getattr(value, "asdict", None)
    return asdict() if asdict is not None else value


def bootstrap_servers(broker_list: str | Sequence[str]) -> str:
    """Return brokers in any accepted form as "host:port,host:port".

    Raises:
        ConfigurationError: There is none.
    """
    parts = (
        broker_list.replace(";", ",").split(",") if isinstance(broker_list, str) else broker_list
    )
    hosts = [part.strip().split("://")[-1].rstrip("/") for part in parts if part.strip()]
    if not hosts:
        raise ConfigurationError('broker_list is empty; give for example "localhost:9092"')
    return ",".join(host if ":" in host else f"{host}:9092" for host in hosts)
