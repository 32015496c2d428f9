"""Asking the servers of sinks whether they are there, also while nothing is written.

A sink learns from writing that its server is away, and from writing that it is back; a
worker with nothing to write would say what was true the last time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from streamproc.errors import StreamprocError

#: Longest wait for an answer, in seconds.
TIMEOUT = 5.0


class SinkProbe:
    """Knows which sinks' servers don't answer."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._silent: dict[Any, str] = {}

    @property
    def away(self) -> dict[Any, str]:
        """The sinks whose servers are away, with the reason in words."""
        found = {}
        for sink in self._app.sinks:
            if sink in self._silent:
                found[sink] = self._silent[sink]
            elif getattr(sink, "state", "connected") != "connected":
                found[sink] = repr(sink)
        return found

    async def ask(self) -> None:
        """Ask all servers, one after the other."""
        for sink in self._app.sinks:
            # The first may fail since a connection that nobody used was closed.
            problem = await self._ask(sink) and await self._ask(sink)
            if problem:
                self._silent[sink] = problem
            else:
                self._silent.pop(sink, None)

    async def _ask(self, sink: Any) -> str | None:
        if not hasattr(sink, "check"):
            return None
        try:
            await asyncio.wait_for(sink.check(), TIMEOUT)
        except StreamprocError as exc:
            return str(exc)
        except asyncio.TimeoutError:
            return f"{sink!r} did not answer within {TIMEOUT:g} s"
        except Exception as exc:  # noqa: BLE001 (whatever a user's sink raises)
            return f"{sink!r} can't be checked: {exc!r}"
        return None
