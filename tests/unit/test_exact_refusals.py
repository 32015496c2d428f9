"""What can't be exactly once is refused, before it gives wrong results."""

from __future__ import annotations

import pytest
from faust.agents.agent import _current_agent

import streamproc
from streamproc.errors import ConfigurationError


@pytest.fixture
def app():
    return streamproc.App(
        "exact", broker="kafka://127.0.0.1:1", processing_guarantee="exactly_once"
    )


async def test_concurrent_actors_are_refused(app):
    @app.agent(app.topic("t"), concurrency=2)
    async def work(stream):
        async for _ in stream:
            pass

    with pytest.raises(ConfigurationError, match=r"concurrency=2.*start more workers"):
        await work.on_start()


async def test_asking_an_agent_in_an_agent_is_refused(app):
    @app.agent(app.topic("t"))
    async def work(stream):
        async for _ in stream:
            pass

    token = _current_agent.set(work)
    try:
        with pytest.raises(ConfigurationError, match="would wait for ever"):
            await work.ask("question")
    finally:
        _current_agent.reset(token)
