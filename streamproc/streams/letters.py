"""Dead letters as they are read back: what was rejected, where it was, and why."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from streamproc.kafka.fetch import Headers
from streamproc.kafka.scan import StoredRecord
from streamproc.streams.deadletters import PREFIX

#: Header of a record that was a dead letter and was sent again; it names the letter.
REPLAYED = f"{PREFIX}replayed"


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes:
        record: As it is in the dead-letter topic.
        topic: Where it was before; the flow, agent or sink that made it, if it was a result.
        partition: Its partition there.
        offset: Its offset there; -1 if it was a result and no record of a topic.
        timestamp: Its timestamp, in milliseconds since 1970.
        stage: ``key`` or ``value`` if that didn't decode, or the agent, flow or sink.
        agent: The agent or flow that it was for.
        attempts: How often that failed at it.
        error: Name of the error's type.
        reason: The error's message.
        traceback: Its traceback, if user code raised it.
        app: Id and version of the app that rejected it.
        replayed: The letter that it was before it was sent again; None if it wasn't.
    """

    record: StoredRecord
    topic: str
    partition: int
    offset: int
    timestamp: int
    stage: str
    agent: str
    attempts: int
    error: str
    reason: str
    traceback: str
    app: str
    replayed: str | None

    @classmethod
    def of(cls, record: StoredRecord) -> Letter | None:
        """Read a letter; None if the record is none."""
        told = {
            name.removeprefix(PREFIX): value.decode("utf-8", "replace")
            for name, value in record.headers
            if name.startswith(PREFIX) and value is not None
        }
        if "topic" not in told or "error" not in told:
            return None
        app = " ".join(filter(None, (told.get("app"), told.get("app-version"))))
        return cls(
            record,
            told["topic"],
            _number(told.get("partition")),
            _number(told.get("offset")),
            _number(told.get("timestamp"), record.timestamp),
            told.get("stage", ""),
            told.get("agent", ""),
            _number(told.get("attempts"), 1),
            told["error"],
            told.get("reason", ""),
            told.get("traceback", ""),
            app,
            told.get("replayed"),
        )

    @property
    def id(self) -> str:
        """Partition and offset in the dead-letter topic."""
        return f"{self.record.partition}:{self.record.offset}"

    @property
    def is_record(self) -> bool:
        """True when it was a record of a topic, and not a result without one."""
        return self.offset >= 0

    @property
    def headers(self) -> Headers:
        """The headers that the record had before it was a letter."""
        return tuple(each for each in self.record.headers if not each[0].startswith(PREFIX))

    def as_record(self, letters: str) -> StoredRecord:
        """Return the record as it was, marked as sent again.

        Args:
            letters: Name of the dead-letter topic.
        """
        record = self.record
        mark = f"{letters}/{record.partition}@{record.offset}".encode()
        return StoredRecord(
            self.partition,
            self.offset,
            self.timestamp,
            record.key,
            record.value,
            (*self.headers, (REPLAYED, mark)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what is known of it, for JSON; bytes as text, or base64 if they aren't any."""
        record = self.record
        return {
            "id": self.id,
            "rejected_at": record.timestamp,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp": self.timestamp,
            "stage": self.stage,
            "agent": self.agent,
            "attempts": self.attempts,
            "error": self.error,
            "reason": self.reason,
            "traceback": self.traceback,
            "app": self.app,
            "replayed": self.replayed,
            **_as_json("key", record.key),
            **_as_json("value", record.value),
            "headers": [{"name": name, **_as_json("value", value)} for name, value in self.headers],
        }


def _number(text: str | None, default: int = -1) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default


def _as_json(name: str, value: bytes | None) -> dict[str, Any]:
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value).decode()}
