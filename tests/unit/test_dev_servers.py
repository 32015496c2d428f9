"""Servers for development: what is said when they can't be started."""

from __future__ import annotations

import pytest

from streamproc.dev import servers
from streamproc.dev.apache import ApacheKafka
from streamproc.dev.stack import Addresses, DevWorker, Stack
from streamproc.errors import ConfigurationError, ServerNotInstalled


@pytest.fixture
def _bare_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("STREAMPROC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(servers.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("_bare_machine")
@pytest.mark.parametrize(
    ("server", "message"),
    [
        (servers.EmbeddedKafka, r"dev-servers.*STREAMPROC_BROKER_LIST.*--kafka apache"),
        (servers.RedisServer, r"apt-get install redis-server.*dev-servers.*STREAMPROC_REDIS"),
        (ApacheKafka, r"needs 'java' on PATH.*apt-get install"),
    ],
)
def test_a_missing_server_says_what_to_do(server, message, tmp_path):
    with pytest.raises(ServerNotInstalled, match=message):
        server(tmp_path / "data").start()


def test_unknown_kinds(tmp_path):
    with pytest.raises(ConfigurationError, match="'embedded' or 'apache'"):
        servers.kafka_server("confluent", tmp_path)
    with Stack(tmp_path) as stack:
        with pytest.raises(ConfigurationError, match="a URL like kafka://"):
            stack.start_servers("localhost", "embedded")
        with pytest.raises(ConfigurationError, match="a URL like redis://"):
            stack.start_servers("kafka://localhost:9092", "localhost")


def test_the_redis_password_is_in_no_command_line(tmp_path):
    server = servers.RedisServer(tmp_path, password="p@ss:w/rd")
    assert "p@ss" not in " ".join(server.command())
    assert server.url == f"redis://:p%40ss%3Aw%2Frd@127.0.0.1:{server.port}/0"
    assert (tmp_path / "redis.conf").stat().st_mode & 0o777 == 0o600


def test_the_last_error_of_a_worker_is_found_as_its_log_grows(tmp_path):
    worker = DevWorker("worker-1", tmp_path)
    worker.log_path.write_bytes(b"[INFO] fine\n[ERROR] first\n")
    assert worker.last_error() == "[ERROR] first"
    with worker.log_path.open("ab") as log:
        log.write(b"[INFO] more\n[ERROR] hal")
        log.flush()
        assert worker.last_error() == "[ERROR] first"
        log.write(b"f \xff\n")
        log.flush()
        assert worker.last_error() == "[ERROR] half \ufffd"


def test_addresses_are_shown_without_passwords():
    addresses = Addresses("kafka://me:secret@k:9092", "redis://:p%40ss@r:6379/0")
    assert addresses.shown == ["kafka://me:******@k:9092", "redis://:******@r:6379/0"]
    assert Addresses("kafka://k:1", "redis://r:2/0").shown == ["kafka://k:1", "redis://r:2/0"]
