"""Typed records and the codecs that read and write them."""

from streamproc.records.codecs import (
    Codec,
    batch_decoder,
    find_codec,
    get_codec,
    register_codec,
)
from streamproc.records.record import Record
from streamproc.records.times import EventTimes, milliseconds
from streamproc.records.validators import validator

__all__ = [
    "Codec",
    "EventTimes",
    "Record",
    "batch_decoder",
    "find_codec",
    "get_codec",
    "milliseconds",
    "register_codec",
    "validator",
]
