"""Replay a file into a topic, at a rate or as fast as the broker takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from streamproc.dev.files import RecordFile, Row
from streamproc.kafka.security import NO_SECURITY
from streamproc.kafka.sender import BatchSender
from streamproc.kafka.topics import create_topics

_SLICE_SECONDS = 0.05
_SLICE_RECORDS = 2000


@dataclass
class ReplayProgress:
    """How far a replay is."""

    topic: str
    #: Records acknowledged by the broker.
    records: int = 0
    #: Seconds since the first record was sent.
    seconds: float = 0.0
    #: Part of the file that is read, 0 to 1.
    fraction: float = 0.0
    #: By partition: the offset after the last record sent there.
    end_offsets: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Records per second so far."""
        return self.records / self.seconds if self.seconds else 0.0


async def replay(
    path: str | Path,
    *,
    bootstrap: str,
    topic: str,
    rate: float = 0,
    key: str | None = None,
    timestamp: str | None = None,
    format: str | None = None,
    partitions: int = 4,
    security: Mapping[str, Any] = NO_SECURITY,
    on_progress: Callable[[ReplayProgress], None] | None = None,
) -> ReplayProgress:
    """Send every row of a file to a topic, in order, and return when all are acknowledged.

    Args:
        path: CSV with a header or JSON lines; ``.gz`` is unpacked.
        bootstrap: ``host:port`` of a broker.
        topic: Created with ``partitions`` partitions when it doesn't exist.
        rate: Records per second; 0: as fast as the broker takes them.
        key: Field whose value is the record key; records without one are spread evenly.
        timestamp: Field with the event time, which becomes the Kafka timestamp.
        format: ``csv`` or ``ndjson``, when the file's name doesn't tell.
        partitions: For a topic that is created.
        security: Arguments of aiokafka's clients about login and TLS.
        on_progress: Called about 20 times a second.

    Raises:
        ReplayError: The file or one of its lines is wrong.
        ProducerError: The broker refused a record.
        BrokerUnavailable: No broker answers.
        ConfigurationError: A broker refuses us: its login, TLS...
    """
    with RecordFile(path, key=key, timestamp=timestamp, format=format) as file:
        await create_topics(bootstrap, [topic], partitions, security)
        progress = ReplayProgress(topic)
        async with BatchSender(bootstrap, topic, security) as sender:
            await _send_paced(file, sender, rate, progress, on_progress)
    progress.fraction = 1.0
    if on_progress is not None:
        on_progress(progress)
    return progress


async def _send_paced(
    file: RecordFile,
    sender: BatchSender,
    rate: float,
    progress: ReplayProgress,
    on_progress: Callable[[ReplayProgress], None] | None,
) -> None:
    started = time.monotonic()
    size = max(1, round(rate * _SLICE_SECONDS)) if rate else _SLICE_RECORDS
    for rows in _slices(file, size):
        progress.end_offsets.update(await sender.send(rows))
        progress.records += len(rows)
        progress.seconds = time.monotonic() - started
        progress.fraction = file.position / file.size if file.size else 1.0
        if on_progress is not None:
            on_progress(progress)
        if rate:
            await asyncio.sleep(started + progress.records / rate - time.monotonic())
    progress.seconds = time.monotonic() - started


def _slices(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def replay_with_bar(path: str | Path, *, console: Console | None = None, **options: Any) -> None:
    """Run :func:`replay` with its options, and show a progress bar and a closing line."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[records]:,} records, {task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    console = console or Console()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(Path(path).name, total=1.0, records=0, rate=0.0)

        def show(state: ReplayProgress) -> None:
            bar.update(task, completed=state.fraction, records=state.records, rate=state.rate)

        done = asyncio.run(replay(path, on_progress=show, **options))
    console.print(
        f"{done.records:,} records of {path} sent to {done.topic} "
        f"in {done.seconds:.1f} s ({done.rate:,.0f}/s)"
    )
