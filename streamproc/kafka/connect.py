"""Waiting for a broker that isn't there yet, saying so once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaError

from streamproc.errors import ConfigurationError
from streamproc.kafka.refusal import client_security, find_refusal

#: Seconds between two attempts to connect.
RETRY_INTERVAL = 0.5


def addresses(urls: Any) -> str:
    """Return broker URLs as "host:port, host:port", without user and password."""
    return ", ".join(f"{url.host or '127.0.0.1'}:{url.port or 9092}" for url in urls)


def _bootstrap(urls: Any) -> str:
    return addresses(urls).replace(" ", "")


@contextmanager
def _quiet(told: bool) -> Iterator[None]:
    """Keep aiokafka from logging each attempt, once it has been said."""
    logger = logging.getLogger("aiokafka")
    level = logger.level
    if told:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


async def start_when_reachable(
    create: Callable[[], Any], *, service: Any, what: str, address: Any
) -> Any:
    """Create an aiokafka client and start it, trying until a broker answers.

    Returns None when ``service`` was stopped meanwhile.

    Raises:
        ConfigurationError: The broker refuses us: a wrong login, no TLS where it wants
            some, a certificate that one side doesn't trust...
    """
    since = monotonic()
    told = False
    while not service.should_stop:
        client = create()
        try:
            with _quiet(told):
                await client.start()
        except asyncio.CancelledError:
            await client.stop()
            raise
        except (KafkaConnectionError, KafkaError, OSError, asyncio.TimeoutError) as exc:
            await client.stop()
            # The client says only that it could not connect.
            with _quiet(True):
                refusal = await find_refusal(_bootstrap(address), client_security(client))
            if refusal is not None:
                raise ConfigurationError(f"{refusal}.") from exc
            if not told:
                told = True
                service.log.warning(
                    "%s: no Kafka broker answers at %s (%s). Trying again every %s s; "
                    "check the address and that the broker runs.",
                    what,
                    addresses(address),
                    exc,
                    RETRY_INTERVAL,
                )
            await asyncio.sleep(RETRY_INTERVAL)
        else:
            if told:
                service.log.warning(
                    "%s: connected to %s after %.1f s",
                    what,
                    addresses(address),
                    monotonic() - since,
                )
            return client
    return None
