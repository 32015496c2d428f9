"""A producer that goes on while things break, with transactions of which some are aborted."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, Producer
from faults.counting_values import RAISES_ALWAYS

KEYS = 60
PAUSE = 0.1


class Feed(threading.Thread):
    """Writes items to a topic until :meth:`finish`.

    What counts is what :mod:`faults.verify` reads back from the topic; the feed knows which
    items were acknowledged for certain, and these must be there.

    Attributes:
        rate: Records a second.
        poison: How many records to write, of those that don't decode and those at which
            the app raises, with the next ones.
        aborted: Records of transactions that were aborted.
    """

    def __init__(self, bootstrap: str, topic: str, seed: int, rate: int) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic, self.rate = bootstrap, topic, rate
        self.poison = 0
        self.aborted = self.sent = 0
        self.certain: list[int] = []
        self.error: BaseException | None = None
        self._dice = random.Random(seed)
        self._next = 0
        self._stopped = threading.Event()
        self._producer: Any = None

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                self._write([self._item() for _ in range(max(1, int(self.rate * PAUSE)))])
                self._stopped.wait(max(0.0, began + PAUSE - time.monotonic()))
        except BaseException as error:
            self.error = error
            raise

    def stop(self) -> None:
        """Write no more."""
        self._stopped.set()

    def finish(self) -> None:
        """Stop writing, with the transaction under way done."""
        self.stop()
        self.join(120)
        assert not self.is_alive(), "the feed can't write"
        assert self.error is None, self.error

    def _item(self) -> tuple[int, str, bytes]:
        number, self._next = self._next, self._next + 1
        key, n = f"k{self._dice.randrange(KEYS)}", self._dice.randrange(1, 1000)
        if self.poison and self._dice.random() < 0.05:
            self.poison -= 1
            if self._dice.random() < 0.5:
                return number, key, f"poison {number}".encode()
            n = RAISES_ALWAYS
        return number, key, json.dumps({"id": number, "n": n}).encode()

    def _write(self, items: list[tuple[int, str, bytes]]) -> None:
        """Write items in one transaction, again with a new producer when that fails."""
        abort = self._dice.random() < 0.1
        try:
            producer = self._connected()
            producer.begin_transaction()
            for _, key, value in items:
                producer.produce(self.topic, value, key, partition=-1)
            if abort:
                producer.flush(10)
                producer.abort_transaction(10)
                self.aborted += len(items)
                return
            self._commit(producer)
        except KafkaException:
            # Perhaps it was committed; what is in the topic counts. These ids don't come again.
            self._producer = None
            return
        self.sent += len(items)
        self.certain += [number for number, _, _ in items]

    def _commit(self, producer: Any) -> None:
        for _ in range(10):
            try:
                return producer.commit_transaction(10)
            except KafkaException as exc:
                if not exc.args[0].retriable():
                    with suppress(KafkaException):
                        producer.abort_transaction(10)
                    raise
        raise KafkaException("the transaction can't be committed")

    def _connected(self) -> Any:
        while self._producer is None:
            producer = Producer(
                {
                    "bootstrap.servers": self.bootstrap,
                    "transactional.id": f"feed-{self.topic}-{uuid.uuid4().hex[:8]}",
                    "transaction.timeout.ms": 10_000,
                    "partitioner": "murmur2_random",
                    "linger.ms": 2,
                    "log_level": 0,
                }
            )
            with suppress(KafkaException):
                producer.init_transactions(10)
                self._producer = producer
            if self._producer is None and self._stopped.wait(PAUSE):
                raise KafkaException("no broker for the last items")
        return self._producer
