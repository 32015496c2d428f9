"""What the suite of faults has found, each made to happen at once."""

import json
import urllib.error
import urllib.request

import pytest
from faults.cluster import Cluster
from harness import KafkaClient, WorkerLauncher

AHEAD = """
    import os
    import streamproc
    from streamproc.sinks import RedisList

    class Number(streamproc.Record):
        n: int

    app = streamproc.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
    )
    topic = app.topic(os.environ["TOPIC"], value_type=Number)
    seen = RedisList("seen", value="n", exactly_once=True)

    if os.environ["OPENED"] == "early":
        app.stream(topic).to(seen)
    else:

        @app.agent(topic)
        async def see(stream):
            async for batch in stream.batches():
                await seen.write(batch)
"""


@pytest.mark.parametrize("opened", ["early", "late"])
def test_a_batch_of_which_redis_has_a_part(
    opened, worker, topic_factory, produce, redis_client, wait_for, kafka_client
):
    """As left by a worker that was killed between its writes to Redis and to Kafka."""
    topic = topic_factory(partitions=1)
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic, "OPENED": opened}

    def committed(count):
        wait_for(lambda: kafka_client.total_committed(env["APP_ID"], topic) == count, 40)

    produce(topic, [{"n": n} for n in range(10)])
    first = worker(AHEAD, env=env)
    committed(10)
    first.stop()
    (fence,) = redis_client.keys("streamproc:*")
    (reader,) = (name for name in redis_client.hkeys(fence) if "@" in name)
    redis_client.hset(fence, reader, 30)
    produce(topic, [{"n": n} for n in range(10, 50)])
    worker(env=env)
    committed(50)
    wait_for(lambda: redis_client.llen("seen") >= 30, 20)
    assert [int(n) for n in redis_client.lrange("seen", 0, -1)] == [*range(10), *range(30, 50)]


COUNTS = """
    import os
    import streamproc

    app = streamproc.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.2,
        tabledir=os.environ["TABLES"],
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=int)
    results = app.topic(os.environ["TOPIC"] + "-results", key_type=str, value_type=int)
    counts = app.Table("counts", key_type=str, value_type=int, default=int)

    @app.agent(topic)
    async def count(stream):
        async for key, _ in stream.items():
            counts[key] += 1
            await results.send(key=key, value=counts[key])
"""


@pytest.mark.apache_only
def test_old_state_after_tables_were_built_again(
    worker, tmp_path, topic_factory, produce, consume_all, wait_for, kafka_client
):
    """A worker whose folder is of a changelog that is gone takes over from one who rebuilt it."""
    topic = topic_factory(partitions=1)
    kafka_client.create_topic(1, f"{topic}-results")
    env = {"APP_ID": f"app-{topic}", "TOPIC": topic, "TABLES": str(tmp_path / "old")}

    def committed(count):
        wait_for(lambda: kafka_client.total_committed(env["APP_ID"], topic) == count, 40)

    def run_until(count, **changed):
        running = worker(COUNTS, env=env | changed)
        committed(count)
        running.stop()

    first = worker(COUNTS, env=env)
    for n in range(20):  # a checkpoint each: the changelog is longer than when it is built again
        produce(topic, [("k", n)])
        committed(n + 1)
    first.stop()
    kafka_client.delete_topics(f"{env['APP_ID']}-counts-changelog")
    kafka_client.reset_offsets(env["APP_ID"], topic)
    run_until(20, TABLES=str(tmp_path / "new"))
    produce(topic, [("k", 20)])
    run_until(21)
    assert consume_all(f"{topic}-results", at_least=41)[-1].json() == 21


JOINING = """
    import os
    import streamproc

    app = streamproc.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=10.0,
        broker_rebalance_timeout=8.0,
        stall_timeout=8,
    )

    @app.agent(app.topic(os.environ["TOPIC"], value_type=dict))
    async def see(stream):
        async for _ in stream:
            pass
"""
JOIN_GROUP = 11


def reasons(worker):
    """What /ready says is missing."""
    try:
        with urllib.request.urlopen(f"{worker.web_url}/ready", timeout=3):
            return []
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["reasons"]


@pytest.mark.apache_only
def test_a_broker_that_does_not_answer_who_wants_to_join(tmp_path, children, wait_for):
    """It is given up after the request timeout, and asked again; the worker says so meanwhile."""
    cluster = Cluster(tmp_path / "kafka", 1).start()
    try:
        (proxy,) = cluster.proxies
        client = KafkaClient(cluster.bootstrap)
        topic = client.create_topic(4)
        env = {"APP_ID": f"app-{topic}", "TOPIC": topic, "BOOTSTRAP": cluster.proxied}
        start = WorkerLauncher(tmp_path, env, children)
        first = start(JOINING, web=True, ready=True)
        proxy.held.add(JOIN_GROUP)
        second = start(web=True, env={"BOOTSTRAP": cluster.bootstrap})
        # The first has been asked to join again.
        wait_for(lambda: proxy.requests_held >= 2, 60, "it tries again")
        second.wait_ready()
        said = reasons(first)
        assert {each.partition(":")[0] for each in said} >= {"group", "partitions"}, said
        assert first.running  # a restart would be of no use
        proxy.held.clear()
        wait_for(lambda: not reasons(first) and not reasons(second), 60, "both are ready")
        client.produce(topic, [{"n": n} for n in range(100)])
        wait_for(lambda: client.total_committed(env["APP_ID"], topic) == 100, 30)
    finally:
        cluster.stop()
