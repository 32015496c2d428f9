"""Decoding a delivery's keys and values, whole columns at a time.

A topic whose schema or serializer only Faust knows is decoded record by record with
Faust's own code; that is said once in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from faust import Schema
from faust.exceptions import DecodeError as FaustDecodeError
from faust.exceptions import KeyDecodeError, ValueDecodeError

from streamproc.errors import DecodeError
from streamproc.kafka.progress import Delivery
from streamproc.records.codecs import batch_decoder, find_codec

logger = logging.getLogger(__name__)

Column = list[Any]
Errors = list[tuple[int, DecodeError]]
ColumnDecoder = Callable[[Column], tuple[Column, Errors]]


class Rejected:
    """A record that did not decode: where it is in its delivery, and why."""

    __slots__ = ("error", "part", "row")

    def __init__(self, row: int, part: str, error: DecodeError) -> None:
        self.row = row
        self.part = part
        self.error = error


class DeliveryDecoder:
    """Decodes the deliveries of one channel."""

    def __init__(self, channel: Any) -> None:
        schema = channel.schema
        conf = channel.app.conf
        self._keys = _column_decoder(
            channel, "key", schema.key_type, schema.key_serializer or conf.key_serializer
        )
        self._values = _column_decoder(
            channel, "value", schema.value_type, schema.value_serializer or conf.value_serializer
        )

    def decode(self, delivery: Delivery) -> list[Rejected]:
        """Fill in ``delivery.keys`` and ``.values``; return the records that don't decode."""
        delivery.keys, key_errors = self._keys(delivery.raw_keys)
        delivery.values, value_errors = self._values(delivery.raw_values)
        if not key_errors and not value_errors:
            return []
        rejected = {row: Rejected(row, "value", error) for row, error in value_errors}
        rejected.update({row: Rejected(row, "key", error) for row, error in key_errors})
        return [rejected[row] for row in sorted(rejected)]


def _column_decoder(channel: Any, part: str, declared: Any, serializer: Any) -> ColumnDecoder:
    schema = channel.schema
    if type(schema) is Schema and isinstance(serializer or "raw", str):
        codec = find_codec(serializer or "raw")
        if codec is not None:
            return batch_decoder(codec, declared)
        reason = f"serializer {serializer!r} is one of Faust's"
    else:
        reason = f"it has a schema or serializer of its own ({schema!r})"
    logger.warning(
        "Topic %s: %ss are decoded record by record by Faust's own code, which is slow: %s",
        channel,
        part,
        reason,
    )
    return _per_record(channel, part)


def _per_record(channel: Any, part: str) -> ColumnDecoder:
    load = channel.schema.loads_key if part == "key" else channel.schema.loads_value
    app = channel.app

    def decode(column: Column) -> tuple[Column, Errors]:
        decoded: Column = []
        errors: Errors = []
        for row, payload in enumerate(column):
            message = _Payload(payload)
            try:
                decoded.append(load(app, message))
            except (KeyDecodeError, ValueDecodeError, FaustDecodeError) as exc:
                decoded.append(None)
                errors.append((row, DecodeError(str(exc.__cause__ or exc))))
        return decoded, errors

    return decode


class _Payload:
    """As much of a Faust message as a schema reads."""

    __slots__ = ("headers", "key", "value")

    def __init__(self, payload: bytes | None) -> None:
        self.key = self.value = payload
        self.headers = None
