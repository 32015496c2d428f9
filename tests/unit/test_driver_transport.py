"""The test driver's transport has all that the worker asks of the real one."""

import inspect
import re
from pathlib import Path

import streamproc.kafka
from streamproc.kafka.changelogs import ChangelogReader
from streamproc.kafka.producer import Producer
from streamproc.testing.transport import MemoryChangelogs, MemoryClient, MemoryGroup


def test_what_the_consumer_asks_its_thread():
    source = (Path(streamproc.kafka.__path__[0]) / "consumer.py").read_text()
    asked = set(re.findall(r"self\._thread\.([a-z]\w*)", source)) - {"missing_topics"}
    assert sorted(name for name in asked if not hasattr(MemoryGroup, name)) == []


def test_the_changelog_reader():
    public = {name for name in vars(ChangelogReader) if not name.startswith("_")}
    assert sorted(public - set(vars(MemoryChangelogs))) == []


def test_what_the_producer_asks_its_client():
    source = inspect.getsource(Producer)
    asked = set(re.findall(r"(?:_ensure_producer\(\)|producer|\bold)\.([a-z_]\w*)", source))
    client = MemoryClient(None, None, 0.0)
    assert sorted(name for name in asked if not hasattr(client, name)) == []
    asked = set(re.findall(r"\b(?:client|cluster)\.([a-z_]\w*)", source))
    assert sorted(name for name in asked if not hasattr(client.client, name)) == []
