"""Fixtures: real Kafka and Redis, a client for each, workers of apps written in the test.

``STREAMPROC_TEST_KAFKA=apache`` runs everything on Apache Kafka (Java and Maven needed);
the default is the embedded broker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import redis
from hypothesis import HealthCheck, settings

from streamproc.dev.apache import kafka_jars
from streamproc.dev.process import ChildProcess
from streamproc.dev.servers import (
    EmbeddedKafka,
    KafkaServer,
    RedisServer,
    kafka_server,
)
from streamproc.dev.servers import redis_server as start_redis

KAFKA_KIND = os.environ.get("STREAMPROC_TEST_KAFKA", "embedded")

# How fast examples are made is a matter of what else the machine does.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

_children = pytest.StashKey[list[ChildProcess]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "apache_only: needs what only Apache Kafka does")
    if KAFKA_KIND == "apache" and not hasattr(config, "workerinput"):
        kafka_jars()  # once, before the processes of xdist would resolve them all at once


def pytest_report_header() -> str:
    return f"kafka: {KAFKA_KIND}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if KAFKA_KIND == "apache":
        return
    reason = "the embedded broker can't do this; run with STREAMPROC_TEST_KAFKA=apache"
    for item in items:
        if item.get_closest_marker("apache_only"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.failed:
        for child in item.stash.get(_children, []):
            title = f"log of {child.name} (exit code {child.exit_code})"
            report.sections.append((title, child.log_tail(60)))
    return report


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """The broker of the session; a test that stops or kills a broker takes ``new_kafka``."""
    with kafka_server(KAFKA_KIND, tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def bootstrap(kafka: KafkaServer) -> str:
    """``127.0.0.1:port`` of the session's broker."""
    return kafka.bootstrap


@pytest.fixture(scope="session")
def kafka_client(bootstrap: str) -> harness.KafkaClient:
    """create_topic, produce, consume_all, committed on the session's broker."""
    return harness.KafkaClient(bootstrap)


@pytest.fixture
def topic_factory(kafka_client: harness.KafkaClient) -> Callable[..., str]:
    """``topic_factory(partitions=4, name=None, config=None)`` creates a topic, returns its name."""
    return kafka_client.create_topic


@pytest.fixture
def topic(topic_factory: Callable[..., str]) -> str:
    """The name of a new topic with 4 partitions."""
    return topic_factory()


@pytest.fixture
def produce(kafka_client: harness.KafkaClient) -> Callable[..., dict[int, int]]:
    """``produce(topic, records, partition=None)``, see :meth:`harness.KafkaClient.produce`."""
    return kafka_client.produce


@pytest.fixture
def consume_all(kafka_client: harness.KafkaClient) -> Callable[..., list[harness.Received]]:
    """``consume_all(topic, at_least=0)``, see :meth:`harness.KafkaClient.consume_all`."""
    return kafka_client.consume_all


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of the session; a test that stops or kills one takes ``new_redis``."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A synchronous client (text replies) of the session's Redis, which is emptied first."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_url(redis_server: RedisServer, redis_client: redis.Redis) -> str:
    """The URL of the session's Redis, which is emptied first."""
    return redis_server.url


@pytest.fixture
def children(request: pytest.FixtureRequest) -> Iterator[list[ChildProcess]]:
    """The processes a test started; ended after it, and their logs shown when it fails."""
    started = request.node.stash.setdefault(_children, [])
    yield started
    for child in reversed(started):
        child.kill()


@pytest.fixture
def new_kafka(children: list[ChildProcess], tmp_path: Path) -> Callable[..., KafkaServer]:
    """``new_kafka(start=True)``: a broker of the test's own, to stop, kill, pause, restart."""

    def create(start: bool = True) -> KafkaServer:
        from streamproc.dev.apache import ApacheKafka

        kind: Any = ApacheKafka if KAFKA_KIND == "apache" else EmbeddedKafka
        server: KafkaServer = kind(tmp_path / f"kafka-{len(children)}")
        children.append(server)
        return server.start() if start else server

    return create


@pytest.fixture
def new_redis(children: list[ChildProcess], tmp_path: Path) -> Callable[..., RedisServer]:
    """``new_redis(password="", start=True)``: a Redis of the test's own, to stop, kill, pause."""

    def create(password: str = "", start: bool = True) -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{len(children)}", password=password)
        children.append(server)
        return server.start() if start else server

    return create


@pytest.fixture
def worker(
    children: list[ChildProcess], tmp_path: Path, bootstrap: str, redis_url: str
) -> harness.WorkerLauncher:
    """Starts workers; their environment has BOOTSTRAP and REDIS_URL of the session's servers."""
    env = {"BOOTSTRAP": bootstrap, "REDIS_URL": redis_url}
    return harness.WorkerLauncher(tmp_path, env, children)


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """``wait_for(condition, timeout=30, message="")`` polls until the condition is true."""
    return harness.wait_for
