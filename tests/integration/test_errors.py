"""What fails on real servers: policies of agents and sinks, and `streamproc dlq` on the letters."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from click.testing import CliRunner

from streamproc.cli import main
from streamproc.errors import ProducerError
from streamproc.kafka.scan import TopicScan

APP = """
    import asyncio
    import os
    from pathlib import Path

    import streamproc
    from streamproc import dead_letter, retry, skip
    from streamproc.sinks import RedisHash, RedisList

    class Reading(streamproc.Record):
        sensor_id: str
        value: int

    app = streamproc.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        topic_disable_leader=True,
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=Reading)
    counts = app.Table("counts", key_type=str, value_type=int, default=int, partitions=2)
    is_mended = Path(os.environ["FLAG"]).exists

    @app.agent(topic, name="count", sink=[RedisHash("counts:{sensor_id}")],
               on_error=retry(1, "10ms"))
    async def count(stream):
        async for reading in stream:
            counts[reading.sensor_id] += 1
            if reading.value % 50 == 13 and not is_mended():
                raise ValueError(f"can't bear {reading.value}")
            yield {"sensor_id": reading.sensor_id, "count": counts[reading.sensor_id]}

    @app.agent(topic, name="skips", on_error=skip)
    async def skips(stream):
        async for batch in stream.batches():
            for reading in batch:
                if reading.value == 21:
                    raise KeyError(reading.value)

    @app.agent(topic, name="hangs", timeout="500ms", on_error=dead_letter)
    async def hangs(stream):
        async for reading in stream:
            if reading.value == 33 and not is_mended():
                await asyncio.sleep(3600)

    @app.agent(topic, name="refused", sink=[RedisList("list:{sensor_id}", value="value")])
    async def refused(stream):
        async for reading in stream:
            yield reading
"""

SENSORS = 4


class Dlq:
    """`streamproc dlq` on one topic."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._where = ["--broker", bootstrap, "--topic", topic]

    def __call__(self, command: str, *options: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["dlq", command, *self._where, *options])
        assert result.exit_code == code, result.output
        return result.output

    def lines(self, command: str, *options: str) -> list[dict]:
        return [json.loads(line) for line in self(command, *options, "--json").splitlines()]


@pytest.fixture
def rejected(worker, topic_factory, produce, redis_client, wait_for, kafka_client, tmp_path):
    """Run the app over good and bad records until all is done; return how to go on."""
    topic = topic_factory(partitions=2)
    redis_client.set("list:s3", "not a list")
    rows = [
        (f"s{n % SENSORS}", {"sensor_id": f"s{n % SENSORS}", "value": n}, 1_700_000_000_000 + n,
         [("trace", b"t%d" % n)])
        for n in range(200)
    ]  # fmt: skip
    rows.append(("s0", b"{broken", 1_700_000_000_500, []))
    produce(topic, rows)
    app_id, flag = f"app-{topic}", tmp_path / "mended"
    env = {"APP_ID": app_id, "TOPIC": topic, "FLAG": str(flag)}
    running = worker(APP, env=env)
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == len(rows), 60, "committed")
    return running, topic, app_id, flag


def counts_of(redis_client):
    keys = [f"counts:s{n}" for n in range(SENSORS)]
    return [int(redis_client.hget(key, "count") or 0) for key in keys]


def test_what_fails_is_kept_and_can_be_sent_again(
    rejected, bootstrap, redis_client, wait_for, kafka_client, consume_all, tmp_path
):
    running, topic, app_id, flag = rejected
    dlq = Dlq(bootstrap, f"{app_id}-dead-letters")
    # A failed record counts once, or not at all, however often it was tried.
    bad = {13, 63, 113, 163}
    wait_for(
        lambda: (
            counts_of(redis_client)
            == [sum(1 for n in range(s, 200, SENSORS) if n not in bad) for s in range(SENSORS)]
        ),
        20,
        lambda: f"counts {counts_of(redis_client)}",
    )

    letters = dlq.lines("list", "--limit", "1000")
    by_error = {}
    for letter in letters:
        by_error.setdefault((letter["agent"], letter["error"]), []).append(letter)
    counted = by_error.pop(("count", "ValueError"))
    assert {json.loads(each["value"])["value"] for each in counted} == bad
    (hung,) = by_error.pop(("hangs", "AgentTimeout"))
    assert json.loads(hung["value"])["value"] == 33
    assert "asyncio.sleep" in hung["traceback"]
    refused = [
        each for (agent, _), some in by_error.items() if "RedisList" in agent for each in some
    ]
    assert all("WRONGTYPE" in each["reason"] for each in refused)
    commands = [json.loads(each["value"]) for each in refused]
    assert {(name, key) for name, key, *_ in commands} == {("RPUSH", "list:s3")}
    pushed = {int(value) for _, _, *values in commands for value in values}
    assert pushed == set(range(3, 200, SENSORS))
    undecoded = [each for each in letters if each["stage"] == "value"]
    assert [each["value"] for each in undecoded] == ["{broken"]
    total = len(letters)
    assert total == len(bad) + 1 + len(refused) + 1

    one = next(each for each in counted if json.loads(each["value"])["value"] == 113)
    assert (one["topic"], one["timestamp"], one["attempts"]) == (topic, 1_700_000_000_113, 2)
    assert one["headers"] == [{"name": "trace", "value": "t113"}]
    assert one["app"] == f"{app_id} 1"
    text = dlq("show", one["id"])
    assert "can't bear 113" in text
    assert "Traceback" in text
    assert "No dead letter 7:7" in dlq("show", "7:7", code=1)

    # Filters.
    assert len(dlq.lines("list", "--agent", "count", "--key", "s1", "--limit", "9")) == 2
    assert len(dlq.lines("list", "--source", topic)) == 6
    assert len(dlq.lines("list", "--error", "ValueError", "--offsets", f"{one['offset']}")) == 1
    assert dlq.lines("list", "--since", "1h", "--error", "AgentTimeout") == [hung]
    assert dlq.lines("list", "--until", "2020-01-01") == []
    assert f"{total} dead letters" in dlq("list", "--limit", "2")

    # To a file, and back into the topic once the app is mended.
    file = tmp_path / "letters.jsonl"
    assert "Wrote 4" in dlq("replay", "--agent", "count", "--to-file", str(file))
    assert len(file.read_text().splitlines()) == 4
    assert "exists" in dlq("replay", "--to-file", str(file), code=1)
    chosen = ["replay", "--error", "ValueError", "--error", "AgentTimeout"]
    assert "Would send 5 records" in dlq(*chosen, "--dry-run")
    assert "use --yes" in dlq(*chosen, code=2)
    assert f"Left out {len(refused)} result" in dlq("replay", "--dry-run")
    flag.touch()
    assert f"Sent 5 records to {topic}" in dlq(*chosen, "--yes")
    # All readers get them: "hangs" had the four before, "count" the fifth.
    wait_for(lambda: sum(counts_of(redis_client)) == 201, 30, lambda: str(counts_of(redis_client)))
    again = consume_all(topic, at_least=206)[-5:]
    assert {each.timestamp for each in again} <= {1_700_000_000_000 + n for n in (*bad, 33)}
    for record in again:
        names = dict(record.headers)
        assert set(names) == {"trace", "dead-letter-replayed"}
        assert names["dead-letter-replayed"].decode().startswith(f"{app_id}-dead-letters/")
    running.stop()
    assert running.exit_code == 0

    # Purge; what was sent again has been refused again.
    total = len(dlq.lines("list", "--limit", "1000"))
    assert f"Would delete {total}" in dlq("purge", "--dry-run")
    behind = ["--key", "s1", "--offsets", str(one["offset"]), "--error", "ValueError"]
    assert "lie behind others" in dlq("purge", *behind, "--yes", code=1)
    if os.environ.get("STREAMPROC_TEST_KAFKA") == "apache":
        assert f"Deleted {total}" in dlq("purge", "--until", "0s", "--yes")
        assert dlq.lines("list") == []
    else:
        assert "DeleteRecords" in dlq("purge", "--yes", code=1)


def letter_of(topic, n):
    """A dead letter, as a worker writes it."""
    headers = {"topic": topic, "partition": "0", "offset": str(n), "error": "ValueError"}
    return (
        f"k{n % 50}",
        b"%d" % n,
        1_700_000_000_000 + n,
        [(f"dead-letter-{name}", value.encode()) for name, value in headers.items()],
    )


def test_a_replay_that_ends_halfway_goes_on_where_it_was(
    topic_factory, produce, bootstrap, consume_all, monkeypatch
):
    topic, letters = topic_factory(partitions=2), topic_factory(partitions=2)
    count = 4000
    produce(letters, [letter_of(topic, n) for n in range(count)])
    dlq = Dlq(bootstrap, letters)
    send, sends = TopicScan.send, []

    def end_at(number, action):
        async def sent(self, *arguments):
            sends.append(arguments)
            if len(sends) == number:
                action()
            return await send(self, *arguments)

        sends.clear()
        monkeypatch.setattr(TopicScan, "send", sent)

    def fail():
        raise ProducerError("the broker refused it")

    end_at(3, lambda: signal.raise_signal(signal.SIGINT))
    said = dlq("replay", "--yes", code=1)
    assert f"Sent {sum(len(each[1]) for each in sends):,} records to {topic}. To go on" in said
    assert len(sends) == 3
    end_at(2, fail)
    said = dlq("replay", "--yes", *said.partition("add ")[2].partition("\n")[0].split(), code=1)
    assert "the broker refused it" in said
    monkeypatch.undo()
    said = dlq("replay", "--yes", *said.partition("add ")[2].partition("\n")[0].split())
    assert f"records to {topic}." in said
    found = [int(record.value) for record in consume_all(topic, at_least=count)]
    assert sorted(found) == list(range(count))


def test_where_there_is_nothing(bootstrap, tmp_path, monkeypatch):
    assert "no topic 'nowhere'" in Dlq(bootstrap, "nowhere")("list", code=1)
    began = time.monotonic()
    assert "No Kafka broker answers" in Dlq("127.0.0.1:1", "x")("list", code=1)
    assert time.monotonic() - began < 30
    (tmp_path / "settings.py").write_text(f"BROKER_LIST = {bootstrap!r}\nNAME = 'empty'\n")
    monkeypatch.setenv("STREAMPROC_PROJECT", str(tmp_path))
    result = CliRunner().invoke(main, ["dlq", "list"])
    assert result.exit_code == 0, result.output
    assert "No dead letters in empty-dead-letters" in result.output
