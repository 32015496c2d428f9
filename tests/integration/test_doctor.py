"""`streamproc doctor` names each fault of real servers, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from streamproc.cli.init import create_project
from streamproc.dev.process import LOOPBACK, free_port

READING = {"sensor_id": "s1", "value": 21.5, "at": "2026-03-02T00:00:00Z"}

HANGING_AGENT = """
import asyncio

from models import Reading
from streamproc import app

readings = app.topic(*app.settings.topics, value_type=Reading)


@app.agent(readings)
async def hang(stream):
    async for batch in stream.batches():
        await asyncio.sleep(3600)
"""


class Doctor:
    """Runs the command in a project and keeps what it found."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.exit_code = -1
        self.checks: list[dict[str, str]] = []

    def __call__(self, **settings: str) -> Doctor:
        env = {f"STREAMPROC_{name.upper()}": value for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-m", "streamproc", "doctor", "--json", "--seconds", "1"],
            cwd=self.folder,
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        assert not done.stderr
        self.exit_code = done.returncode
        self.checks = json.loads(done.stdout)
        return self

    def of(self, subject: str) -> dict[str, str]:
        found = [check for check in self.checks if check["check"] == subject]
        assert found, f"nothing about {subject} in {self.checks}"
        return found[0]

    def faults(self) -> list[str]:
        return [check["check"] for check in self.checks if check["level"] == "fault"]


@pytest.fixture
def doctor(tmp_path: Path, bootstrap: str, redis_url: str, topic: str) -> Doctor:
    """In a project whose settings fit the session's servers and an empty topic."""
    folder = tmp_path / "project"
    create_project(folder)
    env = {"BROKER_LIST": bootstrap, "REDIS": redis_url, "TOPIC": topic, "NAME": f"group-{topic}"}
    env["COMMIT_INTERVAL"] = "0.2"
    return Doctor(folder, {f"STREAMPROC_{name}": value for name, value in env.items()})


def test_all_is_well(
    doctor: Doctor, produce: Any, worker: Any, kafka_client: Any, topic: str, wait_for: Any
) -> None:
    produce(topic, [READING] * 10)
    worker(module="streamproc", cwd=doctor.folder, env=doctor.env, ready=True)
    wait_for(lambda: kafka_client.total_committed(f"group-{topic}", topic) == 10)
    doctor()
    assert doctor.faults() == []
    assert doctor.exit_code == 0
    assert "10 records" in doctor.of(f"topic {topic}")["message"]
    assert doctor.of(f"topic {topic}")["level"] == "ok"
    assert "Stable, 1 member, lag 0" in doctor.of(f"group group-{topic}")["message"]
    assert doctor.of("redis persistence")["message"] == "append-only file"
    assert doctor.of("clock")["level"] == "ok"


def test_topic_not_found(doctor: Doctor, topic: str) -> None:
    doctor(topic="nowhere")
    assert doctor.faults() == ["topic nowhere"]
    assert doctor.exit_code == 1
    assert "topic not found" in doctor.of("topic nowhere")["message"]
    assert "streamproc replay FILE --topic nowhere" in doctor.of("topic nowhere")["advice"]


def test_no_data_flowing(doctor: Doctor, topic: str) -> None:
    doctor()
    assert doctor.faults() == [f"topic {topic}"]
    assert "no data" in doctor.of(f"topic {topic}")["message"]


def test_data_came_once(doctor: Doctor, produce: Any, topic: str) -> None:
    produce(topic, [(None, READING, 1_700_000_000_000)])
    doctor()
    check = doctor.of(f"topic {topic}")
    assert check["level"] == "note"
    assert "no data flowing" in check["message"]


@pytest.mark.apache_only
async def test_marks_of_transactions_are_no_records(
    doctor: Doctor, bootstrap: str, kafka_client: Any, topic: str, topic_factory: Any
) -> None:
    letters = topic_factory(name=f"group-{topic}-dead-letters", partitions=1)
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=f"of-{topic}"
    ) as producer:
        for name in (topic, letters):
            async with producer.transaction():
                await producer.send(name, b"{}", partition=0)
    await asyncio.to_thread(doctor)
    message = doctor.of(f"topic {topic}")["message"]
    assert re.search(r"up to 2 records sent so far, the newest \d+ s ago", message)
    message = doctor.of("dead letters")["message"]
    assert re.fullmatch(rf"there are some in {letters}, the newest is \d+ s old", message)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(letters, 0): RecordsToDelete(before_offset=1)})
    await admin.close()
    await asyncio.to_thread(doctor)
    assert "dead letters" not in {check["check"] for check in doctor.checks}


def test_broker_unreachable(doctor: Doctor) -> None:
    port = free_port()
    doctor(broker_list=f"{LOOPBACK}:{port}")
    assert doctor.faults() == ["broker"]
    assert f"nobody answers at {LOOPBACK}:{port}" in doctor.of("broker")["message"]
    assert "STREAMPROC_BROKER_LIST" in doctor.of("broker")["advice"]


def test_no_such_host(doctor: Doctor) -> None:
    doctor(broker_list="kafka.invalid:9092")
    assert doctor.faults() == ["broker"]
    assert "nobody answers at kafka.invalid:9092" in doctor.of("broker")["message"]


def test_broker_that_hangs(doctor: Doctor, new_kafka: Callable[..., Any]) -> None:
    kafka = new_kafka()
    kafka.pause()
    doctor(broker_list=kafka.bootstrap)
    kafka.resume()
    assert "says nothing" in doctor.of("broker")["message"]


def test_wrong_ports(doctor: Doctor, bootstrap: str, redis_url: str) -> None:
    redis_address = redis_url.split("/")[2]
    doctor(broker_list=redis_address, redis=f"redis://{bootstrap}/0")
    assert doctor.faults() == ["broker", "redis"]
    assert "is a Redis server, not a Kafka broker" in doctor.of("broker")["message"]
    # Brokers hang up on Redis' greeting, or wait for more of it.
    redis = doctor.of("redis")
    assert "no Redis" in redis["message"] + redis["advice"]


def test_broker_without_logins_gets_one(doctor: Doctor) -> None:
    doctor(broker_username="alice", broker_password="hidden-word")
    assert doctor.faults() == ["broker"]
    assert "takes no logins at this listener" in doctor.of("broker")["message"]
    assert "hidden-word" not in json.dumps(doctor.checks)


def test_redis_not_running(doctor: Doctor) -> None:
    doctor(redis=f"redis://{LOOPBACK}:{free_port()}/0")
    assert "redis" in doctor.faults()
    assert "Redis not running" in doctor.of("redis")["message"]


def test_redis_refuses_the_login(doctor: Doctor, new_redis: Callable[..., Any]) -> None:
    server = new_redis(password="right")
    url = f"redis://{LOOPBACK}:{server.port}/0"
    for settings in ({}, {"redis_password": "wrong"}):
        doctor(redis=url, **settings)
        assert "login refused" in doctor.of("redis")["message"]
        assert "STREAMPROC_REDIS_PASSWORD" in doctor.of("redis")["advice"]
    doctor(redis=url, redis_password="right")
    assert doctor.of("redis")["level"] == "ok"
    assert "right" not in json.dumps(doctor.checks)


def test_no_worker(doctor: Doctor, produce: Any, topic: str) -> None:
    produce(topic, [READING] * 10)
    doctor()
    assert doctor.faults() == [f"group group-{topic}"]
    assert "no worker runs; waiting: 10 records" in doctor.of(f"group group-{topic}")["message"]
    assert "faust -A streamproc worker" in doctor.of(f"group group-{topic}")["advice"]


def test_worker_that_hangs(doctor: Doctor, produce: Any, worker: Any, topic: str) -> None:
    (doctor.folder / "agents" / "latest.py").write_text(HANGING_AGENT)
    produce(topic, [READING] * 10)
    worker(module="streamproc", cwd=doctor.folder, env=doctor.env, ready=True)
    doctor()
    assert doctor.faults() == [f"group group-{topic}"]
    assert "nothing was committed" in doctor.of(f"group group-{topic}")["message"]


def test_a_missing_certificate_is_one_fault(doctor: Doctor) -> None:
    doctor(broker_ca_file="nope.pem")
    assert doctor.faults() == ["settings"]
    reason = f"'{doctor.folder / 'nope.pem'}': No such file or directory"
    assert doctor.of("settings")["message"] == f"broker_ca_file = {reason}"
    doctor(redis_ca_file="nope.pem", topic="nowhere")
    assert doctor.faults() == ["topic nowhere", "redis"]
    assert doctor.of("redis")["message"] == f"redis_ca_file = {reason}"


def test_wrong_settings_and_agents(doctor: Doctor) -> None:
    (doctor.folder / "agents" / "latest.py").write_text("import nowhere_to_be_found\n")
    doctor()
    assert "nowhere_to_be_found" in doctor.of("project")["message"]
    (doctor.folder / "config.yaml").write_text("batch_size: many\nredsi: x\n")
    doctor()
    assert doctor.faults() == ["settings"]
    assert "config.yaml:1" in doctor.of("settings")["message"]
    assert "config.yaml:2" in doctor.of("settings")["message"]
