"""The verifier: what the results should be, from the input that was committed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import redis
from faults.counting_values import RAISES_ALWAYS
from harness import KafkaClient, Received

Stats = tuple[int, int, int, int]


@dataclass
class Figures:
    """What a run came to.

    Attributes:
        records: Items in the input, of committed transactions.
        poison: Those that can't be processed.
        duplicates: Results in Kafka that came again, and surplus increments and list
            entries in Redis.
        losses: Results that are missing in Kafka, in Redis, and dead letters.
        wrong: Results that can't be: another sum, an order that isn't that of the input.
        longest_pause: Seconds between two results of a partition, at most.
    """

    records: int = 0
    poison: int = 0
    aborted: int = 0
    kafka_duplicates: int = 0
    kafka_losses: int = 0
    redis_duplicates: int = 0
    redis_losses: int = 0
    wrong: int = 0
    longest_pause: float = 0.0
    examples: list[str] = field(default_factory=list)

    def note(self, name: str, count: int, example: str) -> None:
        if count > 0:
            setattr(self, name, getattr(self, name) + count)
            if len(self.examples) < 12:
                self.examples.append(f"{name}: {example}")

    def broken(self, kafka_exact: bool, redis_exact: bool, redis_lost: bool = False) -> list[str]:
        """Return what breaks the guarantee; nothing when it held."""
        promised = {"kafka_losses", "redis_losses", "wrong"}
        if kafka_exact:
            promised.add("kafka_duplicates")
        if redis_exact:
            promised.add("redis_duplicates")
        if redis_lost:
            promised -= {"redis_losses", "redis_duplicates"}
        found = [f"{name}={getattr(self, name)}" for name in sorted(promised)]
        found = [each for each in found if not each.endswith("=0")]
        return found + (self.examples if found else [])

    def __str__(self) -> str:
        shown = [f for f in fields(self) if f.name != "examples"]
        return ", ".join(f"{f.name} {_text(getattr(self, f.name))}" for f in shown)


def _text(value: float) -> str:
    return f"{value:.1f} s" if isinstance(value, float) else str(value)


class Expected:
    """The items of each key in order, and what counting them gives."""

    def __init__(self, records: Iterable[Received]) -> None:
        self.ids: dict[str, list[int]] = defaultdict(list)
        self.stats: dict[str, list[Stats]] = defaultdict(list)
        self.poison: list[bytes] = []
        self.raising: set[int] = set()
        self.next_offsets: dict[int, int] = {}
        self.count = 0
        for record in records:
            self.count += 1
            self.next_offsets[record.partition] = record.offset + 1
            self._add(record)

    def _add(self, record: Received) -> None:
        assert record.key is not None
        assert record.value is not None
        item = json.loads(record.value) if record.value.startswith(b"{") else None
        if item is None or item["n"] == RAISES_ALWAYS:
            self.poison.append(record.value)
            if item is not None:
                self.raising.add(item["id"])
            return
        key, n = record.key.decode(), item["n"]
        before = self.stats[key][-1] if self.stats[key] else (0, 0, n, n)
        after = (before[0] + 1, before[1] + n, min(before[2], n), max(before[3], n))
        self.ids[key].append(item["id"])
        self.stats[key].append(after)

    @property
    def final(self) -> dict[str, Stats]:
        return {key: stats[-1] for key, stats in self.stats.items()}


def compare_topic(
    expected: Expected,
    found: list[Received],
    figures: Figures,
    *,
    every_update: bool,
    exact: bool,
) -> None:
    """Compare the results in Kafka: every one is a prefix of its key's input, in order.

    At least once may show what was sent of a record before the app raised at it.
    """
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    newest: dict[str, int] = {}
    for record in found:
        result = record.json()
        if not exact and result.get("id") in expected.raising:
            continue
        key, count = result["key"], result["count"]
        stats = (count, result["total"], result["low"], result["high"])
        right = expected.stats.get(key, [])
        if not 0 < count <= len(right) or right[count - 1] != stats:
            wanted = right[count - 1] if 0 < count <= len(right) else len(right)
            figures.note("wrong", 1, f"{key}: {stats}, not {wanted} ({_place(record)})")
        seen[key][count] += 1
        last = newest.get(key, 0)
        if every_update and count > last + 1:
            figures.note("wrong", 1, f"{key}: {count} after {last} ({_place(record)})")
        if count <= last:
            figures.note("kafka_duplicates", 1, f"{key}: {count} after {last} ({_place(record)})")
        newest[key] = max(last, count)
    for key, right in expected.stats.items():
        wanted = range(1, len(right) + 1) if every_update else [len(right)]
        missing = [count for count in wanted if not seen[key][count]]
        figures.note("kafka_losses", len(missing), f"{key}: {missing[:5]} of {len(right)}")


def _place(record: Received) -> str:
    return f"{record.partition}@{record.offset}"


def compare_redis(expected: Expected, client: redis.Redis, figures: Figures) -> None:
    """Compare counters and lists of each key."""
    for key, ids in expected.ids.items():
        wanted = {"count": len(ids), "total": expected.final[key][1]}
        for name, right in wanted.items():
            found = int(client.get(f"{name}:{key}") or 0)
            difference = found - right
            kind = "redis_duplicates" if difference > 0 else "redis_losses"
            size = abs(difference) if name == "count" else int(difference != 0)
            figures.note(kind, size, f"{name}:{key} is {found}, not {right}")
        listed = [int(each) for each in client.lrange(f"ids:{key}", 0, -1)]
        counted = Counter(listed)
        lost = [each for each in ids if not counted[each]]
        strange = set(counted) - set(ids)
        figures.note("redis_losses", len(lost), f"ids:{key} without {lost[:5]}")
        figures.note("wrong", len(strange), f"ids:{key} has {sorted(strange)[:5]}")
        again = [each for each, times in counted.items() if times > 1]
        surplus = len(listed) - len(counted)
        figures.note("redis_duplicates", surplus, f"ids:{key} has {again[:5]} more than once")
        if list(dict.fromkeys(listed)) != [each for each in ids if counted[each]]:
            figures.note("wrong", 1, f"ids:{key} is not in the order of the input")


def compare_letters(expected: Expected, letters: list[Received], figures: Figures) -> None:
    """Compare the dead letters with the items that can't be processed."""
    found, wanted = Counter(each.value for each in letters), Counter(expected.poison)
    lost, more = wanted - found, found - wanted
    figures.note("kafka_losses", lost.total(), f"dead letters: not {list(lost)[:3]}")
    again = sum(count for value, count in more.items() if value in wanted)
    figures.note("kafka_duplicates", again, f"dead letters again: {list(more)[:5]}")
    strange = {v: c for v, c in more.items() if v not in wanted}
    figures.note("wrong", sum(strange.values()), f"dead letters: {list(strange)[:3]}")


def compare_tables(
    expected: Expected, tables: Mapping[str, Mapping[str, Any]], figures: Figures
) -> None:
    """Compare what the tables of the workers hold."""
    found = {key: tuple(stats) for held in tables.values() for key, stats in held.items()}
    for key, stats in expected.final.items():
        if found.get(key) != stats:
            figures.note("wrong", 1, f"table: {key} is {found.get(key)}, not {stats}")


def longest_pause(found: list[Received]) -> float:
    """Return the longest time between two results of a partition, in seconds."""
    last: dict[int, int] = {}
    longest = 0
    for record in found:
        longest = max(longest, record.timestamp - last.get(record.partition, record.timestamp))
        last[record.partition] = record.timestamp
    return longest / 1000


def read(client: KafkaClient, topic: str) -> list[Received]:
    """Read what is committed in a topic; nothing if there is no such topic."""
    return client.consume_all(topic, timeout=60) if client.partitions(topic) else []
