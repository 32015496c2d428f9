"""The pages ``/live`` and ``/ready``, for probes: status 200 for yes, 503 for no.

Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from faust import web

from streamproc.web.cluster import on_loop_of
from streamproc.web.keys import encode_json

blueprint = web.Blueprint("streamproc-health")

#: Seconds within which the event loop has to answer.
ANSWER_TIMEOUT = 2.0

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class HealthView(web.View):  # type: ignore[misc]
    """What both pages share."""

    async def get(self, request: Any) -> Any:
        try:
            # The web server may have a thread of its own.
            content = await asyncio.wait_for(on_loop_of(self.app, self.content()), ANSWER_TIMEOUT)
        except asyncio.TimeoutError:
            content = self.no(f"the event loop did not answer within {ANSWER_TIMEOUT:g} s")
        (is_well, *_) = content.values()
        return self.bytes(
            encode_json(content) + b"\n",
            content_type="application/json",
            status=200 if is_well else 503,
            headers=_HEADERS,
        )

    async def content(self) -> Mapping[str, Any]:
        """Return what the page says; its first value is the answer."""
        raise NotImplementedError

    def no(self, reason: str) -> Mapping[str, Any]:
        """Say no, and why."""
        raise NotImplementedError


@blueprint.route("/live", name="live")
class Live(HealthView):
    """
    ---
    description: Whether the worker should go on running.
    tags:
    - Faust
    produces:
    - application/json
    """

    async def content(self) -> Mapping[str, Any]:
        health = self.app.health
        return {"live": True} if health.live else self.no(health.gave_up)

    def no(self, reason: str) -> Mapping[str, Any]:
        return {"live": False, "reasons": [reason]}


@blueprint.route("/ready", name="ready")
class Ready(HealthView):
    """
    ---
    description: Whether the worker does its part of the work, and what it lacks if not.
    tags:
    - Faust
    produces:
    - application/json
    """

    async def content(self) -> Mapping[str, Any]:
        health = self.app.health
        checks = health.checks()
        return {
            "ready": all(check.ok for check in checks),
            "reasons": [f"{check.name}: {check.reason}" for check in checks if not check.ok],
            "checks": {check.name: check.ok for check in checks},
            "lag": {f"{tp.topic}/{tp.partition}": lag for tp, lag in health.lag().items()},
            "seconds_since": {
                "heartbeat": _rounded(health.heartbeat_age if health.started else None),
                "checkpoint": _rounded(health.checkpoint_age),
                "progress": _rounded(health.progress_age),
            },
        }

    def no(self, reason: str) -> Mapping[str, Any]:
        return {"ready": False, "reasons": [reason]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
