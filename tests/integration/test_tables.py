"""Tables on real brokers: recovery, standbys, types, expiry, and what others write."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter

import pytest
from confluent_kafka import Producer

COUNTING = """
topic = app.topic("{source}", key_type=str, value_type=Item)
counts = app.Table("counts", key_type=str, value_type=int, default=int)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        counts[key] += 1

@app.timer(0.2)
async def report():
    out("table", os.getpid(), {p: dict(s.scan()) for p, s in counts.states.items()})
    out("states", os.getpid(), {p: id(s) for p, s in counts.states.items()})
    out("standbys", os.getpid(), {p: s.changelog_offset for p, s in counts.standbys.items()})
    out("generation", os.getpid(), app.consumer_generation_id)
"""

SETTINGS = 'consumer_auto_offset_reset="earliest", tabledir=os.environ["TABLES"],'


@pytest.fixture
def counting(faust_app, topic_factory, tmp_path):
    """``counting(partitions=4, settings="", more="")``: a counter of its own topic, not started."""

    def create(partitions=4, settings="", more=""):
        source = topic_factory(partitions=partitions)
        app = faust_app(
            COUNTING.replace("{source}", source) + more,
            settings=SETTINGS + settings,
            start=False,
        )
        app.source = source
        app.tables = tmp_path / "tables"
        app.env["TABLES"] = str(app.tables)
        return app

    return create


def last_table(app, pids=None):
    """The entries of all partitions, by the last report of each worker that runs."""
    last = {}
    for pid, parts in app.lines("table"):
        if pids is None or pid in pids:
            last[pid] = parts
    table = {}
    for parts in last.values():
        for entries in parts.values():
            table.update(entries)
    return table


def words(count, start=0):
    return [(f"w{n % 13}", {"n": n}) for n in range(start, start + count)]


def counted(count):
    return dict(Counter(key for key, _ in words(count)))


# The embedded broker keeps no metadata with offsets.
@pytest.mark.parametrize(
    "left",
    [
        "kept",
        "deleted",
        pytest.param("changelog anew", marks=pytest.mark.apache_only),
        pytest.param("all gone", marks=pytest.mark.apache_only),
    ],
)
def test_counts_are_exact_after_a_kill(left, counting, produce, kafka_client, wait_for):
    app = counting()
    produce(app.source, words(1000))
    first = app.start()
    app.wait_committed(kafka_client, app.source, 1000)
    first.kill()
    if left in ("deleted", "all gone"):
        shutil.rmtree(app.tables)
    if left in ("changelog anew", "all gone"):
        name = f"{app.id}-counts-changelog"
        kafka_client._admin.delete_topics([name])[name].result(30)
        wait_for(lambda: not kafka_client.partitions(name), 20, "the changelog is gone")
        kafka_client.create_topic(4, name, {"cleanup.policy": "compact"})
    produce(app.source, words(300, 1000))
    if left in ("changelog anew", "all gone"):
        # Not taken for a new table: the group's offsets say that there was more.
        stopped = app.start()
        assert stopped.wait_end() != 0
        assert "counts-changelog" in stopped.log
        assert "was deleted, truncated or restored from an older copy" in stopped.log
        kafka_client.reset_offsets(app.id, app.source)
    second = app.start(ready=True)
    app.wait_committed(kafka_client, app.source, 1300)
    expected = counted(1300)
    wait_for(lambda: last_table(app, {second.pid}) == expected, 20, lambda: str(last_table(app)))
    # A rebuild from the changelog alone has the same.
    second.stop()
    shutil.rmtree(app.tables)
    third = app.start(ready=True)
    wait_for(lambda: last_table(app, {third.pid}) == expected, 20, lambda: str(last_table(app)))


@pytest.mark.apache_only
def test_old_local_state_of_a_changelog_that_was_made_anew_since(
    counting, produce, kafka_client, wait_for
):
    """Another worker has built it again, and longer than it was when the state was written."""
    app = counting()
    total = 0

    def count_more(records):
        nonlocal total
        produce(app.source, records, partition=0)
        total += len(records)
        app.wait_committed(kafka_client, app.source, total)

    first = app.start(ready=True)
    for _ in range(8):
        count_more(words(26))
    first.stop()
    old = app.tables.rename(app.tables.with_name("old"))
    changelog = f"{app.id}-counts-changelog"
    kafka_client.delete_topics(changelog)
    kafka_client.create_topic(4, changelog, {"cleanup.policy": "compact"})
    kafka_client.reset_offsets(app.id, app.source)
    # On top of what is counted again: what the old state doesn't know of, where it doesn't look.
    second = app.start(ready=True)
    app.wait_committed(kafka_client, app.source, total)
    count_more([(f"x{n}", {"n": n}) for n in range(20)])
    count_more([(f"y{n}", {"n": n}) for n in range(200)])
    wait_for(lambda: len(last_table(app, {second.pid})) == 233, 20)
    expected = last_table(app, {second.pid})
    second.stop()
    shutil.rmtree(app.tables)
    old.rename(app.tables)
    third = app.start(ready=True)
    wait_for(lambda: last_table(app, {third.pid}), 20)
    assert last_table(app, {third.pid}) == expected
    assert "was made anew since the local state was written" in third.log
    third.stop()
    fourth = app.start(ready=True)
    wait_for(lambda: last_table(app, {fourth.pid}) == expected, 20)
    assert "was made anew" not in fourth.log


@pytest.mark.apache_only
def test_a_replay_of_counted_records_counts_nothing_twice(
    counting, produce, kafka_client, wait_for
):
    """The offsets in the tables are ahead of those committed, as after a kill between them."""
    app = counting()
    produce(app.source, words(500))
    first = app.start()
    app.wait_committed(kafka_client, app.source, 500)
    first.stop()
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": kafka_client.bootstrap, "group.id": app.id})
    consumer.commit(
        offsets=[TopicPartition(app.source, part, 0) for part in range(4)], asynchronous=False
    )
    consumer.close()
    assert kafka_client.total_committed(app.id, app.source) == 0
    produce(app.source, words(100, 500))
    second = app.start(ready=True)
    app.wait_committed(kafka_client, app.source, 600)
    wait_for(lambda: last_table(app, {second.pid}) == counted(600), 20)


def changelog(entries, reader="x"):
    """Records of whole flushes, as a worker writes them."""
    position = json.dumps({"positions": {reader: 1}}).encode()
    return [(b'"%s"' % key.encode(), b"%d" % n) for key, n in entries] + [(b"\0position", position)]


def test_progress_is_told(counting, produce, kafka_client, wait_for):
    app = counting(
        partitions=1, more="\nimport streamproc.tables.recovery as r\nr.REPORT_INTERVAL = 0.0\n"
    )
    name = kafka_client.create_topic(1, f"{app.id}-counts-changelog")
    for part in range(4):
        produce(name, changelog((f"k{n}", n) for n in range(part * 50_000, part * 50_000 + 50_000)))
    worker = app.start(ready=True)
    assert "Tables recovered: 200,004 records" in worker.log
    # How much a fetch brings is up to the broker: it may be all.
    assert re.search(r"Recovering tables: .* MB read, .* left in [01] partitions", worker.log)
    app.wait("table")
    wait_for(lambda: len(last_table(app)) == 200_000, 20)


def test_a_torn_tail_is_not_applied_and_repaired(
    counting, produce, consume_all, kafka_client, wait_for
):
    app = counting(partitions=1)
    name = kafka_client.create_topic(1, f"{app.id}-counts-changelog")
    produce(name, [*changelog([("a", 1), ("b", 2)]), (b'"a"', b"7"), (b'"c"', b"1")])
    app.start(ready=True)
    wait_for(lambda: app.lines("table") and last_table(app) == {"a": 1, "b": 2}, 20)
    records = consume_all(name, at_least=8)
    assert [(each.key, each.value) for each in records[5:7]] == [(b'"a"', b"1"), (b'"c"', None)]
    assert records[7].key == b"\0position"


@pytest.mark.apache_only
@pytest.mark.parametrize("whole", [True, False])
def test_aborted_and_control_records_end_a_changelog(
    whole, counting, produce, kafka_client, wait_for
):
    app = counting(partitions=1)
    name = kafka_client.create_topic(1, f"{app.id}-counts-changelog")
    if whole:
        produce(name, changelog([("a", 1)]))
    producer = Producer({"bootstrap.servers": kafka_client.bootstrap, "transactional.id": app.id})
    producer.init_transactions(30)
    for commits in (True, False):
        producer.begin_transaction()
        for key, value in changelog([("b", 1 if commits else 9)]):
            producer.produce(name, value, key)
        producer.flush(30)
        (producer.commit_transaction if commits else producer.abort_transaction)(30)
    app.start(ready=True)
    expected = {"a": 1, "b": 1} if whole else {"b": 1}
    wait_for(lambda: app.lines("table") and last_table(app) == expected, 20)


@pytest.mark.apache_only
def test_a_compacted_changelog_is_read_to_its_end(counting, produce, kafka_client, wait_for):
    app = counting(partitions=1)
    config = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    config |= {"delete.retention.ms": "0", "segment.bytes": "1048576"}
    name = kafka_client.create_topic(1, f"{app.id}-counts-changelog", config)
    import time

    for number in range(4):
        produce(name, changelog((f"k{n}", number) for n in range(20)))
        produce(name, [(b'"gone"', b"1"), *changelog([])])
        time.sleep(0.2)
    produce(name, [(b'"gone"', None), *changelog([])])
    first = app.start(ready=True)
    expected = {f"k{n}": 3 for n in range(20)}
    wait_for(lambda: app.lines("table") and last_table(app) == expected, 20)
    first.kill()


def test_a_rebalance_in_the_middle_of_a_recovery_begins_it_again(
    counting, produce, kafka_client, wait_for
):
    slow = """
import streamproc.tables.recovery as r
applied = r.Applier.apply
def slow_apply(self, raw):
    import time
    time.sleep(0.4)
    applied(self, raw)
if os.environ.get("SLOW"):
    r.Applier.apply = slow_apply
    r.REPORT_INTERVAL = 0.0
    import streamproc.kafka.changelogs as c
    c.MAX_PARTITION_BYTES = 64 * 1024
"""
    app = counting(partitions=4, more=slow)
    name = kafka_client.create_topic(4, f"{app.id}-counts-changelog")
    expected = {}
    for part in range(4):
        for flush in range(10):
            entries = [(f"p{part}-{n}", flush) for n in range(3000)]
            produce(name, changelog(entries), partition=part)
        expected.update(entries)
    first = app.start(env={"SLOW": "1"})
    first.wait_log("Recovering tables", 40)
    assert "Worker ready" not in first.log
    second = app.start(ready=True)
    first.wait_ready(90)
    wait_for(
        lambda: last_table(app, {first.pid, second.pid}) == expected,
        30,
        lambda: str(len(last_table(app))),
    )


def test_partitions_that_stay_are_not_opened_again(counting, produce, kafka_client, wait_for):
    app = counting(partitions=4)
    produce(app.source, words(400))
    first = app.start(ready=True)
    app.wait_committed(kafka_client, app.source, 400)
    wait_for(lambda: len(app.lines("states")[-1][1]) == 4, 20)
    before = app.lines("states")[-1][1]
    second = app.start(ready=True)

    def states_of(pid):
        return ([{}] + [states for each, states in app.lines("states") if each == pid])[-1]

    wait_for(lambda: len(states_of(first.pid)) == 2, 20)
    wait_for(lambda: len(states_of(second.pid)) == 2, 20)
    for partition, state in states_of(first.pid).items():
        assert state == before[partition]
    # Each has a folder of its own.
    folders = sorted(each.name for each in app.tables.iterdir())
    assert folders == ["instance-0", "instance-1"]
    produce(app.source, words(400, 400))
    app.wait_committed(kafka_client, app.source, 800)
    pids = {first.pid, second.pid}
    wait_for(lambda: last_table(app, pids) == counted(800), 20)
    second.stop()
    wait_for(lambda: len(states_of(first.pid)) == 4, 20)
    wait_for(lambda: last_table(app, {first.pid}) == counted(800), 20)


def test_a_damaged_database_is_rebuilt_from_the_changelog(
    counting, produce, kafka_client, wait_for
):
    app = counting(partitions=1)
    produce(app.source, words(10))
    first = app.start()
    app.wait_committed(kafka_client, app.source, 10)
    first.stop()
    for file in app.tables.glob("instance-0/counts/0/MANIFEST-*"):
        file.write_bytes(b"nothing")
    second = app.start(ready=True)
    wait_for(lambda: last_table(app, {second.pid}) == counted(10), 20)
    assert "is damaged and thrown away" in second.log


def pause_of(worker, part=-1):
    """Seconds from the last assignment to a worker that is ready, by its log."""
    import re
    from datetime import datetime

    found = {}
    for line in worker.log.splitlines():
        time = re.match(r"\[([0-9-]+ [0-9:]+,[0-9]+)\]", line)
        for text in ("Executing _on_partitions_assigned", "Worker ready"):
            if time and text in line:
                found[text] = datetime.strptime(time[1] + "000", "%Y-%m-%d %H:%M:%S,%f")
    return (found["Worker ready"] - found["Executing _on_partitions_assigned"]).total_seconds()


@pytest.mark.parametrize("store", ["rocksdb://", "memory://"])
def test_a_standby_has_the_state_when_the_other_worker_is_killed(
    store, counting, produce, kafka_client, wait_for, record_property
):
    app = counting(partitions=4, settings=f"table_standby_replicas=1, store={store!r},")
    first, second = app.start(ready=True), app.start(ready=True)
    keys = [(f"k{n % 3000}", {"n": n}) for n in range(60_000)]
    produce(app.source, keys[:30_000])
    app.wait_committed(kafka_client, app.source, 30_000)
    produce(app.source, keys[30_000:])
    app.wait_committed(kafka_client, app.source, 60_000)
    expected = dict(Counter(key for key, _ in keys))
    workers = {first.pid, second.pid}
    wait_for(lambda: last_table(app, workers) == expected, 20)

    def followed(pid):
        found = [parts for each, parts in app.lines("standbys") if each == pid]
        return found and len(found[-1]) == 2 and min(found[-1].values()) > 0

    wait_for(lambda: followed(second.pid), 20, "standbys follow")
    first.kill()
    wait_for(lambda: last_table(app, {second.pid}) == expected, 60, "taken over")
    record_property("seconds from assignment to ready", pause_of(second))
    print("takeover", store, pause_of(second), second.log.split("Tables recovered:")[-1][:60])
    produce(app.source, keys[:3000])
    app.wait_committed(kafka_client, app.source, 63_000)
    for key, _ in keys[:3000]:
        expected[key] += 1
    wait_for(lambda: last_table(app, {second.pid}) == expected, 20)


@pytest.mark.apache_only
def test_a_rolling_restart_of_static_members_costs_no_rebalance(
    counting, produce, kafka_client, wait_for
):
    app = counting(
        settings='group_instance_id=os.environ["INSTANCE"],',
        more="\napp.conf.broker_session_timeout = 25.0\n",
    )
    workers = {name: app.start(ready=True, env={"INSTANCE": name}) for name in ("one", "two")}
    produce(app.source, words(400))
    app.wait_committed(kafka_client, app.source, 400)

    def generation(pid):
        return [number for each, number in app.lines("generation") if each == pid][-1]

    pids = {each.pid for each in workers.values()}
    wait_for(lambda: len({generation(pid) for pid in pids}) == 1, 20)
    before = {name: each.log.count("Worker ready") for name, each in workers.items()}
    number = generation(workers["one"].pid)
    count = 400
    for name, other in (("one", "two"), ("two", "one")):
        workers[name].stop()
        assert "LeaveGroup" not in workers[name].log
        workers[name] = app.start(ready=True, env={"INSTANCE": name})
        produce(app.source, words(400, count))
        count += 400
        app.wait_committed(kafka_client, app.source, count)
        assert generation(workers[other].pid) == number
        # One that has not been restarted yet never stood still.
        if name == "one":
            assert workers[other].log.count("Worker ready") == before[other]
        assert generation(workers[name].pid) == number
    pids = {each.pid for each in workers.values()}
    wait_for(lambda: last_table(app, pids) == counted(count), 20)


def test_changes_wait_for_a_checkpoint_before_they_fill_the_memory(
    counting, produce, kafka_client, wait_for
):
    app = counting(
        partitions=2,
        settings="broker_commit_interval=3600.0, batch_size=100,",
        more="""
import streamproc.checkpoint as checkpoint
checkpoint.EARLY_ENTRIES, checkpoint.MOST_ENTRIES, checkpoint.BATCHES_PER_LOOK = 500, 1000, 1
taken = app.tables.take
def take(*args):
    out("taken", app.tables.dirty_count)
    return taken(*args)
app.tables.take = take
""",
    )
    produce(app.source, [(f"k{n}", {"n": n}) for n in range(20_000)])
    worker = app.start(ready=True)
    wait_for(lambda: kafka_client.total_committed(app.id, app.source) > 19_000, 40)
    counts = app.values("taken")
    assert max(counts) < 1300
    assert len(counts) > 15
    assert worker.running


TYPED = """
class Stats(faust.Record):
    {fields}

topic = app.topic("{source}", key_type=str, value_type=Item)
stats = app.Table("stats", key_type=str, value_type=Stats)

@app.agent(topic)
async def keep(stream):
    async for key, item in stream.items():
        {update}

@app.timer(0.2)
async def report():
    out("stats", os.getpid(), {{key: value.asdict() for key, value in stats.items()}})
"""

FIRST = {"fields": "n: int; old: str = 'x'", "update": "stats[key] = Stats(n=item.n)"}


@pytest.fixture
def typed(faust_app, topic_factory, produce, kafka_client, tmp_path):
    """An app whose table has entries of FIRST, stopped; ``change(fields, update)`` changes it."""
    source = topic_factory(partitions=2)
    app = faust_app(
        TYPED.format(source=source, **FIRST), settings='tabledir=os.environ["TABLES"],', start=False
    )
    app.env["TABLES"] = str(tmp_path / "tables")
    app.source, app.tables = source, tmp_path / "tables"
    produce(source, [(f"k{n}", {"n": n}) for n in range(10)])
    first = app.start()
    app.wait_committed(kafka_client, source, 10)
    first.stop()

    def change(fields, update):
        path = app.folder / f"{app.module}.py"
        text = path.read_text()
        path.write_text(text.replace(FIRST["fields"], fields).replace(FIRST["update"], update))

    app.change = change
    return app


@pytest.mark.parametrize("left", ["kept", "deleted"])
def test_added_fields_get_their_default_and_removed_ones_are_ignored(
    left, typed, produce, kafka_client, wait_for
):
    typed.change("n: int; unit: str = 'm'", "stats[key] = Stats(n=item.n, unit='km')")
    if left == "deleted":
        shutil.rmtree(typed.tables)
    worker = typed.start(ready=True)
    produce(typed.source, [("k3", {"n": 33})])
    typed.wait_committed(kafka_client, typed.source, 11)
    expected = {f"k{n}": {"n": n, "unit": "m"} for n in range(10)}
    expected["k3"] = {"n": 33, "unit": "km"}

    def last():
        return [table for pid, table in typed.lines("stats") if pid == worker.pid][-1]

    wait_for(lambda: last() == expected, 20, lambda: str(last()))


@pytest.mark.parametrize(
    ("fields", "named"), [("n: int; unit: str", "unit"), ("n: str; old: str = 'x'", "n")]
)
def test_an_incompatible_type_ends_the_worker_with_what_to_do(fields, named, typed):
    typed.change(fields, "stats[key] = Stats(n=item.n)")
    worker = typed.start()
    assert worker.wait_end(40) != 0
    assert "Table 'stats' has an entry of key 'k" in worker.log
    assert f"`{named}`" in worker.log or f"`$.{named}`" in worker.log
    assert "Give new fields a default, keep the types" in worker.log


def test_a_table_follows_a_topic_that_somebody_else_writes(
    faust_app, topic_factory, produce, wait_for
):
    rates = topic_factory(partitions=2, config={"cleanup.policy": "compact"})
    source = topic_factory(partitions=3)
    produce(rates, [(f"r{n}", {"n": n}) for n in range(10)])
    app = faust_app(
        f"""
rates_topic = app.topic("{rates}", key_type=str, value_type=Item)
rates = app.GlobalTable("rates", changelog_topic=rates_topic, key_type=str, value_type=Item)
topic = app.topic("{source}", key_type=str, value_type=Item)

@app.agent(topic)
async def look(stream):
    async for key, item in stream.items():
        found = rates.get(key)
        out("found", key, found.n if found else None)

@app.timer(0.2)
async def report():
    out("rates", {{key: value.n for key, value in rates.items()}})
""",
    )
    expected = {f"r{n}": n for n in range(10)}
    app.wait("rates")
    # It is complete before agents run.
    assert app.values("rates")[0] == expected
    produce(rates, [("r3", {"n": 33}), ("r11", {"n": 11}), ("r4", None)])
    expected |= {"r3": 33, "r11": 11}
    del expected["r4"]
    wait_for(lambda: app.values("rates")[-1] == expected, 20, lambda: app.values("rates")[-1])
    produce(source, [("r3", {"n": 0}), ("r4", {"n": 0})])
    assert sorted(app.wait("found", 2)) == [["r3", 33], ["r4", None]]


def test_sets_counters_scans_and_batches(faust_app, topic_factory, produce, kafka_client, wait_for):
    source = topic_factory(partitions=1)
    produce(source, [(f"{'ab'[n % 2]}{n % 10}", {"n": n}) for n in range(200)])
    app = faust_app(
        f"""
topic = app.topic("{source}", key_type=str, value_type=Item)
members = app.SetTable("members", key_type=str, value_type=int)
counter = app.CounterTable("counter", key_type=str)
by_key = app.CounterTable("by_key", key_type=str)
sums = app.Table("sums", key_type=str, value_type=int, default=int)

@app.agent(topic)
async def batches(stream):
    async for batch in stream.batches():
        by_key.count(batch)
        sums.update(batch, lambda total, item: total + item.n)
        keys = sorted(set(batch.keys))
        sums.set_many(["last " + key for key in keys], sums.get_many(keys))

@app.agent(topic)
async def records(stream):
    async for key, item in stream.items():
        members[key[0]].add(item.n % 7)
        if item.n % 11 == 0:
            members[key[0]].discard(item.n % 7)
        counter.increment("all")
        counter.increment(key[0], 2)

@app.timer(0.2)
async def report():
    out("members", {{key: sorted(value) for key, value in members.items()}})
    out("counter", dict(counter.items()))
    out("by_key", dict(by_key.items()))
    out("prefix", dict(sums.scan(prefix="a")))
    out("range", [key for key, _ in sums.scan(start="a4", end="b3")])
    out("last", dict(sums.scan(prefix="last ")))
    out("len", len(sums), len(by_key))
""",
        start=False,
    )
    first = app.start()
    app.wait_committed(kafka_client, source, 200)
    sums, members = Counter(), {"a": set(), "b": set()}
    for n in range(200):
        letter = "ab"[n % 2]
        sums[f"{letter}{n % 10}"] += n
        members[letter].add(n % 7)
        if n % 11 == 0:
            members[letter].discard(n % 7)
    a = [key for key in sorted(sums) if key[0] == "a"]
    expected = {
        "members": {key: sorted(value) for key, value in members.items()},
        "counter": {"all": 200, "a": 200, "b": 200},
        "by_key": dict.fromkeys(sums, 20),
        "prefix": {key: sums[key] for key in a},
        "range": ["a4", "a6", "a8", "b1"],
        "last": {f"last {key}": total for key, total in sums.items()},
        "len": 20,
    }

    def last():
        return {kind: app.values(kind)[-1] for kind in expected}

    wait_for(lambda: last() == expected, 20, lambda: str(last()))
    first.stop()
    reports = len(app.values("len"))
    app.start()
    wait_for(lambda: len(app.values("len")) > reports + 2, 40)
    wait_for(lambda: last() == expected, 20, lambda: str(last()))


def test_expired_entries_leave_the_table_and_its_changelog(
    faust_app, topic_factory, produce, consume_all, kafka_client, wait_for, tmp_path
):
    source = topic_factory(partitions=1)
    start = 1_700_000_000_000
    app = faust_app(
        f"""
topic = app.topic("{source}", key_type=str, value_type=Item)
seen = app.Table("seen", key_type=str, value_type=int, default=int, ttl="10s")

@app.agent(topic)
async def see(stream):
    async for key, item in stream.items():
        seen[key] += 1

@app.timer(0.2)
async def report():
    out("seen", dict(seen.items()))
""",
        start=False,
    )
    first = app.start()
    produce(source, [(f"k{n}", {"n": n}, start + n * 100) for n in range(100)])
    app.wait_committed(kafka_client, source, 100)
    wait_for(lambda: len(app.values("seen")[-1]) == 100, 20)
    produce(source, [("k0", {"n": 0}, start + 14_950)])
    app.wait_committed(kafka_client, source, 101)
    # It has expired, so it counts from 1 again.
    expected = {**{f"k{n}": 1 for n in range(50, 100)}, "k0": 1}
    wait_for(lambda: app.values("seen")[-1] == expected, 20, lambda: str(app.values("seen")[-1]))
    first.kill()
    produce(source, [("k1", {"n": 0}, start + 40_000)])
    app.start()
    app.wait_committed(kafka_client, source, 102)
    wait_for(lambda: app.values("seen")[-1] == {"k1": 1}, 20)
    produce(source, [("k1", {"n": 0}, start + 44_000)])
    app.wait_committed(kafka_client, source, 103)

    def alive():
        last = {}
        for record in consume_all(f"{app.id}-seen-changelog"):
            last[record.key] = record.value
        last.pop(b"\0position")
        return {key for key, value in last.items() if value is not None}

    wait_for(lambda: alive() == {b'"k1"'}, 20, lambda: str(alive()))
