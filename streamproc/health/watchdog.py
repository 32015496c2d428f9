"""The watchdog of a worker: it ends a worker that no longer does its work."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from mode import Service

logger = logging.getLogger(__name__)

#: Seconds between two looks.
TICK = 1.0
#: Seconds between two questions to the servers of sinks; one second while some are away.
ASK_INTERVAL = 5.0
#: Seconds between two looks from which on the process itself counts as having stood still.
FROZEN = 3.0


class Watchdog(Service):  # type: ignore[misc]
    """Looks each second whether things go on.

    Args:
        app: The App.
        give_up: Called, with the reason, when they have not for ``stall_timeout``.
    """

    def __init__(self, app: Any, give_up: Callable[[str], None], **kwargs: Any) -> None:
        self._app = app
        self._give_up = give_up
        self._warned = False
        super().__init__(**kwargs)

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        last = monotonic()
        while not self.should_stop:
            await self.sleep(TICK)
            now = monotonic()
            if now - last > FROZEN:
                self._app.health.forgive(now - last)
            last = now
            if not self.should_stop:
                self.look()

    @Service.task  # type: ignore[untyped-decorator]
    async def _ask_sinks(self) -> None:
        sinks = self._app.health.sinks
        while not self.should_stop:
            await self.sleep(TICK if sinks.away else ASK_INTERVAL)
            if not self.should_stop:
                await sinks.ask()

    def look(self) -> None:
        """Look once."""
        health = self._app.health
        if health.gave_up is not None:
            return
        health.look()
        stall = health.stall
        if stall is not None:
            logger.error("Giving up: %s.%s", stall, where_agents_wait(self._app))
            self._give_up(str(stall))
            return
        stall = health.warning
        if stall is not None and not self._warned:
            logger.warning(
                "Not ready: %s. The worker ends after %s s of it.%s",
                stall,
                health.stall_timeout,
                where_agents_wait(self._app),
            )
        self._warned = stall is not None


def where_agents_wait(app: Any) -> str:
    """Return where the code of each agent is, as text for the log."""
    parts = []
    for name, agent in app.agents.items():
        for actor in agent._actors:
            frames = [(frame, frame.f_lineno) for frame in _frames(actor.it)]
            if frames:
                parts.append(f"\nAgent {name} is at:\n")
                parts.extend(traceback.StackSummary.extract(iter(frames)).format())
    return "".join(parts).rstrip()


def _frames(awaited: Any) -> Iterator[Any]:
    """Give the frames from a coroutine or generator to what it waits for."""
    while awaited is not None:
        for kind in ("cr", "ag", "gi"):
            if hasattr(awaited, f"{kind}_frame"):
                frame = getattr(awaited, f"{kind}_frame")
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return
        if frame is not None:
            yield frame
