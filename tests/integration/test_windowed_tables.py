"""Windows of tables in real workers: each partition closes its own, once, also in silence."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from harness import wait_for

START = 1_700_000_000_000
SIZE = 10_000

COUNTING = """
topic = app.topic("{source}", key_type=str, value_type=Item, partitions=2)

def on_close(key, value):
    out("closed", *key, value, os.getpid())

counts = app.Table(
    "counts", key_type=str, value_type=int, default=int, partitions=2, on_window_close=on_close
).{windows}

@app.agent(topic)
async def count(stream):
    {loop}

@app.timer(0.2)
async def report():
    out("open", sorted((key, *window, value) for (key, window), value in counts.table.items()))
    out("late", counts.windows.late_total)
"""

BY_EVENT = """async for key, item in stream.items():
        counts[key] += item.n"""
BY_BATCH = """async for batch in stream.batches():
        counts.update(batch, lambda total, item: total + item.n)"""


def records(seconds, keys=("a", "b", "c"), n=1):
    """One record a second and key."""
    return [(key, {"n": n}, START + second * 1000) for second in seconds for key in keys]


def results(app):
    """What was closed, as (key, second of the start): value; each must be the same each time."""
    found, calls = {}, Counter()
    for key, (start, end), value, _ in app.lines("closed"):
        assert end - start == SIZE / 1000
        at = key, round(start - START / 1000)
        assert found.setdefault(at, value) == value, at
        calls[at] += 1
    return found, calls


def full(keys, windows):
    return {(key, window * 10): 10 for key in keys for window in windows}


def app_of(faust_app, source, windows, loop=BY_EVENT, settings="topic_partitions=2,", **options):
    text = COUNTING.replace("{source}", source).replace("{windows}", windows)
    return faust_app(text.replace("{loop}", loop), settings=settings, **options)


@pytest.mark.parametrize("store", ["memory://", "rocksdb://"])
@pytest.mark.parametrize("loop", [BY_EVENT, BY_BATCH], ids=["events", "batches"])
def test_each_partition_closes_its_windows(store, loop, faust_app, topic_factory, produce):
    source = topic_factory(partitions=2)
    produce(source, records(range(35), "ab"), partition=0)
    produce(source, records(range(25), "cd"), partition=1)
    settings = f"store={store!r}, topic_partitions=2,"
    app = app_of(faust_app, source, "tumbling(10, expires=3)", loop, settings)
    expected = full("ab", [0, 1, 2]) | full("cd", [0, 1])
    wait_for(lambda: len(app.lines("closed")) >= len(expected), 30)
    found, calls = results(app)
    assert found == expected
    assert set(calls.values()) == {1}
    left = [["a", 30, 5], ["b", 30, 5], ["c", 20, 5], ["d", 20, 5]]

    def still_open():
        lines = app.lines("open")
        rows = lines[-1][0] if lines else []
        return [[key, start - START / 1000, value] for key, start, _, value in rows]

    wait_for(lambda: still_open() == left, 10, lambda: str(still_open()))


def test_silence_closes_and_late_records_are_counted(faust_app, topic_factory, produce):
    source = topic_factory(partitions=2)
    app = app_of(
        faust_app,
        source,
        'using_window(faust.windows.tumbling("2s", grace="500ms", idle_timeout="1s"))',
    )
    produce(source, [("k", {"n": 1}, START)], partition=1)
    ((key, bounds, value, _),) = app.wait("closed", 1)
    assert [key, bounds, value] == ["k", [START / 1000, START / 1000 + 2], 1]
    produce(source, [("k", {"n": 1}, START)], partition=1)
    wait_for(lambda: app.lines("late")[-1] == [1], 20)
    assert len(app.lines("closed")) == 1
    assert app.lines("open")[-1] == [[]]


@pytest.mark.parametrize("store", ["memory://", "rocksdb://"])
def test_restart_in_the_middle_of_a_window(
    store, faust_app, topic_factory, produce, kafka_client, consume_all
):
    source = topic_factory(partitions=2)
    settings = f"store={store!r}, topic_partitions=2,"
    app = app_of(faust_app, source, "hopping(10, 5, 0)", settings=settings, start=False)
    worker = app.start()
    for partition, keys in enumerate(["ab", "cd"]):
        produce(source, records(range(17), keys), partition=partition)
    app.wait_committed(kafka_client, source, 68)
    worker.stop()
    worker = app.start(ready=True)
    for partition, keys in enumerate(["ab", "cd"]):
        produce(source, records(range(17, 31), keys), partition=partition)
    expected = {
        (key, start): 5 if start < 0 else 10 for key in "abcd" for start in (-5, 0, 5, 10, 15, 20)
    }
    wait_for(lambda: len(app.lines("closed")) >= len(expected), 40)
    found, calls = results(app)
    assert found == expected
    assert set(calls.values()) == {1}
    assert len({pid for *_, pid in app.lines("closed")}) == 2
    app.wait_committed(kafka_client, source, 124)
    worker.stop()
    # Closed windows are deleted in the changelog.
    last = {}
    for each in consume_all(f"{app.id}-counts-changelog", at_least=1):
        last[each.partition, each.key] = each.value
    kept = [key for (_, key), value in last.items() if value is not None and b"position" not in key]
    assert len(kept) == 4 * 2, "the two open windows of each key"


def test_killed_in_the_middle(faust_app, topic_factory, produce, kafka_client):
    """Nothing is skipped; a window may be closed again, with the same value."""
    source = topic_factory(partitions=2)
    app = app_of(faust_app, source, "tumbling(10, expires=0)", start=False)
    worker = app.start()
    for begin in range(0, 300, 15):
        for partition, keys in enumerate(["ab", "cd"]):
            produce(source, records(range(begin, begin + 15), keys), partition=partition)
        if begin in (75, 180):
            worker.kill()
            worker = app.start()
    produce(source, records([300], "ab"), partition=0)
    produce(source, records([300], "cd"), partition=1)
    expected = full("abcd", range(30))
    wait_for(lambda: len(results(app)[0]) >= len(expected), 60)
    found, calls = results(app)
    assert found == expected
    app.wait_committed(kafka_client, source, 1204)
    again = sum(calls.values()) - len(calls)
    assert again < len(calls), "only what no checkpoint had is closed again"


def test_windows_move_with_their_partition(faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=2)
    app = app_of(faust_app, source, "tumbling(10, expires=0)", start=False)
    app.start()
    for partition, keys in enumerate(["ab", "cd"]):
        produce(source, records(range(15), keys), partition=partition)
    app.wait_committed(kafka_client, source, 60)
    app.wait("closed", 4)
    second = app.start(ready=True)
    for partition, keys in enumerate(["ab", "cd"]):
        produce(source, records(range(15, 25), keys), partition=partition)
    wait_for(lambda: len(app.lines("closed")) >= 8, 40)
    assert len({pid for *_, pid in app.lines("closed")[4:]}) == 2
    second.stop()
    for partition, keys in enumerate(["ab", "cd"]):
        produce(source, records(range(25, 45), keys), partition=partition)
    wait_for(lambda: len(app.lines("closed")) >= 16, 40)
    found, calls = results(app)
    assert found == full("abcd", range(4))
    assert set(calls.values()) == {1}


def test_relative_to_now_in_a_worker(faust_app, topic_factory, produce):
    source = topic_factory(partitions=2)
    app = app_of(faust_app, source, "tumbling(1, expires=0.5).relative_to_now()")
    begin = time.time()
    produce(source, records(range(100), "a"), partition=0)
    wait_for(lambda: sum(row[2] for row in app.lines("closed")) >= 100, 30)
    assert sum(row[2] for row in app.lines("closed")) == 100
    assert all(start > begin - 2 for _, (start, _), _, _ in app.lines("closed"))
