"""Tables of workers that are killed at any moment: exact, by a recomputation of the input."""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest
from harness import Feed

APP = """
    import json, os
    import streamproc as faust

    class Number(faust.Record):
        n: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.3,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        table_standby_replicas=int(os.environ.get("STANDBYS", 0)),
        store=os.environ.get("STORE", "rocksdb://"),
        tabledir=os.environ["TABLES"],
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=Number)
    counts = app.Table("counts", key_type=str, value_type=int, default=int)
    sums = app.Table("sums", key_type=str, value_type=int, default=int)
    results = open(os.environ["RESULTS"], "a", buffering=1)

    @app.agent(topic)
    async def add(stream):
        async for key, number in stream.items():
            counts[key] += 1
            sums[key] += number.n

    @app.timer(0.5)
    async def report():
        if os.path.exists(os.environ["RESULTS"] + ".ask"):
            for table in (counts, sums):
                for partition, state in table.states.items():
                    line = [table.name, partition, os.getpid(), dict(state.scan())]
                    results.write(json.dumps(line) + "\\n")
"""


def items(numbers):
    return [(f"k{n * n % 97}", {"n": n}) for n in numbers]


def expected_of(count):
    """What the tables hold once so many are counted."""
    counts, sums = Counter(), Counter()
    for key, item in items(range(count)):
        counts[key] += 1
        sums[key] += item["n"]
    return {"counts": dict(counts), "sums": dict(sums)}


def contents(path):
    """What the tables hold, by the last report of each partition."""
    last = {}
    for line in path.read_text().split("\n")[:-1]:
        name, partition, _, entries = json.loads(line)
        last[name, partition] = entries
    tables = {"counts": {}, "sums": {}}
    for (name, _), entries in last.items():
        tables[name].update(entries)
    return tables


@pytest.mark.parametrize(
    ("standbys", "store"), [(0, "rocksdb://"), (1, "rocksdb://"), (0, "memory://")]
)
def test_workers_that_are_killed_count_exactly(
    standbys, store, worker, tmp_path, topic_factory, produce, kafka_client, wait_for
):
    topic = topic_factory(partitions=8)
    app_id = f"app-{topic}"
    results = tmp_path / "results"
    results.touch()
    env = {"APP_ID": app_id, "TOPIC": topic, "RESULTS": str(results), "STORE": store}
    env |= {"TABLES": str(tmp_path / "tables"), "STANDBYS": str(standbys)}
    dice = random.Random(standbys)

    def start():
        there = (tmp_path / "app_under_test.py").exists()
        return worker(None if there else APP, env=env)

    feed = Feed(produce, topic, items, step=700)
    feed.start()
    workers = [start() for _ in range(3)]
    workers[0].wait_ready(60)
    for _ in range(5):
        time.sleep(dice.uniform(1.5, 5.0))
        victim = dice.randrange(3)
        workers[victim].kill()
        workers[victim] = start()
    time.sleep(2)
    feed.finish()
    for each in workers:
        each.wait_ready(60)
    wait_for(
        lambda: kafka_client.total_committed(app_id, topic) == feed.count,
        90,
        lambda: f"{feed.count} committed, there are {kafka_client.committed(app_id, topic)}",
    )
    assert all(each.running for each in workers)
    (tmp_path / "results.ask").touch()
    expected = expected_of(feed.count)
    wait_for(lambda: contents(results) == expected, 20, lambda: difference(results, expected))


def test_a_worker_that_froze_does_not_disturb_who_took_over(
    worker, tmp_path, topic_factory, produce, kafka_client, wait_for
):
    topic = topic_factory(partitions=8)
    app_id = f"app-{topic}"
    results = tmp_path / "results"
    results.touch()
    env = {"APP_ID": app_id, "TOPIC": topic, "RESULTS": str(results)}
    env |= {"TABLES": str(tmp_path / "tables"), "STANDBYS": "0"}
    feed = Feed(produce, topic, items, step=700)
    feed.start()
    first, second = worker(APP, env=env), worker(None, env=env)
    first.wait_ready(60)
    second.wait_ready(60)
    for frozen in (first, second):
        time.sleep(3)
        frozen.pause()
        time.sleep(16)
        frozen.resume()
    time.sleep(2)
    feed.finish()
    wait_for(
        lambda: kafka_client.total_committed(app_id, topic) == feed.count,
        90,
        lambda: f"{feed.count} committed, there are {kafka_client.committed(app_id, topic)}",
    )
    (tmp_path / "results.ask").touch()
    expected = expected_of(feed.count)
    wait_for(lambda: contents(results) == expected, 20, lambda: difference(results, expected))


def difference(results, expected):
    found = contents(results)
    return {
        name: {
            key: (found[name].get(key), count)
            for key, count in expected[name].items()
            if found[name].get(key) != count
        }
        for name in expected
    }
