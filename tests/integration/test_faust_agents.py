"""Faust's agents: sinks, replies, concurrency, isolated partitions, channels, timers, pages."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest


def test_sinks_yields_and_memory_channels(faust_app, topic_factory, produce, consume_all):
    source, target = topic_factory(partitions=2), topic_factory(partitions=1)
    produce(source, [("k", {"n": n}) for n in range(10)])
    app = faust_app(
        f"""
target = app.topic("{target}", value_type=Item)
channel = app.channel(value_type=Item)

@app.agent(app.topic("{target}-agent", internal=True, partitions=2, value_type=Item))
async def second(stream):
    async for item in stream:
        out("agent sink", item.n)

@app.agent(channel)
async def third(stream):
    async for item in stream:
        out("channel sink", item.n)

async def later(item): out("async sink", item.n)

@app.agent(
    app.topic("{source}", value_type=Item),
    sink=[lambda item: out("callable sink", item.n), later, target, second, channel],
)
async def first(stream):
    async for item in stream:
        yield Item(item.n * 10)

first.add_sink(lambda item: out("added sink", item.n))
"""
    )
    expected = [10 * n for n in range(10)]
    for kind in ("callable", "async", "agent", "channel", "added"):
        app.wait(f"{kind} sink", 10)
        assert sorted(app.values(f"{kind} sink")) == expected, kind
    assert [each.json()["n"] for each in consume_all(target, at_least=10)] == expected


def test_streams_over_channels_and_lists(faust_app):
    app = faust_app(
        """
numbers = app.channel()
fed = []

@app.task
async def over_a_list():
    async for n in app.stream([1, 2, 3]):
        out("list", n)
    async for i, n in app.stream([4, 5]).enumerate():
        out("enumerated list", i, n)

@app.task
async def over_a_channel():
    async for n in numbers.stream():
        out("stream", n)

@app.task
async def over_events():
    async for event in numbers.stream().events():
        out("events", event.value, faust.current_event().value)

@app.task
async def over_items():
    async for key, value in numbers.stream().items():
        out("items", key, value)

@app.task
async def taking():
    async for buffer in numbers.stream().take(2, within=0.5):
        out("take", buffer)

@app.task
async def taking_events():
    async for buffer in numbers.stream().take_events(2, within=0.5):
        out("take_events", [event.value for event in buffer])

@app.task
async def filtering():
    async for n in numbers.stream().filter(lambda n: n % 2):
        out("filter", n)

@app.task
async def by_hand():
    async for event in numbers:
        out("by hand", event.value)

@app.timer(0.2)
async def feed():
    if numbers.subscriber_count == 7 and not fed:
        for n in range(3):
            await numbers.send(key=f"k{n}", value=n)
            fed.append(n)
"""
    )
    for kind in ("stream", "events", "items", "by hand"):
        app.wait(kind, 3)
    app.wait("take", 2)
    app.wait("take_events", 2)
    app.wait("filter", 1)
    assert app.values("list") == [1, 2, 3]
    assert app.lines("enumerated list") == [[0, 4], [1, 5]]
    assert app.values("stream") == app.values("by hand") == [0, 1, 2]
    assert app.lines("events") == [[n, n] for n in range(3)]
    assert app.lines("items") == [[f"k{n}", n] for n in range(3)]
    assert app.values("take") == app.values("take_events") == [[0, 1], [2]]
    assert app.values("filter") == [1]


def test_calling_agents(faust_app):
    app = faust_app(
        """
@app.agent()
async def double(stream):
    async for n in stream:
        yield n * 2

@app.agent(value_type=Item)
async def named(stream):
    async for item in stream:
        out("cast", item.n)
        yield item

@app.task
async def call():
    out("ask", await double.ask(21))
    out("ask key", await double.ask(value=4, key="a"))
    out("map", sorted([reply async for reply in double.map([1, 2, 3])]))
    out("join", await double.join([1, 2, 3]))
    out("kvmap", sorted([r async for r in double.kvmap([("a", 1), ("b", 2)])]))
    out("kvjoin", await double.kvjoin([("a", 5), ("b", 6)]))
    await named.cast(Item(7))
    await named.send(value=Item(8), key="k")
    out("model", (await named.ask(Item(9))).n)
    out("done")
"""
    )
    app.wait("done", 1)
    assert app.values("ask") == [42]
    assert app.values("ask key") == [8]
    assert app.values("map") == app.values("join") == [[2, 4, 6]]
    assert app.values("kvmap") == [[2, 4]]
    assert app.values("kvjoin") == [[10, 12]]
    assert sorted(app.values("cast")) == [7, 8, 9]
    assert app.values("model") == [9]


def test_concurrency_runs_at_once(faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=1)
    produce(source, [("k", {"n": n}) for n in range(40)])
    app = faust_app(
        f"""
running = 0

@app.agent(app.topic("{source}", value_type=Item), concurrency=4)
async def work(stream):
    global running
    async for item in stream:
        running += 1
        out("running", running, stream.concurrency_index)
        await asyncio.sleep(0.01)
        running -= 1
        out("n", item.n)
"""
    )
    app.wait("n", 40)
    app.wait_committed(kafka_client, source, 40)
    assert max(app.values("running")) == 4
    assert {index for _, index in app.lines("running")} == {0, 1, 2, 3}
    assert sorted(app.values("n")) == list(range(40))


def test_concurrency_commits_no_more_than_is_done(faust_app, topic_factory, produce, kafka_client):
    """Killed while one actor still has an early record: that record comes again."""
    source = topic_factory(partitions=1)
    produce(source, [("k", {"n": n}) for n in range(100)])
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item), concurrency=4)
async def work(stream):
    async for item in stream:
        if item.n == 30 and "HANG" in os.environ:
            await asyncio.sleep(1000)
        out("n", item.n)
""",
        settings="broker_commit_interval=0.2,",
        start=False,
    )
    first = app.start(env={"HANG": "1"})
    app.wait("n", 99)
    app.wait_committed(kafka_client, source, 30)
    first.kill()
    app.start()
    app.wait("n", 99 + 70)
    assert app.values("n")[99:] == list(range(30, 100))
    app.wait_committed(kafka_client, source, 100)


def test_isolated_partitions(faust_app, topic_factory, produce, kafka_client):
    source = topic_factory(partitions=3)
    for partition in range(3):
        produce(source, [{"n": n} for n in range(20)], partition=partition)
    app = faust_app(
        f"""
@app.agent(app.topic("{source}", value_type=Item), isolated_partitions=True)
async def work(stream):
    async for event in stream.events():
        await asyncio.sleep(0)
        out("seen", id(stream), event.message.partition, event.value.n)
"""
    )
    app.wait("seen", 60)
    app.wait_committed(kafka_client, source, 60)
    streams = {}
    for stream, partition, n in app.lines("seen"):
        streams.setdefault(partition, {}).setdefault(stream, []).append(n)
    assert all(list(each.values()) == [list(range(20))] for each in streams.values())
    assert len({next(iter(each)) for each in streams.values()}) == 3


def test_timers_crontabs_tasks_commands_and_pages(faust_app, topic_factory, bootstrap, tmp_path):
    app = faust_app(
        """
counts = app.Table("counts", default=int, partitions=2)
topic = app.topic("unused", internal=True, partitions=2)

@app.agent(app.topic(os.environ["APP_ID"] + "-words", key_type=str, internal=True, partitions=2))
async def count(stream):
    async for key, word in stream.items():
        counts[key] += 1
        out("word", word)

@app.timer(0.1)
async def tick(): out("timer")

@app.timer(0.1, on_leader=True)
async def tick_leader(): out("leader timer")

@app.crontab("* * * * * *")
async def cron(): out("crontab")

@app.task
async def at_start(app): out("task")

@app.on_worker_init.connect
def on_init(app, **kwargs): out("worker init")

@app.service
class Background(faust.Service):
    async def on_start(self): out("service")

    @faust.Service.task
    async def work(self): out("service task")

@app.command(faust.cli.option("--name", default="nobody"))
async def greet(self, name):
    await app.topic(os.environ["APP_ID"] + "-words").send(key="k", value=name)
    self.say(f"hello {name}")

@app.page("/hello/")
async def hello(web, request): return web.json({"hello": request.query.get("name", "")})

@app.page("/count/{key}/")
@app.table_route(table=counts, match_info="key")
async def get_count(web, request, key): return web.json({key: counts[key]})

@app.page("/view/")
class View(faust.web.View):
    async def get(self, request): return self.json({"method": "get"})
    async def post(self, request): return self.json({"method": "post"})
""",
        start=False,
    )
    worker = app.start(web=True)
    for kind in ("timer", "leader timer", "task", "worker init", "service", "service task"):
        app.wait(kind)

    def get(path, data=None):
        with urllib.request.urlopen(worker.web_url + path, data=data, timeout=10) as reply:
            return json.load(reply)

    assert get("/hello/?name=a") == {"hello": "a"}
    assert get("/view/") == {"method": "get"}
    assert get("/view/", data=b"{}") == {"method": "post"}
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", app.module, "greet", "--name", "world"],
        cwd=app.folder,
        env={**_environ(), **app.env, "BOOTSTRAP": bootstrap, "PYTHONPATH": str(app.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "hello world" in done.stdout
    app.wait("word")
    assert app.values("word") == ["world"]
    assert get("/count/k/") == {"k": 1}
    app.wait("crontab")


def _environ():
    import os

    return dict(os.environ)


@pytest.mark.parametrize("command", ["agents", "tables", "models", "send", "model Item"])
def test_commands_of_faust(command, faust_app, bootstrap, topic_factory, consume_all):
    topic = topic_factory(partitions=1)
    app = faust_app(
        f"""
topic = app.topic("{topic}", value_type=Item)
counts = app.Table("counts", default=int)

@app.agent(topic)
async def process(stream):
    async for item in stream: pass
""",
        start=False,
    )
    args = command.split()
    if args == ["send"]:
        args = ["send", topic, '{"n": 5}', "--key", "k"]
    elif args[0] == "model":
        args = ["model", f"{app.module}.Item"]
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", app.module, *args],
        cwd=app.folder,
        env={**_environ(), **app.env, "BOOTSTRAP": bootstrap},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {"agents": "process", "tables": "counts", "models": "Item", "model": "name"}
    if args[0] == "send":
        assert [each.json()["n"] for each in consume_all(topic, at_least=1)] == [5]
    else:
        assert expected[args[0]] in done.stdout
