"""One run: brokers, Redis, workers, a feed, faults, and then the comparison."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import KafkaException
from faults import verify
from faults.cluster import Cluster
from faults.disk import SmallDisk
from faults.feed import Feed
from faults.proxy import Proxy
from harness import KafkaClient, Worker

from streamproc.dev.process import ChildProcess
from streamproc.dev.servers import RedisServer

SESSION_TIMEOUT = 6.0
TESTS = Path(__file__).parent.parent
_REASON = "The worker ends with exit code"


@dataclass
class Plan:
    """What a run is like.

    Attributes:
        guarantee: "at_least_once", "exactly_once" (Kafka and Redis), or "exact_redis": the
            app at least once, and its Redis sinks exactly once.
        mode: How the app counts: "records", "batches" or "flow".
        workers: How many there are when nothing is wrong.
        rate: Records a second.
        settle: Seconds that everything may take to be processed at the end.
        disk: Size in MB of the disk that the data folder is on; None: the test's own.
    """

    guarantee: str = "at_least_once"
    mode: str = "batches"
    seed: int = 0
    workers: int = 3
    partitions: int = 5
    standbys: int = 0
    rate: int = 600
    settle: float = 120.0
    disk: int | None = None


@dataclass
class Servers:
    """What workers work with; outlives runs."""

    folder: Path
    brokers: int = 1
    running: Run | None = None
    kafka: Cluster = field(init=False)
    redis: RedisServer = field(init=False)
    redis_proxy: Proxy = field(init=False)

    def start(self) -> Servers:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kafka = Cluster(self.folder, self.brokers, self.pids).start()
        self.redis = RedisServer(self.folder / "redis").start()
        self.redis_proxy = Proxy(self.redis.port, pids=self.pids).start()
        return self

    def pids(self) -> list[int]:
        return [] if self.running is None else [w.pid for w in self.running.crew if w.running]

    def stop(self) -> None:
        self.redis_proxy.stop()
        self.redis.kill()
        self.kafka.stop()


class Run:
    """A crew of workers under load; faults are functions that are given this.

    A worker that ends by itself is started again, as a supervisor would, and what it said
    at its end is noted: it must have said something.
    """

    def __init__(
        self, servers: Servers, plan: Plan, started: list[ChildProcess] | None = None
    ) -> None:
        self.servers, self.plan = servers, plan
        #: All workers that ever were, whose logs a test shows when it fails.
        self.started = [] if started is None else started
        self._stack = ExitStack()
        self.kafka, self.redis = servers.kafka, servers.redis
        self.dice = random.Random(plan.seed)
        self.topic = f"faults-{uuid.uuid4().hex[:8]}"
        self.app_id = f"app-{self.topic}"
        self.folder = servers.folder / self.topic
        self.control, self.tables = self.folder / "control", self.folder / "tables"
        self.client = KafkaClient(self.kafka.bootstrap)
        self.crew: list[Worker] = []
        self.done: list[str] = []
        self.stops: list[str] = []
        self.notes: list[str] = []
        self.redis_lost = False
        #: Everything was processed again on purpose.
        self.rebuilt = False
        #: What workers that are started from now on get beside their settings.
        self.env: dict[str, str] = {}
        #: Set while a fault wants nobody to be started again.
        self.unattended = False
        self._started = 0

    # -- life

    def __enter__(self) -> Run:
        self.control.mkdir(parents=True)
        if self.plan.disk is not None:
            self._stack.enter_context(SmallDisk(self.tables, self.plan.disk))
        self.servers.running = self
        copies = 3 if len(self.kafka.nodes) == 3 else 1
        for name in (self.topic, f"{self.topic}-results"):
            config = {"message.timestamp.type": "LogAppendTime"}
            self.client.create_topic(self.plan.partitions, name, config, replication=copies)
        with redis.Redis(port=self.redis.port) as client:
            client.flushall()
        self.feed = Feed(self.kafka.bootstrap, self.topic, self.plan.seed, self.plan.rate)
        self.feed.start()
        for _ in range(self.plan.workers):
            self.start_worker()
        self.wait(lambda: any("Worker ready" in w.log for w in self.crew), 60, "a worker is ready")
        self.wait_progress()
        return self

    def __exit__(self, *error: Any) -> None:
        self.feed.stop()
        for worker in self.crew:
            worker.kill()
        self.servers.running = None
        self._stack.close()

    # -- workers

    def start_worker(self) -> Worker:
        """Start one more worker."""
        self._started += 1
        worker = Worker(f"worker-{self._started}", self.folder / "logs", None)
        env = {
            "APP_ID": self.app_id,
            "TOPIC": self.topic,
            "BOOTSTRAP": self.kafka.proxied,
            "REDIS_URL": f"redis://{self.servers.redis_proxy.address}/0",
            "GUARANTEE": self.plan.guarantee,
            "MODE": self.plan.mode,
            "STANDBYS": str(self.plan.standbys),
            "COPIES": str(3 if len(self.kafka.nodes) == 3 else 1),
            "SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            "CONTROL": str(self.control),
            "TABLES": str(self.tables),
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "faust", "-A", "faults.counting"]
        command += ["--datadir", str(self.folder / "data"), "worker", "-l", "info"]
        worker.spawn([*command, "--without-web"], cwd=self.folder, env={**env, **self.env})
        self.crew.append(worker)
        self.started.append(worker)
        return worker

    def any_worker(self) -> Worker:
        """Return one of the workers, by chance."""
        return self.dice.choice(self.crew)

    def end(self, worker: Worker, kill: bool = False) -> None:
        """End a worker for good, politely or not."""
        self.crew.remove(worker)
        if kill:
            worker.kill()
            return
        begun = "Worker ready" in worker.log
        code = worker.stop(40)
        if code != 0 and begun:
            self.notes.append(f"{worker.name} was asked to stop and ended with {code}")

    def attend(self) -> None:
        """Start again who has ended by himself."""
        for worker in list(self.crew):
            if worker.running:
                continue
            reason = worker.log.rpartition(_REASON)[2].partition("\n")[0].strip()
            self.stops.append(f"{worker.name} ({worker.exit_code}): {reason[:400]}")
            if worker.exit_code == 0 or not reason:
                self.notes.append(f"{worker.name} ended with {worker.exit_code} and no reason")
            self.crew.remove(worker)
            self.start_worker()

    # -- waiting

    def wait(
        self, condition: Callable[[], Any], timeout: float, what: str | Callable[[], str] = ""
    ) -> Any:
        """Wait for a condition while workers that end are started again."""
        deadline = time.monotonic() + timeout
        while True:
            with suppress(KafkaException, redis.RedisError):
                if result := condition():
                    return result
            if time.monotonic() > deadline:
                text = what() if callable(what) else what
                raise AssertionError(f"Not within {timeout:g} s: {text}")
            if not self.unattended:
                self.attend()
            time.sleep(0.1)

    def sleep(self, least: float, most: float | None = None) -> None:
        """Let time go by: ``least`` seconds, or between the two by chance."""
        deadline = time.monotonic() + (self.dice.uniform(least, most) if most else least)
        while time.monotonic() < deadline:
            if not self.unattended:
                self.attend()
            time.sleep(0.05)

    def wait_progress(self, timeout: float = 60.0) -> None:
        """Wait until offsets of records that are here now are committed in some partition."""
        before = self.client.committed(self.app_id, self.topic)
        self.wait(
            lambda: any(
                offset > before.get(p, 0)
                for p, offset in self.client.committed(self.app_id, self.topic).items()
            ),
            timeout,
            "progress",
        )

    def flag(self, name: str, text: str = "") -> Callable[[], None]:
        """Make the app's code misbehave until the function that comes back is called."""
        path = self.control / name
        path.write_text(text)
        return lambda: path.unlink(missing_ok=True)

    # -- the end

    def settle(self) -> verify.Figures:
        """Stop the feed, wait until all is processed, and compare."""
        self.feed.finish()
        expected = verify.Expected(verify.read(self.client, self.topic))
        while len(self.crew) < self.plan.workers:
            self.start_worker()

        def committed() -> dict[int, int]:
            return self.client.committed(self.app_id, self.topic)

        def is_done() -> bool:
            found = committed()
            return all(found.get(p, 0) >= end for p, end in expected.next_offsets.items())

        self.wait(
            is_done,
            self.plan.settle,
            lambda: f"all committed: {committed()} of {expected.next_offsets}",
        )
        figures = verify.Figures(expected.count, len(expected.poison), self.feed.aborted)
        all_ids = {each for ids in expected.ids.values() for each in ids}
        lost_input = set(self.feed.certain) - all_ids
        figures.note("wrong", max(0, len(lost_input) - len(expected.poison)), "input lost by Kafka")
        if self.plan.mode != "flow":
            self._compare_tables(expected, figures)
        for worker in list(self.crew):
            self.end(worker)
        self._compare(expected, figures)
        return figures

    def _compare_tables(self, expected: verify.Expected, figures: verify.Figures) -> None:
        """Compare what the tables hold, when no worker thinks any more that it has others'."""
        deadline = time.monotonic() + 30
        while True:
            found = verify.Figures()
            verify.compare_tables(expected, self._ask_tables(), found)
            if not found.wrong or time.monotonic() > deadline:
                break
        figures.wrong += found.wrong
        figures.examples += found.examples

    def _ask_tables(self) -> dict[str, Any]:
        for path in self.control.glob("answer-*"):
            path.unlink()
        done = self.flag("ask")
        tables: dict[str, Any] = {}

        def answered() -> bool:
            tables.clear()
            for worker in self.crew:
                path = self.control / f"answer-{worker.pid}"
                if not path.exists():
                    return False
                tables.update(json.loads(path.read_text()))
            return len(tables) == self.plan.partitions

        self.wait(answered, 30, lambda: f"{self.plan.partitions} partitions: {sorted(tables)}")
        done()
        return tables

    def _compare(self, expected: verify.Expected, figures: verify.Figures) -> None:
        results = verify.read(self.client, f"{self.topic}-results")
        verify.compare_topic(
            expected,
            results,
            figures,
            every_update=self.plan.mode != "flow",
            exact=self.plan.guarantee == "exactly_once",
        )
        letters = verify.read(self.client, f"{self.app_id}-dead-letters")
        verify.compare_letters(expected, letters, figures)
        with redis.Redis(port=self.redis.port, decode_responses=True) as client:
            verify.compare_redis(expected, client, figures)
        figures.longest_pause = verify.longest_pause(results)


def play(
    servers: Servers,
    plan: Plan,
    schedule: Sequence[Callable[[Run], None]],
    started: list[ChildProcess] | None = None,
    pause: float = 2.0,
) -> tuple[Run, verify.Figures]:
    """Run with these faults, one after the other; print what it came to."""
    with Run(servers, plan, started) as run:
        print(f"\nseed {plan.seed}, {plan.guarantee}, {plan.mode}, {run.topic}", flush=True)
        for fault in schedule:
            began = time.monotonic()
            fault(run)
            run.done.append(fault.__name__)
            run.sleep(pause / 2, pause)
            run.wait_progress()
            print(f"  {fault.__name__}: {time.monotonic() - began:.1f} s", flush=True)
        figures = run.settle()
    print(f"  {figures}; faults {len(run.done)}; stops {len(run.stops)}", flush=True)
    for line in (*run.stops, *run.notes, *figures.examples):
        print(f"    {line}", flush=True)
    return run, figures


def assert_held(run: Run, figures: verify.Figures) -> None:
    """Fail when a promise was broken, or a worker ended without a word."""
    redis_exact = run.plan.guarantee != "at_least_once"
    kafka_exact = run.plan.guarantee == "exactly_once" and not run.rebuilt
    broken = figures.broken(kafka_exact, redis_exact, run.redis_lost)
    assert not broken, "\n".join(broken)
    assert not run.notes, "\n".join(run.notes)
