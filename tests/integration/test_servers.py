"""The servers that development and tests stand on, and the harness around them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from streamproc.dev.process import kill_leftovers
from streamproc.dev.servers import EmbeddedKafka
from streamproc.errors import ServerFailed


def test_records_come_back_with_everything_they_had(topic, produce, consume_all):
    sent = [
        (f"k{i % 7}", {"n": i}, 1_700_000_000_000 + i, [("h", str(i).encode())]) for i in range(500)
    ]
    counts = produce(topic, [*sent, ("gone", None), b"\xff"])
    received = consume_all(topic, at_least=502)
    assert len(received) == sum(counts.values()) == 502
    back = [r for r in received if r.value and r.value != b"\xff"]
    assert sorted(r.json()["n"] for r in back) == list(range(500))
    for record in back:
        n = record.json()["n"]
        assert (record.key, record.timestamp) == (f"k{n % 7}".encode(), 1_700_000_000_000 + n)
        assert record.headers == [("h", str(n).encode())]


def test_reading_ends_at_the_high_watermark(topic, produce, consume_all):
    assert consume_all(topic) == []
    produce(topic, [b"x"] * 107, partition=0)
    assert [r.offset for r in consume_all(topic)] == list(range(107))


def test_a_broker_is_found_at_the_same_address_after_it_was_killed(new_kafka):
    broker = new_kafka()
    before = broker.address
    broker.kill()
    assert not broker.running
    with pytest.raises(OSError):
        broker.answers()
    broker.restart()
    assert broker.address == before
    assert broker.answers()


def test_redis_keeps_acknowledged_writes_when_killed(new_redis):
    server = new_redis(password='s3cret "quoted" \\ word')
    redis.Redis.from_url(server.url).set("a", "1")
    server.kill()
    server.restart()
    assert redis.Redis.from_url(server.url).get("a") == b"1"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server.port).get("a")


def test_a_paused_server_answers_nothing_until_it_resumes(new_redis):
    server = new_redis()
    client = redis.Redis.from_url(server.url, socket_timeout=0.3, retry=None)
    server.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    server.resume()
    assert redis.Redis.from_url(server.url).ping()


def test_a_server_that_cannot_start_shows_its_log(new_redis, tmp_path):
    taken = new_redis()
    server = EmbeddedKafka(tmp_path / "second", port=taken.port)
    server.start_timeout = 2
    with pytest.raises(ServerFailed, match=r"kafka .* 127\.0\.0\.1:\d+"):
        server.start()
    assert not server.running


START_AND_WAIT = """
import sys, time
from pathlib import Path
from streamproc.dev.servers import redis_server
print(redis_server(Path(sys.argv[1])).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans by itself")
def test_servers_end_when_their_owner_is_killed(tmp_path, wait_for):
    owner = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    wait_for(lambda: not _alive(pid), 10, f"server {pid} ends")


def test_leftovers_are_killed_by_their_pid_files(new_redis, tmp_path):
    server = new_redis()
    other = tmp_path / "reused.pid"
    other.write_text(f"{os.getpid()}\nanother start time")
    assert kill_leftovers(tmp_path) == [server.pid]
    assert server.stop() == -9
    assert not other.exists()


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


FAUST_APP = """
import os, faust, redis
app = faust.App("harness-app", broker="kafka://" + os.environ["BOOTSTRAP"],
                broker_session_timeout=6.0, broker_heartbeat_interval=1.0,
                topic_disable_leader=True)
store = redis.Redis.from_url(os.environ["REDIS_URL"])
topic = app.topic("{topic}", value_type=bytes, value_serializer="raw")

@app.agent(topic)
async def count(stream):
    async for value in stream:
        store.incr("seen")
"""


def test_a_worker_of_an_app_written_in_the_test(worker, topic, produce, redis_client, wait_for):
    started = worker(FAUST_APP.format(topic=topic), ready=True)
    produce(topic, [b"1"] * 20)
    wait_for(lambda: redis_client.get("seen") == "20", 30, "all records seen")
    assert started.stop() == 0


@pytest.mark.apache_only
def test_a_missing_topic_is_not_created_by_asking(kafka_client):
    assert kafka_client.partitions("nobody-made-this") == 0
    assert kafka_client.partitions("nobody-made-this") == 0
