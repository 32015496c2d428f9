"""End-to-end latency: from just before a record is sent until its result is in Redis.

One process sends and watches, so there is one clock. Records go out at an even rate,
round robin over 1000 sensors. Every 25th sensor is watched: Redis tells of each change of
its hash (keyspace notifications), the count in the hash is read back, and all records of
the sensor up to that count are visible at that moment, those whose own result was merged
into a later one as well.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass

import redis

from benchmarks.readings import SENSORS
from benchmarks.runner import Job, JobFailed, Runner
from benchmarks.systems import System

WATCH_EVERY = 25
WARM_UP = 3.0


@dataclass(frozen=True)
class Latency:
    """Latencies in milliseconds of ``samples`` records."""

    rate: int
    samples: int
    p50: float
    p90: float
    p99: float
    worst: float


class _Sender(threading.Thread):
    """Sends records at an even rate and notes when it sent those of watched sensors."""

    def __init__(self, runner: Runner, topic: str, rate: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.sent: dict[str, list[float]] = {
            _sensor(number): [] for number in range(0, SENSORS, WATCH_EVERY)
        }
        self._producer = runner.broker.new_producer(linger_ms=2)
        self._topic, self._rate, self._seconds = topic, rate, seconds

    def run(self) -> None:
        started = time.monotonic()
        number, total = 0, int(self._rate * self._seconds)
        while number < total:
            due = min(total, int((time.monotonic() - started) * self._rate))
            while number < due:
                sensor = _sensor(number % SENSORS)
                value = json.dumps({"sensor_id": sensor, "value": 1.0, "ts": number})
                if sensor in self.sent:
                    self.sent[sensor].append(time.monotonic())
                self._producer.produce(self._topic, value, sensor)
                number += 1
            self._producer.poll(0)
            time.sleep(0.001)
        self._producer.flush()


def _sensor(number: int) -> str:
    return f"sensor-{number:04d}"


def measure_latency(runner: Runner, system: System, rate: int, seconds: float) -> Latency:
    """Run ``system`` under an even load and return its latencies after a warm-up."""
    topic = f"latency-{time.monotonic_ns()}"
    runner.broker.create_topic(topic)
    with redis.Redis.from_url(runner.redis_url, decode_responses=True) as client:
        client.flushall()
        client.config_set("notify-keyspace-events", "Kh")
        job = runner.start(system, topic=topic)
        try:
            samples = _watch(client, runner, job, topic, rate, seconds)
        finally:
            job.stop()
            client.config_set("notify-keyspace-events", "")
    samples.sort()

    def quantile(share: float) -> float:
        return samples[min(len(samples) - 1, int(len(samples) * share))]

    return Latency(rate, len(samples), quantile(0.5), quantile(0.9), quantile(0.99), samples[-1])


def _watch(
    client: redis.Redis, runner: Runner, job: Job, topic: str, rate: int, seconds: float
) -> list[float]:
    sender = _Sender(runner, topic, rate, WARM_UP + seconds)
    visible = dict.fromkeys(sender.sent, 0)
    changes = client.pubsub(ignore_subscribe_messages=True)
    changes.subscribe(*(f"__keyspace@0__:stats:{sensor}" for sensor in visible))
    _first_record(runner, job, topic)
    sender.start()
    measured_from = time.monotonic() + WARM_UP
    deadline = measured_from + seconds + 30.0
    samples: list[float] = []
    while sender.is_alive() or any(visible[each] < len(sender.sent[each]) for each in visible):
        if time.monotonic() > deadline:
            raise JobFailed(f"{job.system.name} does not keep up with {rate} records a second")
        message = changes.get_message(timeout=0.2)
        if message is None:
            continue
        sensor = message["channel"].rpartition(":")[2]
        count = int(client.hget(f"stats:{sensor}", "count"))
        now = time.monotonic()
        for sent in sender.sent[sensor][visible[sensor] : count]:
            if sent >= measured_from:
                samples.append((now - sent) * 1000)
        visible[sensor] = count
    changes.close()
    return samples


def _first_record(runner: Runner, job: Job, topic: str) -> None:
    """Wait until the job reads: send it a record of a sensor that nobody watches."""
    producer = runner.broker.new_producer()
    value = json.dumps({"sensor_id": "first", "value": 1.0, "ts": 0})
    producer.produce(topic, value, "first")
    producer.flush()
    job.wait("first", 60.0)
