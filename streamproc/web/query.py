"""What a request asks of a table, read from its parameters."""

from __future__ import annotations

import binascii
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple

from streamproc.errors import DecodeError
from streamproc.tables.keyed import MISSING
from streamproc.tables.stores import prefix_end
from streamproc.web.keys import encoded_prefix, key_text, parse_keys

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000

#: Parameters that say which rows are asked for; they go to the other workers as they are.
FORWARDED = ("key", "prefix", "limit", "after", "from", "to")

_PARTITION = struct.Struct(">I")


class Place(NamedTuple):
    """Where a row stands in the order of a list: its encoded key, then its partition."""

    order: bytes
    partition: int

    def cursor(self) -> str:
        """Return it as text that stands in an address."""
        packed = _PARTITION.pack(self.partition) + self.order
        return urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def of_cursor(cls, text: str) -> Place:
        """Read it back.

        Raises:
            DecodeError: No list gave this.
        """
        try:
            packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            return cls(packed[_PARTITION.size :], *_PARTITION.unpack_from(packed))
        except (binascii.Error, struct.error, ValueError) as exc:
            raise DecodeError(f"{text!r:.80} isn't what a list gave as 'next'") from exc


@dataclass(frozen=True)
class Query:
    """Rows of one table that are asked for.

    Attributes:
        key: Only those of this key; MISSING: of all.
        start: First encoded key.
        end: Encoded key before which to end; None: the last.
        after: The row after which to begin.
        limit: Most rows.
        from_ms: Only windows that end after this, in ms since 1970.
        to_ms: Only windows that start before this, in ms since 1970.
        partition: Only rows of this partition.
        or_key: Another key that the same text may mean; MISSING: there is none.
        parameters: What other workers are asked with.
    """

    key: Any = MISSING
    start: bytes = b""
    end: bytes | None = None
    after: Place | None = None
    limit: int = DEFAULT_LIMIT
    from_ms: int | None = None
    to_ms: int | None = None
    partition: int | None = None
    or_key: Any = MISSING
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def has_key(self) -> bool:
        """True when a single key is asked for."""
        return self.key is not MISSING

    def readings(self, table: Any) -> list[Query]:
        """Return a query for each key that the text of this one may mean."""
        keys = [self.key] if self.or_key is MISSING else [self.key, self.or_key]
        # Other workers are to read the text in one way only.
        return [
            replace(self, key=key, parameters={**self.parameters, "key": key_text(table, key)})
            for key in keys
        ]

    def begin(self, partition: int) -> bytes:
        """Return the encoded key from which to read a partition."""
        if self.after is None:
            return self.start
        order = self.after.order
        return max(self.start, order + b"\0" if partition <= self.after.partition else order)

    def wants(self, start: int, end: int) -> bool:
        """True when the window from ``start`` to before ``end`` is asked for."""
        return (self.from_ms is None or end > self.from_ms) and (
            self.to_ms is None or start < self.to_ms
        )


def read_query(table: Any, given: Mapping[str, str], key: str | None = None) -> Query:
    """Return what the parameters of a request ask of a table.

    Args:
        table: The table.
        given: The parameters.
        key: Text of the key, if the path has it.

    Raises:
        DecodeError: A parameter can't be read; the message names it.
    """
    parameters = {name: given[name] for name in FORWARDED if given.get(name)}
    if key is None:
        key = given.get("key")
    if key is not None:
        parameters["key"] = key
    keys = [MISSING] if key is None else parse_keys(table, key)
    start = encoded_prefix(table, given["prefix"]) if given.get("prefix") else b""
    return Query(
        key=keys[0],
        or_key=keys[1] if len(keys) > 1 else MISSING,
        start=start,
        end=prefix_end(start),
        after=Place.of_cursor(given["after"]) if given.get("after") else None,
        limit=_number(given, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT),
        from_ms=_time(given, "from"),
        to_ms=_time(given, "to"),
        partition=_number(given, "partition", 0, table.partition_count - 1, None),
        parameters=parameters,
    )


def _number(given: Mapping[str, str], name: str, least: int, most: int, default: Any) -> Any:
    text = given.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text[:18]) <= most):
        raise DecodeError(f"{name}={text!r:.80} isn't a number from {least} to {most}")
    return int(text)


def _time(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if not text:
        return None
    try:
        if text.lstrip("-").isdigit():
            return int(text)
        # A "+" of a zone is a space in an address that isn't quoted.
        moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace(" ", "+"))
        return round(moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp() * 1000)
    except (ValueError, OverflowError) as exc:
        raise DecodeError(
            f"{name}={text!r:.80} is neither milliseconds since 1970 nor an ISO 8601 time"
        ) from exc
