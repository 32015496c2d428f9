"""Codecs: from bytes to keys and values and back, a whole column at a time.

A codec makes functions for a declared type: a :class:`Record`, a ``faust.Record``,
``str``, ``bytes``, ``int``, ``float``, ``Decimal``, any type msgspec knows, or None for
whatever is in the bytes. A Kafka value of None (a tombstone) is None in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from importlib.metadata import entry_points
from typing import Any, Protocol

import msgspec
import orjson
from faust.models.base import Model as FaustModel
from faust.models.base import registry

from streamproc.errors import ConfigurationError, DecodeError, EncodeError
from streamproc.records.record import Record

Decoder = Callable[[bytes], Any]
Column = list[Any]
BatchDecoder = Callable[[Column], tuple[Column, list[tuple[int, DecodeError]]]]
Encoder = Callable[[Any], bytes | None]

#: What the libraries underneath raise for bytes that don't fit.
FAILURES = (
    msgspec.MsgspecError,
    orjson.JSONDecodeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
    InvalidOperation,
)


class Codec(Protocol):
    """What a codec offers; third parties register theirs under ``streamproc.codecs``."""

    def decoder(self, declared: Any) -> Decoder:
        """Return a function from bytes to a value of the declared type."""

    def encoder(self, declared: Any) -> Encoder:
        """Return a function from a value to bytes."""


def batch_decoder(codec: Codec, declared: Any) -> BatchDecoder:
    """Return a function that decodes a column: the values, and which failed and why.

    A failed value is None in the column. Values are decoded one by one (0.2 µs for a
    record), which is faster than joining them into one JSON array, and safe.
    """
    decode = codec.decoder(declared)
    if declared is bytes or decode is _same:
        return lambda column: (column, [])

    def decode_column(column: Column) -> tuple[Column, list[tuple[int, DecodeError]]]:
        try:
            return [decode(payload) for payload in column], []
        except FAILURES:
            return _one_by_one(decode, column)

    return decode_column


def _one_by_one(decode: Decoder, column: Column) -> tuple[Column, list[tuple[int, DecodeError]]]:
    decoded: Column = []
    errors: list[tuple[int, DecodeError]] = []
    for row, payload in enumerate(column):
        value = None
        if payload is not None:
            try:
                value = decode(payload)
            except FAILURES as exc:
                errors.append((row, _decode_error(exc)))
        decoded.append(value)
    return decoded, errors


def _decode_error(exc: BaseException) -> DecodeError:
    if isinstance(exc, DecodeError):
        return exc
    if isinstance(exc, RecursionError):
        return DecodeError("nested too deeply")
    return DecodeError(f"{exc}" or type(exc).__name__)


def _same(payload: Any) -> Any:
    return payload


def _text(payload: bytes) -> str:
    return payload.decode("utf-8")


class JsonCodec:
    """JSON by msgspec for declared types, by orjson for the rest (whichever is faster)."""

    def decoder(self, declared: Any) -> Decoder:
        if declared is None or declared is Any:
            return _untyped
        if declared is bytes:
            return _same
        if declared is str:
            return _json_text
        if isinstance(declared, type) and issubclass(declared, Record):
            return msgspec.json.Decoder(declared, strict=not declared._options.coerce).decode
        if isinstance(declared, type) and issubclass(declared, FaustModel):
            return _faust_model_decoder(declared)
        strict = declared not in (int, float, Decimal)
        try:
            return msgspec.json.Decoder(declared, strict=strict).decode
        except TypeError as exc:
            raise ConfigurationError(f"JSON can't be decoded as {declared!r}: {exc}") from exc

    def encoder(self, declared: Any) -> Encoder:
        encode = msgspec.json.Encoder(enc_hook=_plain).encode

        def encode_payload(payload: Any) -> bytes | None:
            if payload is None or type(payload) is bytes:
                return payload
            try:
                if isinstance(payload, Record) and payload._options.include_metadata:
                    payload = payload.to_representation()
                return encode(payload)
            except (TypeError, ValueError) as exc:
                raise EncodeError(f"{payload!r:.200} can't be encoded as JSON: {exc}") from exc

        return encode_payload


class RawCodec:
    """Bytes as they are; text and numbers by their UTF-8 text; records as JSON."""

    def decoder(self, declared: Any) -> Decoder:
        if declared in (None, Any, bytes):
            return _same
        if declared is str:
            return _text
        if declared in (int, float, Decimal):
            return lambda payload: declared(_text(payload))
        return JSON.decoder(declared)

    def encoder(self, declared: Any) -> Encoder:
        as_json = JSON.encoder(declared)

        def encode_payload(payload: Any) -> bytes | None:
            if payload is None or type(payload) is bytes:
                return payload
            if isinstance(payload, str):
                return payload.encode()
            if type(payload) in (int, float, Decimal):
                return str(payload).encode()
            return as_json(payload)

        return encode_payload


def _untyped(payload: bytes) -> Any:
    value = orjson.loads(payload)
    # A model written with its namespace comes back as that model, as in Faust.
    if b'"__faust"' in payload and isinstance(value, dict):
        return _reconstructed(value)
    return value


def _reconstructed(value: dict[str, Any]) -> Any:
    metadata = value.get("__faust")
    namespace = metadata.get("ns") if isinstance(metadata, dict) else None
    model = registry.get(namespace)
    if model is None:
        return value
    return model.from_data({key: each for key, each in value.items() if key != "__faust"})


def _json_text(payload: bytes) -> str:
    value = orjson.loads(payload)
    return value if isinstance(value, str) else str(value)


def _faust_model_decoder(model: Any) -> Decoder:
    loads = orjson.loads
    from_data = model.from_data
    if model._options.serializer not in (None, "json", "raw"):
        raise ConfigurationError(f"{model.__name__} has serializer {model._options.serializer!r}")
    return lambda payload: from_data(loads(payload), preferred_type=model)


def _plain(value: Any) -> Any:
    """Say how msgspec encodes what only Faust knows."""
    representation = getattr(value, "to_representation", None)
    if representation is not None:
        return representation()
    raise TypeError(f"objects of type {type(value).__name__} have no JSON form")


JSON = JsonCodec()
_codecs: dict[str, Codec] = {"json": JSON, "raw": RawCodec(), "text": RawCodec()}


def register_codec(name: str, codec: Codec) -> None:
    """Offer ``codec`` under ``name`` in ``key_serializer=`` and ``value_serializer=``."""
    _codecs[name] = codec


def find_codec(name: str) -> Codec | None:
    """Return the codec called ``name``, or None if it isn't one of ours.

    Raises:
        ConfigurationError: It is pickle, which runs code that comes with the data.
    """
    if "pickle" in name:
        raise ConfigurationError(
            "The pickle serializer runs code found in messages and is refused; use json"
        )
    if name not in _codecs:
        for entry_point in entry_points(group="streamproc.codecs", name=name):
            register_codec(name, entry_point.load()())
    return _codecs.get(name)


def get_codec(name: str) -> Codec:
    """Return the codec called ``name``.

    Raises:
        ConfigurationError: There is none.
    """
    codec = find_codec(name)
    if codec is None:
        raise ConfigurationError(
            f"There is no codec {name!r}; there are {', '.join(sorted(_codecs))}"
        )
    return codec
