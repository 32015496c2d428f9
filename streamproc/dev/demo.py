"""`streamproc dev`: a project running on servers of its own, with a replay and a picture of it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError
from rich.console import Console

from streamproc.dev.facts import ProjectFacts, read_facts
from streamproc.dev.replay import ReplayProgress, replay
from streamproc.dev.results import read_results
from streamproc.dev.screen import Screen, State, result_table
from streamproc.dev.stack import STATE_FOLDER, Addresses, DevWorker, Stack
from streamproc.dev.words import counted
from streamproc.errors import SinkUnavailable
from streamproc.kafka.offsets import OffsetWatch, count_records
from streamproc.kafka.topics import create_topics

#: Seconds between two looks at everything.
_INTERVAL = 0.25
#: Seconds that nothing may be left to do before a single run counts as finished.
_SETTLED = 1.0


@dataclass(frozen=True)
class Sample:
    """Data to replay into a topic; see :func:`streamproc.dev.replay.replay`."""

    path: Path
    topic: str
    key: str | None = None
    timestamp: str | None = None


@dataclass
class DevOptions:
    """What to run and how."""

    folder: Path = field(default_factory=Path.cwd)
    app: str = "streamproc"
    workers: int = 1
    #: ``embedded``, ``apache`` or the URL of a broker that runs.
    kafka: str = "embedded"
    #: ``embedded`` or the URL of a server that runs.
    redis: str = "embedded"
    partitions: int = 4
    sample: Sample | None = None
    #: Records per second of the replay; 0 as fast as possible.
    rate: float = 1000.0
    #: Run through the sample once, print results and end.
    once: bool = False
    #: Arguments of Kafka clients about login and TLS.
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: URL of a Redis that runs, with login and TLS in it.
    redis_url: str | None = field(default=None, repr=False)
    #: Seconds without progress after which a single run has failed.
    patience: float = 60.0


def run_dev(options: DevOptions, console: Console | None = None) -> int:
    """Run a project until Ctrl-C (or once), end everything and return the exit code.

    The exit code of a single run is 0 when every record was processed; it is 1 when a
    worker ended or no progress was made for ``patience`` seconds.

    Raises:
        StreamprocError: Something could not be started; the message says what to do.
    """
    console = console or Console()
    # Until the event loop handles signals, SIGTERM ends us as Ctrl-C does: with clean-up.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # of looking on; workers have logs
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Stack(options.folder) as stack:
            addresses = stack.start_servers(options.kafka, options.redis)
            facts = read_facts(stack.folder, options.app, addresses.env)
            return asyncio.run(_Run(options, console, stack, addresses, facts).run())
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def clean(folder: Path) -> None:
    """Kill what a crashed ``streamproc dev`` left behind and remove the state folder.

    Raises:
        ConfigurationError: ``streamproc dev`` runs in this folder.
    """
    if (folder / STATE_FOLDER).is_dir():
        with Stack(folder) as stack:
            shutil.rmtree(stack.state)


class _Run:
    """One run, from created topics to the last picture."""

    def __init__(
        self,
        options: DevOptions,
        console: Console,
        stack: Stack,
        addresses: Addresses,
        facts: ProjectFacts,
    ) -> None:
        self._options = options
        self._console = console
        self._stack = stack
        self._addresses = addresses
        self._facts = facts
        self._stop = asyncio.Event()
        self._progress: ReplayProgress | None = None
        self._rejected = 0
        self._started = time.monotonic()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        facts, options = self._facts, self._options
        url = options.redis_url or self._addresses.redis
        client = redis.asyncio.Redis.from_url(url, decode_responses=True)
        await _check_redis(client)
        await create_topics(
            self._addresses.bootstrap, facts.topics, options.partitions, options.security
        )
        self._stack.start_workers(options.workers, options.app, self._addresses.env)
        self._tell_addresses()
        watch = OffsetWatch(
            self._addresses.bootstrap, facts.group, facts.sources, facts.outputs, options.security
        )
        await watch.start()
        sending = asyncio.create_task(self._replay())
        counting = asyncio.create_task(self._count_letters())
        try:
            return await self._follow(watch, client, sending, counting)
        finally:
            sending.cancel()
            counting.cancel()
            await asyncio.gather(sending, counting, return_exceptions=True)
            await watch.stop()
            await client.aclose()

    def _tell_addresses(self) -> None:
        """Say where everything is, and how commands in another terminal find it."""
        if not self._console.is_terminal:  # the picture has them
            for address in [*self._addresses.shown, *map(_page, self._stack.workers)]:
                self._say(address)
        kinds = (self._options.kafka, self._options.redis)
        variables = zip(self._addresses.env.items(), kinds, strict=True)
        own = [f"{name}={value}" for (name, value), kind in variables if "://" not in kind]
        if own:
            self._say(f"For commands in another terminal: export {' '.join(own)}")

    async def _replay(self) -> None:
        sample = self._options.sample
        if sample is None:
            return

        def note(progress: ReplayProgress) -> None:
            self._progress = progress

        await replay(
            sample.path,
            bootstrap=self._addresses.bootstrap,
            topic=sample.topic,
            key=sample.key,
            timestamp=sample.timestamp,
            rate=self._options.rate,
            partitions=self._options.partitions,
            security=self._options.security,
            on_progress=note,
        )

    async def _count_letters(self) -> None:
        def note(count: int) -> None:
            self._rejected = count

        if self._facts.dead_letters:
            await count_records(
                self._addresses.bootstrap, self._facts.dead_letters, note, self._options.security
            )

    async def _follow(
        self,
        watch: OffsetWatch,
        client: Any,
        sending: asyncio.Task[None],
        counting: asyncio.Task[None],
    ) -> int:
        settled = _Settled()
        state = self._state(watch)
        with Screen(self._console) as screen:
            while not self._stop.is_set():
                state = self._state(watch)
                await watch.poll()
                state.results = await _results(client)
                screen.show(state)
                for task in (sending, counting):
                    if task.done():
                        task.result()
                if self._worker_ended():
                    break
                if self._options.once:
                    done = state.offsets.done + state.rejected
                    settled.look(done, sending.done() and not state.offsets.total_lag)
                    if settled.for_seconds() >= _SETTLED:
                        break
                    if settled.without_progress() > self._options.patience:
                        break
                await self._pause()
        return self._close(state, settled)

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), _INTERVAL)
        except asyncio.TimeoutError:
            return

    def _worker_ended(self) -> bool:
        return not all(worker.running for worker in self._stack.workers)

    def _state(self, watch: OffsetWatch) -> State:
        return State(
            offsets=watch.offsets,
            replay=self._progress,
            outputs=self._facts.outputs,
            dead_letters=self._facts.dead_letters,
            rejected=self._rejected,
            marked=self._marked(),
            workers=[_page(worker) for worker in self._stack.workers],
            addresses=self._addresses.shown,
            errors=[f"{w.name}: {error}" for w in self._stack.workers if (error := w.last_error())],
        )

    def _marked(self) -> frozenset[str]:
        """Return the topics that transactions of the project may end in."""
        if not self._facts.exactly_once:
            return frozenset()
        replayed = self._options.sample.topic if self._options.sample else None
        return frozenset({*self._facts.sources, *self._facts.outputs} - {replayed})

    def _close(self, state: State, settled: _Settled) -> int:
        """Print what is to be said at the end and return the exit code."""
        for worker in self._stack.workers:
            if not worker.running:
                self._say(
                    f"{worker.name} ended with exit code {worker.exit_code}. "
                    f"Its log {worker.log_path} ends with:\n{worker.log_tail(25)}"
                )
                return 1
        if not self._options.once:
            self._say("Ending workers and servers.")
            return 0
        if self._stop.is_set():
            return 130
        return self._sum_up(state, settled)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _sum_up(self, state: State, settled: _Settled) -> int:
        for error in state.errors:
            self._say(error)
        if not self._console.is_terminal:
            for table in state.results:
                self._console.print(result_table(table))
        if settled.for_seconds() < _SETTLED:
            self._say(
                f"Not everything was processed: lag {state.offsets.total_lag:,} and no progress "
                f"for {self._options.patience:g} s. Logs are in {self._stack.state}."
            )
            return 1
        parts = [f"{counted(state.replay.records, 'record')} sent"] if state.replay else []
        parts += [
            f"{state.processed} processed by {counted(len(self._stack.workers), 'worker')}",
            counted(state.rejected, "dead letter"),
            f"in {time.monotonic() - self._started:.1f} s.",
        ]
        self._say(", ".join(parts))
        return 0


def _page(worker: DevWorker) -> str:
    return f"{worker.name}  {worker.web_url}"


class _Settled:
    """Since when nothing is left to do, and since when nothing happens."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._done = -1
        self._progress = time.monotonic()

    def look(self, done: int, finished: bool) -> None:
        now = time.monotonic()
        if done != self._done:
            self._done = done
            self._progress = now
            self._since = None
        if not finished:
            self._since = None
        elif self._since is None:
            self._since = now

    def for_seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since

    def without_progress(self) -> float:
        return time.monotonic() - self._progress


async def _check_redis(client: Any) -> None:
    try:
        await client.ping()
    except (RedisError, OSError) as exc:
        raise SinkUnavailable(f"Redis can't be used: {exc}") from exc


async def _results(client: Any) -> list[Any]:
    try:
        return await read_results(client)
    except (RedisError, OSError):
        return []  # it is starting, or away: the workers' logs say so
