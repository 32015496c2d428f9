"""Whether an app under test has anything left to do, and who has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Work:
    """Looks at an app's streams, consumer and checkpoint gate."""

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def is_left(self) -> bool:
        """True while records are fetched, handed out, worked on, or given again.

        Records that ``take(within=)`` collects are not: time alone hands them on.
        """
        app = self._app
        return (
            app.consumer.is_behind
            or app.checkpoint.is_going_back
            or bool(app.checkpoint.gate._inside)
            or any(each.has_backlog and not each.closed for each in app.topics.progress())
            or any(stream._redo._queue for stream in self._streams())
        )

    def _streams(self) -> Iterator[Any]:
        for agent in self._app.agents.values():
            for actor in agent._actors:
                yield from actor.stream.get_root_stream()._iter_ll_forwards()

    def describe(self) -> str:
        """Say who has records in hand."""
        app = self._app
        holders = ", ".join(map(repr, app.checkpoint.gate._inside)) or "nobody"
        waiting = sorted(
            {
                f"{each.tp.topic}/{each.tp.partition}"
                for each in app.topics.progress()
                if each.has_backlog or not each.idle
            }
        )
        return f"not done in {', '.join(waiting) or 'no partition'}; in hand of {holders}"
