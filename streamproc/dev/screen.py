"""What `streamproc dev` shows: a picture that renews itself, or lines where no terminal is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamproc.dev.replay import ReplayProgress
from streamproc.dev.results import ResultTable
from streamproc.kafka.offsets import Offsets

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two lines where no terminal is.
_LINE_INTERVAL = 1.0


@dataclass
class State:
    """All that is shown."""

    offsets: Offsets
    replay: ReplayProgress | None
    outputs: list[str]
    dead_letters: str | None
    #: Records in the topic of dead letters.
    rejected: int
    #: Topics in which some offsets may be marks of transactions, and no records.
    marked: frozenset[str]
    #: ``name: where its page is`` or ``name: how it ended``.
    workers: list[str]
    addresses: list[str]
    results: list[ResultTable] = field(default_factory=list)
    #: ``name: the last error in its log``.
    errors: list[str] = field(default_factory=list)

    def records(self, topic: str) -> str:
        """Return how many records a topic has, as far as its end tells."""
        return _most(self.offsets.end([topic]), topic in self.marked)

    @property
    def processed(self) -> str:
        """How many records are processed, as far as committed offsets tell."""
        return _most(self.offsets.done, not self.marked.isdisjoint(self.sources))

    @property
    def sources(self) -> list[str]:
        """Topics that the group reads."""
        return list(dict.fromkeys(tp.topic for tp in self.offsets.committed))


def _most(offsets: int, is_marked: bool) -> str:
    return f"≤ {offsets:,}" if is_marked and offsets else f"{offsets:,}"


class Rate:
    """Records per second over the last seconds."""

    def __init__(self, seconds: float = 3.0) -> None:
        """Look back ``seconds``."""
        self._seconds = seconds
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, count: int, now: float | None = None) -> float:
        """Take a new count and return the rate."""
        now = time.monotonic() if now is None else now
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[0][0] < now - self._seconds:
            self._samples.popleft()
        first_time, first_count = self._samples[0]
        return (count - first_count) / (now - first_time) if now > first_time else 0.0


class Screen:
    """Shows a :class:`State` whenever it is given one."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``; without a terminal, lines are printed instead."""
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._done_rate = Rate()
        self._started = time.monotonic()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, state: State) -> None:
        """Renew the picture, or print a line if the last one is a second old."""
        now = time.monotonic()
        rate = self._done_rate.update(state.offsets.done, now)
        if self._console.is_terminal:
            self._live.update(picture(state, rate), refresh=True)
        elif now - self._last_line >= _LINE_INTERVAL:
            self._last_line = now
            self._console.print(line(state, rate, now - self._started), soft_wrap=True)


def line(state: State, rate: float, seconds: float) -> str:
    """Return the state in one line."""
    parts = [f"{seconds:6.1f} s"]
    if state.replay is not None:
        parts.append(f"sent {state.replay.records:,}")
    parts.append(f"processed {state.processed} ({rate:,.0f}/s)")
    parts.append(f"lag {state.offsets.total_lag:,}")
    parts += [f"{topic} {state.records(topic)}" for topic in state.outputs]
    if state.dead_letters:
        parts.append(f"dead letters {state.rejected:,}")
    return "  ".join(parts)


def picture(state: State, rate: float) -> RenderableType:
    """Return the state as a whole screen."""
    parts: list[RenderableType] = [_head(state, rate), "", _topics(state)]
    for table in state.results:
        parts += ["", result_table(table)]
    parts += ["", *(Text(error, style="red") for error in state.errors)]
    return Group(*parts, Text("Ctrl-C ends everything.", style="dim"))


def result_table(result: ResultTable) -> RenderableType:
    """Return a group of Redis keys as a table with its title above."""
    table = _table(*result.columns)
    for row in result.rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(Text.assemble(("Redis  ", "bold"), (result.title, "bold cyan")), table)


def _head(state: State, rate: float) -> RenderableType:
    head = Table.grid(padding=(0, 2))
    for worker in state.workers:
        head.add_row("[bold]worker[/]", worker)
    head.add_row("[bold]servers[/]", "  ".join(state.addresses))
    head.add_row(
        "[bold]processed[/]",
        f"{state.processed} records, [bold green]{rate:,.0f}/s[/], lag {state.offsets.total_lag:,}",
    )
    if state.replay is not None:
        sent = f"{state.replay.records:,} sent to {state.replay.topic} ({state.replay.rate:,.0f}/s)"
        bar = ProgressBar(total=1.0, completed=state.replay.fraction, width=30)
        progress = Table.grid(padding=(0, 2))
        progress.add_row(bar, sent)
        head.add_row("[bold]replay[/]", progress)
    return head


def _topics(state: State) -> RenderableType:
    table = _table("Kafka topic", "records", "lag by partition", right={1})
    for topic in state.sources:
        table.add_row(topic, state.records(topic), _lags(state.offsets, topic))
    for topic in state.outputs:
        table.add_row(topic, state.records(topic), "")
    if state.dead_letters and state.rejected:
        table.add_row(f"[red]{state.dead_letters}[/]", f"[red]{state.rejected:,}[/]", "")
    return table


def _lags(offsets: Offsets, topic: str) -> str:
    partitions = sorted(tp for tp in offsets.committed if tp.topic == topic)
    return "  ".join(f"{offsets.lag(tp):,}" for tp in partitions)


def _table(*columns: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, header_style="dim", justify="right" if number in right else "left")
    return table
