"""The reference application on its sample data, against a plain recomputation of the file."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from collections import defaultdict
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
REGISTRY = ROOT / "examples" / "sensors.csv"
GROUP = "waterworks"
DEAD_LETTERS = f"{GROUP}-dead-letters"
PARTITIONS = 4
SESSION_GAP = 30


@dataclass
class Window:
    """Readings of one meter in ten seconds."""

    flows: list[float] = field(default_factory=list)
    pressures: list[float] = field(default_factory=list)

    @property
    def pressure(self) -> float:
        return sum(self.pressures) / len(self.pressures)


@dataclass
class Expected:
    """What the application should make of the sample, computed row by row."""

    rows: int = 0
    rejected: int = 0
    clean: list[tuple[str, str]] = field(default_factory=list)
    #: By meter and end of the window, in seconds.
    windows: dict[tuple[str, int], Window] = field(default_factory=lambda: defaultdict(Window))
    #: Times of all valid readings of a meter, in seconds.
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    min_pressures: dict[str, float] = field(default_factory=dict)

    @property
    def alerts(self) -> list[tuple[str, int]]:
        return sorted(
            (sensor, end)
            for (sensor, end), window in self.windows.items()
            if window.pressure < self.min_pressures[sensor]
        )

    def sessions(self, sensor: str) -> list[int]:
        """Return how many readings each session of a meter has."""
        counts = [0]
        times = sorted(self.times[sensor])
        for time, before in zip(times, times[:1] + times, strict=False):
            if time - before >= SESSION_GAP:
                counts.append(0)
            counts[-1] += 1
        return counts


def is_valid(row: dict[str, str]) -> bool:
    numbers = all(re.fullmatch(r"\d+\.\d+", row[name]) for name in ("flow", "pressure"))
    return bool(numbers and re.match("meter-", row["sensor_id"]) and row["at"].endswith("+00:00"))


@pytest.fixture(scope="module")
def expected() -> Expected:
    result = Expected()
    with REGISTRY.open() as file:
        for row in csv.DictReader(file):
            result.min_pressures[row["sensor_id"]] = float(row["min_pressure"])
    with SAMPLE.open() as file:
        for row in csv.DictReader(file):
            result.rows += 1
            if not is_valid(row):
                result.rejected += 1
                continue
            flow, sensor, at = float(row["flow"]), row["sensor_id"], row["at"]
            time = datetime.fromisoformat(at).timestamp()
            result.times[sensor].append(time)
            if flow > 500 or float(row["battery"]) < 2.5:
                continue
            result.clean.append((sensor, at))
            window = result.windows[sensor, int(time // 10) * 10 + 10]
            window.flows.append(flow)
            window.pressures.append(float(row["pressure"]))
    assert result.rejected
    assert len(result.alerts) > 10
    assert len(result.clean) + result.rejected < result.rows
    assert len(result.sessions("meter-9")) == 2
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

    def close_windows(self) -> None:
        """Send a reading of much later to each partition, which closes all before it."""
        for partition in range(PARTITIONS):
            sensor, at = f"meter-99{partition}", "2026-03-02T01:00:00.000+00:00"
            reading = {"sensor_id": sensor, "flow": 1.0, "pressure": 5.0, "at": at}
            self.kafka.produce("readings", [(sensor, reading)], partition=partition)

    def wait_processed(self, rows: int, group: str = GROUP) -> None:
        """Wait until ``rows`` readings are done with."""
        self._wait_committed(group, "readings", rows)

    def _wait_committed(self, group: str, topic: str, count: int) -> None:
        def committed() -> int:
            return self.kafka.total_committed(group, topic)

        message = f"{count} records of {topic} done with"
        harness.wait_for(
            lambda: committed() == count, 90, lambda: f"{message}, there are {committed()}"
        )

    def alerts(self) -> list[tuple[str, int]]:
        entries = [entry for _, entry in self.redis.xrange("alerts")]
        return [(entry["sensor_id"], seconds(entry["at"])) for entry in entries]

    def clean(self) -> list[tuple[str, str]]:
        records = [record.json() for record in self.kafka.consume_all("clean-readings")]
        return [(record["sensor_id"], as_text(record["at"])) for record in records]


def as_text(at: str) -> str:
    time = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone(timezone.utc)
    return time.isoformat(timespec="milliseconds")


def seconds(at: str) -> int:
    return int(datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp())


def check_results(plant: Plant, expected: Expected) -> None:
    for sensor in expected.times:
        ends = [end for each, end in expected.windows if each == sensor]
        window = expected.windows[sensor, max(ends)]
        found = plant.redis.hgetall(f"stats:{sensor}")
        assert seconds(found["window_end"]) == max(ends), sensor
        assert int(found["count"]) == len(window.flows), sensor
        assert float(found["flow"]) == pytest.approx(sum(window.flows) / len(window.flows)), sensor
        assert float(found["min"]) == min(window.flows), sensor
        assert float(found["max"]) == max(window.flows), sensor
        assert float(found["pressure"]) == pytest.approx(window.pressure), sensor
    assert sorted(set(plant.alerts())) == expected.alerts


def sessions(plant: Plant, sensor: str) -> list[int]:
    """Return the sizes of a meter's sessions; an entry may have come twice."""
    entries = map(json.loads, plant.redis.lrange(f"activity:{sensor}", 0, -1))
    found = {entry["window_start"]: entry["readings"] for entry in entries}
    return [found[start] for start in sorted(found)]


@pytest.fixture
def plant(new_kafka, redis_url, redis_client, worker, tmp_path) -> Plant:
    return Plant(new_kafka(), redis_url, redis_client, worker, tmp_path)


def finish(plant: Plant, expected: Expected) -> None:
    """Wait for the results of all windows, and compare them."""
    plant.wait_processed(expected.rows)
    plant.close_windows()
    plant.wait_processed(expected.rows + PARTITIONS)
    check_results(plant, expected)
    for sensor in expected.times:
        assert sessions(plant, sensor) == expected.sessions(sensor), sensor


def test_one_worker_gives_what_the_file_holds(plant, expected):
    worker = plant.start_worker()
    plant.replay()
    finish(plant, expected)

    assert sorted(plant.clean())[: len(expected.clean)] == sorted(expected.clean)
    assert len(plant.alerts()) == len(expected.alerts)
    letters = plant.kafka.consume_all(DEAD_LETTERS)
    assert len(letters) == expected.rejected
    assert all(dict(letter.headers)["dead-letter-topic"] == b"readings" for letter in letters)
    assert all(dict(letter.headers)["dead-letter-reason"] for letter in letters)
    assert worker.stop() == 0


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
    finish(plant, expected)

    # Kafka's and the stream's own entries may come twice, but none is missing.
    assert set(expected.clean) <= set(plant.clean())
    assert workers[0].stop() == 0
