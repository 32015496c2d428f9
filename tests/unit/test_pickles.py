"""Pickle is refused wherever its name gets in, and never run."""

from __future__ import annotations

import base64
import pickle
from typing import Any

import faust
import pytest
from faust.serializers import codecs

from streamproc import App, KafkaReader
from streamproc.errors import ConfigurationError

RAN: list[str] = []


class Evil:
    def __reduce__(self) -> Any:
        return RAN.append, ("it ran",)


MESSAGE = base64.b64encode(pickle.dumps(Evil()))


class Model(faust.Record, serializer="pickle"):
    a: int


@pytest.fixture
def app(tmp_path) -> App:
    return App("unpickled", datadir=str(tmp_path), store="memory://")


@pytest.mark.parametrize(
    "options",
    [
        {"value_serializer": "pickle"},
        {"key_serializer": "pickle_restricted"},
        {"value_serializer": "binary|pickle"},
        {"schema": faust.Schema(value_serializer="pickle_restricted")},
        {"value_serializer": codecs.raw_pickle() | codecs.binary()},
        {"value_type": Model},
    ],
)
def test_topics(app: App, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="is refused; use json"):
        app.topic("t", **options)


def test_apps(tmp_path) -> None:
    app = App("a", value_serializer="pickle", datadir=str(tmp_path), store="memory://")
    with pytest.raises(ConfigurationError, match="is refused; use json"):
        app.topic("t")


def test_readers() -> None:
    with pytest.raises(ConfigurationError, match="is refused; use json"):
        KafkaReader("127.0.0.1:1", "t", serialization="pickle")


@pytest.mark.parametrize("name", ["pickle", "pickle_restricted", "pickle_fickling", "json|pickle"])
def test_codecs_of_faust(app: App, name: str) -> None:
    """They are what tables, models and events end at."""
    for serializers in (app.serializers.loads_value, app.serializers.loads_key):
        with pytest.raises((ConfigurationError, faust.exceptions.DecodeError)) as caught:
            serializers(None, MESSAGE, serializer=name)
        assert "is refused; use json" in str(caught.value)
    with pytest.raises(ConfigurationError, match="is refused; use json"):
        codecs.dumps(name, {"a": 1})
    assert not RAN
