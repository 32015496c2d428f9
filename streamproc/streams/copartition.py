"""Copartitioning: what is joined must have its keys in partitions of the same number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamproc.errors import ConfigurationError


@dataclass(frozen=True)
class Copartitioned:
    """Something with which records of a topic are joined.

    Attributes:
        join: Name of the join.
        other: A source of a flow, or a table.
    """

    join: str
    other: Any

    @property
    def topic(self) -> str:
        """The topic whose partitions it has."""
        other = self.other
        name = other.topic.get_topic_name() if hasattr(other, "topic") else ""
        return name or str(other.changelog_topic_name)

    def count(self, counts: Mapping[str, int]) -> int | None:
        """Return its number of partitions; None if it isn't known yet."""
        return counts.get(self.topic) or self.other.partitions

    def check(self, topic: str, partitions: int | None, counts: Mapping[str, int]) -> None:
        """See that it has as many partitions as a topic.

        Raises:
            ConfigurationError: It has more or fewer.
        """
        count = self.count(counts)
        if count == partitions or count is None or partitions is None:
            return
        what = "topic" if hasattr(self.other, "topic") else f"table {self.other.name!r} (topic"
        end = "" if what == "topic" else ")"
        raise ConfigurationError(
            f"Join {self.join!r}: topic {topic!r} has {partitions} partitions, and "
            f"{what} {self.topic!r}{end} has {count}, so equal keys would be in partitions of "
            "different numbers. Put a key_by() before the join on one side (its topic gets as "
            "many partitions as the other side), or give both topics the same number of "
            "partitions."
        )
