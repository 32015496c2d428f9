"""Whether this process stood still so long that its group may have gone on without it."""

from __future__ import annotations

import time
from typing import Any

from mode import Service

#: Seconds between two looks at the clock.
TICK = 0.25
#: Seconds that a heartbeat may be under way.
MARGIN = 1.0


class PauseWatch(Service):  # type: ignore[misc]
    """Notices that the process was frozen (or suspended, or its event loop was held up).

    Others have its partitions then, which it hears with its next heartbeat. Until that
    must have come back, what it believes to have is in doubt.
    """

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self._app = app
        self._seen = self._doubt_until = 0.0
        super().__init__(**kwargs)

    @property
    def in_doubt(self) -> bool:
        """True while this worker can't be sure to be a member of its group."""
        # The wall clock goes on while a machine is suspended.
        now = time.time()
        return now < self._doubt_until or self._is_pause(now)

    def _is_pause(self, now: float) -> bool:
        conf = self._app.conf
        # The last heartbeat may have been an interval (and its way) before the pause began.
        safe = conf.broker_session_timeout - conf.broker_heartbeat_interval
        return bool(self._seen and now - self._seen > max(safe - MARGIN, safe / 2))

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            now = time.time()
            if self._is_pause(now):
                heartbeat = self._app.conf.broker_heartbeat_interval
                self._doubt_until = now + 2 * heartbeat
                self.log.warning(
                    "The worker stood still for %.1f s; questions about tables are refused "
                    "for %.1f s, until its group must have told whether it is still a member",
                    now - self._seen,
                    2 * heartbeat,
                )
            self._seen = now
            await self.sleep(TICK)
