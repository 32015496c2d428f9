"""Replies of agents to who asked. Checked against faust-streaming 0.15.3."""

from __future__ import annotations

from typing import Any

import faust.agents.replies
from faust.models import maybe_model


class ReplyConsumer(faust.agents.replies.ReplyConsumer):  # type: ignore[misc]
    """Reads reply topics and hands each reply to who waits for it."""

    async def _start_fetcher(self, topic_name: str) -> None:
        """Read a reply topic from its begin on.

        Faust subscribes to it 3 s before it reads: a reply that comes in between is lost.
        """
        if topic_name in self._fetchers:
            return
        self._fetchers[topic_name] = None
        topic = self._reply_topic(topic_name)
        await topic.maybe_declare()
        self._fetchers[topic_name] = self.add_future(self._drain_replies(topic))

    async def _drain_replies(self, channel: Any) -> None:
        async for reply in channel.stream():
            # A request that is processed again is answered again: the first reply counts.
            for promise in self._waiting.pop(reply.correlation_id, ()):
                promise.fulfill(reply.correlation_id, maybe_model(reply.value))
