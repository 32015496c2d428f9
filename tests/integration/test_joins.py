"""Joins, timers and look-ups in real workers: killed, mismatched, and asked of a real Redis."""

import json
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from joins_app import APP, EVERYTHING, START, expected, records

import streamproc as faust
from streamproc.errors import ConfigurationError
from streamproc.sinks import redis_lookup


class Place(faust.Record):
    name: str
    people: int


@pytest.fixture
def start(worker, tmp_path):
    """``start(source, left, right)`` starts a worker of an app."""

    def run(source, left, right, **env):
        written = (tmp_path / "app_under_test.py").exists()
        text = None if written else APP + source
        env = {"APP_ID": f"app-{left}", "LEFT": left, "RIGHT": right, **env}
        return worker(text, env=env)

    return run


def found_in(consume_all, left, at_least=0):
    return {tuple(each.json()) for each in consume_all(f"{left}-results", at_least=at_least)}


def test_a_killed_worker_loses_and_invents_nothing(
    start, topic_factory, produce, consume_all, wait_for
):
    left, right = topic_factory(partitions=4), topic_factory(partitions=4)
    topic_factory(partitions=4, name=f"{left}-results")
    lefts, rights = [], []

    def feed(first, last, begin):
        new = records(first, last, begin, 0), records(first, last, begin, 30)
        # Not every one has a match.
        new = [one for one in new[0] if one[1]["id"] % 5], [o for o in new[1] if o[1]["id"] % 3]
        lefts.extend(new[0])
        rights.extend(new[1])
        produce(left, new[0])
        produce(right, new[1])

    running = start(EVERYTHING, left, right)
    for turn in range(3):
        # An hour between turns, so that silence before one makes nothing of it late.
        begin = turn * 3_600_000
        seen = len(found_in(consume_all, left))
        feed(turn * 1000, turn * 1000 + 400, begin)
        wait_for(lambda seen=seen: len(found_in(consume_all, left)) > seen + 300, 40, "results")
        running.kill()
        feed(turn * 1000 + 400, turn * 1000 + 700, begin)
        running = start(EVERYTHING, left, right)
    want = expected(lefts, rights)

    def missing():
        return want - found_in(consume_all, left)

    wait_for(lambda: not missing(), 60, lambda: f"missing {sorted(map(str, missing()))[:10]}")
    surplus = found_in(consume_all, left) - want
    assert not surplus, sorted(map(str, surplus))[:10]
    running.stop()


def test_what_waits_for_a_match_can_be_asked_for(worker, topic_factory, produce, wait_for):
    left, right = topic_factory(partitions=2), topic_factory(partitions=2)
    source = """
    left.interval_join(right, idle_timeout=None, name="waiting")
    left.deduplicate(name="passed", idle_timeout=None)
    left.throttle(1, name="counted", idle_timeout=None)

    def remember(key, one, context):
        context.state = one
        context.set_timer(context.time + 1000)

    left.stateful(remember, state=Left, name="remembered", idle_timeout=None)
    """
    env = {"APP_ID": f"app-{left}", "LEFT": left, "RIGHT": right}
    produce(left, [("k1", {"id": 1}, START), ("k2", {"id": 2}, START)])
    running = worker(APP + source, env=env, web=True, ready=True)

    tables = "waiting", "passed", "counted", "remembered"

    def asked(path):
        with urlopen(f"{running.web_url}/tables/{path}", timeout=10) as reply:
            return json.load(reply)

    wait_for(lambda: len(asked("waiting/")["entries"]) == 2, 20, lambda: str(asked("waiting/")))
    assert {name: asked(f"{name}/k1/")["value"] for name in tables} == {
        "waiting": {"left": [{"id": 1, "name": ""}], "right": []},
        "passed": [START],
        "counted": {str(START): 1},
        "remembered": {"id": 1, "name": ""},
    }
    assert [each["key"] for each in asked("remembered/?prefix=k2")["entries"]] == ["k2"]


def test_a_key_of_which_much_waits_is_recovered(
    start, topic_factory, produce, consume_all, wait_for, kafka_client
):
    left, right = topic_factory(partitions=1), topic_factory(partitions=1)
    topic_factory(partitions=1, name=f"{left}-results")
    source = """
    left.interval_join(right, before="1h", after="1h", fn=pair("pair")).to(results)
    """
    name = "a name that takes some room in the state" * 3
    produce(left, [("hot", {"id": n, "name": name}, START + n) for n in range(30_000)])
    running = start(source, left, right)
    wait_for(lambda: kafka_client.total_committed(f"app-{left}", left) == 30_000, 40, "commit")
    running.kill()
    produce(right, [("hot", {"id": 1}, START)])
    start(source, left, right)
    found = found_in(consume_all, left, at_least=30_000)
    assert found == {("pair", n, 1) for n in range(30_000)}


@pytest.mark.parametrize(
    ("join", "names"),
    [
        ("left.interval_join(right)", ["left", "right"]),
        ("left.asof_join(right)", ["left", "right"]),
        ("left.join_updates(right)", ["left", "right"]),
        ("left.join(app.Table('names', partitions=6))", ["left", "names"]),
    ],
)
def test_topics_with_different_numbers_of_partitions_are_refused(join, names, start, topic_factory):
    left, right = topic_factory(partitions=2), topic_factory(partitions=6)
    running = start(f"    {join}\n", left, right)
    assert running.wait_end() != 0
    assert "ConfigurationError" in running.log
    assert f"topic '{left}' has 2 partitions" in running.log
    other = f"topic '{right}' has 6" if "right" in names else "table 'names'"
    assert other in running.log


def test_a_key_by_takes_the_partitions_of_what_is_joined(
    start, topic_factory, produce, consume_all, kafka_client
):
    left, right = topic_factory(partitions=2), topic_factory(partitions=6)
    source = """
    rekeyed = right.key_by(lambda one: f"k{one.id % 3}", value_type=Right)
    left.interval_join(rekeyed, fn=pair("pair"), idle_timeout="2s").to(results)
    """
    topic_factory(partitions=2, name=f"{left}-results")
    produce(left, [(f"k{n}", {"id": n}, START) for n in range(3)])
    produce(right, [(f"other {n}", {"id": n}, START + n) for n in range(30)])
    start(source, left, right)
    want = {("pair", n % 3, n) for n in range(30)}
    assert found_in(consume_all, left, at_least=30) == want
    assert kafka_client.partitions(f"app-{left}-flow-{right}-by-lambda") == 2


def test_a_global_table_is_joined_by_any_field(start, topic_factory, produce, consume_all):
    left, names = topic_factory(partitions=2), topic_factory(partitions=3)
    source = """
    entries = app.topic(os.environ["NAMES"], key_type=str, value_type=Right, compacting=True)
    names = app.GlobalTable(
        "names", key_type=str, value_type=Right, partitions=3, changelog_topic=entries
    )
    stream = app.stream(app.topic(LEFT, key_type=str, value_type=Left))
    stream.left_join(names, on="name", fn=pair("named")).to(results)
    """
    topic_factory(partitions=2, name=f"{left}-results")
    produce(names, [(f"name {n}", {"id": n * 10}) for n in range(5)])
    produce(left, [("any key", {"id": n, "name": f"name {n}"}) for n in range(7)])
    start(source, left, topic_factory(partitions=2), NAMES=names)
    want = {("named", n, n * 10 if n < 5 else None) for n in range(7)}
    assert found_in(consume_all, left, at_least=7) == want


LOOK_UP = """
    def named(one, found):
        return ["found", one.id, found and found["name"]]

    left.enrich(
        redis_lookup("sensor:{key}"), cache_ttl="1h", retries=6, timeout="1s", fn=named
    ).to(results)
"""


def test_keys_are_looked_up_in_redis(start, topic_factory, produce, consume_all, redis_client):
    left = topic_factory(partitions=2)
    topic_factory(partitions=2, name=f"{left}-results")
    for n in range(10):
        redis_client.hset(f"sensor:k{n}", mapping={"name": f"name {n}"})
    redis_client.config_resetstat()
    produce(left, [(f"k{n % 12}", {"id": n}) for n in range(1200)])
    start(LOOK_UP, left, topic_factory(partitions=2))
    want = {("found", n, f"name {n % 12}" if n % 12 < 10 else None) for n in range(1200)}
    assert found_in(consume_all, left, at_least=1200) == want
    assert redis_client.info("commandstats")["cmdstat_hgetall"]["calls"] == 12


async def test_what_redis_has_is_made_a_record(redis_client, redis_url):
    redis_client.hset("place:1", mapping={"name": "Oslo", "people": "700000"})
    redis_client.hset("place:2", mapping={"name": "Rome", "people": "many"})
    redis_client.set("text:1", "Olso")
    redis_client.set("json:1", '{"name": "Oslo", "people": 700000}')
    app = SimpleNamespace(redis_url=redis_url)
    oslo = Place(name="Oslo", people=700000)
    found = []
    for look_up in (
        redis_lookup("place:{key}", value_type=Place),
        redis_lookup("place:{key}"),
        redis_lookup("text:{key}", "string"),
        redis_lookup("json:{key}", "string", value_type=Place),
    ):
        await look_up.open(app)
        found.append(await look_up([b"1", 2, "3"]))
        await look_up.close()
    assert isinstance(found[0][1], Exception)
    assert found[0][::2] == [oslo, None]
    assert found[1][0] == {"name": "Oslo", "people": "700000"}
    assert found[2] == ["Olso", None, None]
    assert found[3] == [oslo, None, None]
    with pytest.raises(ConfigurationError, match="no Redis URL"):
        await redis_lookup("place:{key}").open(SimpleNamespace(redis_url=None))


def test_look_ups_wait_for_a_redis_that_is_away(
    start, topic_factory, produce, consume_all, new_redis
):
    left = topic_factory(partitions=1)
    topic_factory(partitions=1, name=f"{left}-results")
    redis = new_redis()
    running = start(LOOK_UP, left, topic_factory(partitions=1), REDIS_URL=redis.url)
    running.wait_ready()
    redis.kill()
    produce(left, [("k1", {"id": 1})])
    running.wait_log("flow-" + left + "-enrich of 'k1' failed")
    redis.start()
    assert found_in(consume_all, left, at_least=1) == {("found", 1, None)}


COUNTED = """
    import asyncio
    from streamproc.aggregates import Count

    async def slowly(keys):
        await asyncio.sleep(1.5)
        return {key: key.upper() for key in keys}

    left.enrich(slowly, cache_ttl="1ms", timeout="10s", fn=lambda one, name: one).aggregate(
        n=Count()
    ).map(lambda result: [result.key, result.n]).to(results)
"""


def test_a_worker_killed_while_it_looks_up_counts_exactly(
    start, topic_factory, produce, consume_all, wait_for, kafka_client
):
    left, right = topic_factory(partitions=2), topic_factory(partitions=2)
    topic_factory(partitions=2, name=f"{left}-results")
    running = start(COUNTED, left, right)
    running.wait_ready()
    for turn in range(2):
        # Checkpoints go on while look-ups wait: the state must not be ahead of the offsets.
        produce(left, [(f"k{n % 7}", {"id": n}) for n in range(700)])
        wait_for(
            lambda turn=turn: kafka_client.total_committed(f"app-{left}", left) > turn * 1400,
            40,
            "a part is done",
        )
        produce(left, [(f"k{n % 7}", {"id": n}) for n in range(700)])
        running.kill()
        running = start(COUNTED, left, right)

    def counts():
        last = {}
        for each in consume_all(f"{left}-results"):
            key, count = each.json()
            last[key] = max(count, last.get(key, 0))
        return last

    want = {f"k{n}": 400 for n in range(7)}
    wait_for(lambda: kafka_client.total_committed(f"app-{left}", left) == 2800, 60, "all is done")
    assert counts() == want
