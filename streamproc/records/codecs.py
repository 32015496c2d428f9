"""Codecs: from bytes to keys and values and back, a whole column at a time.

A codec makes functions for a declared type: a :class:`Record`, a ``faust.Record``,
``str``, ``bytes``, ``int``, ``float``, ``Decimal``, any type msgspec knows, or None for
whatever is in the bytes. A Kafka value of None (a tombstone) is None in each of them.
"""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib.metadata import entry_points
from math import isfinite
from typing import Any

import msgspec
import orjson
from faust.agents.models import ReqRepRequest
from faust.models.base import Model as FaustModel
from faust.models.base import registry

from streamproc.errors import ConfigurationError, DecodeError, EncodeError
from streamproc.records import faustmodels
from streamproc.records.columns import (
    BatchDecoder,
    Decoder,
    column_decoder,
    same,
    single,
    unchanged,
)
from streamproc.records.pickles import refuse_pickle
from streamproc.records.record import METADATA, Record, coercion_hook, encode_unknown

Encoder = Callable[[Any], bytes | None]

#: What a message that names its model contains.
NAMED = b'"' + METADATA.encode() + b'"'

#: Faust uses it too; it takes as long as msgspec on small values and less on large ones.
untyped = orjson.loads

#: Exact on integers of any size, as the fields of records are.
untyped_exact = msgspec.json.Decoder().decode


class Codec(ABC):
    """What a codec offers; third parties register theirs under ``streamproc.codecs``."""

    @abstractmethod
    def decoder(self, declared: Any) -> Decoder:
        """Return a function from bytes to a value of the declared type.

        The function raises ``DecodeError`` for bytes that don't fit.

        Raises:
            ConfigurationError: The codec can't make such values.
        """

    @abstractmethod
    def encoder(self, declared: Any) -> Encoder:
        """Return a function from a value to bytes; it raises ``EncodeError``.

        None and bytes are passed on as they are.
        """

    def batch_decoder(self, declared: Any) -> BatchDecoder:
        """Return a function from a list of payloads to (values, [(row, error)])."""
        return column_decoder(self.decoder(declared))


def batch_decoder(codec: Codec, declared: Any) -> BatchDecoder:
    """Return a function that decodes a column: the values, and which failed and why.

    A failed value is None in the column.
    """
    return codec.batch_decoder(declared)


class JsonCodec(Codec):
    """JSON, by msgspec."""

    def decoder(self, declared: Any) -> Decoder:
        if declared is bytes:
            return same
        return single(*_json_readers(declared))

    def batch_decoder(self, declared: Any) -> BatchDecoder:
        if declared is bytes:
            return unchanged
        return column_decoder(*_json_readers(declared))

    def encoder(self, declared: Any) -> Encoder:
        encode = msgspec.json.Encoder(enc_hook=encode_unknown).encode

        def encode_payload(payload: Any) -> bytes | None:
            if payload is None or type(payload) is bytes:
                return payload
            try:
                if isinstance(payload, Record) and payload._options.include_metadata:
                    payload = payload.to_representation()
                return encode(payload)
            except (TypeError, ValueError, RecursionError) as exc:
                raise EncodeError(f"{payload!r:.200} can't be encoded as JSON: {exc}") from exc

        return encode_payload


class TextCodec(Codec):
    """UTF-8 text, and numbers as text; records and the rest as JSON."""

    #: What an undeclared payload becomes.
    undeclared: Any = str

    def decoder(self, declared: Any) -> Decoder:
        if declared is None or declared is Any:
            declared = self.undeclared
        if declared is bytes:
            return same
        if declared in NUMBERS:
            return single(NUMBERS[declared])
        return JSON.decoder(declared)

    def batch_decoder(self, declared: Any) -> BatchDecoder:
        if declared is bytes or (declared in (None, Any) and self.undeclared is bytes):
            return unchanged
        if declared in NUMBERS or declared in (None, Any):
            return column_decoder(NUMBERS[declared or self.undeclared])
        return JSON.batch_decoder(declared)

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


class RawCodec(TextCodec):
    """Bytes as they are; otherwise as :class:`TextCodec`."""

    undeclared = bytes


class BinaryCodec(Codec):
    """Base64 of what :class:`RawCodec` writes."""

    def decoder(self, declared: Any) -> Decoder:
        inner = RAW.decoder(declared)

        def decode(payload: bytes) -> Any:
            try:
                return inner(b64decode(payload))
            except binascii.Error as exc:
                raise DecodeError(f"invalid base64: {exc}") from exc

        return single(decode)

    def encoder(self, declared: Any) -> Encoder:
        inner = RAW.encoder(declared)

        def encode_payload(payload: Any) -> bytes | None:
            encoded = inner(payload)
            return None if encoded is None else b64encode(encoded)

        return encode_payload


def _json_readers(declared: Any) -> tuple[Decoder, Decoder | None]:
    """Return how JSON is read as ``declared``, and how what that refused is read again."""
    if declared is None or declared is Any:
        return _undeclared, None
    if declared is str:
        return _json_text, None
    if isinstance(declared, type) and issubclass(declared, Record):
        return _record_readers(declared)
    if isinstance(declared, type) and issubclass(declared, FaustModel):
        read = faustmodels.reader(declared)
        return (lambda payload: read(untyped(payload))), None
    try:
        strict = declared not in (int, float, Decimal)
        return msgspec.json.Decoder(declared, strict=strict).decode, None
    except TypeError as exc:
        raise ConfigurationError(f"JSON can't be decoded as {declared!r}: {exc}") from exc


def _record_readers(model: Any) -> tuple[Decoder, Decoder | None]:
    options = model._options

    def recover(payload: bytes) -> Any:
        return model.from_data(untyped_exact(payload))

    if options.date_parser or model.__is_abstract__:
        return recover, None
    try:
        decode = msgspec.json.Decoder(
            model, strict=not options.coerce, dec_hook=coercion_hook(model)
        ).decode
    except TypeError as exc:
        raise ConfigurationError(f"{model.__name__} can't be read: {exc}") from exc
    if not (options.is_polymorphic or _could_be_envelope(model)):
        return decode, recover

    def decode_named(payload: bytes) -> Any:
        return recover(payload) if NAMED in payload else decode(payload)

    return decode_named, recover


def _could_be_envelope(model: Any) -> bool:
    """True if Faust's envelope of a request could pass for a record of this model."""
    required = {info.encode_name for info in model._options.infos if info.required}
    return required.issubset(ReqRepRequest._options.fieldset)


def _undeclared(payload: bytes) -> Any:
    value = untyped(payload)
    # A model written with its namespace comes back as that model, as in Faust.
    if NAMED in payload and isinstance(value, dict):
        metadata = value.get(METADATA)
        namespace = metadata.get("ns") if isinstance(metadata, dict) else None
        if isinstance(namespace, str) and namespace in registry:
            return registry[namespace].from_data(value)
    return value


def _json_text(payload: bytes) -> str:
    value = untyped(payload)
    return value if isinstance(value, str) else str(value)


def _text(payload: bytes) -> str:
    return payload.decode("utf-8")


def _float(payload: bytes) -> float:
    number = float(payload)
    if not isfinite(number):
        raise DecodeError(f"{number} is not a finite number")
    return number


def _decimal(payload: bytes) -> Decimal:
    try:
        return Decimal(payload.decode("utf-8"))
    except InvalidOperation as exc:
        raise DecodeError(f"{payload!r:.80} is not a decimal number") from exc


NUMBERS: dict[Any, Decoder] = {str: _text, int: int, float: _float, Decimal: _decimal}
JSON = JsonCodec()
RAW = RawCodec()
_codecs: dict[str, Codec] = {
    "json": JSON,
    "raw": RAW,
    "text": TextCodec(),
    "binary": BinaryCodec(),
}


def register_codec(name: str, codec: Codec) -> None:
    """Offer ``codec`` under ``name`` in ``key_serializer=`` and ``value_serializer=``."""
    _codecs[name] = codec


def find_codec(name: str) -> Codec | None:
    """Return the codec called ``name``, or None if it isn't one of ours.

    Raises:
        ConfigurationError: It is pickle, which runs code that comes with the data.
    """
    refuse_pickle(name)
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


def encode(serializer: Any, value: Any) -> bytes:
    """Encode one value; by Faust's codec of that name if it isn't one of ours."""
    codec = find_codec(serializer) if isinstance(serializer, str) else None
    if codec is not None:
        return codec.encoder(type(value))(value) or b""
    from faust.serializers.codecs import dumps

    return dumps(serializer, value.to_representation() if isinstance(value, Record) else value)  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _decoder(serializer: str, declared: Any) -> Decoder | None:
    codec = find_codec(serializer)
    return None if codec is None else codec.decoder(declared)


def decode(serializer: Any, declared: Any, payload: bytes) -> Any:
    """Decode one payload; by Faust's codec of that name if it isn't one of ours.

    Raises:
        DecodeError: The bytes aren't such a value.
    """
    decoder = _decoder(serializer, declared) if isinstance(serializer, str) else None
    if decoder is not None:
        return decoder(payload)
    from faust.serializers.codecs import loads

    return declared.from_data(loads(serializer, payload))
