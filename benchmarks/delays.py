"""End-to-end latency into a topic: from just before a record is sent until it can be read.

The reader is one of committed records only, so under exactly once a result is there when
its checkpoint has ended. Sender and reader are threads of one process, so there is one
clock, and each record carries the time at which it was sent.
"""

from __future__ import annotations

import threading
import time

import msgspec
from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from benchmarks.broker import Broker
from benchmarks.latency import Latency
from benchmarks.readings import PARTITIONS, SENSORS
from benchmarks.runner import Job, JobFailed, Runner, new_group
from benchmarks.systems import System

WARM_UP = 3.0


class _Result(msgspec.Struct):
    ts: int


class Sender(threading.Thread):
    """Sends readings at an even rate, round robin over the sensors, until it is ended.

    ``ts`` of a reading is the monotonic clock, in microseconds.
    """

    def __init__(self, broker: Broker, topic: str, rate: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._producer = broker.new_producer(linger_ms=2)
        self._topic, self._rate = topic, rate
        self._ended = threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        while not self._ended.is_set():
            due = int((time.monotonic() - started) * self._rate)
            while self.sent < due:
                sensor = f"sensor-{self.sent % SENSORS:04d}"
                now = time.monotonic_ns() // 1000
                value = b'{"sensor_id": "%s", "value": 1.0, "ts": %d}' % (sensor.encode(), now)
                self._producer.produce(self._topic, value, sensor)
                self.sent += 1
            self._producer.poll(0)
            time.sleep(0.001)
        self._producer.flush()

    def end(self) -> int:
        """Send no more; return how many were sent, when the broker has them."""
        self._ended.set()
        self.join()
        return self.sent


def measure_delay(runner: Runner, system: System, rate: int, seconds: float) -> Latency:
    """Run ``system`` under an even load and return its latencies after a warm-up.

    Raises:
        JobFailed: It does not keep up.
    """
    topic = new_group(system)
    runner.broker.create_topic(topic)
    output = runner.new_output()
    job = runner.start(system, topic=topic, output=output)
    try:
        samples = _samples(runner, job, topic, output, rate, seconds)
    finally:
        job.stop(30.0)
    samples.sort()

    def quantile(share: float) -> float:
        return samples[min(len(samples) - 1, int(len(samples) * share))]

    return Latency(rate, len(samples), quantile(0.5), quantile(0.9), quantile(0.99), samples[-1])


def _samples(
    runner: Runner, job: Job, topic: str, output: str, rate: int, seconds: float
) -> list[float]:
    reader = _reader(runner.broker, output)
    sender = Sender(runner.broker, topic, rate)
    sender.start()
    job.wait("first", 60.0)
    measured_from = time.monotonic() + WARM_UP
    decode = msgspec.json.Decoder(_Result).decode
    samples: list[float] = []
    read, sent, deadline = 0, None, measured_from + seconds + 30.0
    while sent is None or read < sent:
        message = reader.poll(0.2)
        now = time.monotonic()
        if sent is None and now > measured_from + seconds:
            sent = sender.end()
        if now > deadline:
            raise JobFailed(f"{job.system.name} does not keep up with {rate} records a second")
        if message is None:
            continue
        read += 1
        at = decode(message.value()).ts / 1e6
        if at >= measured_from:
            samples.append((now - at) * 1000)
    reader.close()
    return samples


def _reader(broker: Broker, topic: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "delays",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.assign([TopicPartition(topic, each, OFFSET_END) for each in range(PARTITIONS)])
    consumer.poll(1.0)
    return consumer
