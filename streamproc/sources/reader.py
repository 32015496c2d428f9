"""KafkaReader: a topic as a plain Python iterator, for code that knows no asyncio."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Iterator, Sequence
from time import monotonic, sleep
from types import TracebackType
from typing import Any, NamedTuple

from streamproc.checkpoint import waiting_writers
from streamproc.errors import SinkError, SinkUnavailable, StreamprocError
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.reader import Letter, Place, ReaderThread
from streamproc.kafka.security import BrokerSecurity
from streamproc.records.secrets import register
from streamproc.sources.brokers import brokers
from streamproc.sources.frames import frame_of, pandas
from streamproc.sources.runs import Message, Rejected, Run, run_decoder
from streamproc.streams.deadletters import letter_headers

logger = logging.getLogger(__name__)

#: Seconds between two commits while records flow.
COMMIT_INTERVAL = 1.0
#: Longest wait of one fetch, in seconds.
POLL = 0.25
#: First and longest pause between two tries while Redis is away, in seconds.
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0


class KafkaReader:
    """Reads topics record by record; batches are underneath.

    A record is done when the loop asks for the next one. What is done is committed about
    once a second, before a wait, and at the end. A record at which the loop was left, by
    an exception or by ``break``, is not done: it comes again, first of all, from the next
    loop over this reader or from the next reader of the group.

    What :class:`~streamproc.RedisWriter` objects hold is written before each commit, so
    that nothing is committed that isn't in Redis. While Redis is away the loop waits.

    A record that can't be decoded is counted in ``rejected``, logged, sent to the topic
    ``<group>-dead-letters``, and left out. A tombstone's value is None.

    Use one reader from one thread.

    Args:
        broker_list: "host:port,host:port", a list of these, or ``kafka://`` URLs.
        topic: A topic's name, or several.
        group: Consumer group. Readers of one group share the partitions and go on where
            the group left off; give unrelated programs groups of their own.
        value_type: A :class:`~streamproc.Record` class or another type; without it JSON
            comes as plain dicts and lists.
        key_type: Likewise for keys; without it they come as text, or as bytes if they
            are not UTF-8.
        limit: End a loop after this many records.
        timeout: End a loop when no record came for this many seconds; None waits for
            ever. The time that joining the group takes doesn't count.
        from_beginning: Where a group without committed offsets begins: at the oldest
            record, or at those that come from now on.
        connect_timeout: Seconds to wait for the broker and the topics at the start.
        buffer_bytes: Bytes of records to fetch ahead.
        serialization: Name of the codec of values.
        username: Login of the broker by SASL PLAIN; for other ways see ``security``.
        password: Its password; take it from the environment.
        security: Login and TLS, when they are more than that. Those of a project's settings
            are ``load_settings().broker_security``.
        options: More settings of aiokafka's consumer (``session_timeout_ms``...).

    Raises:
        BrokerUnavailable: No broker answered in time.
        ConfigurationError: A topic doesn't exist, the broker refuses us (a wrong login,
            no TLS...), or an argument is wrong.
    """

    def __init__(
        self,
        broker_list: str | Sequence[str],
        topic: str | Sequence[str],
        *,
        group: str = "streamproc-reader",
        value_type: Any = None,
        key_type: Any = None,
        limit: int | None = None,
        timeout: float | None = None,
        from_beginning: bool = True,
        connect_timeout: float = 30.0,
        buffer_bytes: int = 16 * 1024 * 1024,
        serialization: str = "json",
        username: str | None = None,
        password: str | None = None,
        security: BrokerSecurity | None = None,
        **options: Any,
    ) -> None:
        self.group = group
        self.limit = limit
        self.timeout = timeout
        #: Records that could not be decoded.
        self.rejected = 0
        self._decode = run_decoder(key_type, value_type, serialization)
        self._lock = threading.Lock()  # of the three that follow, and the thread's buffer
        self._run: Run | None = None
        self._done: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}
        self._commit_due = monotonic() + COMMIT_INTERVAL
        self._closed = False
        bootstrap, login = brokers(broker_list, username, password)
        register(password, login.get("sasl_plain_password"))
        if security is not None:
            login = security.client_options()
        self._thread = ReaderThread(
            bootstrap,
            [topic] if isinstance(topic, str) else list(topic),
            group,
            connect_timeout=connect_timeout,
            buffer_bytes=buffer_bytes,
            on_revoke=self._on_revoke,
            **{
                "auto_offset_reset": "earliest" if from_beginning else "latest",
                "fetch_max_wait_ms": 20,
                **login,
                **options,
            },
        )
        # A script that ends without close() leaves its group all the same.
        atexit.register(self.close)

    def get_stream(self) -> Iterator[Any]:
        """Iterate over the values of records.

        Raises:
            SinkError: Redis refused what a writer held.
            ProducerError: A record that can't be decoded could not be kept as a dead letter.
        """
        for run in self._runs():
            values = run.values
            while run.at < run.end:
                yield values[run.at]
                run.at += 1
                if monotonic() >= self._commit_due or waiting_writers.stalled:
                    self.commit()

    def messages(self) -> Iterator[Message]:
        """Iterate over records with topic, partition, offset, timestamp (ms), key and headers."""
        for run in self._runs():
            while run.at < run.end:
                yield run.message(run.at)
                run.at += 1
                if monotonic() >= self._commit_due or waiting_writers.stalled:
                    self.commit()

    def get_frames(self) -> Iterator[Any]:
        """Iterate over pandas DataFrames, one for each run of records of a partition.

        The index is the offset; ``frame.attrs`` has the topic and the partition. All of
        a frame is done when the loop asks for the next one. Needs pandas
        (``pip install streamproc[pandas]``).

        Raises:
            ConfigurationError: pandas isn't installed.
        """
        pandas()
        return self._frames()

    def _frames(self) -> Iterator[Any]:
        for run in self._runs():
            begin, end = run.at, run.end
            if begin < end:
                yield frame_of(run, begin, end)
                if not run.dropped:
                    run.at = end
                self.commit()

    @property
    def current(self) -> Message | None:
        """The record that the loop has now, with its place in Kafka."""
        run = self._run
        return None if run is None or run.exhausted else run.message(run.at)

    def _runs(self) -> Iterator[Run]:
        left = self.limit
        last = monotonic()
        while left is None or left > 0:
            run = self._next_run()
            if run is not None:
                begin = run.at
                if self._bound(run, left):
                    yield run
                self._finish(run)
                if left is not None:
                    left -= run.at - begin
                last = monotonic()
            elif not self._thread.joined:
                last = monotonic()
            elif self.timeout is not None and monotonic() - last >= self.timeout:
                break
        self.commit()

    def _next_run(self) -> Run | None:
        """Return the run that the last loop left, or the next one, or None after a while."""
        if self._closed:
            raise StreamprocError("This KafkaReader is closed; make a new one")
        if self._run is not None:
            return self._run
        thread = self._thread
        if not thread.buffer:
            thread.fetch(0)
        if not thread.buffer:
            self.commit()  # before waiting, what is done is made safe and visible
            thread.fetch(POLL)
        try:
            fetched = thread.buffer[0]
        except IndexError:
            return None
        run, rejected = self._decode(fetched.raw)
        if rejected:
            self._reject(fetched.raw, rejected)
        with self._lock:
            # Only now is it taken from the buffer: an interrupt before loses nothing.
            if fetched.generation != thread.generation or not thread.buffer:
                return None
            self._run = run
            thread.buffer.popleft()
        return run

    def _bound(self, run: Run, left: int | None) -> bool:
        with self._lock:
            if not run.dropped:
                run.end = len(run.values) if left is None else min(len(run.values), run.at + left)
            return run.at < run.end

    def _finish(self, run: Run) -> None:
        with self._lock:
            if run.dropped:
                if self._run is run:
                    self._run = None
            elif run.exhausted and self._run is run:
                self._done[run.place] = run.done_offset
                self._run = None

    def _reject(self, raw: RawBatch, rejected: list[Rejected]) -> None:
        letters_topic = f"{self.group}-dead-letters"
        place = _Place(raw.topic, raw.partition)
        letters = [
            Letter(
                raw.keys[row],
                raw.values[row],
                (
                    *(raw.headers[row] if raw.headers is not None else ()),
                    *letter_headers(place, raw.offsets[row], raw.timestamps[row], part, error),
                ),
            )
            for row, part, error in rejected
        ]
        self._thread.send(letters_topic, letters)
        self.rejected += len(rejected)
        row, part, error = rejected[0]
        logger.error(
            "Record %s/%d@%d can't be decoded (%s): %s. It went to topic %r%s",
            raw.topic,
            raw.partition,
            raw.offsets[row],
            part,
            error,
            letters_topic,
            f", with {len(rejected) - 1} more of its batch" if len(rejected) > 1 else "",
        )

    def commit(self) -> None:
        """Write what writers hold, waiting while Redis is away, and commit what is done.

        Raises:
            SinkError: Redis refused what a writer held; nothing is committed.
        """
        self._commit(wait=True)

    def _commit(self, wait: bool) -> None:
        self._commit_due = monotonic() + COMMIT_INTERVAL
        generation = self._thread.generation
        done = self._snapshot()
        _flush_writers(wait)
        if done and self._thread.commit(done):
            with self._lock:
                if generation == self._thread.generation:
                    self._committed.update(done)

    def _snapshot(self) -> dict[Place, int]:
        """Return the offsets that are done and not committed.

        Taken before writers are flushed: what is done later may not be in Redis yet.
        """
        with self._lock:
            done = dict(self._done)
            run = self._run
            if run is not None and run.at and not run.dropped:
                done[run.place] = run.done_offset
            committed = self._committed
            return {place: at for place, at in done.items() if committed.get(place) != at}

    def _on_revoke(self) -> dict[Place, int]:
        done = self._snapshot()
        with self._lock:
            if self._run is not None:
                self._run.drop()
            self._run = None
            self._thread.buffer.clear()
            self._done.clear()
            self._committed.clear()
        try:
            _flush_writers(wait=False)
        except SinkError as exc:
            logger.error("Results are not in Redis, so their records are read again: %s", exc)
            return {}
        return done

    def close(self) -> None:
        """Commit what is done and leave the group.

        Raises:
            SinkUnavailable: Redis is away; what it misses is not committed.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._commit(wait=False)
        finally:
            self._thread.close()

    def __enter__(self) -> KafkaReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Place(NamedTuple):
    topic: str
    partition: int


def _flush_writers(wait: bool) -> None:
    """Write what writers hold; with ``wait`` again and again while Redis is away."""
    since = 0.0
    delay = FIRST_DELAY
    for writer in list(waiting_writers):
        while True:
            try:
                writer.flush()
                break
            except SinkUnavailable as exc:
                if not wait:
                    raise
                if not since:
                    since = monotonic()
                    logger.warning("%s. Reading waits until it is back", exc)
                sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY)
    waiting_writers.stalled = False
    if since:
        logger.warning("Redis is back after %.1f s, reading goes on", monotonic() - since)
