"""Faust's tables in agents on the batch path: values, windows, stores, recovery."""

from __future__ import annotations

import pytest

WORDS = [(f"w{n % 5}", {"n": n}) for n in range(200)]
COUNTS = {f"w{n}": 40 for n in range(5)}

COUNTING = """
topic = app.topic("{source}", key_type=str, value_type=Item)
counts = app.Table("counts", key_type=str, value_type=int, default=int, partitions=4)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        counts[key] += 1
        out("counts", os.getpid(), key, counts[key])

@app.timer(0.2)
async def report():
    out("table", os.getpid(), sorted(counts.items()))
"""


@pytest.mark.parametrize("store", ["memory://", "rocksdb://?driver=rocksdict"])
def test_counts_come_back_after_a_restart(store, faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=4)
    produce(source, WORDS)
    app = faust_app(
        COUNTING.replace("{source}", source),
        settings=f"store={store!r}, topic_partitions=4,",
        start=False,
    )
    first = app.start()
    app.wait_committed(kafka_client, source, 200)
    assert {key: count for _, key, count in app.lines("counts")} == COUNTS
    first.stop()
    produce(source, WORDS)
    app.start()
    app.wait_committed(kafka_client, source, 400)
    assert len(app.lines("counts")) == 400
    assert {key: count for _, key, count in app.lines("counts")} == dict.fromkeys(COUNTS, 80)


def test_counts_survive_a_killed_worker(faust_app, topic_factory, produce, kafka_client):
    """At least once: a count may be too high by what was processed again, never too low."""
    source = topic_factory(partitions=4)
    produce(source, WORDS)
    app = faust_app(
        COUNTING.replace("{source}", source), settings="topic_partitions=4,", start=False
    )
    first = app.start()
    app.wait_committed(kafka_client, source, 200)
    first.kill()
    produce(source, WORDS)
    app.start()
    app.wait_committed(kafka_client, source, 400)
    last = {key: count for _, key, count in app.lines("counts")}
    assert last == dict.fromkeys(COUNTS, 80)


def test_two_workers_share_a_table(faust_app, topic_factory, produce, kafka_client, wait_for):
    source = topic_factory(partitions=4)
    produce(source, WORDS)
    app = faust_app(
        COUNTING.replace("{source}", source), settings="topic_partitions=4,", start=False
    )
    app.start()
    app.wait_committed(kafka_client, source, 200)
    second = app.start(ready=True)
    third_of = len(app.lines("counts"))
    produce(source, WORDS)
    app.wait_committed(kafka_client, source, 400)
    assert len({pid for pid, *_ in app.lines("counts")[third_of:]}) == 2
    second.stop()
    produce(source, WORDS)
    app.wait_committed(kafka_client, source, 600)
    last = {}
    for _, key, count in app.lines("counts"):
        last[key] = max(count, last.get(key, 0))
    assert last == dict.fromkeys(COUNTS, 120)


@pytest.mark.parametrize("store", ["memory://", "rocksdb://?driver=rocksdict"])
def test_windowed_tables(store, faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=2)
    start = 1_700_000_000_000
    produce(source, [("k", {"n": n}, start + n * 1000) for n in range(20)], partition=0)
    app = faust_app(
        f"""
topic = app.topic("{source}", key_type=str, value_type=Item)
tumbling = app.Table("tumbling", key_type=str, value_type=int, default=int, partitions=2).tumbling(
    10.0, key_index=True
)
hopping = app.Table("hopping", key_type=str, value_type=int, default=int, partitions=2).hopping(
    10.0, 5.0
)
relative = (
    app.Table("relative", key_type=str, value_type=int, default=int, partitions=2)
    .tumbling(10.0)
    .relative_to_stream()
)

@app.agent(topic)
async def count(stream):
    async for event in stream.events():
        key = event.key
        tumbling[key] += 1
        hopping[key] += 1
        relative[key] += 1
        stamp = event.message.timestamp
        out(
            "row",
            stamp,
            tumbling[key].current(event),
            tumbling[key].value(event),
            tumbling[key].delta(10.0),
            hopping[key].current(event),
            relative[key].value(),
        )
""",
        settings=f"store={store!r}, topic_partitions=2,",
    )
    rows = app.wait("row", 20)
    app.wait_committed(kafka_client, source, 20)
    first = [row[1] for row in rows]
    assert first == [*range(1, 11), *range(1, 11)]
    assert rows[19][1:] == [10, 10, 10, rows[19][4], 10]


def test_global_and_set_tables(faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=4)
    produce(source, WORDS)
    app = faust_app(
        f"""
topic = app.topic("{source}", key_type=str, value_type=Item)
everywhere = app.GlobalTable("everywhere", key_type=str, value_type=int, default=int, partitions=4)
members = app.SetTable("members", key_type=str, value_type=int, partitions=4)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        everywhere[key] = item.n
        members[key].add(item.n % 10)
        out("seen", item.n)

@app.timer(0.3)
async def report():
    out("global", os.getpid(), dict(everywhere.items()))
    out("set", os.getpid(), {{key: sorted(members[key]) for key in members}})
""",
        settings="topic_partitions=4,",
        start=False,
    )
    first = app.start()
    app.wait_committed(kafka_client, source, 200)
    expected = {f"w{n}": 195 + n for n in range(5)}
    sets = {f"w{n}": [n, n + 5] for n in range(5)}

    def last(kind):
        return app.lines(kind)[-1][1]

    from harness import wait_for

    wait_for(lambda: last("global") == expected, 20)
    assert last("set") == sets
    first.stop()
    count = len(app.lines("global"))
    app.start()
    wait_for(lambda: len(app.lines("global")) > count and last("global") == expected, 40)
    wait_for(lambda: last("set") == sets, 20)


def test_publish_on_commit(faust_app, topic_factory, produce, consume_all, kafka_client):
    source, target = topic_factory(partitions=2), topic_factory(partitions=1)
    produce(source, [("k", {"n": n}) for n in range(30)])
    app = faust_app(
        f"""
topic = app.topic("{source}", key_type=str, value_type=Item)
counts = app.Table("counts", key_type=str, value_type=int, default=int, partitions=2)

@app.agent(topic)
async def forward(stream):
    async for event in stream.events():
        await event.forward("{target}")
        counts[event.key] += 1
""",
        settings="stream_publish_on_commit=True, topic_partitions=2,",
    )
    app.wait_committed(kafka_client, source, 30)
    assert [each.json()["n"] for each in consume_all(target, at_least=30)] == list(range(30))
    changes = consume_all(f"{app.id}-counts-changelog", at_least=2)
    # One record a checkpoint and key, however often it changed.
    assert [each.json() for each in changes if each.key == b'"k"'][-1] == 30
