"""Dead letters: records that could not be processed, kept with what is known of why."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Mapping
from time import time
from typing import Any, NamedTuple

import msgspec
from faust.types import TP

from streamproc.errors import StreamprocError
from streamproc.kafka.progress import Delivery
from streamproc.records.secrets import mask

logger = logging.getLogger(__name__)

#: One record is logged in so many seconds, of each topic and kind of error; then how many others.
LOG_INTERVAL = 5.0

#: What the names of a letter's own headers begin with.
PREFIX = "dead-letter-"
#: Characters of a traceback that are kept: its end, which says most.
LONGEST_TRACEBACK = 8000

#: Records of a partition that are known not to decode, for its other readers.
REMEMBERED_LETTERS = 100_000

#: Bytes of a letter that the dead-letter topic takes; Kafka's default is 1 MiB, and what
#: is too large for an agent should not be too large for its dead letters.
LARGEST_LETTER = 16 * 1024 * 1024


class Letter(NamedTuple):
    """A rejected record on its way."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class DeadLetters:
    """Sends rejected records to the dead-letter topic, and counts and logs them.

    A letter has the key, value and headers of the record as they came, and headers
    ``dead-letter-topic``, ``-partition``, ``-offset``, ``-timestamp`` (ms), ``-stage``
    (key, value or the agent's name), ``-agent``, ``-attempts``, ``-error`` (type),
    ``-reason``, ``-app``, ``-app-version`` and, if user code raised, ``-traceback``.

    Args:
        app: The App that produces the letters.
        topic: Name of the dead-letter topic, or None to count and log only.
    """

    def __init__(self, app: Any, topic: str | None) -> None:
        self.app = app
        self.topic = topic
        self.counts: Counter[tuple[str, str]] = Counter()
        self._declared = False
        #: Those that came since the last log line of a topic and kind of error.
        self._unlogged: dict[tuple[str, str], int] = {}
        self._undecoded: dict[TP, set[int]] = {}
        self._held: dict[TP, list[Letter]] = {}
        self._generation = -1

    def forget(self) -> None:
        """Send letters again when their records are read again: those before don't count."""
        self._undecoded.clear()
        self._held.clear()

    def _keep_up(self) -> None:
        if self._generation != self.app.consumer_generation_id:
            self._generation = self.app.consumer_generation_id
            self.forget()

    async def send_undecoded(
        self, delivery: Delivery, row: int, stage: str, error: BaseException
    ) -> None:
        """Send a record that doesn't decode, once for all agents that read its topic.

        Batches are decoded before the records in them are done. With exactly once the letter
        waits for that: it belongs to the transaction with the record's offset.
        """
        self._keep_up()
        sent = self._undecoded.setdefault(delivery.progress.tp, set())
        offset = delivery.offsets[row]
        if offset in sent:
            return
        if len(sent) >= REMEMBERED_LETTERS:
            sent.clear()
        sent.add(offset)
        letter = self._letter(delivery, row, stage, error, None, attempts=1)
        if self.app.exactly_once:
            self._held.setdefault(delivery.progress.tp, []).append(letter)
        else:
            await self._send(letter)

    async def send_held(self, offsets: Mapping[TP, int]) -> None:
        """Send the letters of undecoded records before these offsets, which are committed next."""
        self._keep_up()
        for tp, offset in offsets.items():
            # Streams go on, and hold more while these are sent.
            held = self._held.pop(tp, [])
            if later := [letter for letter in held if letter.offset >= offset]:
                self._held[tp] = later
            for letter in held:
                if letter.offset < offset:
                    await self._send(letter)

    async def send(
        self, delivery: Delivery, row: int, stage: str, error: BaseException, attempts: int = 1
    ) -> None:
        """Send one record; the next checkpoint waits until the broker has it."""
        agent = delivery.progress.reader.rpartition("@")[2]
        await self._send(self._letter(delivery, row, stage, error, agent, attempts))

    async def _send(self, letter: Letter) -> None:
        if self.topic is None:
            return
        await self._declare()
        producer = await self.app.maybe_start_producer()
        await producer.send(self.topic, letter.key, letter.value, None, None, letter.headers)

    def _letter(
        self,
        delivery: Delivery,
        row: int,
        stage: str,
        error: BaseException,
        agent: str | None,
        attempts: int,
    ) -> Letter:
        """Count, log and return what is sent of a record."""
        tp = delivery.progress.tp
        offset = delivery.offsets[row]
        self._note(tp, offset, stage, error)
        headers = list(delivery.headers[row]) if delivery.headers is not None else []
        headers += self._headers(tp, offset, delivery.timestamps[row], stage, error)
        headers += _encoded({"attempts": str(attempts)} | ({"agent": agent} if agent else {}))
        return Letter(offset, delivery.raw_keys[row], delivery.raw_values[row], headers)

    async def send_result(
        self, source: str, partition: int, key: Any, value: Any, stage: str, error: BaseException
    ) -> None:
        """Send what operators made, as JSON: no single record is to blame for it."""
        tp = TP(source, partition)
        self._note(tp, -1, stage, error)
        if self.topic is None:
            return
        await self._declare()
        producer = await self.app.maybe_start_producer()
        headers = self._headers(tp, -1, int(time() * 1000), stage, error)
        headers += _encoded({"agent": source, "attempts": "1"})
        encoded = [
            None if part is None else msgspec.json.encode(part, enc_hook=repr)
            for part in (key, value)
        ]
        await producer.send(self.topic, *encoded, None, None, headers)

    def skip(self, delivery: Delivery, row: int, stage: str, error: BaseException) -> None:
        """Count and log one record that is passed over."""
        self._note(delivery.progress.tp, delivery.offsets[row], stage, error, "It was skipped")

    def skip_result(self, source: str, partition: int, stage: str, error: BaseException) -> None:
        """Count and log a result that is passed over."""
        self._note(TP(source, partition), -1, stage, error, "It was skipped")

    def _headers(
        self, tp: TP, offset: int, timestamp: int, stage: str, error: BaseException
    ) -> list[tuple[str, bytes]]:
        conf = self.app.conf
        app = {"app": str(conf.id), "app-version": str(conf.version)}
        return letter_headers(tp, offset, timestamp, stage, error) + _encoded(app)

    async def _declare(self) -> None:
        if not self._declared:
            config = {"max.message.bytes": str(LARGEST_LETTER)}
            topic = self.app.topic(self.topic, value_serializer="raw", config=config)
            await topic.maybe_declare()
            self._declared = True

    def _note(
        self, tp: Any, offset: int, stage: str, error: BaseException, became: str | None = None
    ) -> None:
        kind = (tp.topic, type(error).__name__)
        self.counts[kind] += 1
        if kind in self._unlogged:
            self._unlogged[kind] += 1
            return
        self._unlogged[kind] = 0
        asyncio.get_running_loop().call_later(LOG_INTERVAL, self._log_others, kind)
        logger.error(
            "%s was rejected%s: %s. %s",
            _what(tp, offset),
            "" if stage == tp.topic else f" ({stage})",
            _reason(error),
            became or (f"It went to topic {self.topic!r}" if self.topic else "It was skipped"),
        )

    def _log_others(self, kind: tuple[str, str]) -> None:
        others = self._unlogged.pop(kind, 0)
        if others:
            logger.warning("%d more of %s rejected (%s)", others, *kind)

    def close(self) -> None:
        """Log what has not been logged yet."""
        for kind in list(self._unlogged):
            self._log_others(kind)


def _what(tp: Any, offset: int) -> str:
    """Return what the log calls a record, or a result, which has no place in a topic."""
    if offset >= 0:
        return f"Record {tp.topic}/{tp.partition}@{offset}"
    return f"A result of {tp.topic}" + (f", partition {tp.partition}," if tp.partition >= 0 else "")


def _reason(error: BaseException) -> str:
    """Return what the log says: errors of users' code say little without their name."""
    text = str(error).rstrip(".")
    if isinstance(error, StreamprocError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def letter_headers(
    tp: Any, offset: int, timestamp: int, stage: str, error: BaseException
) -> list[tuple[str, bytes]]:
    """Return the headers that say where a record was and why it was rejected."""
    fields: dict[str, str] = {
        "topic": tp.topic,
        "partition": str(tp.partition),
        "offset": str(offset),
        "timestamp": str(timestamp),
        "stage": stage,
        "error": type(error).__name__,
        "reason": mask(str(error)),
    }
    if error.__traceback__ is not None or error.__cause__ is not None:
        fields["traceback"] = mask("".join(traceback.format_exception(error)))[-LONGEST_TRACEBACK:]
    return _encoded(fields)


def _encoded(fields: dict[str, str]) -> list[tuple[str, bytes]]:
    return [(f"{PREFIX}{name}", text.encode("utf-8", "replace")) for name, text in fields.items()]
