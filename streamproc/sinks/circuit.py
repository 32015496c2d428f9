"""A circuit breaker: a server that keeps failing is asked by one request at a time.

Requests go through while the circuit is closed. After some failures in a row it is open:
whoever has a request waits, and after a growing time one of them tries (the circuit is
half-open). If that succeeds the circuit is closed, and all go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

log = logging.getLogger(__name__)

State = Literal["closed", "open", "half-open"]

#: Failures in a row, of all who share the circuit, that open it.
THRESHOLD = 5
#: Seconds before the second try, doubled for each further one, and at most.
FIRST_DELAY, LONGEST_DELAY = 0.05, 5.0


class Circuit:
    """The circuit of one server; see the module's text.

    Attributes:
        failures: Failures since the last success.

    Args:
        name: What the log calls the server.
        threshold: Failures in a row that open it.
    """

    def __init__(self, name: str, threshold: int = THRESHOLD) -> None:
        self.name = name
        self.failures = 0
        self._threshold = threshold
        self._is_probing = False
        self._probe = asyncio.Lock()

    @property
    def state(self) -> State:
        """Whether requests go through."""
        if self.is_closed:
            return "closed"
        return "half-open" if self._is_probing else "open"

    @property
    def is_closed(self) -> bool:
        """True while all requests go through."""
        return self.failures < self._threshold

    @property
    def delay(self) -> float:
        """Seconds to wait before the next try; not the same for any two who ask."""
        delay = min(FIRST_DELAY * 2.0 ** min(self.failures - 1, 10), LONGEST_DELAY)
        return delay * random.uniform(0.5, 1.0)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be made, which the ``with`` block does."""
        if self.is_closed:
            yield
            return
        async with self._probe:
            if self.is_closed:  # since another request has succeeded
                yield
                return
            await asyncio.sleep(self.delay)
            self._is_probing = True
            try:
                yield
            finally:
                self._is_probing = False

    def on_failure(self) -> None:
        """Note that the server did not do what it was asked."""
        self.failures += 1
        if self.failures == self._threshold:
            log.info(
                "%s failed %d times in a row: one request at a time asks it from now on",
                self.name,
                self.failures,
            )

    def on_success(self) -> None:
        """Note that the server answers."""
        self.failures = 0
