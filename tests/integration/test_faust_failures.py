"""Agents that raise: retried, then rejected, wherever they raise; nothing else is lost."""

from __future__ import annotations

NUMBERS = list(range(20))
MORE = list(range(20, 40))
BAD = 7

FORMS = {
    "values": "async for item in stream: see(item)",
    "items": "async for _, item in stream.items(): see(item)",
    "events": "async for event in stream.events(): see(event.value)",
    "batches": "async for batch in stream.batches():\n        for item in batch: see(item)",
    "take": "async for items in stream.take(6, within=0.2):\n        for item in items: see(item)",
    "take_events": """async for events in stream.take_events(6, within=0.2):
        for event in events: see(event.value)""",
    "noack_take": """async for events in stream.noack_take(6, within=0.2):
        for event in events:
            see(event.value)
            event.ack()""",
    "noack": """async for event in stream.noack().events():
        see(event.value)
        event.ack()""",
    "async_with": """async for event in stream.events():
        async with event: see(event.value)""",
    "filter": "async for item in stream.filter(fine): see(item)",
    "filter_batches": """async for batch in stream.filter(fine).batches():
        for item in batch: see(item)""",
    "filter_take": """async for items in stream.filter(fine).take(6, within=0.2):
        for item in items: see(item)""",
    "processor": """
    def add_one(item): return Item(item.n + 1)
    stream.add_processor(add_one)
    async for item in stream: see(Item(item.n - 1))""",
    "echo": "async for item in stream.echo(echo): see(item)",
    "through": "async for item in stream.through(through): see(item)",
    "group_by_key": """
    def key_of(item):
        fine(item)
        return "k"
    async for item in stream.group_by(key_of, name="bykey"): see(item)""",
    "after_group_by": """
    async for item in stream.group_by(Item.name).filter(lambda i: True): see(item)""",
    "yielding": "async for item in stream:\n        see(item)\n        yield item",
}


def agents(source):
    for form, body in FORMS.items():
        yield f"""
@app.agent(app.topic("{source}", key_type=str, value_type=Item), name="{form}")
async def process_{form}(stream):
    fine, see = checks("{form}")
    {body}
"""


def test_a_record_that_can_not_be_processed(
    faust_app, topic_factory, produce, consume_all, kafka_client
):
    source, echo, through = (topic_factory(partitions=1) for _ in range(3))
    produce(source, [("k", {"n": n, "name": "a"}) for n in NUMBERS])
    app = faust_app(
        f"""
echo = app.topic("{echo}", value_type=Item)
through = app.topic("{through}", value_type=Item)

def checks(form):
    def fine(item):
        if item.n == {BAD}:
            out("try", form)
            raise ValueError(f"no {{item.n}}")
        return True

    def see(item):
        fine(item)
        out("seen", form, item.n)

    return fine, see
"""
        + "".join(agents(source)),
        settings="topic_partitions=1,",
    )
    letters = consume_all(f"{app.id}-dead-letters", at_least=len(FORMS), timeout=60)
    by_stage = {}
    for letter in letters:
        headers = {key: value.decode() for key, value in letter.headers}
        by_stage[headers["dead-letter-stage"]] = headers
        assert letter.json()["n"] == BAD
        assert headers["dead-letter-error"] == "ValueError"
        assert headers["dead-letter-reason"] == f"no {BAD}"
        assert headers["dead-letter-offset"] == str(BAD)
    assert len(by_stage) == len(letters) == len(FORMS)
    # All goes on afterwards.
    produce(source, [("k", {"n": n, "name": "a"}) for n in MORE])
    app.wait_committed(kafka_client, source, len(NUMBERS + MORE))
    good = [n for n in NUMBERS + MORE if n != BAD]
    app.wait("seen", len(FORMS) * len(good))
    for form in FORMS:
        seen = [n for name, n in app.lines("seen") if name == form]
        tries = app.values("try").count(form)
        assert set(seen) == set(good), form
        assert tries >= 4, form
        if "batch" not in form and "take" not in form:
            assert seen == good, form
            assert tries == 4, form
    # Sent again with each of the tries, and once for every other record.
    echoed = [each.json()["n"] for each in consume_all(echo, at_least=len(good) + 4)]
    assert {n: echoed.count(n) for n in echoed} == {n: 4 if n == BAD else 1 for n in NUMBERS + MORE}


def test_concurrent_actors(faust_app, topic_factory, produce, consume_all, kafka_client):
    source = topic_factory(partitions=2)
    produce(source, [(f"k{n}", {"n": n}) for n in range(60)])
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item), concurrency=4)
async def process(stream):
    async for item in stream:
        await asyncio.sleep(0.005)
        if item.n % 20 == 7: raise ValueError(item.n)
        out("seen", item.n)
"""
    )
    letters = consume_all(f"{app.id}-dead-letters", at_least=3)
    assert sorted(letter.json()["n"] for letter in letters) == [7, 27, 47]
    app.wait_committed(kafka_client, source, 60)
    assert sorted(app.values("seen")) == [n for n in range(60) if n % 20 != 7]


def test_a_failure_that_passes(faust_app, topic_factory, produce, kafka_client):
    """A record that succeeds when it is given again is no dead letter."""
    source = topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(10)])
    app = faust_app(
        f"""
tries = 0

@app.agent(app.topic("{source}", value_type=Item))
async def process(stream):
    global tries
    async for item in stream:
        if item.n == 3:
            tries += 1
            if tries < 3: raise ValueError(f"try {{tries}}")
        out("seen", item.n)
"""
    )
    app.wait("seen", 10)
    app.wait_committed(kafka_client, source, 10)
    assert app.values("seen") == list(range(10))
    assert kafka_client.partitions(f"{app.id}-dead-letters") == 0


def test_results_before_a_failure_reach_the_sink(
    faust_app, topic_factory, produce, consume_all, redis_client, redis_url, kafka_client
):
    source = topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(50)])
    app = faust_app(
        f"""
from streamproc.sinks import RedisList

@app.agent(app.topic("{source}", value_type=Item), sink=[RedisList("seen", value="n")])
async def process(stream):
    async for item in stream:
        if item.n in (20, 21): raise ValueError(item.n)
        yield item
""",
        settings=f"redis={redis_url!r},",
    )
    app.wait_committed(kafka_client, source, 50)
    seen = [int(each) for each in redis_client.lrange("seen", 0, -1)]
    assert seen == [n for n in range(50) if n not in (20, 21)]
    letters = consume_all(f"{app.id}-dead-letters", at_least=2)
    assert sorted(letter.json()["n"] for letter in letters) == [20, 21]


def test_a_worker_killed_amid_a_batch_loses_no_results(
    faust_app, topic_factory, produce, redis_client, redis_url, kafka_client
):
    """Results wait for their batch to end; its offsets must not be committed before."""
    source = topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(50)])
    app = faust_app(
        f"""
from streamproc.sinks import RedisSet

@app.agent(app.topic("{source}", value_type=Item), sink=[RedisSet("seen-{{n}}", member="n")])
async def process(stream):
    async for item in stream:
        if item.n == 40 and "HANG" in os.environ:
            out("hangs")
            await asyncio.sleep(2)
            out("hung")
            await asyncio.sleep(1000)
        yield item
""",
        settings=f"redis={redis_url!r}, broker_commit_interval=0.1,",
        start=False,
    )
    first = app.start(env={"HANG": "1"})
    app.wait("hung")
    first.kill()
    app.start()
    app.wait_committed(kafka_client, source, 50)
    assert len(redis_client.keys("seen-*")) == 50


def test_an_agent_over_a_channel_goes_on(faust_app):
    app = faust_app(
        """
channel = app.channel()

@app.agent(channel)
async def process(stream):
    async for n in stream:
        if n == 1: raise ValueError(n)
        out("seen", n)

@app.task
async def feed():
    while not channel.subscriber_count: await asyncio.sleep(0.05)
    for n in range(4): await channel.send(value=n)
"""
    )
    app.wait("seen", 3)
    assert app.values("seen") == [0, 2, 3]
