"""What ``streamproc dlq`` does: finding dead letters, sending them on, deleting them."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamproc.cli.interrupts import Interrupt
from streamproc.errors import ConfigurationError, StreamprocError
from streamproc.kafka.scan import StoredRecord, TopicScan
from streamproc.streams.letters import Letter

#: Letters that are sent at a time.
SENT_AT_ONCE = 500

OnProgress = Callable[[float, int], None]


@dataclass(frozen=True)
class Place:
    """Where dead letters are.

    Attributes:
        bootstrap: Brokers, "host:port,...".
        topic: The dead-letter topic.
        security: Arguments of aiokafka's clients about login and TLS.
        is_named: Whether the user named the topic; another one may not be there yet.
    """

    bootstrap: str
    topic: str
    security: Mapping[str, Any] = field(repr=False)
    is_named: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which letters; what is None or empty is not looked at.

    Attributes:
        ids: Partition and offset in the dead-letter topic, "0:17".
        topics: Where they were.
        partition: Their partition there.
        agents: Agents or flows; names, or their last part.
        errors: Types of errors.
        key: The key as text.
        since: Rejected at this time or later, in milliseconds since 1970.
        until: Rejected before this time.
        first: First offset in their topic.
        last: Last one.
        begins: First offset in the dead-letter topic, by its partition.
    """

    ids: Collection[str] = ()
    topics: Collection[str] = ()
    partition: int | None = None
    agents: Collection[str] = ()
    errors: Collection[str] = ()
    key: str | None = None
    since: int | None = None
    until: int | None = None
    first: int | None = None
    last: int | None = None
    begins: Mapping[int, int] = field(default_factory=dict)

    def __contains__(self, letter: Letter) -> bool:
        record = letter.record
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.topics or letter.topic in self.topics)
            and self.partition in (None, letter.partition)
            and (not self.agents or self._is_of(letter))
            and (not self.errors or letter.error in self.errors)
            and (self.key is None or record.key == self.key.encode())
            and (self.since is None or record.timestamp >= self.since)
            and (self.until is None or record.timestamp < self.until)
            and (self.first is None or letter.offset >= self.first)
            and (self.last is None or letter.offset <= self.last)
            and record.offset >= self.begins.get(record.partition, 0)
        )

    def _is_of(self, letter: Letter) -> bool:
        names = {letter.agent, letter.agent.rpartition(".")[2], letter.stage}
        return bool(names.intersection(self.agents))


@dataclass
class Found:
    """What a search found.

    Attributes:
        letters: The newest of them, oldest first.
        counts: How many there are, by topic and error.
        others: Records that are no dead letters.
    """

    letters: deque[Letter]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    others: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())


async def _runs(
    scan: TopicScan, place: Place, on_progress: OnProgress
) -> AsyncIterator[list[tuple[StoredRecord, Letter | None]]]:
    """Read the dead-letter topic, if it is there.

    Raises:
        ConfigurationError: It isn't, and was asked for by its name.
    """
    if not await scan.has_topic(place.topic):
        if place.is_named:
            raise ConfigurationError(f"There is no topic {place.topic!r} at {place.bootstrap}")
        return
    seen = 0
    async for records, part in scan.read(place.topic):
        seen += len(records)
        yield [(record, Letter.of(record)) for record in records]
        on_progress(part, seen)


async def find(place: Place, wanted: Wanted, limit: int | None, on_progress: OnProgress) -> Found:
    """Return the newest letters that are wanted, up to ``limit``, and count all of them."""
    found = Found(deque(maxlen=limit))
    async with TopicScan(place.bootstrap, place.security) as scan:
        async for run in _runs(scan, place, on_progress):
            for _, letter in run:
                if letter is None:
                    found.others += 1
                elif letter in wanted:
                    found.counts[letter.topic, letter.error] += 1
                    found.letters.append(letter)
    newest = sorted(found.letters, key=lambda each: each.record.timestamp)
    found.letters = deque(newest, limit)
    return found


@dataclass
class Replayed:
    """What a replay did, or would do.

    Attributes:
        sent: Letters by the topic that they went to.
        left_out: Letters that are no records of a topic, by what made them.
        done: By partition of the dead-letter topic, the offset before which all is done.
        is_interrupted: It was ended by Ctrl-C.
    """

    sent: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    done: dict[int, int] = field(default_factory=dict)
    is_interrupted: bool = False


async def replay(
    place: Place,
    wanted: Wanted,
    *,
    topic: str | None,
    is_dry: bool,
    on_progress: OnProgress,
    result: Replayed,
) -> None:
    """Send letters to the topics that they were in, or to ``topic``, as they were.

    Some at a time; Ctrl-C ends it between two sends.

    Args:
        place: Where they are.
        wanted: Which.
        topic: Where to; None: each where it was.
        is_dry: Only count.
        on_progress: Called with what part is read.
        result: Is told what is done, so that it is known after an error, too.

    Raises:
        ConfigurationError: A topic isn't there any more; what is before it is sent.
        ProducerError: The broker refused a record.
    """
    interrupt = Interrupt()
    with interrupt.watch():
        async with TopicScan(place.bootstrap, place.security) as scan:
            known: set[str] = set()
            async for run in _runs(scan, place, on_progress):
                for begin in range(0, len(run), SENT_AT_ONCE):
                    part = run[begin : begin + SENT_AT_ONCE]
                    by_topic, left_out = _by_target(part, wanted, topic)
                    for target in by_topic.keys() - known:
                        await _check_target(scan, place, target)
                        known.add(target)
                    with interrupt.step():
                        for target, letters in by_topic.items():
                            if not is_dry:
                                await _send(scan, place, target, letters)
                            result.sent[target] += len(letters)
                        result.left_out += left_out
                        last = part[-1][0]
                        result.done[last.partition] = last.offset + 1
    result.is_interrupted = interrupt.came


def _by_target(
    run: list[tuple[StoredRecord, Letter | None]], wanted: Wanted, topic: str | None
) -> tuple[dict[str, list[Letter]], Counter[str]]:
    """Return letters by the topic that they go to, and what is left out."""
    by_topic: dict[str, list[Letter]] = {}
    left_out: Counter[str] = Counter()
    for _, letter in run:
        if letter is None or letter not in wanted:
            continue
        if letter.is_record or topic is not None:
            by_topic.setdefault(topic or letter.topic, []).append(letter)
        else:
            left_out[letter.topic] += 1
    return by_topic, left_out


async def _check_target(scan: TopicScan, place: Place, target: str) -> None:
    if target == place.topic:
        raise ConfigurationError(f"{target!r} is the dead-letter topic itself: use --to TOPIC")
    if not await scan.has_topic(target):
        raise ConfigurationError(
            f"Topic {target!r}, where records were, doesn't exist at {place.bootstrap}: use "
            "--to TOPIC, or --to-file FILE"
        )


async def _send(scan: TopicScan, place: Place, target: str, letters: list[Letter]) -> None:
    await scan.send(
        target,
        [
            # What has no key goes to the partition where it was.
            (
                letter.as_record(place.topic),
                letter.partition if letter.record.key is None and letter.is_record else None,
            )
            for letter in letters
        ],
    )


async def write(place: Place, wanted: Wanted, path: Path, on_progress: OnProgress) -> int:
    """Write letters to a file as JSON lines, and return how many; there must be no such file.

    Raises:
        ConfigurationError: The file can't be made.
    """
    count = 0
    try:
        with path.open("x", encoding="utf-8") as file:
            async with TopicScan(place.bootstrap, place.security) as scan:
                async for run in _runs(scan, place, on_progress):
                    for _, letter in run:
                        if letter is not None and letter in wanted:
                            file.write(json.dumps(letter.as_dict(), ensure_ascii=False) + "\n")
                            count += 1
    except OSError as exc:
        raise ConfigurationError(f"Can't write {path}: {exc.strerror or exc}") from exc
    return count


class NotAPrefix(StreamprocError):
    """Letters lie behind others that are to stay: Kafka deletes from the beginning only."""


@dataclass
class Prefix:
    """What can be deleted of a partition of the dead-letter topic.

    Attributes:
        before: Offset before which all is to be deleted.
        count: How many letters are before it.
        behind: Wanted letters that lie behind one that is to stay.
        kept: The first that is to stay.
    """

    before: int = 0
    count: int = 0
    behind: int = 0
    kept: int | None = None

    def add(self, record: StoredRecord, is_wanted: bool) -> None:
        """Look at the next record."""
        if not is_wanted:
            self.kept = record.offset if self.kept is None else self.kept
        elif self.kept is None:
            self.before = record.offset + 1
            self.count += 1
        else:
            self.behind += 1


async def purge(
    place: Place,
    wanted: Wanted | None,
    *,
    is_dry: bool,
    confirm: Callable[[int], None],
    on_progress: OnProgress,
) -> int:
    """Delete letters, and return how many; without ``wanted`` all that is in the topic.

    Args:
        place: Where they are.
        wanted: Which.
        is_dry: Only count.
        confirm: Called with the number of letters before they are deleted; raises to stop.
        on_progress: Called with what part is read.

    Raises:
        NotAPrefix: Letters that are to stay lie before some that are to go.
        BrokerUnavailable: The broker can't delete records.
    """
    prefixes: dict[int, Prefix] = {}
    async with TopicScan(place.bootstrap, place.security) as scan:
        async for run in _runs(scan, place, on_progress):
            for record, letter in run:
                is_wanted = wanted is None or (letter is not None and letter in wanted)
                prefixes.setdefault(record.partition, Prefix()).add(record, is_wanted)
        behind = sum(each.behind for each in prefixes.values())
        if behind:
            partition, first = next((p, each) for p, each in prefixes.items() if each.behind)
            raise NotAPrefix(
                f"{behind} of these letters lie behind others that are to stay, the first at "
                f"{partition}:{first.kept}, and Kafka deletes a partition's records from its "
                "beginning only. Use --until alone, or no filter."
            )
        count = sum(each.count for each in prefixes.values())
        if count and not is_dry:
            confirm(count)
            offsets = {part: each.before for part, each in prefixes.items() if each.count}
            await scan.delete_before(place.topic, offsets)
    return count
