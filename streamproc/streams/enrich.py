"""Look-ups in servers: batched, cached, with time-outs, never one await a record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Literal

from streamproc.errors import ConfigurationError, LookUpFailed
from streamproc.streams.rows import Rows
from streamproc.streams.steps import AsyncStep, Task, applied

logger = logging.getLogger(__name__)

OnMissing = Literal["pass", "drop", "dead-letter"]
OnError = Literal["dead-letter", "pass", "fail"]

#: Seconds before the first retry; doubled for each further one.
FIRST_DELAY = 0.1
#: At most one log line about failures in this many seconds.
LOG_INTERVAL = 5.0


class Cache:
    """Values found lately: at most so many, the least recently used dropped first.

    Args:
        size: Most entries.
        ttl: Seconds for which one is good.
    """

    def __init__(self, size: int, ttl: float) -> None:
        self._size = size
        self._ttl = ttl
        self._entries: dict[Any, tuple[float, Any]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Iterable[Any], now: float) -> dict[Any, Any]:
        """Return what is known and still good of some keys."""
        entries, found = self._entries, {}
        for key in keys:
            entry = entries.pop(key, None)
            if entry is not None and entry[0] > now:
                entries[key] = entry
                found[key] = entry[1]
        return found

    def keep(self, values: Mapping[Any, Any], now: float) -> None:
        """Remember values."""
        until = now + self._ttl
        entries = self._entries
        for key, value in values.items():
            entries.pop(key, None)
            entries[key] = (until, value)
        for key in list(islice(entries, max(0, len(entries) - self._size))):
            del entries[key]


class Enrich(AsyncStep):
    """Gives ``(value, what a look-up found for its key)``.

    A batch asks once for the distinct keys that the cache doesn't know.

    Args:
        name: What errors and logs call it.
        app: The App; a look-up with an ``open`` method gets it.
        look_up: Async function of a list of keys, or of one key. An exception in the place
            of a value is an error of that key alone.
        pick: From a value to its key; None: the record's key.
        batched: Whether ``look_up`` takes a list.
        concurrency: How many calls may run at once, for all partitions.
        cache: Values found lately.
        timeout: Seconds that one call may take.
        retries: How often a call is made again that failed or took too long.
        max_keys: Most keys in one call.
        on_missing: What becomes of a record whose key isn't found.
        on_error: What becomes of records whose look-up failed for good.
    """

    def __init__(
        self,
        name: str,
        app: Any,
        look_up: Callable[[Any], Awaitable[Any]],
        *,
        pick: Callable[[Any], Any] | None,
        batched: bool,
        concurrency: int,
        cache: Cache,
        timeout: float,
        retries: int,
        max_keys: int,
        on_missing: str,
        on_error: str,
    ) -> None:
        if on_missing not in ("pass", "drop", "dead-letter"):
            raise ConfigurationError(f'on_missing={on_missing!r}: "pass", "drop", "dead-letter"')
        if on_error not in ("pass", "fail", "dead-letter"):
            raise ConfigurationError(f'on_error={on_error!r}: "dead-letter", "pass", "fail"')
        if concurrency < 1 or max_keys < 1 or retries < 0 or timeout <= 0:
            raise ConfigurationError(
                "enrich() needs concurrency and max_keys of at least 1, retries of at least 0 and "
                "a timeout above 0"
            )
        self.name = name
        self._app = app
        self._look_up = look_up
        self._pick = pick
        self._batched = batched
        self._concurrency = concurrency
        self._slots: asyncio.Semaphore | None = None
        self._cache = cache
        self._timeout = timeout
        self._retries = retries
        self._max_keys = max_keys
        self._on_missing = on_missing
        self._on_error = on_error
        self._logged = 0.0
        self._opening: asyncio.Future[None] | None = None
        #: Calls made, and those that failed, since the start.
        self.calls = 0
        self.failures = 0

    async def run(self, rows: Rows, task: Task) -> Rows:
        keys = rows.keys
        if self._pick is not None:
            rows, keys = applied(self.name, rows, task, self._pick)
        found, failed = await self._find(set(keys))
        kept, results = [], []
        for row, key in enumerate(keys):
            error = failed.get(key)
            if error is not None and self._on_error == "dead-letter":
                task.reject(self.name, error, rows, row)
                continue
            value = found.get(key)
            if value is None and error is None and self._on_missing != "pass":
                if self._on_missing == "dead-letter":
                    missing = LookUpFailed(f"{self.name} found nothing for key {key!r}")
                    task.reject(self.name, missing, rows, row)
                continue
            kept.append(row)
            results.append((rows.values[row], value))
        return (rows if len(kept) == len(rows) else rows.pick(kept)).with_values(results)

    async def _find(self, keys: set[Any]) -> tuple[dict[Any, Any], dict[Any, BaseException]]:
        """Return what is found, None where nothing is, and why look-ups failed."""
        now = asyncio.get_running_loop().time()
        found = self._cache.find(keys, now)
        unknown = [key for key in keys if key not in found]
        failed: dict[Any, BaseException] = {}
        if not unknown:
            return found, failed
        await self._open()
        size = self._max_keys if self._batched else 1
        parts = [unknown[begin : begin + size] for begin in range(0, len(unknown), size)]
        results = await asyncio.gather(*map(self._ask, parts))
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, LookUpFailed):
                failed.update(dict.fromkeys(part, result))
                continue
            bad = {key: value for key, value in result.items() if isinstance(value, Exception)}
            for key, error in bad.items():
                del result[key]
                failed[key] = LookUpFailed(f"{self.name} of {key!r} failed: {error}")
            self._cache.keep(result, now)
            found.update(result)
        if failed and self._on_error == "fail":
            raise next(iter(failed.values()))
        return found, failed

    async def _open(self) -> None:
        look_up: Any = self._look_up
        if not hasattr(look_up, "open"):
            return
        if self._opening is None:
            self._opening = asyncio.ensure_future(look_up.open(self._app))
            self._app.on_before_shutdown.connect(self._close)
        await self._opening

    async def _close(self, *args: Any, **kwargs: Any) -> None:
        look_up: Any = self._look_up
        if self._opening is not None:
            self._opening = None
            await look_up.close()

    async def _ask(self, keys: list[Any]) -> dict[Any, Any] | LookUpFailed:
        """Ask for some keys, again as often as is allowed."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._concurrency)
        attempt = 0
        while True:
            try:
                async with self._slots:
                    self.calls += 1
                    answer = self._look_up(keys if self._batched else keys[0])
                    return self._values(keys, await asyncio.wait_for(answer, self._timeout))
            except Exception as exc:  # noqa: BLE001 - user code may raise anything
                self.failures += 1
                reason = (
                    f"no answer within {self._timeout:g} s"
                    if isinstance(exc, asyncio.TimeoutError)
                    else repr(exc)
                )
                error = LookUpFailed(f"{self.name} of {_shown(keys)} failed: {reason}")
                error.__cause__ = exc
            self._log(error, attempt)
            if attempt == self._retries:
                return error
            await asyncio.sleep(FIRST_DELAY * 2**attempt)
            attempt += 1

    def _values(self, keys: list[Any], answer: Any) -> dict[Any, Any]:
        if not self._batched:
            return {keys[0]: answer}
        if isinstance(answer, Mapping):
            return {key: answer.get(key) for key in keys}
        if not isinstance(answer, Sequence) or len(answer) != len(keys):
            raise LookUpFailed(
                f"it returned {answer!r:.100}, neither a dict nor a list of {len(keys)} values"
            )
        return dict(zip(keys, answer, strict=True))

    def _log(self, error: BaseException, attempt: int) -> None:
        now = monotonic()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            logger.warning("%s (attempt %s of %s)", error, attempt + 1, self._retries + 1)


def _shown(keys: list[Any]) -> str:
    return repr(keys[0]) if len(keys) == 1 else f"{len(keys)} keys"
