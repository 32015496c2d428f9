"""What a worker says of itself, and how it ends: probes, signals, hangs, exit codes."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request

import harness
import pytest

SOURCE = """
    import asyncio, os, re, signal, threading, time
    import streamproc as faust
    from streamproc.sinks import RedisHash

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.2,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        drain_timeout=float(os.environ.get("DRAIN", "20")),
        stall_timeout=float(os.environ.get("STALL", "120")),
    )
    topic = app.topic(os.environ["TOPIC"], key_type=str, value_type=int)

    async def hang():
        await asyncio.Event().wait()

    async def hang_for_good():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def sleep():
        await asyncio.sleep(1.5)

    async def block():
        time.sleep(60)

    async def search():
        re.match(r"(a+)+$", "a" * 60 + "b")

    async def crash():
        await app.crash(RuntimeError("broken"))

    async def leave_a_thread():
        threading.Thread(target=threading.Event().wait).start()
        await crash()

    async def go_on():
        pass

    traps = (hang, hang_for_good, sleep, block, search, crash, leave_a_thread, go_on)
    TRAPS = {each.__name__: each for each in traps}

    @app.agent(topic, sink=[RedisHash("{key}")])
    async def agent(stream):
        async for key, value in stream.items():
            if value < 0:
                print("TRAPPED", flush=True)
                await TRAPS[os.environ["TRAP"]]()
            yield key, {"value": value}
"""


class Watched:
    """A worker, its topic and its probes."""

    def __init__(self, launcher, topic, web=True, **env):
        self.topic, self.group = topic, f"app-{topic}"
        self.env = {"APP_ID": self.group, "TOPIC": topic, **env}
        self.launcher, self.web = launcher, web
        self.worker = self.another()

    def another(self):
        return self.launcher(SOURCE, env=self.env, web=self.web)

    def probe(self, page):
        """Return status and content of a page, or None while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.worker.web_url}/{page}", timeout=3) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return None

    def is_ready(self):
        return (self.probe("ready") or (0,))[0] == 200

    def unready(self, part):
        """Return the reason with ``part`` in it for which the worker isn't ready, if any."""
        status, content = self.probe("ready") or (0, {"reasons": []})
        reasons = [reason for reason in content["reasons"] if part in reason]
        return reasons[0] if status == 503 and reasons else None

    def wait_committed(self, client, count):
        harness.wait_for(lambda: client.total_committed(self.group, self.topic) == count)

    def last_line(self):
        return self.worker.log.strip().splitlines()[-1]

    def last_record(self):
        """Return what was logged last, which may have several lines."""
        return re.split(r"\n(?=\[\d{4}-)", self.worker.log)[-1]


def test_probes_from_start_to_end(
    worker, topic_factory, produce, new_redis, redis_client, kafka_client, wait_for
):
    redis = new_redis(start=False)
    topic = topic_factory(2)
    watched = Watched(worker, topic, REDIS_URL=redis.url, TRAP="sleep")

    wait_for(lambda: (watched.probe("live") or (0,))[0] == 200, message="it is live")
    wait_for(lambda: watched.unready("sinks: Redis at"), message="Redis is missing")
    assert watched.probe("live") == (200, {"live": True})
    redis.start()
    wait_for(watched.is_ready, message=lambda: str(watched.probe("ready")))

    produce(topic, [(f"k{n}", n) for n in range(100)])
    watched.wait_committed(kafka_client, 100)
    status, content = watched.probe("ready")
    assert status == 200
    assert content["lag"] == {f"{topic}/0": 0, f"{topic}/1": 0}
    assert content["seconds_since"]["heartbeat"] < 3
    assert content["reasons"] == []
    assert all(content["checks"].values())

    # Redis goes away: unready, and live; waiting is right.
    redis.kill()
    produce(topic, [("k", 1)])
    wait_for(lambda: watched.unready("sinks: Redis at"), message="Redis is away")
    assert watched.probe("live")[0] == 200
    redis.start()
    wait_for(watched.is_ready, message=lambda: str(watched.probe("ready")))

    # Another worker comes, and takes a partition; the rebalance may be too short to be probed.
    watched.another()

    def shares():
        status, content = watched.probe("ready")
        return status == 200 and len(content["lag"]) == 1

    wait_for(shares, message=lambda: str(watched.probe("ready")))

    # A stop lets the record in hand be finished and committed, and leaves the group.
    for partition in (0, 1):
        produce(topic, [("k", -1)], partition=partition)
    watched.worker.wait_log("TRAPPED")
    watched.worker.send_signal(signal.SIGTERM)
    wait_for(lambda: watched.unready("worker: the worker is stopping"), message="it is stopping")
    assert watched.worker.wait_end(10) == 0
    assert "LeaveGroup request succeeded" in watched.worker.log
    watched.wait_committed(kafka_client, 103)


@pytest.fixture
def trapped(worker, topic_factory, produce):
    """``trapped(trap, **env)``: a worker and a record that it gets stuck at, after 10 good ones."""

    def start(trap, web=False, **env):
        topic = topic_factory(1)
        produce(topic, [*((f"k{n}", n) for n in range(10)), ("trap", -1), ("more", 1)])
        return Watched(worker, topic, web, TRAP=trap, **env)

    return start


def test_workers_that_hang_or_are_told_twice(trapped, new_redis, kafka_client, wait_for):
    redis = new_redis(start=False)
    hanging = trapped("hang", web=True, STALL="8", DRAIN="0.5")
    blocked = trapped("block", STALL="3")
    seized = trapped("search", STALL="3")
    told_twice = trapped("hang")
    deaf = trapped("hang_for_good", DRAIN="0.5")
    patient = trapped("hang", DRAIN="0.5")
    broken = trapped("crash", DRAIN="0.5")
    threaded = trapped("leave_a_thread", DRAIN="0.5")
    without_redis = trapped("go_on", REDIS_URL=redis.url)

    for each in (told_twice, deaf, patient, without_redis):
        each.worker.wait_log("TRAPPED")
        each.worker.send_signal(signal.SIGTERM)

    # Unready at half the time; then it ends, with what it waits for in the log.
    reason = wait_for(lambda: hanging.unready("progress: no record"), message="it is unready")
    assert "an agent has some in hand" in reason
    assert hanging.probe("live")[0] == 200

    # The second signal ends it at once. Nothing more is committed.
    assert told_twice.worker.running
    time.sleep(0.6)
    told_twice.worker.send_signal(signal.SIGTERM)
    assert told_twice.worker.wait_end(2) == 128 + signal.SIGTERM
    assert "Second signal" in told_twice.worker.log

    assert hanging.worker.wait_end(20) == 70
    assert "await asyncio.Event().wait()" in hanging.worker.log
    assert "The worker ends with exit code 70: no record of" in hanging.last_line()

    assert blocked.worker.wait_end(15) == 70
    assert blocked.worker.log.count("The event loop has been blocked") == 1
    assert "time.sleep(60)" in blocked.worker.log
    assert "The worker ends with exit code 70: the event loop was blocked" in blocked.last_line()

    assert seized.worker.wait_end(15) == 1
    assert "in search" in seized.worker.log

    # A record that isn't finished in time is left to the next worker: that is no error.
    assert patient.worker.wait_end(10) == 0
    assert "Agents did not finish within 0.5 s" in patient.worker.log

    assert broken.worker.wait_end(10) == 1
    assert broken.last_line().endswith("exit code 1: broken")

    assert threaded.worker.wait_end(15) == 75
    assert "exit code 75: it failed: RuntimeError('broken')" in threaded.last_record()

    # It doesn't wait for Redis to come back. What isn't there is processed again.
    assert without_redis.worker.wait_end(15) == 0
    assert "The last checkpoint did not end within 5.0 s" in without_redis.worker.log
    assert kafka_client.total_committed(without_redis.group, without_redis.topic) == 0

    assert deaf.worker.wait_end(15) == 75
    assert "exit code 75: it got SIGTERM; it did not stop within 8.5 s" in deaf.worker.log
    for each in (hanging, blocked, seized, told_twice, deaf, patient):
        assert kafka_client.total_committed(each.group, each.topic) <= 10, each.env


FAILS = """
    import os
    import streamproc

    app = streamproc.App("fails", broker="kafka://" + os.environ["BOOTSTRAP"])

    @app.service
    class Broken(streamproc.Service):
        async def on_start(self):
            raise RuntimeError("it can't start")
"""


def test_what_keeps_a_worker_from_starting_is_told_last(worker):
    running = worker(FAILS)
    assert running.wait_end() == 1
    last = running.log.strip().splitlines()[-1]
    assert last.rstrip().endswith("The worker ends with exit code 1: it can't start")


FORWARDS = """
    import os
    import streamproc

    app = streamproc.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        broker_commit_interval=0.2,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        processing_guarantee=os.environ["GUARANTEE"],
    )
    out = app.topic(os.environ["APP_ID"] + "-out", value_type=int)

    @app.agent(app.topic(os.environ["TOPIC"], value_type=int))
    async def forward(stream):
        async for value in stream:
            if os.environ["FORM"] == "batches":
                await out.send_batch([value])
            else:
                await out.send(value=value)
"""


@pytest.mark.apache_only
@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("form", ["batches", "records"])
def test_a_topic_that_is_sent_to_and_is_missing(
    worker, topic_factory, produce, consume_all, kafka_client, wait_for, form, guarantee
):
    topic = topic_factory(1)
    app_id = f"app-{topic}"
    out = f"{app_id}-out"
    env = {"APP_ID": app_id, "TOPIC": topic, "FORM": form, "GUARANTEE": guarantee}
    running = worker(FORWARDS, env=env, web=True)
    produce(topic, [("k", 1), ("k", 2)])

    def ready():
        try:
            with urllib.request.urlopen(f"{running.web_url}/ready", timeout=3) as response:
                return json.load(response)["reasons"]
        except urllib.error.HTTPError as error:
            return json.load(error)["reasons"]

    running.wait_log(f"Topic '{out}' doesn't exist at the broker; what is sent to it waits")
    assert running.log.count("doesn't exist at the broker") == 1
    assert f"topics: topic {out!r} doesn't exist, and what is sent to it waits" in ready()
    topic_factory(1, name=out)
    assert [each.json() for each in consume_all(out, at_least=2)] == [1, 2]
    wait_for(lambda: kafka_client.total_committed(app_id, topic) == 2)
    running.wait_log(f"Topic '{out}' is there now")
    wait_for(lambda: ready() == [])
