"""Finding the Topic that an app declared for a name, to know the types of its records."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import faust.topics


def declared_topic(app: Any, name: str) -> Any:
    """Return a Topic of ``app`` with this name, or None if it has none.

    An app keeps no list of its topics. What agents read, write or can see by a name of
    their modules is looked at first, then all objects there are.
    """
    for search in (_known_to_agents, _ends_of_flows, _anywhere):
        for topic in search(app):
            if isinstance(topic, faust.topics.Topic) and topic.app is app and name in topic.topics:
                return topic
    return None


def _known_to_agents(app: Any) -> Iterator[Any]:
    for agent in app.agents.values():
        yield agent.channel
        yield from agent._sinks
        yield from list(getattr(agent.fun, "__globals__", {}).values())
        for cell in getattr(agent.fun, "__closure__", None) or ():
            yield cell.cell_contents


def _ends_of_flows(app: Any) -> Iterator[Any]:
    for source in app.flows:
        for node in source.walk():
            yield getattr(node.step, "target", None)


def _anywhere(app: Any) -> Iterator[Any]:
    # It takes some 10 ms, and only names that no agent can see come here.
    yield from gc.get_objects()
