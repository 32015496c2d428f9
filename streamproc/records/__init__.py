"""Typed records and the codecs that read and write them."""

from streamproc.records.codecs import batch_decoder, find_codec, get_codec, register_codec
from streamproc.records.record import EventTimes, Record, milliseconds

__all__ = [
    "EventTimes",
    "Record",
    "batch_decoder",
    "find_codec",
    "get_codec",
    "milliseconds",
    "register_codec",
]
