"""Topics in Faust's ways: serializers, key types, schemas, codecs, models; client modes; gaps."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = [
    *("raw", "keys_str", "keys_int", "keys_model", "plain"),
    *("schema", "codec", "models", "text"),
]


def test_serializers_key_types_schemas_and_codecs(faust_app, topic_factory, produce, kafka_client):
    topics = {name: topic_factory(partitions=1) for name in NAMES}
    produce(topics["raw"], [(b"\x00k", b"\xff\x00")])
    produce(topics["keys_str"], [("a", {"n": 1})])
    produce(topics["keys_int"], [("12", {"n": 2})])
    produce(topics["keys_model"], [({"n": 7}, {"n": 3})])
    produce(topics["plain"], [("k", {"x": [1, None]}), ("k", "[1]"), ("k", "12")])
    produce(topics["schema"], [("k", {"n": n}) for n in range(3)])
    produce(topics["codec"], [("k", b"1;2"), ("k", b"broken"), ("k", b"3;4")])
    produce(topics["models"], [("k", {"n": 5, "name": "five", "extra": 1})])
    produce(topics["text"], [("k", "just text")])
    app = faust_app(
        f"""
import typing
from faust.serializers import codecs

class Pairs(codecs.Codec):
    def _dumps(self, obj): return ";".join(map(str, obj)).encode()
    def _loads(self, s):
        left, right = s.decode().split(";")
        return [int(left), int(right)]

codecs.register("pairs", Pairs())

class Shouting(faust.Schema):
    def loads_value(self, app, message, *, loads=None, serializer=None):
        item = super().loads_value(app, message, loads=loads, serializer=serializer)
        return Item(item.n * 100)

topics = {topics!r}

@app.agent(app.topic(topics["raw"], value_serializer="raw"))
async def raw(stream):
    async for key, value in stream.items(): out("raw", repr(key), repr(value))

@app.agent(app.topic(topics["keys_str"], key_type=str, value_type=Item))
async def keys_str(stream):
    async for key, value in stream.items(): out("keys_str", key, value.n)

@app.agent(app.topic(topics["keys_int"], key_type=int, value_type=Item))
async def keys_int(stream):
    async for key, value in stream.items(): out("keys_int", key, value.n)

@app.agent(app.topic(topics["keys_model"], key_type=Item, key_serializer="json"))
async def keys_model(stream):
    async for key, value in stream.items(): out("keys_model", key.n, value)

@app.agent(app.topic(topics["plain"]))
async def plain(stream):
    async for value in stream: out("plain", value)

@app.agent(app.topic(topics["schema"], schema=Shouting(value_type=Item, value_serializer="json")))
async def schema(stream):
    async for value in stream: out("schema", value.n)

@app.agent(app.topic(topics["codec"], value_serializer="pairs"))
async def codec(stream):
    async for value in stream: out("codec", value)

class Base(faust.Record, abstract=True):
    n: int

class Wide(Base, serializer="json", coerce=True, validation=True, namespace="wide.model"):
    name: str
    tags: typing.List[str] = []
    other: typing.Optional[int] = None

@app.agent(app.topic(topics["models"], value_type=Wide))
async def models(stream):
    async for value in stream:
        out("models", type(value).__name__, value.asdict(), value.derive(n=6).n)

@app.agent(app.topic(topics["text"], value_type=str, value_serializer="raw"))
async def text(stream):
    async for value in stream: out("text", value)
"""
    )
    for name in topics:
        app.wait(name)
    app.wait_committed(kafka_client, topics["codec"], 3)
    app.wait_committed(kafka_client, topics["schema"], 3)
    assert app.lines("raw") == [[repr(b"\x00k"), repr(b"\xff\x00")]]
    assert app.lines("keys_str") == [["a", 1]]
    assert app.lines("keys_int") == [[12, 2]]
    assert app.lines("keys_model") == [[7, {"n": 3}]]
    assert app.values("plain") == [{"x": [1, None]}, [1], 12]
    assert app.values("schema") == [0, 100, 200]
    assert app.values("codec") == [[1, 2], [3, 4]]
    assert app.values("text") == ["just text"]
    fields = {"n": 5, "name": "five", "tags": [], "other": None}
    assert app.lines("models") == [["Wide", fields, 6]]


def test_the_fall_back_is_said_once(faust_app, topic_factory, produce):
    source = topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(5)])
    app = faust_app(
        f"""
class Own(faust.Schema): pass

@app.agent(app.topic("{source}", schema=Own(value_type=Item, value_serializer="json")))
async def process(stream):
    async for item in stream: out("n", item.n)
""",
        start=False,
    )
    worker = app.start()
    app.wait("n", 5)
    assert worker.log.count("values are decoded record by record by Faust's own code") == 1


def test_sending_in_all_ways(faust_app, topic_factory, consume_all):
    target = topic_factory(partitions=1)
    app = faust_app(
        f"""
target = app.topic("{target}", key_type=str, value_type=Item)

@app.task
async def send():
    await target.send(key="a", value=Item(1), headers={{"h": b"1"}}, timestamp=1700000000.5)
    future = await target.send(key="b", value=Item(2))
    meta = await future
    out("meta", meta.topic, meta.partition, meta.offset)
    target.send_soon(key="c", value=Item(3))
    await app.producer.buffer.flush()
    await app.send(target, "d", Item(4))
    await app.send("{target}", "e", {{"n": 5}})
    await target.send(key="f", value={{"n": 6}})
    await target.send_batch([Item(7), Item(8)], keys=["g", "h"])
    await app.producer.flush()
    out("done")
"""
    )
    app.wait("done")
    received = consume_all(target, at_least=8)
    assert [(each.key.decode(), each.json()["n"]) for each in received] == [
        (key, n) for n, key in enumerate("abcdefgh", 1)
    ]
    assert received[0].headers == [("h", b"1")]
    assert received[0].timestamp == 1700000000500
    assert app.lines("meta") == [[target, 0, 1]]


PRODUCER = """
import asyncio
import streamproc as faust

app = faust.App("{id}", broker="kafka://{bootstrap}")
topic = app.topic("{topic}", value_type=str, value_serializer="json")

async def main():
    app.producer_only = True
    await app.start()
    await (await topic.send(value="hello"))
    await app.stop()

asyncio.run(main())
print("ended well")
"""


def test_an_app_that_only_sends(topic_factory, bootstrap, consume_all):
    target = topic_factory(partitions=1)
    source = PRODUCER.format(id=f"client-{target}", bootstrap=bootstrap, topic=target)
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ended well" in done.stdout, done.stdout + done.stderr
    assert [each.json() for each in consume_all(target, at_least=1)] == ["hello"]


@pytest.mark.apache_only
def test_gaps_of_transactions_are_committed_over(faust_app, topic_factory, kafka_client, bootstrap):
    """Control records and aborted ones leave gaps; the record after a gap is processed."""
    from confluent_kafka import Producer

    source = topic_factory(partitions=1)
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"tx-{source}"})
    producer.init_transactions()
    for n in range(10):
        producer.begin_transaction()
        producer.produce(source, value=b'{"n": %d}' % n)
        producer.flush()
        if n % 3 == 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item))
async def process(stream):
    async for item in stream: out("n", item.n)
""",
        settings="read_committed=True,",
        start=False,
    )
    first = app.start()
    app.wait_committed(kafka_client, source, 20)
    first.stop()
    app.start(ready=True)
    producer.begin_transaction()
    producer.produce(source, value=b'{"n": 10}')
    producer.commit_transaction()
    app.wait_committed(kafka_client, source, 22)
    assert app.values("n") == [0, 1, 3, 4, 6, 7, 9, 10]


def test_the_monitor_and_the_log_are_right(faust_app, topic_factory, produce, wait_for):
    """What Faust's sensors learn once a message they learn once a batch; no false alarms."""
    source = topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(1000)])
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item))
async def process(stream):
    async for item in stream: out("n", item.n)

@app.timer(0.5)
async def report():
    monitor = app.monitor
    tp = faust.types.TP("{source}", 0)
    out(
        "monitor",
        monitor.messages_received_total,
        monitor.tp_end_offsets.get(tp),
        monitor.tp_committed_offsets.get(tp),
        monitor.tp_read_offsets.get(tp),
    )
""",
        settings="""stream_recovery_delay=0.0, stream_processing_timeout=1.0,
    broker_check_crcs=True, broker_commit_livelock_soft_timeout=2.0,""",
        start=False,
    )
    worker = app.start()
    app.wait("n", 1000)
    wait_for(lambda: [1000, 1000, 1000, 1000] in app.lines("monitor"), 20)
    count = len(app.lines("monitor"))
    app.wait("monitor", count + 8)
    for alarm in ("livelock", "stuck", "not progressing", "has not", "behind"):
        assert alarm not in worker.log
