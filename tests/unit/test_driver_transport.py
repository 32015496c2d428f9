"""The test driver's transport has all that the worker asks of the real one."""

import inspect
import re
from pathlib import Path

import streamproc.kafka
from streamproc.kafka.changelogs import ChangelogReader
from streamproc.kafka.producer import Producer
from streamproc.testing.transport import MemoryChangelogs, MemoryGroup, MemoryProducer


def test_what_the_consumer_asks_its_thread():
    source = (Path(streamproc.kafka.__path__[0]) / "consumer.py").read_text()
    asked = set(re.findall(r"self\._thread\.([a-z]\w*)", source)) - {"missing_topics"}
    assert sorted(name for name in asked if not hasattr(MemoryGroup, name)) == []


def test_the_changelog_reader():
    public = {name for name in vars(ChangelogReader) if not name.startswith("_")}
    assert sorted(public - set(vars(MemoryChangelogs))) == []


def test_nothing_of_the_producer_that_sends_is_left():
    """Methods that speak to aiokafka are replaced."""
    left = {
        name
        for name, method in vars(Producer).items()
        if callable(method)
        and not name.startswith(("_", "on_init"))
        and name not in vars(MemoryProducer)
        and "producer" in inspect.getsource(method)
    }
    assert left == set()
