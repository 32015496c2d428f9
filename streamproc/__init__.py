"""streamproc: Faust-style Kafka stream processing on a batch data path.

``import streamproc as faust`` gives every public name of ``faust``: ours where there is
a better one, Faust's own otherwise. ``streamproc.app`` is the App of the project folder
that the process was started in; it is made when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamproc._version import __version__

if TYPE_CHECKING:
    from streamproc import sinks
    from streamproc.application import App
    from streamproc.health.worker import Worker
    from streamproc.kafka.security import BrokerSecurity
    from streamproc.records import Record
    from streamproc.sinks.writer import RedisWriter
    from streamproc.sources.reader import KafkaReader
    from streamproc.streams.agent import Agent
    from streamproc.streams.batch import Batch
    from streamproc.streams.joins import join_tables
    from streamproc.streams.policies import Policy, dead_letter, retry, skip, stop
    from streamproc.streams.stream import Stream
    from streamproc.streams.topic import Topic

    app: App

#: Where our own names come from; imported when first used, so that
#: ``streamproc --help`` need not load Faust.
_ORIGINS = {
    "Agent": "streamproc.streams.agent",
    "App": "streamproc.application",
    "Batch": "streamproc.streams.batch",
    "BrokerSecurity": "streamproc.kafka.security",
    "KafkaReader": "streamproc.sources.reader",
    "Policy": "streamproc.streams.policies",
    "Record": "streamproc.records",
    "RedisWriter": "streamproc.sinks.writer",
    "Stream": "streamproc.streams.stream",
    "Topic": "streamproc.streams.topic",
    "Worker": "streamproc.health.worker",
    "dead_letter": "streamproc.streams.policies",
    "join_tables": "streamproc.streams.joins",
    "retry": "streamproc.streams.policies",
    "skip": "streamproc.streams.policies",
    "stop": "streamproc.streams.policies",
}

__all__ = [
    "Agent",
    "App",
    "Batch",
    "BrokerSecurity",
    "KafkaReader",
    "Policy",
    "Record",
    "RedisWriter",
    "Stream",
    "Topic",
    "Worker",
    "__version__",
    "app",
    "dead_letter",
    "join_tables",
    "retry",
    "sinks",
    "skip",
    "stop",
]


def __getattr__(name: str) -> Any:
    if name == "app":
        from streamproc.project import current_app

        return current_app()
    if name in _ORIGINS:
        value = getattr(importlib.import_module(_ORIGINS[name]), name)
    else:
        value = _from_faust(name)
    globals()[name] = value
    return value


def _from_faust(name: str) -> Any:
    """Find a public name or a submodule of Faust."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import faust

    try:
        return getattr(faust, name)
    except AttributeError:
        pass
    try:
        return importlib.import_module(f"faust.{name}")
    except ModuleNotFoundError as exc:
        if exc.name != f"faust.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    import faust

    return sorted({*__all__, *faust.__all__})
