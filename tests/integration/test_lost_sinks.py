"""Servers of exactly-once sinks that have forgotten everything: it is said, and only then."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import NewPartitions

# The embedded broker forgets the names of sinks, as it does those of tables.
pytestmark = pytest.mark.apache_only

SINK = """
from streamproc.sinks import RedisCounter

source = app.topic(os.environ["TOPIC"], key_type=str, value_type=Item)
counts = RedisCounter("count:{key}", exactly_once=True)
"""
AGENT = """
@app.agent(source, sink=[counts])
async def pass_on(stream):
    async for key, item in stream.items():
        yield key, item
"""
TABLE = """
table = app.Table("counted", key_type=str, value_type=int, default=int)

@app.agent(source, sink=[counts])
async def count(stream):
    async for key, item in stream.items():
        table[key] += 1
        out("table", key, table[key])
        yield key, item
"""
EXACT = "processing_guarantee='exactly_once', "
SAYS = "has fewer results than the group has offsets"
KEYS = "abcd"


def items(numbers):
    return [(KEYS[n % 4], {"n": n}) for n in numbers]


@pytest.fixture
def app(faust_app, redis_url, topic_factory, produce, kafka_client, wait_for):
    """``app(source, settings)``: an app whose source topic is ``app.topic``."""
    topic = topic_factory(partitions=2)

    def new(source, settings=""):
        settings = (
            f"redis={redis_url!r}, broker_commit_interval=0.2, "
            f"consumer_auto_offset_reset='earliest', topic_disable_leader=True, {settings}"
        )
        made = faust_app(SINK + source, settings, start=False)
        made.env["TOPIC"] = made.topic = topic
        return made

    return new


@pytest.fixture
def counted(redis_client):
    """Return the sum of what was counted."""

    def look():
        return sum(int(redis_client.get(f"count:{key}") or 0) for key in KEYS)

    return look


def succeed(app, before):
    """Let ``app`` be the next version of the app ``before``."""
    app.env["APP_ID"] = app.id = before.id
    (app.folder / f"{app.module}.py").replace(app.folder / f"{before.module}.py")
    app.module = before.module
    return app


@pytest.mark.parametrize("settings", ["", EXACT], ids=["at least once", "exactly once"])
def test_results_are_made_again(
    settings, app, counted, produce, redis_client, kafka_client, wait_for
):
    it = app(AGENT, settings)
    produce(it.topic, items(range(400)))
    first = it.start()
    wait_for(lambda: counted() == 400, 40)
    first.stop()
    assert SAYS not in first.log
    redis_client.flushall()
    # Between two starts,
    second = it.start()
    wait_for(lambda: counted() == 400, 40, lambda: str(counted()))
    assert f"{SAYS}: its server was emptied" in second.log
    # and while a worker runs.
    redis_client.flushall()
    produce(it.topic, items(range(400, 404)))
    wait_for(lambda: counted() == 404, 40, lambda: str(counted()))
    assert second.log.count(SAYS) == 2
    second.stop()
    assert second.exit_code == 0


@pytest.mark.parametrize("settings", ["", EXACT], ids=["at least once", "exactly once"])
def test_a_worker_with_tables_stops_until_it_is_told_what_to_do(
    settings, app, counted, produce, redis_client, wait_for
):
    it = app(TABLE, settings)
    produce(it.topic, items(range(400)))
    first = it.start()
    wait_for(lambda: counted() == 400, 40)
    redis_client.flushall()
    produce(it.topic, items(range(400, 404)))
    assert first.wait_end(60) == 1
    assert SAYS in first.log
    for _ in range(2):  # it isn't forgotten
        stopped = it.start()
        assert stopped.wait_end(60) == 1
        assert SAYS in stopped.log
    goes_on = succeed(app(TABLE, settings + "when_sink_behind='continue'"), it)
    worker = goes_on.start()
    produce(it.topic, items(range(404, 408)))
    wait_for(lambda: counted() == 8, 40, lambda: str(counted()))
    assert f"{SAYS}" in worker.log
    worker.stop()
    wiser = it.start(ready=True)
    produce(it.topic, items(range(408, 412)))
    wait_for(lambda: counted() == 12, 40)
    assert SAYS not in wiser.log
    assert sorted(goes_on.lines("table"))[-1] == ["d", 102]
    assert sorted(it.lines("table"))[-1] == ["d", 103]


@pytest.mark.parametrize("settings", ["", EXACT], ids=["at least once", "exactly once"])
def test_tables_count_again_what_is_replayed(
    settings, app, counted, produce, redis_client, wait_for
):
    it = app(TABLE, settings + "when_sink_behind='replay'")
    produce(it.topic, items(range(400)))
    first = it.start()
    wait_for(lambda: counted() == 400, 40)
    first.stop()
    redis_client.flushall()
    it.start()
    wait_for(lambda: counted() == 400, 40, lambda: str(counted()))
    assert sorted(row for row in it.lines("table") if row[0] == "a")[-1] == ["a", 200]


def test_what_is_new_is_not_missed(app, counted, produce, redis_client, kafka_client, wait_for):
    """A sink and an agent of other names, a sink more, a sink less, and partitions."""
    strict = EXACT + "when_sink_behind='stop'"
    bare = AGENT.replace(", sink=[counts]", "")
    renamed = AGENT.replace("pass_on", "hand_on")
    more = renamed.replace("[counts]", "[counts, RedisCounter('more', exactly_once=True)]")
    other = renamed.replace("[counts]", "[RedisCounter('count:{key}', name='other')]")
    first = app(bare, strict)
    total = 0

    def run(source, count):
        nonlocal total
        it = first if source is bare and not total else succeed(app(source, strict), first)
        worker = it.start(ready=True)
        produce(it.topic, items(range(total, total + count)))
        total += count
        wait_for(
            lambda: kafka_client.total_committed(it.id, it.topic) >= total, 40, lambda: worker.log
        )
        worker.stop()
        assert worker.exit_code == 0, worker.log
        assert SAYS not in worker.log

    run(bare, 40)
    run(AGENT, 40)
    assert counted() == 40
    run(renamed, 40)
    run(more, 40)
    assert int(redis_client.get("more")) == 40
    run(other, 40)
    assert counted() == 160
    kafka_client._admin.create_partitions([NewPartitions(first.topic, 4)])[first.topic].result(30)
    wait_for(lambda: kafka_client.partitions(first.topic) == 4, 20)
    run(other, 40)
