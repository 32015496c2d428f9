"""``import streamproc as faust``: every public name, its submodules, settings by their names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import faust
import pytest
from faust.types.enums import ProcessingGuarantee

import streamproc
from streamproc.errors import ConfigurationError


@pytest.mark.parametrize("name", sorted(faust.__all__))
def test_every_public_name_is_there(name):
    assert getattr(streamproc, name) is not None


@pytest.mark.parametrize("name", ["App", "Record", "Stream", "Topic", "Agent"])
def test_what_is_ours_is_a_subclass_or_a_model(name):
    ours, theirs = getattr(streamproc, name), getattr(faust, name, None)
    assert ours is not theirs
    if name not in ("Record", "Agent"):
        assert issubclass(ours, theirs)


@pytest.mark.parametrize(
    "module",
    [
        "web",
        "cli",
        "windows",
        "types",
        "sensors",
        "exceptions",
        "models",
        "serializers",
        "livecheck",
        "stores",
        "tables",
        "utils",
        "auth",
        "channels",
        "events",
        "fixups",
    ],
)
def test_submodules_are_attributes(module):
    assert getattr(streamproc, module) is not None


def test_names_used_in_docs_of_faust():
    assert callable(streamproc.cli.option)
    assert streamproc.web.View
    assert streamproc.windows.TumblingWindow
    assert streamproc.TumblingWindow
    assert streamproc.livecheck.LiveCheck
    assert streamproc.SASLCredentials
    assert callable(streamproc.current_event)
    assert callable(streamproc.uuid)


def test_from_import_and_star():
    done = subprocess.run(
        [sys.executable, "-c", "from streamproc import App, Record, current_event, topic_name"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot import name 'topic_name'" in done.stderr
    subprocess.run(
        [sys.executable, "-c", "from streamproc import *; App, Record, Stream"], check=True
    )


def test_a_name_that_is_nowhere():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = streamproc.no_such_name


def app(**options):
    return streamproc.App("test", broker="kafka://127.0.0.1:1", **options)


SETTINGS = {
    "topic_partitions": 3,
    "topic_replication_factor": 1,
    "broker_commit_every": 500,
    "broker_commit_interval": 0.5,
    "broker_max_poll_records": 100,
    "consumer_auto_offset_reset": "latest",
    "consumer_max_fetch_size": 1000,
    "stream_buffer_maxsize": 10,
    "stream_wait_empty": False,
    "stream_publish_on_commit": True,
    "table_standby_replicas": 0,
    "table_cleanup_interval": 5.0,
    "producer_acks": 1,
    "producer_linger": 0.1,
    "producer_compression_type": "gzip",
    "web_port": 7000,
    "web_enabled": False,
    "reply_create_topic": True,
    "autodiscover": False,
    "datadir": "/tmp/x",
    "origin": "x",
    "key_serializer": "raw",
    "value_serializer": "json",
    "version": 2,
    "debug": True,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_in_fausts_names(name):
    value = getattr(app(**{name: SETTINGS[name]}).conf, name)
    assert str(value) == str(SETTINGS[name])


def test_app_conf_is_read_from_an_object():
    class Config:
        broker = "kafka://127.0.0.1:1"
        topic_partitions = 5

    made = streamproc.App("test-conf")
    made.config_from_object(Config)
    assert made.conf.topic_partitions == 5


@pytest.mark.parametrize("guarantee", ["exactly_once", ProcessingGuarantee.EXACTLY_ONCE])
def test_exactly_once_of_faust_means_ours(guarantee):
    made = app(processing_guarantee=guarantee)
    assert made.exactly_once
    assert not made.in_transaction
    assert not app().exactly_once


def test_unknown_guarantees_are_refused():
    with pytest.raises(ConfigurationError, match="'exactly_twice'"):
        app(processing_guarantee="exactly_twice")
    with pytest.raises(ConfigurationError, match="when_sink_behind='ignore'"):
        app(when_sink_behind="ignore")


def test_url_forms_of_brokers():
    made = streamproc.App("test", broker="kafka://a:1;kafka://b:2")
    assert [str(url) for url in made.conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert str(streamproc.App("test", broker="aiokafka://a:1").conf.broker[0]) == "aiokafka://a:1"


def test_topics_streams_and_agents_are_ours():
    made = app()
    topic = made.topic("t", key_type=str)
    assert type(topic) is streamproc.Topic

    @made.agent(topic)
    async def process(stream):
        async for _ in stream:
            pass

    assert type(process) is streamproc.Agent
    assert importlib.import_module("streamproc.streams.stream").Stream is streamproc.Stream
