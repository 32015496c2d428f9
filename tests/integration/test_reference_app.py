"""The reference application on its sample data, against a plain recomputation of the file."""

from __future__ import annotations

import asyncio
import csv
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import harness
import pytest

from streamproc.dev.replay import replay
from streamproc.kafka.topics import create_topics

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "sample_data.csv"
GROUP = "waterworks"
DEAD_LETTERS = f"{GROUP}-dead-letters"
PARTITIONS = 4


@dataclass
class Expected:
    """What the application should make of the sample, computed row by row."""

    rows: int = 0
    rejected: int = 0
    clean: list[tuple[str, str]] = field(default_factory=list)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    flows: dict[str, list[tuple[str, float]]] = field(default_factory=dict)


def is_valid(row: dict[str, str]) -> bool:
    numbers = all(re.fullmatch(r"\d+\.\d+", row[name]) for name in ("flow", "pressure"))
    return bool(numbers and re.match("meter-", row["sensor_id"]) and row["at"].endswith("+00:00"))


@pytest.fixture(scope="module")
def expected() -> Expected:
    result = Expected()
    with SAMPLE.open() as file:
        for row in csv.DictReader(file):
            result.rows += 1
            if not is_valid(row):
                result.rejected += 1
                continue
            flow, sensor, at = float(row["flow"]), row["sensor_id"], row["at"]
            if flow > 500 or float(row["battery"]) < 2.5:
                continue
            result.clean.append((sensor, at))
            result.flows.setdefault(sensor, []).append((at, flow))
            if float(row["pressure"]) < 2.0:
                result.alerts.append((sensor, at))
    assert result.rejected
    assert len(result.alerts) > 10
    assert len(result.clean) + result.rejected < result.rows
    return result


class Plant:
    """A Kafka and a Redis of the test's own, with the application's topics."""

    def __init__(self, kafka, redis_url, redis_client, worker, folder) -> None:
        self.kafka = harness.KafkaClient(kafka.bootstrap)
        self.redis = redis_client
        self._folder = folder
        self._worker = worker
        self._env = {"STREAMPROC_BROKER_LIST": kafka.bootstrap, "STREAMPROC_REDIS": redis_url}
        topics = ["readings", "clean-readings", DEAD_LETTERS]
        asyncio.run(create_topics(kafka.bootstrap, topics, PARTITIONS))

    def start_worker(self, group: str = GROUP) -> harness.Worker:
        env = {**self._env, "STREAMPROC_NAME": group}
        return self._worker(module="streamproc", cwd=ROOT, env=env, ready=True)

    def replay(self, first: int = 0, last: int | None = None) -> None:
        """Send the rows ``first`` to ``last`` of the sample."""
        part = self._folder / "part.csv"
        with SAMPLE.open() as file:
            header = next(file)
            part.write_text(header + "".join(islice(file, first, last)))
        bootstrap = self.kafka.bootstrap
        sending = replay(
            part, bootstrap=bootstrap, topic="readings", key="sensor_id", timestamp="at"
        )
        asyncio.run(sending)

    def wait_processed(self, rows: int, group: str = GROUP) -> None:
        """Wait until ``rows`` readings, and what was made of them, are done with."""
        self._wait_committed(group, "readings", rows)
        self._wait_committed(group, "clean-readings", len(self.clean()))

    def _wait_committed(self, group: str, topic: str, count: int) -> None:
        def committed() -> int:
            return self.kafka.total_committed(group, topic)

        message = f"{count} records of {topic} done with"
        harness.wait_for(
            lambda: committed() == count, 90, lambda: f"{message}, there are {committed()}"
        )

    def alerts(self) -> list[tuple[str, str]]:
        entries = [entry for _, entry in self.redis.xrange("alerts")]
        return [(entry["sensor_id"], as_text(entry["at"])) for entry in entries]

    def clean(self) -> list[tuple[str, str]]:
        records = [record.json() for record in self.kafka.consume_all("clean-readings")]
        return [(record["sensor_id"], as_text(record["at"])) for record in records]


def as_text(at: str) -> str:
    time = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone(timezone.utc)
    return time.isoformat(timespec="milliseconds")


def check_statistics(plant: Plant, expected: Expected) -> None:
    assert set(plant.redis.keys("stats:*")) == {f"stats:{sensor}" for sensor in expected.flows}
    for sensor, readings in expected.flows.items():
        found = plant.redis.hgetall(f"stats:{sensor}")
        flows = [flow for _, flow in readings]
        at, last = max(readings)
        assert int(found["count"]) == len(flows), sensor
        assert float(found["sum"]) == pytest.approx(sum(flows)), sensor
        assert float(found["mean"]) == pytest.approx(sum(flows) / len(flows)), sensor
        assert (float(found["min"]), float(found["max"])) == (min(flows), max(flows)), sensor
        assert (found["at"], float(found["last"])) == (at, last), sensor


@pytest.fixture
def plant(new_kafka, redis_url, redis_client, worker, tmp_path) -> Plant:
    return Plant(new_kafka(), redis_url, redis_client, worker, tmp_path)


def test_one_worker_gives_what_the_file_holds(plant, expected):
    worker = plant.start_worker()
    plant.replay()
    plant.wait_processed(expected.rows)

    check_statistics(plant, expected)
    assert sorted(plant.clean()) == sorted(expected.clean)
    assert sorted(plant.alerts()) == sorted(expected.alerts)
    letters = plant.kafka.consume_all(DEAD_LETTERS)
    assert len(letters) == expected.rejected
    assert all(dict(letter.headers)["dead-letter-topic"] == b"readings" for letter in letters)
    assert all(dict(letter.headers)["dead-letter-reason"] for letter in letters)
    assert worker.stop() == 0


def test_readings_processed_twice_count_once(plant, expected):
    first = plant.start_worker()
    plant.replay()
    plant.wait_processed(expected.rows)
    assert first.stop() == 0

    # A new consumer group starts at the beginning, as after a loss of committed offsets.
    plant.start_worker("waterworks-again")
    plant.wait_processed(expected.rows, "waterworks-again")
    assert len(plant.clean()) == 2 * len(expected.clean)
    check_statistics(plant, expected)


def assigned(worker: harness.Worker) -> set[str]:
    """Return the partitions of ``readings`` that a worker was given last."""
    found = re.findall(r"\| readings +\| \{([\d, -]+)\}", worker.log)
    partitions: set[str] = set()
    for span in found[-1].split(", ") if found else ():
        first, _, last = span.partition("-")
        partitions |= {str(each) for each in range(int(first), int(last or first) + 1)}
    return partitions


def test_a_killed_worker_of_two_changes_no_result(plant, expected):
    workers = plant.start_worker(), plant.start_worker()
    everything = {str(partition) for partition in range(PARTITIONS)}
    harness.wait_for(
        lambda: (
            [len(assigned(worker)) for worker in workers] == [2, 2]
            and set.union(*map(assigned, workers)) == everything
        ),
        60,
        lambda: f"two partitions each: {[assigned(worker) for worker in workers]}",
    )
    half = expected.rows // 2
    plant.replay(0, half)
    # In the midst of the work: something is counted, and not all of it is committed.
    harness.wait_for(lambda: plant.redis.keys("stats:*"), 30, "first statistics")
    workers[1].kill()
    plant.replay(half)
    plant.wait_processed(expected.rows)

    check_statistics(plant, expected)
    # Kafka's and the stream's own entries may come twice, but none is missing.
    assert set(plant.clean()) == set(expected.clean)
    assert set(plant.alerts()) == set(expected.alerts)
    assert workers[0].stop() == 0
