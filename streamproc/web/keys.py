"""Keys of tables as text of an address, and as JSON."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec

from streamproc.errors import DecodeError
from streamproc.records.codecs import JSON, NUMBERS, get_codec
from streamproc.records.record import encode_unknown

#: Serializers whose bytes start alike when keys do.
ORDERED_SERIALIZERS = ("json", "raw", "text")

encode_json = msgspec.json.Encoder(enc_hook=encode_unknown).encode


def parse_key(table: Any, text: str) -> Any:
    """Return the key that ``text`` means: see :func:`key_text` for how keys are written.

    Raises:
        DecodeError: It isn't a key of this table.
    """
    return parse_keys(table, text)[0]


def parse_keys(table: Any, text: str) -> list[Any]:
    """Return the keys that ``text`` may mean, most likely first.

    There are two where the table has no key type: what the text is as JSON, and itself.

    Raises:
        DecodeError: It isn't a key of this table.
    """
    declared = table.key_type
    if declared is str:
        return [text]
    if declared is bytes:
        return [_bytes(text)]
    if declared in (None, Any):
        key = _undeclared(text)
        return [key] if key == text else [key, text]
    key = _declared(declared, text)
    try:
        hash(key)
    except TypeError as exc:
        raise DecodeError(f"{text!r:.80} can't be a key: {exc}") from exc
    return [key]


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise DecodeError(f"{text!r:.80} isn't hexadecimal, as keys of bytes are written") from exc


def _undeclared(text: str) -> Any:
    try:
        found = JSON.decoder(None)(text.encode())
    except DecodeError:
        return text
    if isinstance(found, list):
        return _as_tuple(found)
    return text if isinstance(found, dict) else found


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _declared(declared: Any, text: str) -> Any:
    raw = text.encode()
    try:
        return get_codec("text").decoder(declared)(raw)
    except DecodeError:
        if declared in NUMBERS:
            raise
    # Dates, UUIDs and their like are strings in JSON, and may come without the quotes.
    return JSON.decoder(declared)(encode_json(text))


def key_text(table: Any, key: Any) -> str:
    """Return how a key is written in an address.

    Text as it is, bytes as hexadecimal, numbers as digits, anything else (records) as
    compact JSON. In a table without a key type, text that reads as JSON is quoted.
    """
    if isinstance(key, bytes):
        return key.hex()
    if isinstance(key, Decimal):
        return str(key)
    if isinstance(key, str):
        declared = table.key_type
        return key if declared is str or _undeclared(key) == key else encode_json(key).decode()
    return encode_json(key).decode()


def key_path(table: Any, key: Any) -> str:
    """Return the path of the page of a key."""
    path, text = f"/tables/{quote(table.name, safe='')}/", key_text(table, key)
    # Clients take "." and ".." out of a path before they ask for it.
    if text in ("", ".", ".."):
        return f"{path}?key={text}"
    return f"{path}{quote(text, safe='')}/"


def key_json(key: Any) -> bytes:
    """Return a key as JSON: bytes as hexadecimal, the rest as usual."""
    return encode_json(key.hex() if isinstance(key, bytes) else key)


def encoded_prefix(table: Any, text: str) -> bytes:
    """Return what encoded keys start with, of keys whose text starts with ``text``.

    Raises:
        DecodeError: Keys of this table aren't ordered by their text.
    """
    if table.key_serializer not in ORDERED_SERIALIZERS:
        raise DecodeError(f"keys encoded as {table.key_serializer!r} have no order of text")
    declared = table.key_type
    if declared is bytes:
        return _bytes(text)
    if declared not in (str, None, Any):
        return text.encode()
    encoded: bytes = table.codec.encode_key(text)
    # JSON text ends in a quote that longer keys don't have there.
    return encoded[:-1] if table.key_serializer == "json" else encoded
