"""Testing apps without servers: see :class:`TestDriver`."""

from streamproc.testing.driver import TestDriver
from streamproc.testing.records import DeadLetter, InputTopic, OutputTopic, TestRecord
from streamproc.testing.sinks import SinkResults
from streamproc.testing.tables import TableView

__all__ = [
    "DeadLetter",
    "InputTopic",
    "OutputTopic",
    "SinkResults",
    "TableView",
    "TestDriver",
    "TestRecord",
]
