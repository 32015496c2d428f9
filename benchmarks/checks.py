"""Whether a system's results are those of a plain recomputation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from benchmarks.broker import Broker
from benchmarks.readings import CLOSING


@dataclass(frozen=True)
class Difference:
    """How many of the expected results are missing or wrong, or there without reason."""

    wrong: int
    expected: int
    example: str


def compare(expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> Difference:
    """Compare results by key."""
    wrong = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    example = ""
    if wrong:
        key = min(wrong)
        example = f"{key}: {found.get(key)} instead of {expected.get(key)}"
    return Difference(len(wrong), len(expected), example)


def read_hashes(client: redis.Redis) -> dict[str, dict[str, float]]:
    """Read all hashes back, except those of windows that nobody asked for."""
    found: dict[str, dict[str, float]] = {}
    keys = [
        key
        for key in client.scan_iter("stats:*", count=10_000)
        if not key.startswith(f"stats:{CLOSING}")
    ]
    for first in range(0, len(keys), 10_000):
        some = keys[first : first + 10_000]
        pipeline = client.pipeline(transaction=False)
        for key in some:
            pipeline.hgetall(key)
        for key, fields in zip(some, pipeline.execute(), strict=True):
            found[key] = {field: float(text) for field, text in fields.items()}
    return found


def read_output(broker: Broker, topic: str) -> dict[bytes, list[dict]]:
    """Read the output topic back, by key."""
    found: dict[bytes, list[dict]] = defaultdict(list)
    for messages in broker.read_all(topic):
        for message in messages:
            found[message.key()].append(json.loads(message.value()))
    return found


def read_table(broker: Broker, group: str, table: str) -> dict[str, float]:
    """Read a table back from its changelog, without our marks of how far it goes."""
    return {
        json.loads(message.key()): json.loads(message.value())
        for messages in broker.read_all(f"{group}-{table}-changelog")
        for message in messages
        if not message.key().startswith(b"\0")
    }


def flat(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Join tables into one, for :func:`compare`."""
    return {f"{number}/{key}": v for number, table in enumerate(tables) for key, v in table.items()}
