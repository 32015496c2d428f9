"""Every form of iteration and every operator of Faust's streams, in a real worker."""

from __future__ import annotations

from itertools import chain

import pytest

ITEMS = [(f"k{n}", {"n": n, "name": f"name{n % 3}"}) for n in range(12)]
ALL = list(range(12))

FORMS = {
    "values": "async for item in stream: out('values', item.n)",
    "items": "async for key, item in stream.items(): out('items', key, item.n)",
    "events": """async for event in stream.events():
        out('events', event.key, event.value.n, event.message.offset, event.headers)""",
    "take": "async for items in stream.take(5, within=0.5): out('take', [i.n for i in items])",
    "take_events": """async for events in stream.take_events(5, within=0.5):
        out('take_events', [[e.key, e.value.n] for e in events])""",
    "noack_take": """async for events in stream.noack_take(5, within=0.5):
        out('noack_take', [e.value.n for e in events])
        for event in reversed(events): event.ack()""",
    "filter": "async for item in stream.filter(lambda i: i.n % 2): out('filter', item.n)",
    "filter_async": """
    async def odd(item):
        await asyncio.sleep(0)
        return item.n % 2
    async for item in stream.filter(odd): out('filter_async', item.n)""",
    "filter_batches": """async for batch in stream.filter(lambda i: i.n % 2).batches():
        out('filter_batches', [[k, i.n] for k, i in batch.items()], batch.offsets)""",
    "filter_take": """async for items in stream.filter(lambda i: i.n % 2).take(4, within=0.5):
        out('filter_take', [i.n for i in items])""",
    "enumerate": "async for i, item in stream.enumerate(1): out('enumerate', i, item.n)",
    "echo": """async for item in stream.echo(app.topic(os.environ['ECHO'], value_type=Item)):
        out('echo', item.n)""",
    "through": """async for item in stream.through(THROUGH):
        out('through', item.n)""",
    "group_field": """async for key, item in stream.group_by(Item.name).items():
        out('group_field', key, item.n)""",
    "group_callable": """
    async for key, item in stream.group_by(lambda i: 'g%d' % (i.n % 2), name='mod').items():
        out('group_callable', key, item.n)""",
    "group_async": """
    async def key_of(item):
        await asyncio.sleep(0)
        return item.name.upper()
    async for key, item in stream.group_by(key_of, name='upper').items():
        out('group_async', key, item.n)""",
    "processor": """
    def double(item): return item.n * 2
    stream.add_processor(double)
    async for number in stream: out('processor', number)""",
    "current_event": """async for item in stream:
        event = faust.current_event()
        out('current_event', event.value.n, event.key, event.message.offset)""",
    "current_in_batch": """async for batch in stream.batches():
        out('current_in_batch', faust.current_event().message.offset, batch.first_offset)""",
    "forward": """async for event in stream.events():
        await event.forward(os.environ['FORWARD'])""",
    "ack": """async for event in stream.events():
        out('ack', event.value.n, event.ack())""",
    "noack": """async for event in stream.noack().events():
        out('noack', event.value.n)
        await stream.ack(event)""",
    "async_with": """async for event in stream.noack().events():
        async with event: out('async_with', event.value.n)""",
    "break": """
    async for item in stream:
        out('break', 1, item.n)
        if item.n == 4: break
    async for item in stream:
        out('break', 2, item.n)""",
    "break_take": """
    async for items in stream.take(2, within=0.5):
        out('break_take', 1, [i.n for i in items])
        if items[0].n == 4: break
    async for item in stream:
        out('break_take', 2, item.n)""",
}


def joined(lists):
    return list(chain.from_iterable(lists))


@pytest.fixture
def forms(faust_app, topic_factory, produce, request):
    """An app with an agent for each form, on one topic of one partition with ``ITEMS``."""
    source = topic_factory(partitions=1)
    echo, forward = topic_factory(partitions=1), topic_factory(partitions=1)
    through = topic_factory(partitions=1)
    produce(source, ITEMS)
    agents = "".join(
        f"@app.agent(topic, name='{name}')\nasync def agent_{name}(stream):\n    {body}\n\n"
        for name, body in FORMS.items()
    )
    head = (
        f"topic = app.topic('{source}', key_type=str, value_type=Item)\n"
        f"THROUGH = '{through}'\n"
        f"os.environ.update(ECHO='{echo}', FORWARD='{forward}')\n\n"
    )
    app = faust_app(head + agents, settings="topic_partitions=2,")
    app.source, app.echo, app.forward = source, echo, forward
    return app


def test_all_forms_of_iteration(forms, kafka_client, consume_all):
    for kind in ("group_field", "group_callable", "group_async", "through", "processor"):
        forms.wait(kind, 12)
    forms.wait_committed(kafka_client, forms.source, 12)
    odd = [n for n in ALL if n % 2]
    for kind in ("values", "echo", "through", "noack", "async_with"):
        assert forms.values(kind) == ALL, kind
    assert forms.values("filter") == forms.values("filter_async") == odd
    assert forms.lines("items") == [[f"k{n}", n] for n in ALL]
    assert forms.lines("events") == [[f"k{n}", n, n, {}] for n in ALL]
    assert forms.values("take") == forms.values("noack_take") == [ALL[:5], ALL[5:10], ALL[10:]]
    assert joined(forms.values("take_events")) == [[f"k{n}", n] for n in ALL]
    assert joined(forms.values("filter_take")) == odd
    assert joined(forms.values("filter_batches")) == [[f"k{n}", n] for n in odd]
    assert joined(offsets for _, offsets in forms.lines("filter_batches")) == odd
    assert forms.lines("enumerate") == [[n + 1, n] for n in ALL]
    assert forms.values("processor") == [2 * n for n in ALL]
    assert forms.lines("current_event") == [[n, f"k{n}", n] for n in ALL]
    assert all(event == first for event, first in forms.lines("current_in_batch"))
    assert forms.lines("ack") == [[n, True] for n in ALL]
    assert forms.lines("break") == [[1 if n < 5 else 2, n] for n in ALL]
    taken = forms.lines("break_take")
    assert taken == [[1, [0, 1]], [1, [2, 3]], [1, [4, 5]], *([2, n] for n in ALL[6:])]
    assert sorted(forms.lines("group_field")) == sorted([f"name{n % 3}", n] for n in ALL)
    assert sorted(forms.lines("group_callable")) == sorted([f"g{n % 2}", n] for n in ALL)
    assert sorted(forms.lines("group_async")) == sorted([f"NAME{n % 3}", n] for n in ALL)
    # A key's records keep their order through the repartition topic.
    for kind in ("group_field", "group_callable", "group_async"):
        by_key = {}
        for key, n in forms.lines(kind):
            by_key.setdefault(key, []).append(n)
        assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert [each.json()["n"] for each in consume_all(forms.echo, at_least=12)] == ALL
    forwarded = consume_all(forms.forward, at_least=12)
    assert [(each.key.decode(), each.json()["n"]) for each in forwarded] == [
        (f"k{n}", n) for n in ALL
    ]


def test_a_stream_that_begins_late_reads_what_came_before(faust_app, topic_factory, produce):
    source, other = topic_factory(partitions=1), topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(20)])
    produce(other, [{"n": 0}])
    app = faust_app(
        f"""
late = app.topic("{source}", value_type=Item)
app.topics.add(late)  # subscribed to, and read by nobody yet

@app.agent(app.topic("{other}", value_type=Item))
async def early(stream):
    async for item in stream:
        await asyncio.sleep(1)  # long enough for both topics to be fetched
        asyncio.ensure_future(read())

async def read():
    async for item in late.stream():
        out("n", item.n)
"""
    )
    app.wait("n", 20)
    assert app.values("n") == list(range(20))


def test_a_new_subscription_repeats_nothing(faust_app, topic_factory, produce):
    """What is done before partitions are given up is committed, whatever the interval."""
    source, other = topic_factory(partitions=1), topic_factory(partitions=1)
    produce(source, [{"n": n} for n in range(100)])
    produce(other, [{"n": 0}])
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item))
async def work(stream):
    async for item in stream:
        out("n", item.n)
        if item.n == 99:
            asyncio.ensure_future(read())

async def read():
    async for item in app.topic("{other}", value_type=Item).stream():
        out("other", item.n)
""",
        settings="broker_commit_interval=600.0,",
    )
    app.wait("other")
    produce(source, [{"n": 100}])
    app.wait("n", 101)
    assert app.values("n") == list(range(101))
